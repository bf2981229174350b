"""A `SyncDatabase` in the clothes of a `Database`, so that the conformance suite can be run over it.

Each call is made in place, in the thread of the test: nothing is awaited that waits.
"""

import asyncio
import functools
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

from fastapi import Depends, FastAPI
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from transact.fastapi.threads import SyncDatabase

URLS = {"sqlite+aiosqlite": "sqlite+pysqlite", "mysql+asyncmy": "mysql+pymysql", "postgresql+psycopg": None}


def sync_url(url: str) -> str:
    """The URL of the same database by a sync driver."""
    driver, _, rest = url.partition("://")
    return f"{URLS[driver] or driver}://{rest}"


class SessionInPlace(AsyncSession):
    """An `AsyncSession` over a plain session; what SQLAlchemy insists to await is called in place."""

    async def execute(self, *args: Any, **kwargs: Any) -> Any:
        return self.sync_session.execute(*args, **kwargs)

    async def scalars(self, *args: Any, **kwargs: Any) -> Any:
        return self.sync_session.scalars(*args, **kwargs)

    async def connection(self, **options: Any) -> Any:
        return ConnectionInPlace(self.sync_session.connection(**options))

    async def stream(self, *args: Any, **kwargs: Any) -> Any:
        return ResultInPlace(self.sync_session.execute(*args, execution_options=STREAMS, **kwargs))

    async def stream_scalars(self, *args: Any, **kwargs: Any) -> Any:
        return ResultInPlace(self.sync_session.scalars(*args, execution_options=STREAMS, **kwargs))


STREAMS = {"stream_results": True}


def as_async(session: Session) -> AsyncSession:
    """An `AsyncSession` whose plain session is `session`; always the same one."""
    found: Any = AsyncSession._retrieve_proxy_for_target(session, regenerate=False)
    if found is None:
        found = SessionInPlace.__new__(SessionInPlace)
        found.sync_session = found._proxied = found._assign_proxied(session)
        session.in_clothes = found
    return found


class ResultInPlace:
    def __init__(self, result: Any) -> None:
        self._result = result

    async def all(self) -> Any:
        return self._result.all()

    async def __aiter__(self) -> AsyncIterator[Any]:
        for row in self._result:
            yield row


class ConnectionInPlace:
    """A plain connection with the methods of an `AsyncConnection`."""

    AWAITED = frozenset({"execute", "exec_driver_sql", "scalar", "scalars", "commit", "rollback", "close"})

    def __init__(self, connection: Any) -> None:
        self.sync_connection = connection

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.sync_connection, name)
        return found if name not in self.AWAITED else plain_as_async(found)

    async def get_raw_connection(self) -> Any:
        return self.sync_connection.connection

    def stream(self, *args: Any, **kwargs: Any) -> "Stream":
        return Stream(lambda: self.sync_connection.execute(*args, execution_options=STREAMS, **kwargs))


class Stream:
    def __init__(self, start: Callable[[], Any]) -> None:
        self._start = start

    def __await__(self) -> Generator[Any, None, Any]:
        return self.__aenter__().__await__()

    async def __aenter__(self) -> ResultInPlace:
        self._result = self._start()
        return ResultInPlace(self._result)

    async def __aexit__(self, *_: object) -> None:
        self._result.close()


def plain_as_async(f: Callable[..., Any]) -> Callable[..., Any]:
    async def call(*args: Any, **kwargs: Any) -> Any:
        return f(*args, **kwargs)

    return call


def driven(awaitable: Awaitable[Any]) -> Any:
    """The result of what awaits nothing that waits, but for `asyncio.sleep`: as in a thread, that lets nobody run here."""
    waiting = awaitable.__await__()
    usual, asyncio.sleep = asyncio.sleep, plain_as_async(time.sleep)
    try:
        while waiting.send(None) is None:
            pass
    except StopIteration as done:
        return done.value
    finally:
        asyncio.sleep = usual
    raise AssertionError("it waits, and nobody can here")


def plainly(f: Callable[..., Any]) -> Callable[..., Any]:
    """`f`, an `async def`, as a plain function that is given plain sessions."""

    @functools.wraps(f)
    def call(*args: Any, **kwargs: Any) -> Any:
        result = f(*(as_async(a) if isinstance(a, Session) else a for a in args), **kwargs)
        return driven(result) if inspect.isawaitable(result) else result

    return call


class Block:
    def __init__(self, block: AbstractContextManager[Any], clothe: Callable[[Any], Any] = as_async) -> None:
        self._block = block
        self._clothe = clothe

    async def __aenter__(self) -> Any:
        return self._clothe(self._block.__enter__())

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

    def connect(self) -> Block:
        return Block(self.sync_engine.connect(), ConnectionInPlace)

    def begin(self) -> Block:
        return Block(self.sync_engine.begin(), ConnectionInPlace)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sync_engine, name)


class FactoryInPlace:
    def __init__(self, factory: Any) -> None:
        self._factory = factory

    def __call__(self) -> AsyncSession:
        return as_async(self._factory())

    def begin(self) -> Block:
        return Block(self._factory.begin())


class InPlace:
    """The verbs of `Database`, and its dependencies for `async def` routes."""

    def __init__(self, url: str, **arguments: Any) -> None:
        self._db = SyncDatabase(sync_url(url), **arguments)

    def install(self, app: FastAPI, **options: Any) -> None:
        self._db.install(app, **options)

    def session(self, **options: Any) -> Any:
        return clothed(self._db.session(**options))

    def manual_session(self) -> Any:
        return clothed(self._db.manual_session())

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
        decorate = self._db.transactional(**options)
        return functools.partial(decorated, decorate) if f is None else decorated(decorate, f)

    async def run(self, f: Any, /, *args: Any, **options: Any) -> Any:
        return self._db.run(plainly(f), *args, **options)

    async def attempts(self, **options: Any) -> AsyncIterator[Block]:
        """For what is not tried again: where such a loop goes on, only a loop of `for` can tell."""
        for attempt in self._db.attempts(**options):
            yield Block(attempt)

    def attempted(self, work: Any, **options: Any) -> Any:
        for attempt in self._db.attempts(**options):
            with attempt as session:
                result = plainly(work)(session)
        return result

    @property
    def engine(self) -> EngineInPlace:
        return EngineInPlace(self._db.engine)

    @property
    def read_engine(self) -> EngineInPlace:
        return EngineInPlace(self._db.read_engine)

    @property
    def session_factory(self) -> FactoryInPlace:
        return FactoryInPlace(self._db.session_factory)

    @property
    def current(self) -> Current:
        return Current(self._db.current)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._db, name)
        return found if name not in HOOKS else functools.partial(registered, found)


def decorated(decorate: Callable[..., Any], f: Callable[..., Any]) -> Callable[..., Any]:
    plain = decorate(plainly(f))

    @functools.wraps(plain)
    async def call(*args: Any, **kwargs: Any) -> Any:
        return plain(*args, **kwargs)

    call.__wrapped__ = f
    return call


def clothed(dependency: Any) -> Any:
    async def session(given: Any = dependency) -> AsyncSession:
        return as_async(given)

    return Depends(session)
