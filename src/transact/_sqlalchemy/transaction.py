"""``Transaction``: one block of a unit of work, as ``db.current`` shows it."""

from __future__ import annotations

import os
import sys
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Literal

import sqlalchemy

from transact._core.events import MarkedRollbackOnly
from transact._core.hooks import AfterCommit, Hook, Hooks
from transact._core.states import OPEN, Mark, Marker, State, first_cause, lost_to, move
from transact.errors import NoTransaction, TransactionLost, UnexpectedRollback
from transact.options import Options

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession
    from sqlalchemy.orm import Session

    from transact._sqlalchemy.unit import Unit

_PACKAGE = os.path.dirname(os.path.dirname(__file__)) + os.sep  # noqa: PTH120  # compared with code objects' file names
_SKIPPED = (_PACKAGE, os.path.dirname(sqlalchemy.__file__) + os.sep)  # noqa: PTH120
Kind = Literal["root", "joined", "savepoint"]


class Transaction:
    """One open block: a transaction, a savepoint in it, or a block that joined one of the two.

    ``db.current`` returns the innermost. It is made by the verbs of ``Database``, never by hand.

    - ``label``: what the block is called in logs, events and reports.
    - ``options``: what the block asked for.
    - ``state``: a member of ``State``; of a joined block, that of the transaction or savepoint it joined.
    - ``depth``: 0 for the transaction itself, one more for each block inside.
    """

    __slots__ = ("_hooks", "_joined", "_kind", "_label", "_own_state", "_parent", "_unit", "depth", "marks", "options")

    def __init__(
        self,
        unit: Unit,
        parent: Transaction | None,
        *,
        kind: Kind,
        options: Options,
        label: str | None,
        state: State = State.ACTIVE,
    ) -> None:
        self._unit = unit
        self._parent = parent
        self._kind: Kind = kind
        self._label = label
        self.options = options
        self.depth: int = parent.depth + 1 if parent is not None else 0
        # Of a block that joined; to know oneself would be a cycle, and each transaction left to the garbage collector.
        self._joined: Transaction | None = parent._boundary if kind == "joined" and parent is not None else None
        self._own_state = state
        self._hooks: Hooks | None = None
        self.marks: list[Mark] = [] if self._joined is None else self._joined.marks

    @property
    def session(self) -> AsyncSession:
        """The session of this transaction."""
        return self._unit.handle

    @property
    def label(self) -> str:
        """What this block is called."""
        return self._label if self._label is not None else self._unit.label

    @property
    def state(self) -> State:
        """Where this block's transaction, or its savepoint, stands."""
        return self._own_state if self._joined is None else self._joined._own_state

    @property
    def rollback_only(self) -> bool:
        """Whether this block's transaction, or its savepoint, can only be rolled back."""
        return bool(self.marks) or self.state is State.ROLLBACK_ONLY

    @property
    def is_open(self) -> bool:
        """Whether statements may still run in this block."""
        return self._boundary._own_state in OPEN and self._unit.root._own_state in OPEN

    def set_rollback_only(self, reason: str | None = None) -> None:
        """Decide now that this transaction, or this savepoint, is rolled back when it ends; refuse later statements.

        If the block that called it is the transaction (or savepoint) itself, it ends quietly. If it had joined, the
        block that owns the transaction gets ``UnexpectedRollback``, unless that asks for the same. Raises
        ``NoTransaction`` if this transaction has ended.
        """
        if not self.is_open:
            raise NoTransaction(f"{self.label!r} has ended ({self.state.value}); it can no longer be marked")
        where = caller_location(sys._getframe(1))  # the documented way to the caller's frame
        self.mark(Marker.REQUEST, reason=reason, where=where)

    def before_commit(self, hook: Hook) -> Hook:
        """Run ``hook()`` inside the transaction, just before COMMIT; it may write; its error rolls back."""
        self._registrable(hook).before_commit.append(hook)
        return hook

    def after_commit(self, hook: Hook, *, critical: bool = False) -> Hook:
        """Run ``hook()`` after a COMMIT that is known to have succeeded.

        Its error is logged; the caller still gets its success, since the data is stored. With ``critical=True`` all hooks
        run, then ``AfterCommitError`` is raised.
        """
        self._registrable(hook).after_commit.append(AfterCommit(hook, critical))
        return hook

    def after_rollback(self, hook: Hook) -> Hook:
        """Run ``hook(exc)`` after this transaction, or the savepoint it is registered in, was rolled back."""
        self._registrable(hook).after_rollback.append(hook)
        return hook

    def after_completion(self, hook: Hook) -> Hook:
        """Run ``hook(outcome)`` when the transaction has ended, however it ended."""
        self._registrable(hook).after_completion.append(hook)
        return hook

    def _registrable(self, hook: Hook) -> Hooks:
        if not self.is_open:
            raise NoTransaction(f"{self.label!r} has ended ({self.state.value}); a hook registered now would never run")
        self._unit.runtime.check_hook(hook)
        return self.hooks

    # What the unit of work uses; not public.

    @property
    def _boundary(self) -> Transaction:
        """The transaction or savepoint that this block is, or that it has joined."""
        return self if self._joined is None else self._joined

    @property
    def hooks(self) -> Hooks:
        """The hooks of its boundary, made when they are first asked for: most transactions have none."""
        boundary = self._boundary
        if boundary._hooks is None:
            boundary._hooks = Hooks()
        return boundary._hooks

    @hooks.setter
    def hooks(self, hooks: Hooks) -> None:
        self._boundary._hooks = hooks

    @property
    def calls_before(self) -> bool:
        """Whether a hook is to run before COMMIT."""
        return self._hooks is not None and bool(self._hooks.before_commit)

    @property
    def calls_after(self) -> bool:
        """Whether a hook is to run once this transaction, or this savepoint, has ended."""
        return self._hooks is not None and self._hooks.come_after

    @property
    def around(self) -> Transaction:
        """The block around this one."""
        assert self._parent is not None  # noqa: S101  # only a root has none
        return self._parent

    def mark(
        self,
        marker: Marker,
        *,
        cause: BaseException | None = None,
        reason: str | None = None,
        where: str | None = None,
    ) -> None:
        """Make the boundary of this block rollback-only. Marks are kept in the order in which they came."""
        boundary = self._boundary
        mark = Mark(marker, self.label, self is boundary, where, reason, cause)
        boundary.marks.append(mark)
        self._unit.marked = True
        if boundary._own_state is State.ACTIVE:
            boundary._own_state = move(State.ACTIVE, State.ROLLBACK_ONLY)
        self._unit.emit(MarkedRollbackOnly, note=mark.note())

    def rename(self, label: str) -> None:
        """Give a request's transaction the label that its route asked for."""
        self._label = label

    def move_to(self, state: State) -> None:
        """Go to another state; a move that is not legal is a fault of this library."""
        self._own_state = move(self._own_state, state)

    def __repr__(self) -> str:
        return f"<Transaction {self.label!r} {self._kind} {self.state.value}>"


if TYPE_CHECKING:

    class SyncTransaction(Transaction):
        """A ``Transaction`` as ``SyncDatabase.current`` shows it."""

        @property
        def session(self) -> Session:  # type: ignore[override]
            """The session of this transaction."""


def unexpected_rollback(marks: list[Mark], label: str) -> UnexpectedRollback | TransactionLost:
    """Say that a transaction could only be rolled back, who marked it, and what to do. Raise it ``from`` its cause."""
    error: UnexpectedRollback | TransactionLost
    if lost := lost_to(marks):
        error = TransactionLost(
            f"the server has rolled back the whole transaction of {label!r}, its savepoints included, so nothing of it is "
            "stored and no more is sent; run it again as a whole (retry=)"
        )
        error.__cause__ = lost.cause
    else:
        error = UnexpectedRollback(
            f"{label!r} could only be rolled back, so nothing of it is stored; wrap what may fail in db.savepoint()"
        )
        error.__cause__ = first_cause(marks)
    for mark in marks:
        error.add_note(mark.note())
    return error


def caller_location(frame: FrameType | None) -> str | None:
    """``file:line`` of the nearest frame that is the application's and not this library's or SQLAlchemy's."""
    while frame is not None and frame.f_code.co_filename.startswith(_SKIPPED):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}" if frame is not None else None


def raise_location(traceback: TracebackType | None) -> str | None:
    """``file:line`` where an exception passed through the application's code first, seen from the block it leaves."""
    while traceback is not None and traceback.tb_frame.f_code.co_filename.startswith(_SKIPPED):
        traceback = traceback.tb_next
    return f"{traceback.tb_frame.f_code.co_filename}:{traceback.tb_lineno}" if traceback is not None else None


def caller_name(depth: int) -> str:
    """The qualified name of the calling function: the label of a block that was given none."""
    frame = sys._getframe(depth + 1)
    return getattr(frame.f_code, "co_qualname", frame.f_code.co_name)


def suspended_location(coroutine: Any) -> str | None:
    """``file:line`` where a suspended coroutine of the application's entered SQLAlchemy or this library, and waits."""
    found = None
    while coroutine is not None:
        frame = getattr(coroutine, "cr_frame", None)
        if frame is None or frame.f_code.co_filename.startswith(_SKIPPED):
            break
        found = f"{frame.f_code.co_filename}:{frame.f_lineno}"
        coroutine = coroutine.cr_await
    return found
