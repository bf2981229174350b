"""The unit of work: one session, one physical transaction, and the decisions of the core carried out on it.

Everything here is written on the plain ``Session``, without ``await``. The async face runs it in SQLAlchemy's greenlet,
where ``runtime.wait`` turns an awaitable that a hook returned into its result.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from sqlalchemy.engine import Connection

from transact._core import events
from transact._core.states import ENDED, Marker, State
from transact._sqlalchemy.guarding import Guarding
from transact._sqlalchemy.limits import enforce, is_over, limits_of
from transact._sqlalchemy.plain import plain_session
from transact._sqlalchemy.reading import Reader, reads_by_statement
from transact._sqlalchemy.session import unguarded
from transact._sqlalchemy.transaction import Transaction
from transact.errors import ConnectionLost, NoTransaction, TransactionTimeout
from transact.options import Options

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession
    from sqlalchemy.orm import Session

    from transact._core.limits import Limits
    from transact._sqlalchemy.runtime import Runtime
    from transact._sqlalchemy.timers import Timer


class Unit(Guarding):
    """One physical transaction from its first statement to its COMMIT or ROLLBACK.

    ``busy`` is the use that is under way (who, which operation, its first argument); ``marked`` tells the guard, in one
    look, that some scope is rollback-only; ``managed`` is false for a manual session, whose user ends it.
    ``autocommit`` is a unit without a transaction: each of its statements is one. ``suspended`` is the unit that waits
    while this one runs. ``limits`` is what bounds this one in time: ``own_limits`` and, while they run, those of the blocks
    that joined; ``enforced`` is whether its connection is watched for that. ``reads_alone`` is a unit whose statements read
    one by one, without a transaction, and ``reader`` what its session takes for a connection. ``awaits`` is the statement
    that ends something and whose answer is due, and since when; ``answered`` whether COMMIT has been answered. ``together``
    is of all databases that it may be prepared with, if with any.
    """

    __slots__ = (
        "_began_at",
        "_handle",
        "_label",
        "answered",
        "awaits",
        "beside",
        "deadline_timer",
        "enforced",
        "joined_limits",
        "own_limits",
        "reads_alone",
        "together",
    )

    def __init__(
        self,
        runtime: Runtime,
        options: Options,
        label: str | Callable[[], str],
        *,
        managed: bool = True,
        autocommit: bool = False,
        suspended: Unit | None = None,
        state: State = State.ACTIVE,
    ) -> None:
        self.runtime = runtime
        self._label = label
        self.managed = managed and not autocommit
        self.autocommit = autocommit
        self.suspended = suspended
        self.beside: Unit | None = None
        self.session = None
        self._handle: AsyncSession | None = None
        self.connection = None
        self.busy: tuple[object, str, object] | None = None
        self.closing = False
        self.marked = False
        self.wrote = False
        self._began_at = 0.0
        self.own_limits: Limits | None
        self.limits: Limits | None
        self.own_limits = self.limits = None if autocommit else limits_of(options)
        self.reads_alone = self.managed and reads_by_statement(runtime, options)
        self.reader: Reader | None = None
        self.joined_limits: list[Limits] = []
        self.enforced = False
        self.deadline_timer: Timer | None = None
        self.awaits: tuple[str, float] | None = None
        self.answered = False
        self.together: tuple[Runtime, ...] = ()
        self.savepoints = {}
        self._users_savepoints = {}
        self.root = Transaction(self, None, kind="root", options=options, label=None, state=state)

    @property
    def label(self) -> str:
        """The label of the whole transaction; found only when somebody asks."""
        if not isinstance(self._label, str):
            self._label = self._label()
        return self._label

    @property
    def plain(self) -> Session:
        """The plain session behind ``handle``, on which everything here is written."""
        return plain_session(self.handle) if self.session is None else self.session

    @property
    def handle(self) -> AsyncSession:
        """The session that routes and services get; made when it is first asked for."""
        handle = self._handle
        if handle is None:
            self.check_not_ended("session")
            handle = self._handle = self.runtime.make_session(self)
        return handle

    def emit(self, kind: type[events.Event], **facts: Any) -> None:
        """Tell the listeners, if there are any."""
        if self.runtime.hears(kind):
            self.runtime.emit(kind(database=self.runtime.name, label=self.label, **facts))

    # What SQLAlchemy tells us.

    def began(self, connection: Connection) -> None:
        """The first statement took ``connection`` and began a transaction on it; or one that is its own, if it reads alone."""
        self.connection = connection
        self.runtime.waiting.discard(self)
        goes_on = self.reads_alone and self.has_begun
        if not goes_on:
            self._began_at = time.perf_counter()
        self.runtime.units[connection] = self
        self.enforced = False
        if self.limits is not None:
            enforce(self, connection)
        if not (self.autocommit or goes_on):
            self.emit(events.Began)

    def gave_back(self) -> None:
        """The session's transaction ended and gave its connection back; a manual session may take another."""
        if self.deadline_timer is not None:
            self.deadline_timer.cancel()
        if self.connection is not None:
            self.runtime.units.pop(self.connection, None)
            if self.managed and not self.closing and not self.root.marks:
                # SessionTransaction.rollback() and close() cannot be refused; what follows must not be stored alone.
                self.root.mark(Marker.BY_HAND)
            if not self.managed:
                self.connection = None
                self.wrote = False

    def awaiting(self, statement: str) -> _Awaiting:
        """Mark ``statement`` as under way: whoever shields it from cancellation does not wait for ever."""
        self.awaits = (statement, time.monotonic())
        return _Awaiting(self)

    def let_go(self) -> None:
        """Forget everything that knows this unit, once it has ended: no cycle is left for the garbage collector.

        A session that somebody has kept still knows its unit, and is refused by it.
        """
        if self.root._own_state in ENDED and self.busy is None:
            self.root._unit = cast("Unit", _Remains(self))
            self._handle = self.session = self.connection = self.reader = None

    @property
    def has_begun(self) -> bool:
        """Whether a transaction, or what stands for one where each statement is one, has ever begun."""
        return bool(self._began_at) and not self.autocommit

    @property
    def seconds(self) -> float:
        """Seconds since the first statement."""
        return time.perf_counter() - self._began_at if self._began_at else 0.0

    def rollback_failed(self, error: BaseException) -> None:
        """Tell that a ROLLBACK failed, unless the server has ended the session because it was told to."""
        if not (is_over(self) and isinstance(error, ConnectionLost | TransactionTimeout)):
            self.emit(events.RollbackFailed, cause=error)

    def close(self, state: State | None, *, throw_away: bool = False) -> None:
        """Roll back what is open, give the connection back or throw it away, and go to ``state`` (``None``: stay).

        What fails on the way is told to the listeners, never raised: the outcome is decided, only a connection at stake.
        """
        session = self.session
        self.closing = True
        self.busy = (self.runtime.whoami(), "close", None)
        try:
            if session is not None:
                if not (throw_away or self.reads_alone) and session.in_transaction():
                    with self.awaiting("ROLLBACK"):
                        session.rollback()
                if throw_away:
                    session.invalidate()
                unguarded(session).close(session)
            if self.reader is not None:
                self.reader.let_go()
        except BaseException as failed:  # noqa: BLE001  # see above
            self.rollback_failed(failed)
            if self.connection is not None and not self.connection.closed:
                self.connection.invalidate(failed)
                self.connection.close()
        finally:
            if self.connection is not None:
                self.runtime.units.pop(self.connection, None)
            self.closing = False
            self.busy = None
            if state is not None:
                self.root.move_to(state)


class _Remains:
    """What the ``Transaction`` of a unit that has ended still has to know of it."""

    __slots__ = ("_handle", "_label")

    def __init__(self, unit: Unit) -> None:
        self._label = unit._label
        self._handle = weakref.ref(unit._handle) if unit._handle is not None else None

    @property
    def label(self) -> str:
        return self._label if isinstance(self._label, str) else self._label()

    @property
    def handle(self) -> AsyncSession:
        handle = self._handle() if self._handle is not None else None
        if handle is None:
            raise NoTransaction(f"{self.label!r} has ended, and nobody has kept its session")
        return handle


class _Awaiting:
    __slots__ = ("_unit",)

    def __init__(self, unit: Unit) -> None:
        self._unit = unit

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self._unit.awaits = None
