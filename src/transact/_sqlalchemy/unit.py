"""The unit of work: one session, one physical transaction, and the decisions of the core carried out on it.

Everything here is written on the plain ``Session``, without ``await``. The async face runs it in SQLAlchemy's greenlet,
where ``runtime.wait`` turns an awaitable that a hook returned into its result.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sqlalchemy.engine import Connection, ExceptionContext
from sqlalchemy.orm import Session, SessionTransaction

from transact._core import events
from transact._core.hooks import Hook, Outcome
from transact._core.rules import rolls_back
from transact._core.states import ENDED, Mark, Marker, State, first_cause, is_quiet
from transact._sqlalchemy.transaction import Transaction, raise_location, unexpected_rollback
from transact.errors import AfterCommitError, CommitOutcomeUnknown, ConcurrentUse, TransactionEnded, UsageError
from transact.options import Options

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

    from transact._sqlalchemy.runtime import Runtime


_READS = ("select", "show", "explain", "values", "table", "set", "pragma")


class Unit:
    """One physical transaction from its first statement to its COMMIT or ROLLBACK.

    ``busy`` is the use that is under way (who, which operation, its first argument); ``marked`` tells the guard, in one
    look, that some scope is rollback-only; ``managed`` is false for a manual session, whose user ends it.
    """

    __slots__ = (
        "_began_at",
        "_handle",
        "_label",
        "_savepoints",
        "_users_savepoints",
        "busy",
        "closing",
        "connection",
        "managed",
        "marked",
        "root",
        "runtime",
        "session",
        "wrote",
    )

    def __init__(
        self,
        runtime: Runtime,
        options: Options,
        label: str | Callable[[], str],
        *,
        managed: bool = True,
        state: State = State.ACTIVE,
    ) -> None:
        self.runtime = runtime
        self._label = label
        self.managed = managed
        self.session: Session | None = None
        self._handle: AsyncSession | None = None
        self.connection: Connection | None = None
        self.busy: tuple[object, str, object] | None = None
        self.closing = False
        self.marked = False
        self.wrote = False
        self._began_at = 0.0
        # Core's own objects for savepoints tell whose savepoint an error happened in: a scope's, or the user's.
        self._savepoints: dict[object, tuple[Transaction, SessionTransaction]] = {}
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
        busy = self.busy
        if busy is not None:
            if busy[0] is me:
                return False
            if self.closing:
                raise self._ended(operation)
            raise self._concurrent(operation, argument, busy)
        if self.root.state in ENDED:
            raise self._ended(operation)
        if self.marked:
            self.check_marks()
        self.busy = (me, operation, argument)
        if not self.managed:
            self._watch(operation, argument)
        return True

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
        marks = self.root.marks or next((s.marks for s, _ in self._savepoints.values() if s.marks), [])
        if not marks and self.connection is not None and self._users_savepoints:
            mark = self._users_savepoints.get(self.connection.get_nested_transaction())
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

    def _concurrent(self, operation: str, argument: object, busy: tuple[object, str, object]) -> ConcurrentUse:
        other, other_operation, other_argument = busy
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
        self.emit(events.Began)

    def gave_back(self) -> None:
        """The session's transaction ended and gave its connection back; a manual session may take another."""
        if self.connection is not None:
            self.runtime.units.pop(self.connection, None)
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
        elif nested in self._savepoints:
            self._savepoints[nested][0].mark(marker, cause=error)
        else:
            self._users_savepoints[nested] = Mark(marker, self.label, own=False, cause=error)
            self.marked = True

    def check_release(self) -> None:
        """Before SQLAlchemy sends COMMIT or RELEASE: refuse to keep what the server, on some engine, has thrown away."""
        if self.managed and not self.closing and self.session is not None and not self.session.in_nested_transaction():
            raise UsageError(f"{self.label!r} is committed by its block; do not commit its SessionTransaction")
        if self._users_savepoints:
            self.check_marks()

    # Savepoints.

    def enter_savepoint(self, parent: Transaction, options: Options, label: str) -> Transaction:
        """Set a savepoint and return its scope. Raises ``UnexpectedRollback`` in a rollback-only transaction."""
        session = self.handle.sync_session
        nested = session.begin_nested()
        try:
            # SQLAlchemy sends SAVEPOINT with the first statement of the session; a statement on a connection that was
            # taken before would slip past it and survive the rollback.
            core = session.connection().get_nested_transaction()
        except BaseException:
            nested.rollback()
            raise
        scope = Transaction(self, parent, kind="savepoint", options=options, label=label)
        self._savepoints[core] = (scope, nested)
        return scope

    def leave_savepoint(self, scope: Transaction, error: BaseException | None) -> None:
        """Release the savepoint, or roll back to it; raises ``UnexpectedRollback`` if it was marked by others."""
        if self.busy is not None:
            refused = self._concurrent("savepoint", None, self.busy)
            self.root.mark(Marker.PARTICIPANT, cause=refused)
            raise refused
        core, nested = next((c, n) for c, (s, n) in self._savepoints.items() if s is scope)
        parent = scope._parent
        assert parent is not None  # noqa: S101
        marks = scope.marks or self.root.marks
        try:
            if (error is None or not rolls_back(scope.options, error)) and not marks:
                nested.commit()
                scope.move_to(State.ENDING)
                scope.move_to(State.COMMITTED)
                scope.hooks.release_to(parent.hooks)
                return
        except BaseException as failed:
            self._roll_back_savepoint(scope, nested, parent, failed)
            raise
        finally:
            del self._savepoints[core]
            self.marked = bool(
                self.root.marks or self._users_savepoints or any(s.marks for s, _ in self._savepoints.values())
            )
        self._roll_back_savepoint(scope, nested, parent, error)
        if error is None and not is_quiet(marks):
            surprise = unexpected_rollback(marks, scope.label)
            raise surprise from surprise.__cause__

    def _roll_back_savepoint(
        self, scope: Transaction, nested: SessionTransaction, parent: Transaction, error: BaseException | None
    ) -> None:
        scope.move_to(State.ENDING)
        try:
            if nested in _open_transactions(self.handle.sync_session):
                nested.rollback()
        except Exception as failed:  # noqa: BLE001  # the first error is the one to tell; nothing can be kept either way
            self.emit(events.RollbackFailed, cause=failed)
            if not self.root.marks:
                self.root.mark(Marker.CONNECTION, cause=failed)
        scope.move_to(State.ROLLED_BACK)
        self.emit(events.SavepointRolledBack, cause=error)
        self._run_hooks("after_rollback", scope.hooks.roll_back_to(parent.hooks), error)

    # Joined blocks.

    def leave_joined(self, scope: Transaction, error: BaseException | None) -> None:
        """A block that joined ends: if it fails, what it joined can only be rolled back."""
        if error is not None and scope.is_open and rolls_back(scope.options, error):
            scope.mark(Marker.PARTICIPANT, cause=error, where=raise_location(error.__traceback__))

    # The end of the transaction.

    @property
    def needs_preparation(self) -> bool:
        """Whether something has to run before COMMIT can be sent."""
        return bool(self.root.hooks.before_commit) or self.has_changes

    @property
    def has_work(self) -> bool:
        """Whether ending this transaction means to talk to the database or to run a hook."""
        hooks = self.root.hooks
        return (
            (self.session is not None and self.session.in_transaction())
            or bool(hooks.after_commit or hooks.after_rollback or hooks.after_completion)
        )  # fmt: skip

    def prepare(self) -> None:
        """Flush, run ``before_commit`` hooks until none is left, flush again: all that may still fail harmlessly."""
        session = self.handle.sync_session
        session.flush()
        queue = self.root.hooks.before_commit
        while queue:
            self._call(queue.popleft())
            session.flush()

    def finish(self, error: BaseException | None) -> None:
        """COMMIT or ROLLBACK, give the connection back, run the hooks that come after.

        ``error`` is what left the outermost block. Raises the error of a failed COMMIT, ``CommitOutcomeUnknown``,
        ``UnexpectedRollback``, ``ConcurrentUse`` or ``AfterCommitError``; never ``error`` itself: the caller has it.
        """
        marks = self.root.marks
        if marks or (error is not None and rolls_back(self.root.options, error)):
            self.roll_back(error or first_cause(marks))
            if error is None and not is_quiet(marks):
                surprise = unexpected_rollback(marks, self.label)
                raise surprise from surprise.__cause__
            return
        if self.busy is not None:
            refused = self._concurrent("commit", None, self.busy)
            self.roll_back(refused)
            raise refused
        self._commit()

    def _commit(self) -> None:
        self.root.move_to(State.ENDING)
        self.closing = True
        self.busy = (self.runtime.whoami(), "commit", None)
        session = self.session
        try:
            if session is not None and session.in_transaction():
                session.commit()
        except BaseException as failed:
            if self._is_lost(failed):
                self._end_unknown(failed)
            self._end_rolled_back(failed)
            raise
        self._close(State.COMMITTED)
        if self.connection is not None:
            self.emit(events.Committed, seconds=self._seconds())
        hooks = self.root.hooks
        failures = [self._run_hook("after_commit", hook.call) for hook in hooks.after_commit]
        self._run_hooks("after_completion", hooks.after_completion, Outcome.COMMITTED)
        critical = [f for f, hook in zip(failures, hooks.after_commit, strict=True) if f is not None and hook.critical]
        if critical:
            raise AfterCommitError(f"{self.label!r} is committed, but hooks failed", critical)

    def _is_lost(self, failed: BaseException) -> bool:
        connection = self.connection
        gone = connection is not None and (connection.invalidated or connection.closed)
        return gone or getattr(failed, "sqlstate", None) in {"40003", "08007"}

    def _end_unknown(self, failed: BaseException) -> None:
        self._close(State.UNKNOWN, throw_away=True)
        self.emit(events.OutcomeUnknown, seconds=self._seconds(), cause=failed)
        self._run_hooks("after_completion", self.root.hooks.after_completion, Outcome.UNKNOWN)
        raise CommitOutcomeUnknown(
            f"COMMIT of {self.label!r} was sent and its answer lost: the data may be stored or not. Look before you repeat it"
        ) from failed

    def roll_back(self, error: BaseException | None) -> None:
        """Roll back and give the connection back; what fails on the way is told to the listeners, never raised."""
        self.root.move_to(State.ENDING)
        self.closing = True
        self._end_rolled_back(error)

    def _end_rolled_back(self, error: BaseException | None) -> None:
        me = self.runtime.whoami()
        # Another task's statement is still on the wire: ROLLBACK cannot be sent beside it, only the connection dropped.
        interrupted = self.busy is not None and self.busy[0] is not me
        self.busy = (me, "rollback", None)
        session = self.session
        try:
            if session is not None and not interrupted:
                session.rollback()
        except BaseException as failed:  # noqa: BLE001  # see above; the connection is thrown away
            interrupted = True
            self.emit(events.RollbackFailed, cause=failed)
        self._close(State.ROLLED_BACK, throw_away=interrupted)
        if self.connection is not None:
            self.emit(events.RolledBack, seconds=self._seconds(), cause=error)
        hooks = self.root.hooks
        self._run_hooks("after_rollback", hooks.after_rollback, error)
        self._run_hooks("after_completion", hooks.after_completion, Outcome.ROLLED_BACK)

    def _close(self, state: State, *, throw_away: bool = False) -> None:
        session = self.session
        try:
            if session is not None:
                if throw_away:
                    session.invalidate()
                session.close()
        except BaseException as failed:  # noqa: BLE001  # the outcome is decided; only the connection is at stake
            self.emit(events.RollbackFailed, cause=failed)
            if self.connection is not None and not self.connection.closed:
                self.connection.invalidate(failed)
                self.connection.close()
        finally:
            self.busy = None
            self.root.move_to(state)

    def _seconds(self) -> float:
        return time.perf_counter() - self._began_at if self._began_at else 0.0

    # Hooks.

    def _call(self, hook: Hook, *arguments: object) -> None:
        result = hook(*arguments)
        if inspect.isawaitable(result):
            self.runtime.wait(result)

    def _run_hook(self, phase: str, hook: Hook, *arguments: object) -> Exception | None:
        try:
            self._call(hook, *arguments)
        except Exception as failed:  # noqa: BLE001  # the outcome stands: the others still run, and it is told
            self.emit(events.HookFailed, phase=phase, cause=failed)
            return failed
        return None

    def _run_hooks(self, phase: str, hooks: list[Hook], argument: object) -> None:
        for hook in hooks:
            self._run_hook(phase, hook, argument)


def _open_transactions(session: Session) -> list[SessionTransaction]:
    found = []
    transaction = session.get_nested_transaction() or session.get_transaction()
    while transaction is not None:
        found.append(transaction)
        transaction = transaction.parent
    return found


def _describe(operation: str, argument: object) -> str:
    text = str(argument) if argument is not None else ""
    text = " ".join(text.split())
    return f"session.{operation}({text[:120]}{'…' if len(text) > 120 else ''})"  # noqa: PLR2004  # enough to recognise
