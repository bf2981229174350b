"""``Database``: one engine, its pool, and the verbs that run code in transactions."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Coroutine
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Protocol, Self, TypeVar, Unpack, overload

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.util import greenlet_spawn

from transact._core.signatures import session_position
from transact._database import BaseDatabase, hide_session
from transact._sqlalchemy.faces import TransactionBlock
from transact._sqlalchemy.resolving import Prepared, list_prepared
from transact._sqlalchemy.retrying import Attempts, Tries, retry_of
from transact._sqlalchemy.runtime import Runtime
from transact._sqlalchemy.shielding import wait_for_ends
from transact._sqlalchemy.transaction import caller_name
from transact.options import Options, Retry, TransactionOptions, parse_options

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


class Database(BaseDatabase):
    """One database: an engine with its pool, and verbs that run code in transactions on it.

    - ``url``: such as ``postgresql+asyncpg://app@localhost/shop``; drivers: asyncpg, psycopg, asyncmy, aiosqlite.
    - ``pool_size``, ``max_overflow``: connections that are kept, and that may be opened beyond them under load.
    - ``pool_timeout``: seconds to wait for a connection before ``PoolTimeout``.
    - ``max_waiting``: the most uses that may wait for a connection; one more gets ``PoolTimeout`` at once. ``None``: no bound.
    - ``isolation``: the level of transactions that name none; ``None`` means the engine's own default.
    - ``retry``: the ``Retry`` of transactions and requests that name none; ``None`` means that nothing is tried again.
    - ``timeout``: the seconds that a transaction may take if it names no other; ``None`` means no bound.
    - ``verify_commit``: when the answer to a COMMIT is lost, ask PostgreSQL on a new connection what became of it; costs one
      round trip for each transaction that may have written. Elsewhere the outcome stays unknown.
    - ``two_phase``: a request that writes to several databases, all of which have this, stores all of it or nothing, also if a
      program or a server crashes. PostgreSQL with ``max_prepared_transactions`` above 0, MariaDB from 10.5 on.
    - ``metadata``: the application's ``MetaData``; lets errors name constraints, tables and columns on every engine.
    - ``name``: what the database is called in logs and events.
    - ``echo``: log every statement, as SQLAlchemy does.
    - ``session_class``: a subclass of ``AsyncSession``, SQLModel's for example; its guard is mixed in.
    - ``engine_options``: anything else for ``sqlalchemy.ext.asyncio.create_async_engine``.

    Raises ``ConfigurationError`` for values that cannot work, before any connection is made. A password never appears in
    an error, a log or the ``repr``.
    """

    _runtime_class = Runtime
    _session_base = AsyncSession

    # Opening and closing.

    async def open(self) -> None:
        """Make the database usable. Nothing is checked on the network: see ``ping``."""
        self._runtime.closed = False

    async def close(self) -> None:
        """Close the pool's connections. Later verbs raise ``UsageError`` until the next ``open``.

        A COMMIT that is under way is waited for, and so is a server that does not answer: each at most 5 seconds.
        """
        self._runtime.closed = True
        await wait_for_ends(self._runtime)
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

    async def prepared(self) -> list[Prepared]:
        """What is prepared in this database, by ``two_phase=True``, and not yet ended; the oldest first.

        Of running requests, for an instant; what stays was left by a crash: ``transact.resolve_prepared`` ends it. Raises
        ``UsageError`` without ``two_phase=True``.
        """
        return await greenlet_spawn(list_prepared, self._runtime)

    @property
    def engine(self) -> AsyncEngine:
        """SQLAlchemy's engine, for what has no verb here. Its errors are translated too."""
        engine: AsyncEngine = self._runtime.engine
        return engine

    @property
    def read_engine(self) -> AsyncEngine:
        """The engine whose transactions are read-only; it shares the pool of ``engine``."""
        engine: AsyncEngine = self._reading_engine()
        return engine

    @property
    def session_factory(self) -> async_sessionmaker[Any]:
        """A factory of plain sessions that belong to no transaction of this library and are their maker's to end."""
        factory: async_sessionmaker[Any] = self._runtime.factory_for(self._runtime.defaults)
        return factory

    # The verbs.

    def transaction(self, **options: Unpack[TransactionOptions]) -> TransactionBlock:
        """``async with db.transaction() as session``: run the block in a transaction; it joins one that is open.

        Leaving the block normally commits, any exception rolls back. Raises ``UsageError`` for ``retry=``, since a block
        cannot be run twice, ``UnexpectedRollback`` if the transaction
        could only be rolled back, ``OptionsConflict``, ``NoTransaction`` or ``TransactionExists`` as the propagation says,
        and what the database says.
        """
        return self._block(self._check_block(options), caller_name(1))

    def savepoint(self) -> TransactionBlock:
        """``async with db.savepoint() as session``: if the block fails, the open transaction goes back to here.

        Raises ``NoTransaction`` if none is open: a savepoint that began a transaction would commit at its end.
        """
        return self._block(self._savepoint_options(), caller_name(1))

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

        Also for methods, ``async def f(self, session, …)``. With ``retry=`` the call is run again after a transient failure,
        in a new transaction with a new session; it then raises ``RetriesExhausted`` in the end. ``f.__wrapped__`` stays
        callable with a session of one's own. Raises ``UsageError`` for what cannot work: a plain function, an async
        generator, no parameter for the session.
        """
        checked = parse_options(options)
        if f is None:
            return functools.partial(self._decorate, options=checked)
        return self._decorate(f, options=checked)

    async def run(
        self, f: Callable[Concatenate[S, ...], Awaitable[R]], /, *args: Any, **options: Unpack[TransactionOptions]
    ) -> R:
        """Call ``f(session, *args)`` in a transaction and return what it returns.

        With ``retry=`` it is called again after a transient failure, with a new session; raises ``RetriesExhausted``.
        """

        async def call(session: Any) -> R:
            return await f(session, *args)

        return await self._execute(parse_options(options), getattr(f, "__qualname__", repr(f)), call)

    def attempts(self, **options: Unpack[TransactionOptions]) -> Attempts:
        """Retry without a callback: ``async for attempt in db.attempts(retry=Retry(5)): async with attempt as session: …``.

        The block of the attempt has to be all that the loop does after it, and be left at its end: a failed COMMIT is
        known only then, and is not swallowed where a ``return``, a ``break`` or more statements would take it for success.
        Without ``retry=``, the database's default or else ``Retry()``. Raises ``RetriesExhausted``.
        """
        checked = parse_options(options)
        label = checked.label or caller_name(1)
        # Inside an open transaction one attempt joins; to have asked for more raises there.
        retry = retry_of(self._runtime, checked, Retry())
        return Attempts(self._runtime, retry, label, functools.partial(self._block, checked, label))

    # Shared by the verbs.

    def _block(self, options: Options, label: str) -> TransactionBlock:
        self._check_open()
        return TransactionBlock(self._runtime, options, options.label or label)

    async def _execute(self, options: Options, label: str, call: Callable[[Any], Awaitable[R]]) -> R:
        retry = retry_of(self._runtime, options)
        if retry is None:
            async with self._block(options, label) as session:
                return await call(session)
        tries = Tries(self._runtime)
        while True:
            block = self._block(options, label)
            try:
                async with block as session:
                    return await call(session)
            except Exception as error:
                failure = tries.curable(retry, error, block.cause)
                if failure is None:
                    raise
                await asyncio.sleep(tries.pause(retry, failure, options.label or label))

    def _decorate(self, f: Callable[..., Awaitable[R]], *, options: Options) -> Callable[..., Coroutine[Any, Any, R]]:
        at = session_position(f)
        label: str = options.label or f.__qualname__

        @functools.wraps(f)
        async def call(*args: Any, **kwargs: Any) -> R:
            async def with_session(session: Any) -> R:
                return await f(*args[:at], session, *args[at:], **kwargs)

            return await self._execute(options, label, with_session)

        hide_session(call, f, at)
        return call
