"""``Database``: one engine, its pool, and the verbs that run code in transactions."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Protocol, Self, TypeVar, Unpack, overload

from sqlalchemy import MetaData, select
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from transact._core.hooks import Hook
from transact._sqlalchemy.engines import check_driver, make_engine
from transact._sqlalchemy.faces import TransactionBlock
from transact._sqlalchemy.runtime import Runtime, parse_url
from transact._sqlalchemy.transaction import Transaction, caller_name
from transact.errors import ConfigurationError, NoTransaction, UsageError
from transact.events import Listener, LoggingListener
from transact.options import Isolation, Options, Propagation, Retry, TransactionOptions, parse_options
from transact.settings import arguments_from_env

P = ParamSpec("P")
R = TypeVar("R")
Me = TypeVar("Me")
S = TypeVar("S", bound=AsyncSession)
S_contra = TypeVar("S_contra", bound=AsyncSession, contravariant=True)


class Transactional(Protocol):
    """What ``db.transactional(**options)`` returns: a decorator of functions and of methods."""

    @overload
    def __call__(self, f: Callable[Concatenate[S, P], Awaitable[R]], /) -> Callable[P, Coroutine[Any, Any, R]]: ...

    @overload
    def __call__(
        self, f: Callable[Concatenate[Me, S, P], Awaitable[R]], /
    ) -> Callable[Concatenate[Me, P], Coroutine[Any, Any, R]]: ...


class Database:
    """One database: an engine with its pool, and verbs that run code in transactions on it.

    - ``url``: such as ``postgresql+asyncpg://app@localhost/shop``; drivers: asyncpg, psycopg, asyncmy, aiosqlite.
    - ``pool_size``, ``max_overflow``: connections that are kept, and that may be opened beyond them under load.
    - ``pool_timeout``: seconds to wait for a connection before ``PoolTimeout``.
    - ``isolation``: the level of transactions that name none; ``None`` means the engine's own default.
    - ``metadata``: the application's ``MetaData``; lets errors name constraints, tables and columns on every engine.
    - ``name``: what the database is called in logs and events.
    - ``echo``: log every statement, as SQLAlchemy does.
    - ``session_class``: a subclass of ``AsyncSession``, SQLModel's for example; its guard is mixed in.
    - ``engine_options``: anything else for ``sqlalchemy.ext.asyncio.create_async_engine``.

    Raises ``ConfigurationError`` for values that cannot work, before any connection is made. A password never appears in
    an error, a log or the ``repr``. ``max_waiting``, ``retry``, ``timeout`` and ``verify_commit`` are reserved: this
    version refuses values other than their defaults.
    """

    def __init__(
        self,
        url: str | URL,
        *,
        pool_size: int = 20,
        max_overflow: int = 10,
        pool_timeout: float = 30.0,
        max_waiting: int | None = None,
        isolation: Isolation | None = None,
        retry: Retry | None = None,
        timeout: float | None = None,
        verify_commit: bool = False,
        metadata: MetaData | None = None,
        name: str = "default",
        echo: bool = False,
        session_class: type[AsyncSession] = AsyncSession,
        engine_options: Mapping[str, Any] | None = None,
    ) -> None:
        later = {"max_waiting": max_waiting, "retry": retry, "timeout": timeout, "verify_commit": verify_commit or None}
        for argument, value in later.items():
            if value is not None:
                raise ConfigurationError(f"{argument}= is not supported by this version of transact; leave it out")
        _check_pool(pool_size, max_overflow, pool_timeout)
        if isolation is not None and not isinstance(isolation, Isolation):
            raise ConfigurationError(f"isolation={isolation!r}: write a member of Isolation")
        if not (isinstance(session_class, type) and issubclass(session_class, AsyncSession)):
            raise ConfigurationError(f"session_class={session_class!r}: write a subclass of AsyncSession")
        self._url = parse_url(url)
        check_driver(self._url)
        self.name = name
        self._isolation = isolation
        self._closed = False
        self._runtime = Runtime(name, session_class)
        self._runtime.listeners.append(LoggingListener())
        make_engine(
            self._url,
            self._runtime,
            pool={"pool_size": pool_size, "max_overflow": max_overflow, "pool_timeout": pool_timeout},
            metadata=metadata,
            options={"echo": echo, **(engine_options or {})},
        )

    @classmethod
    def from_env(cls, prefix: str = "TRANSACT_", **arguments: Any) -> Self:
        """Make a database from ``TRANSACT_URL``, ``TRANSACT_POOL_SIZE``, … : the arguments' names in upper case.

        ``arguments`` are passed on and win. Raises ``ConfigurationError`` that names each variable that is missing or wrong.
        """
        return cls(**{**arguments_from_env(prefix, given=arguments), **arguments})

    # Opening and closing.

    async def open(self) -> None:
        """Make the database usable. Nothing is checked on the network: see ``ping``."""
        self._closed = False

    async def close(self) -> None:
        """Close the pool's connections. Later verbs raise ``UsageError`` until the next ``open``."""
        self._closed = True
        await self._runtime.engine.dispose()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def ping(self) -> None:
        """Send one statement. Raises what stands in the way, such as ``DatabaseUnavailable`` or ``PermissionDenied``."""
        self._check_open()
        async with self.read_engine.connect() as connection:  # which does not wait for SQLite's writers
            await connection.execute(select(1))

    @property
    def engine(self) -> AsyncEngine:
        """SQLAlchemy's engine, for what has no verb here. Its errors are translated too."""
        return self._runtime.engine

    @property
    def read_engine(self) -> AsyncEngine:
        """The engine whose transactions are read-only; it shares the pool of ``engine``."""
        return self._runtime.engine_for(Options(isolation=self._isolation, read_only=True))

    @property
    def session_factory(self) -> async_sessionmaker[Any]:
        """A factory of plain sessions that belong to no transaction of this library and are their maker's to end."""
        return self._runtime.factory_for(Options(isolation=self._isolation))

    def listen(self, listener: Listener) -> Listener:
        """Call ``listener`` with each event of this database (``transact.events``). Returns it, so it can decorate."""
        self._runtime.listeners.append(listener)
        return listener

    # The verbs.

    def transaction(self, **options: Unpack[TransactionOptions]) -> TransactionBlock:
        """``async with db.transaction() as session``: run the block in a transaction; it joins one that is open.

        Leaving the block normally commits, any exception rolls back. Raises ``UnexpectedRollback`` if the transaction
        could only be rolled back, ``OptionsConflict``, ``NoTransaction`` or ``TransactionExists`` as the propagation says,
        and what the database says.
        """
        return self._block(self._options(options), caller_name(1))

    def savepoint(self) -> TransactionBlock:
        """``async with db.savepoint() as session``: if the block fails, the open transaction goes back to here.

        Raises ``NoTransaction`` if none is open: a savepoint that began a transaction would commit at its end.
        """
        _ = self.current
        return self._block(Options(propagation=Propagation.NESTED), caller_name(1))

    @overload
    def transactional(self, f: Callable[Concatenate[S, P], Awaitable[R]], /) -> Callable[P, Coroutine[Any, Any, R]]: ...

    @overload
    def transactional(
        self, f: Callable[Concatenate[Me, S, P], Awaitable[R]], /
    ) -> Callable[Concatenate[Me, P], Coroutine[Any, Any, R]]: ...

    @overload
    def transactional(self, /, **options: Unpack[TransactionOptions]) -> Transactional: ...

    def transactional(self, f: Any = None, /, **options: Unpack[TransactionOptions]) -> Any:
        """Decorate ``async def f(session, …)``: callers leave the session out, and each call runs in a transaction.

        Also for methods, ``async def f(self, session, …)``. ``f.__wrapped__`` stays callable with a session of one's own.
        Raises ``UsageError`` for what cannot work: a plain function, an async generator, no parameter for the session.
        """
        checked = self._options(options)
        if f is None:
            return functools.partial(self._decorate, options=checked)
        return self._decorate(f, options=checked)

    async def run(
        self, f: Callable[Concatenate[S, ...], Awaitable[R]], /, *args: Any, **options: Unpack[TransactionOptions]
    ) -> R:
        """Call ``f(session, *args)`` in a transaction and return what it returns."""
        async with self._block(self._options(options), getattr(f, "__qualname__", repr(f))) as session:
            return await f(session, *args)  # type: ignore[arg-type]  # S is whatever session_class makes

    @property
    def current(self) -> Transaction:
        """The innermost open block. Raises ``NoTransaction`` if there is none."""
        found = self._runtime.innermost()
        if found is None:
            raise NoTransaction(
                f"no transaction of database {self.name!r} is open here; open one: async with db.transaction()"
            )
        return found

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction of this database is open here."""
        return self._runtime.innermost() is not None

    def before_commit(self, hook: Hook) -> Hook:
        """Register ``hook`` on ``db.current``: see ``Transaction.before_commit``."""
        return self.current.before_commit(hook)

    def after_commit(self, hook: Hook, *, critical: bool = False) -> Hook:
        """Register ``hook`` on ``db.current``: see ``Transaction.after_commit``."""
        return self.current.after_commit(hook, critical=critical)

    def after_rollback(self, hook: Hook) -> Hook:
        """Register ``hook`` on ``db.current``: see ``Transaction.after_rollback``."""
        return self.current.after_rollback(hook)

    def after_completion(self, hook: Hook) -> Hook:
        """Register ``hook`` on ``db.current``: see ``Transaction.after_completion``."""
        return self.current.after_completion(hook)

    def __repr__(self) -> str:
        shown = self._url.set(query={})  # a query may hold a password too, and SQLAlchemy does not hide that one
        return f"<{type(self).__name__} {self.name!r} {shown.render_as_string(hide_password=True)}>"

    # Shared by the verbs.

    def _check_open(self) -> None:
        if self._closed:
            raise UsageError(f"database {self.name!r} is closed; open it first: async with db, or await db.open()")

    def _options(self, given: Mapping[str, Any]) -> Options:
        return parse_options(given)

    def _block(self, options: Options, label: str) -> TransactionBlock:
        self._check_open()
        return TransactionBlock(self._runtime, options, options.label or label, self._isolation)

    def _decorate(self, f: Callable[..., Awaitable[R]], *, options: Options) -> Callable[..., Coroutine[Any, Any, R]]:
        at = _session_position(f)
        label: str = options.label or f.__qualname__

        @functools.wraps(f)
        async def call(*args: Any, **kwargs: Any) -> R:
            async with self._block(options, label) as session:
                return await f(*args[:at], session, *args[at:], **kwargs)

        # Whoever reads the signature, FastAPI for one, must not see the parameter that is filled in here.
        signature = inspect.signature(f)
        parameters = list(signature.parameters.values())
        hidden = parameters.pop(at)
        call.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        call.__annotations__ = {name: hint for name, hint in f.__annotations__.items() if name != hidden.name}
        return call


def _check_pool(pool_size: object, max_overflow: object, pool_timeout: object) -> None:
    if not isinstance(pool_size, int) or isinstance(pool_size, bool) or pool_size < 1:
        raise ConfigurationError(f"pool_size={pool_size!r}: write a number of connections from 1 up")
    if not isinstance(max_overflow, int) or isinstance(max_overflow, bool) or max_overflow < 0:
        raise ConfigurationError(f"max_overflow={max_overflow!r}: write a number of connections from 0 up")
    if (
        not isinstance(pool_timeout, int | float)
        or isinstance(pool_timeout, bool)
        or not 0 <= pool_timeout < float("inf")
    ):
        raise ConfigurationError(f"pool_timeout={pool_timeout!r}: write seconds from 0 up")


def _session_position(f: Any) -> int:
    """Where ``f`` takes the session: its first parameter, or the second of a method. Raises ``UsageError`` otherwise."""
    name = getattr(f, "__qualname__", repr(f))
    if inspect.isasyncgenfunction(f):
        raise UsageError(f"{name} is an async generator: its transaction would stay open between items; return a list")
    if not inspect.iscoroutinefunction(f):
        raise UsageError(f"{name} is not an `async def` function; a transaction of this database is awaited")
    parameters = [
        p for p in inspect.signature(f).parameters.values() if p.kind in {p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD}
    ]
    at = 1 if parameters and parameters[0].name in {"self", "cls"} else 0
    if len(parameters) <= at:
        raise UsageError(
            f"{name} has no parameter for the session; write async def {f.__name__}(session: AsyncSession, …)"
        )
    return at
