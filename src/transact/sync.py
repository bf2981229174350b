"""``SyncDatabase``: what ``Database`` is, for programs that wait for the database in threads."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol, Self, TypeVar, Unpack, cast, overload

from sqlalchemy import select
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session, sessionmaker

from transact._core.signatures import session_position
from transact._database import BaseDatabase, hide_session
from transact._sqlalchemy.faces import SyncTransactionBlock
from transact._sqlalchemy.resolving import Prepared, list_prepared
from transact._sqlalchemy.retrying import SyncAttempts, Tries, retry_of
from transact._sqlalchemy.threads import SyncRuntime
from transact._sqlalchemy.transaction import caller_name
from transact.options import Options, Retry, TransactionOptions, parse_options

if TYPE_CHECKING:
    from transact._sqlalchemy.transaction import SyncTransaction

P = ParamSpec("P")
R = TypeVar("R")
Me = TypeVar("Me")
S = TypeVar("S", bound=Session)


class SyncTransactional(Protocol):
    """What ``db.transactional(**options)`` returns: a decorator of functions and of methods."""

    @overload
    def __call__(self, f: Callable[Concatenate[S, P], R], /) -> Callable[P, R]: ...

    @overload
    def __call__(self, f: Callable[Concatenate[Me, S, P], R], /) -> Callable[Concatenate[Me, P], R]: ...


class SyncDatabase(BaseDatabase):
    """One database for ``def`` and ``with``: the verbs, options, errors and promises of ``Database``, without ``await``.

    - ``url``: such as ``postgresql+psycopg://app@localhost/shop``; drivers: psycopg, PyMySQL, sqlite3.
    - ``session_class``: a subclass of SQLAlchemy's ``Session``; its guard is mixed in.
    - ``engine_options``: anything else for ``sqlalchemy.create_engine``.

    The other arguments are those of ``Database``. Hooks are plain functions; an ``async def`` raises ``UsageError``. A
    session serves one thread at a time: two at once raise ``ConcurrentUse``. What ``Database`` does about cancellation has
    no counterpart, since nobody can cancel a thread.
    """

    _runtime: SyncRuntime
    _runtime_class = SyncRuntime
    _session_base = Session

    # Opening and closing.

    def open(self) -> None:
        """Make the database usable. Nothing is checked on the network: see ``ping``."""
        self._runtime.closed = False

    def close(self) -> None:
        """Close the pool's connections. Later verbs raise ``UsageError`` until the next ``open``.

        A COMMIT that is under way in another thread is waited for, at most 5 seconds.
        """
        self._runtime.closed = True
        self._runtime.wait_for_ends()
        self.engine.dispose()

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def ping(self) -> None:
        """Send one statement. Raises what stands in the way, such as ``DatabaseUnavailable`` or ``PermissionDenied``."""
        self._check_open()
        with self.read_engine.connect() as connection:  # which does not wait for SQLite's writers
            connection.execute(select(1))

    def prepared(self) -> list[Prepared]:
        """What is prepared in this database and not yet ended: see ``Database.prepared``."""
        return list_prepared(self._runtime)

    @property
    def engine(self) -> Engine:
        """SQLAlchemy's engine, for what has no verb here. Its errors are translated too."""
        return cast("Engine", self._runtime.engine)

    @property
    def read_engine(self) -> Engine:
        """The engine whose transactions are read-only; it shares the pool of ``engine``."""
        return cast("Engine", self._reading_engine())

    @property
    def session_factory(self) -> sessionmaker[Any]:
        """A factory of plain sessions that belong to no transaction of this library and are their maker's to end."""
        return cast("sessionmaker[Any]", self._runtime.factory_for(self._runtime.defaults))

    @property
    def current(self) -> SyncTransaction:
        """The innermost open block. Raises ``NoTransaction`` if there is none."""
        return cast("SyncTransaction", super().current)

    # The verbs.

    def transaction(self, **options: Unpack[TransactionOptions]) -> SyncTransactionBlock:
        """``with db.transaction() as session``: run the block in a transaction; it joins one that is open.

        Leaving the block normally commits, any exception rolls back. Raises what ``Database.transaction`` raises.
        """
        return self._block(self._check_block(options), caller_name(1))

    def savepoint(self) -> SyncTransactionBlock:
        """``with db.savepoint() as session``: if the block fails, the open transaction goes back to here.

        Raises ``NoTransaction`` if none is open: a savepoint that began a transaction would commit at its end.
        """
        return self._block(self._savepoint_options(), caller_name(1))

    @overload
    def transactional(self, f: Callable[Concatenate[S, P], R], /) -> Callable[P, R]: ...

    @overload
    def transactional(self, f: Callable[Concatenate[Me, S, P], R], /) -> Callable[Concatenate[Me, P], R]: ...

    @overload
    def transactional(self, /, **options: Unpack[TransactionOptions]) -> SyncTransactional: ...

    def transactional(self, f: Any = None, /, **options: Unpack[TransactionOptions]) -> Any:
        """Decorate ``def f(session, …)``: callers leave the session out, and each call runs in a transaction.

        Also for methods, ``def f(self, session, …)``. With ``retry=`` the call is run again after a transient failure, in a
        new transaction with a new session; it then raises ``RetriesExhausted`` in the end. ``f.__wrapped__`` stays callable
        with a session of one's own. Raises ``UsageError`` for what cannot work: an ``async def``, a generator, no parameter
        for the session.
        """
        checked = parse_options(options)
        if f is None:
            return functools.partial(self._decorate, options=checked)
        return self._decorate(f, options=checked)

    def run(self, f: Callable[Concatenate[S, ...], R], /, *args: Any, **options: Unpack[TransactionOptions]) -> R:
        """Call ``f(session, *args)`` in a transaction and return what it returns.

        With ``retry=`` it is called again after a transient failure, with a new session; raises ``RetriesExhausted``.
        """
        label = getattr(f, "__qualname__", repr(f))
        return self._execute(parse_options(options), label, lambda session: f(session, *args))

    def attempts(self, **options: Unpack[TransactionOptions]) -> SyncAttempts:
        """Retry without a callback: ``for attempt in db.attempts(retry=Retry(5)): with attempt as session: …``.

        The block of the attempt has to be all that the loop does after it, and be left at its end, as ``Database.attempts``
        says. Without ``retry=``, the database's default or else ``Retry()``. Raises ``RetriesExhausted``.
        """
        checked = parse_options(options)
        label = checked.label or caller_name(1)
        retry = retry_of(self._runtime, checked, Retry())
        return SyncAttempts(self._runtime, retry, label, functools.partial(self._block, checked, label))

    # Shared by the verbs.

    def _block(self, options: Options, label: str) -> SyncTransactionBlock:
        self._check_open()
        return SyncTransactionBlock(self._runtime, options, options.label or label)

    def _execute(self, options: Options, label: str, call: Callable[[Any], R]) -> R:
        retry = retry_of(self._runtime, options)
        if retry is None:
            with self._block(options, label) as session:
                return call(session)
        tries = Tries(self._runtime)
        while True:
            block = self._block(options, label)
            try:
                with block as session:
                    return call(session)
            except Exception as error:
                failure = tries.curable(retry, error, block.cause)
                if failure is None:
                    raise
                time.sleep(tries.pause(retry, failure, options.label or label))

    def _decorate(self, f: Callable[..., R], *, options: Options) -> Callable[..., R]:
        at = session_position(f, is_async=False)
        label: str = options.label or f.__qualname__

        @functools.wraps(f)
        def call(*args: Any, **kwargs: Any) -> R:
            return self._execute(options, label, lambda session: f(*args[:at], session, *args[at:], **kwargs))

        hide_session(call, f, at)
        return call
