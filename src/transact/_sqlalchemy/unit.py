"""The unit of work: one session, one physical transaction, and the decisions of the core carried out on it.

Everything here is written on the plain ``Session``, without ``await``. The async face runs it in SQLAlchemy's greenlet,
where ``runtime.wait`` turns an awaitable that a hook returned into its result.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sqlalchemy.engine import Connection, ExceptionContext
from sqlalchemy.orm import Session, SessionTransaction

from transact._core import events
from transact._core.rules import rolls_back
from transact._core.states import ENDED, Mark, Marker, State
from transact._sqlalchemy.transaction import Transaction, raise_location, unexpected_rollback
from transact.errors import ConcurrentUse, PoolSelfDeadlock, TransactionEnded, UsageError
from transact.options import Options

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

    from transact._sqlalchemy.runtime import Runtime


_READS = ("select", "show", "explain", "values", "table", "set", "pragma")


class Unit:
    """One physical transaction from its first statement to its COMMIT or ROLLBACK.

    ``busy`` is the use that is under way (who, which operation, its first argument); ``marked`` tells the guard, in one
    look, that some scope is rollback-only; ``managed`` is false for a manual session, whose user ends it.
    ``autocommit`` is a unit without a transaction: each of its statements is one. ``suspended`` is the unit that waits
    while this one runs.
    """

    __slots__ = (
        "_began_at",
        "_handle",
        "_label",
        "_users_savepoints",
        "autocommit",
        "busy",
        "closing",
        "connection",
        "managed",
        "marked",
        "root",
        "runtime",
        "savepoints",
        "session",
        "suspended",
        "wrote",
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
        self.session: Session | None = None
        self._handle: AsyncSession | None = None
        self.connection: Connection | None = None
        self.busy: tuple[object, str, object] | None = None
        self.closing = False
        self.marked = False
        self.wrote = False
        self._began_at = 0.0
        # Core's own objects for savepoints tell whose savepoint an error happened in: a scope's, or the user's.
        self.savepoints: dict[object, tuple[Transaction, SessionTransaction]] = {}
        self._users_savepoints: dict[object, Mark] = {}
        self.root = Transaction(self, None, kind="root", options=options, label=None, state=state)

    @property
    def label(self) -> str:
        """The label of the whole transaction; found only when somebody asks."""
        if not isinstance(self._label, str):
            self._label = self._label()
        return self._label

    @property
    def handle(self) -> AsyncSession:
        """The session that routes and services get; made when it is first asked for."""
        if self._handle is None:
            self._handle = self.runtime.make_session(self)
            self.session = self._handle.sync_session
        return self._handle

    def emit(self, kind: type[events.Event], **facts: Any) -> None:
        """Tell the listeners, if there are any."""
        if self.runtime.listeners:
            self.runtime.emit(kind(database=self.runtime.name, label=self.label, **facts))

    # Guarding: called around each use of the session.

    def enter(self, operation: str, argument: object) -> bool:
        """Claim the session for one use; return whether this use is the outermost and has to be left again.

        Raises ``TransactionEnded``, ``ConcurrentUse`` or ``UnexpectedRollback``, before anything was touched.
        """
        me = self.runtime.whoami()
        if self.busy is not None and self.busy[0] is me:
            return False
        if self.closing or self.root.state in ENDED:
            raise self._ended(operation)
        if self.busy is not None:
            raise self.concurrent_use(operation, argument)
        if self.marked:
            self.check_marks()
        if self.suspended is not None and self.connection is None:
            self._check_pool()
        self.busy = (me, operation, argument)
        if not self.managed:
            self._watch(operation, argument)
        return True

    def leave(self) -> None:
        """Release the claim of ``enter``. Raises ``TransactionEnded`` if the transaction ended in the meantime.

        It could not send its ROLLBACK beside the statement that was under way, so whoever comes back from that does.
        """
        assert self.busy is not None  # noqa: S101  # claimed by enter
        operation = self.busy[1]
        self.busy = None
        if self.root.state in ENDED:
            self.close(None)
            raise self._ended(operation)

    @property
    def is_mine_to_end(self) -> bool:
        """Whether it is this library that ends the transaction now, in this task."""
        return self.closing and self.busy is not None and self.busy[0] is self.runtime.whoami()

    def _check_pool(self) -> None:
        # Who waits for a connection that only its own end can free waits for ever.
        holding, unit = 0, self.suspended
        writer: Unit | None = None
        while unit is not None:
            if unit.connection is not None:
                holding += 1
                writer = unit if not unit.root.options.read_only and not unit.autocommit else writer
            unit = unit.suspended
        capacity = self.runtime.capacity
        if capacity is not None and holding >= capacity:
            raise PoolSelfDeadlock(
                f"{self.label!r} needs a connection of its own, and the transactions that wait for it hold all {capacity} "
                "of the pool: it would wait for itself. Make the pool larger, or end the outer transaction before"
            )
        if (
            writer is not None
            and self.runtime.single_writer
            and not self.autocommit
            and not self.root.options.read_only
        ):
            raise PoolSelfDeadlock(
                f"{self.label!r} would wait for {writer.label!r}, which waits for it: SQLite has one writer at a time. "
                "End the outer transaction before, or use Propagation.NESTED"
            )

    def check_not_ended(self, operation: str) -> None:
        """Raise ``TransactionEnded`` where ``operation`` would be lost without a word."""
        if self.root.state in ENDED:
            raise self._ended(operation)

    def _watch(self, operation: str, argument: object) -> None:
        # Only a manual session can be left with changes that nobody commits.
        text = getattr(argument, "text", None)
        if operation == "flush":
            self.wrote = self.wrote or self.has_changes
        elif getattr(argument, "is_dml", False):
            self.wrote = True
        elif isinstance(text, str):
            self.wrote = self.wrote or not text.lstrip(" (\r\n\t").lower().startswith(_READS)

    @property
    def has_changes(self) -> bool:
        """Whether something was written, or is pending in the session, that is not committed."""
        session = self.session
        return session is not None and (self.wrote or bool(session.new or session.dirty or session.deleted))

    def check_marks(self) -> None:
        """Raise ``UnexpectedRollback`` if the innermost scope that the server can roll back is rollback-only."""
        marks = self.root.marks or next((s.marks for s, _ in self.savepoints.values() if s.marks), [])
        if not marks and self.connection is not None and self._users_savepoints:
            mark = self._users_savepoints.get(self.connection.get_nested_transaction())
            if mark is None and self.session is not None and not self.session.is_active:
                # A flush that failed has rolled back to the savepoint already; its block has yet to end.
                mark = next(reversed(self._users_savepoints.values()))
            marks = [mark] if mark else []
        if marks:
            error = unexpected_rollback(marks, self.label)
            raise error from error.__cause__

    def _ended(self, operation: str) -> TransactionEnded:
        return TransactionEnded(
            f"session.{operation}() was called after {self.label!r} had ended ({self.root.state.value}), so it did nothing. "
            "A background task, a streaming body or a task that outlives its request needs a transaction of its own: "
            "`async with db.transaction() as session`"
        )

    def concurrent_use(self, operation: str, argument: object) -> ConcurrentUse:
        """The error that names the use under way and the one that is refused."""
        assert self.busy is not None  # noqa: S101  # the caller looked
        other, other_operation, other_argument = self.busy
        where = self.runtime.locate(other)
        return ConcurrentUse(
            f"two tasks use the session of {self.label!r} at once: "
            f"{_describe(other_operation, other_argument)}{f' at {where}' if where else ''} is still running, and "
            f"{_describe(operation, argument)} was refused. Await one after the other, or give each task its own "
            "`async with db.transaction() as session`; asyncio.gather on one session cannot work"
        )

    # What SQLAlchemy tells us.

    def began(self, connection: Connection) -> None:
        """The first statement took ``connection`` and began a transaction on it."""
        self.connection = connection
        self._began_at = time.perf_counter()
        self.runtime.units[connection] = self
        if not self.autocommit:
            self.emit(events.Began)

    def gave_back(self) -> None:
        """The session's transaction ended and gave its connection back; a manual session may take another."""
        if self.connection is not None:
            self.runtime.units.pop(self.connection, None)
            if self.managed and not self.closing and not self.root.marks:
                # SessionTransaction.rollback() and close() cannot be refused; what follows must not be stored alone.
                self.root.mark(Marker.BY_HAND)
            if not self.managed:
                self.connection = None
                self.wrote = False

    def failed(self, context: ExceptionContext, error: BaseException) -> None:
        """A statement failed: the transaction, or the savepoint it ran in, can only be rolled back (on every engine)."""
        if not self.managed or self.closing or self.connection is None:
            return
        if context.is_disconnect:
            self.root.mark(Marker.CONNECTION, cause=error)
            return
        self.mark_innermost(Marker.DATABASE, error)

    def mark_innermost(self, marker: Marker, error: BaseException, nested: object | None = None) -> None:
        """Mark the innermost scope that the server can roll back: a scope's savepoint, the user's own, or all."""
        if nested is None and self.connection is not None:
            nested = self.connection.get_nested_transaction()
        if nested is None:
            self.root.mark(marker, cause=error)
        elif nested in self.savepoints:
            self.savepoints[nested][0].mark(marker, cause=error)
        else:
            self._users_savepoints[nested] = Mark(marker, self.label, own=False, cause=error)
            self.marked = True

    def has_mark(self, nested: object | None) -> bool:
        """Whether the savepoint ``nested``, or with ``None`` the transaction itself, is marked."""
        if nested is None:
            return bool(self.root.marks)
        return nested in self._users_savepoints or (
            nested in self.savepoints and bool(self.savepoints[nested][0].marks)
        )

    def forget_ended_savepoints(self) -> None:
        """One of the user's own savepoints may have ended: its mark says nothing about the next."""
        if self._users_savepoints:
            kept = {core: mark for core, mark in self._users_savepoints.items() if getattr(core, "is_active", False)}
            self._users_savepoints = kept
            self.recount_marks()

    def check_release(self) -> None:
        """Before SQLAlchemy sends COMMIT or RELEASE: refuse to keep what the server, on some engine, has thrown away."""
        if self.managed and not self.closing and self.session is not None and not self.session.in_nested_transaction():
            raise UsageError(f"{self.label!r} is committed by its block; do not commit its SessionTransaction")
        if self._users_savepoints:
            self.check_marks()

    def recount_marks(self) -> None:
        """A savepoint is gone and its marks with it."""
        scopes = [self.root, *(scope for scope, _ in self.savepoints.values())]
        self.marked = bool(self._users_savepoints) or any(scope.marks for scope in scopes)

    @property
    def seconds(self) -> float:
        """Seconds since the first statement."""
        return time.perf_counter() - self._began_at if self._began_at else 0.0

    def close(self, state: State | None, *, throw_away: bool = False) -> None:
        """Roll back what is open, give the connection back or throw it away, and go to ``state`` (``None``: stay).

        What fails on the way is told to the listeners, never raised: the outcome is decided, only a connection at stake.
        """
        session = self.session
        self.closing = True
        self.busy = (self.runtime.whoami(), "close", None)
        try:
            if session is not None:
                if not throw_away and session.in_transaction():
                    session.rollback()
                if throw_away:
                    session.invalidate()
                session.close()
        except BaseException as failed:  # noqa: BLE001  # see above
            self.emit(events.RollbackFailed, cause=failed)
            if self.connection is not None and not self.connection.closed:
                self.connection.invalidate(failed)
                self.connection.close()
                self.runtime.units.pop(self.connection, None)
        finally:
            self.closing = False
            self.busy = None
            if state is not None:
                self.root.move_to(state)

    # Joined blocks.

    def leave_joined(self, scope: Transaction, error: BaseException | None) -> None:
        """A block that joined ends: if it fails, what it joined can only be rolled back."""
        if error is not None and scope.is_open and rolls_back(scope.options, error):
            scope.mark(Marker.PARTICIPANT, cause=error, where=raise_location(error.__traceback__))


def _describe(operation: str, argument: object) -> str:
    text = str(argument) if argument is not None else ""
    text = " ".join(text.split())
    return f"session.{operation}({text[:120]}{'…' if len(text) > 120 else ''})"  # noqa: PLR2004  # enough to recognise
