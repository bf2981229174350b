"""A `SyncDatabase` in the clothes of a `Database`, so that the conformance suite can be run over it.

Each call is made in place, in the thread of the test: nothing is awaited that waits.
"""

import functools
import inspect
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from transact.sync import SyncDatabase

URLS = {"sqlite+aiosqlite": "sqlite+pysqlite", "mysql+asyncmy": "mysql+pymysql", "postgresql+psycopg": None}


def sync_url(url: str) -> str:
    """The URL of the same database by a sync driver."""
    driver, _, rest = url.partition("://")
    return f"{URLS[driver] or driver}://{rest}"


def as_async(session: Session) -> AsyncSession:
    """An `AsyncSession` whose plain session is `session`; always the same one."""
    found = AsyncSession._retrieve_proxy_for_target(session, regenerate=False)
    if found is None:
        found = AsyncSession.__new__(AsyncSession)
        found.sync_session = found._proxied = found._assign_proxied(session)
        session.in_clothes = found
    return found


def driven(awaitable: Awaitable[Any]) -> Any:
    """The result of what awaits nothing that waits."""
    waiting = awaitable.__await__()
    try:
        while waiting.send(None) is None:  # asyncio.sleep(0)
            pass
    except StopIteration as done:
        return done.value
    raise AssertionError("it waits, and nobody can here")


def plainly(f: Callable[..., Any]) -> Callable[..., Any]:
    """`f`, an `async def`, as a plain function that is given plain sessions."""

    @functools.wraps(f)
    def call(*args: Any, **kwargs: Any) -> Any:
        result = f(*(as_async(a) if isinstance(a, Session) else a for a in args), **kwargs)
        return driven(result) if inspect.isawaitable(result) else result

    return call


class Block:
    def __init__(self, block: Any) -> None:
        self._block = block

    async def __aenter__(self) -> AsyncSession:
        return as_async(self._block.__enter__())

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._block.__exit__(kind, error, traceback)


class Current:
    def __init__(self, transaction: Any) -> None:
        self._transaction = transaction

    @property
    def session(self) -> AsyncSession:
        return as_async(self._transaction.session)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._transaction, name)
        return found if name not in HOOKS else functools.partial(registered, found)

    def __repr__(self) -> str:
        return repr(self._transaction)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Current) and other._transaction is self._transaction

    def __hash__(self) -> int:
        return hash(self._transaction)


HOOKS = {"before_commit", "after_commit", "after_rollback", "after_completion"}


def registered(register: Callable[..., Any], hook: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    register(plainly(hook), **options)
    return hook


class EngineInPlace:
    def __init__(self, engine: Any) -> None:
        self.sync_engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sync_engine, name)


class InPlace:
    """The verbs of `Database`."""

    def __init__(self, url: str, **arguments: Any) -> None:
        self._db = SyncDatabase(sync_url(url), **arguments)

    def install(self, *_: object) -> None:
        pytest.skip("a request asks for more than the verbs: see test_def_routes")

    session = manual_session = install

    async def open(self) -> None:
        self._db.open()

    async def close(self) -> None:
        self._db.close()

    async def ping(self) -> None:
        self._db.ping()

    def transaction(self, **options: Any) -> Block:
        options.setdefault("label", inspect.stack()[1].frame.f_code.co_qualname)
        return Block(self._db.transaction(**options))

    def savepoint(self) -> Block:
        return Block(self._db.savepoint())

    def transactional(self, f: Any = None, /, **options: Any) -> Any:
        if f is None:
            return functools.partial(self.transactional, **options)
        decorated = self._db.transactional(**options)(plainly(f))

        @functools.wraps(decorated)
        async def call(*args: Any, **kwargs: Any) -> Any:
            return decorated(*args, **kwargs)

        return call

    async def run(self, f: Any, /, *args: Any, **options: Any) -> Any:
        return self._db.run(plainly(f), *args, **options)

    @property
    def engine(self) -> EngineInPlace:
        return EngineInPlace(self._db.engine)

    @property
    def current(self) -> Current:
        return Current(self._db.current)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._db, name)
        return found if name not in HOOKS else functools.partial(registered, found)
