"""The guard of a unit of work: who may use its session now, and what is refused before anything was touched."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

from transact._core.states import ENDED, Marker, State
from transact._sqlalchemy.limits import check_deadline
from transact._sqlalchemy.marking import Marking
from transact._sqlalchemy.waiting import check_second_connection
from transact.errors import ConcurrentUse, TransactionEnded

if TYPE_CHECKING:
    from transact._core.limits import Limits
    from transact._sqlalchemy.reading import Reader
    from transact._sqlalchemy.runtime import Runtime
    from transact._sqlalchemy.unit import Unit

_READS = ("select", "show", "explain", "values", "table", "set", "pragma")


class Guarding(Marking):
    """The part of a ``Unit`` that is called around each use of the session; see there for the attributes."""

    __slots__ = ("autocommit", "busy", "limits", "reader", "runtime", "suspended", "wrote")

    if TYPE_CHECKING:
        runtime: Runtime
        autocommit: bool
        busy: tuple[object, str, object] | None
        limits: Limits | None
        reader: Reader | None
        suspended: Unit | None
        wrote: bool

        def close(self, state: State | None, *, throw_away: bool = False) -> None: ...

    def enter(self, operation: str, argument: object) -> bool:
        """Claim the session for one use; return whether this use is the outermost and has to be left again.

        Raises ``TransactionEnded``, ``ConcurrentUse``, ``UnexpectedRollback`` or ``TransactionTimeout``, before anything was
        touched.
        """
        me = self.runtime.whoami()
        if self.busy is not None and self.busy[0] is me:
            return False
        if self.closing or self.root._own_state in ENDED:
            raise self._ended(operation)
        if self.busy is not None:
            raise self.concurrent_use(operation, argument)
        if self.marked:
            self.check_marks()
        if self.limits is not None:
            check_deadline(cast("Unit", self))
        if self.connection is None:
            self.runtime.asking[me] = cast("Unit", self)
        if self.suspended is not None and (operation != "flush" or self.has_changes):  # an empty flush sends nothing
            check_second_connection(cast("Unit", self), may_write=self._may_write(operation, argument))
        self.busy = (me, operation, argument)
        if not self.managed:
            self._watch(operation, argument)
        return True

    def leave(self) -> None:
        """Release the claim of ``enter``. Raises ``TransactionEnded`` if the transaction ended in the meantime.

        It could not send its ROLLBACK beside the statement that was under way, so whoever comes back from that does.
        """
        assert self.busy is not None  # noqa: S101  # claimed by enter
        me, operation, _ = self.busy
        if self.reader is not None:
            self.reader.let_go_if_idle()
        self.busy = None
        self.runtime.asking.pop(me, None)
        self.runtime.waiting.discard(cast("Unit", self))
        if self.root._own_state in ENDED:
            self.close(None)
            raise self._ended(operation)

    @contextmanager
    def ending_savepoint(self) -> Iterator[None]:
        """Claim the session while a savepoint is released or rolled back to.

        Raises ``ConcurrentUse`` while somebody else uses the session, and all of the transaction is then rolled back: nobody
        can say whether that use belongs to the savepoint. Raises ``TransactionEnded`` as ``enter`` and ``leave`` do.
        """
        try:
            claimed = self.claim_savepoint()
        except ConcurrentUse as refused:
            self.root.mark(Marker.PARTICIPANT, cause=refused)
            raise
        try:
            yield
        finally:
            if claimed:
                self.leave()

    def claim_savepoint(self) -> bool:
        """What ``enter`` does for a use, for the end of a savepoint, which may be rolled back to in any state of it."""
        me = self.runtime.whoami()
        if self.busy is not None and self.busy[0] is me:
            return False
        if self.closing or self.root._own_state in ENDED:
            raise self._ended("savepoint")
        if self.busy is not None:
            raise self.concurrent_use("savepoint", None)
        self.busy = (me, "savepoint", None)
        return True

    def claim_end(self) -> ConcurrentUse | None:
        """Claim the session for its COMMIT; or, while it is in use, return what is to be raised instead."""
        if self.busy is not None:
            return self.concurrent_use("commit", None)
        self.closing = True
        self.busy = (self.runtime.whoami(), "commit", None)
        return None

    def leave_end_to_its_user(self) -> bool:
        """End as rolled back if somebody else's statement is on the wire; return whether that is so.

        ROLLBACK cannot be sent beside it: ``leave`` sends it, and gives the connection back, when the statement returns.
        """
        if self.busy is None or self.busy[0] is self.runtime.whoami():
            return False
        self.closing = False
        self.root.move_to(State.ROLLED_BACK)
        return True

    @property
    def is_mine_to_end(self) -> bool:
        """Whether it is this library that ends the transaction now, in this task."""
        return self.closing and self.busy is not None and self.busy[0] is self.runtime.whoami()

    def check_not_ended(self, operation: str) -> None:
        """Raise ``TransactionEnded`` where ``operation`` would be lost without a word."""
        if self.root._own_state in ENDED:
            raise self._ended(operation)

    def _watch(self, operation: str, argument: object) -> None:
        # Only a manual session can be left with changes that nobody commits.
        self.wrote = self.wrote or self.writes(operation, argument)

    def _may_write(self, operation: str, argument: object) -> bool:
        # A statement may flush what is pending, whatever it is itself.
        return not self.autocommit or self.has_changes or self.writes(operation, argument)

    def writes(self, operation: str, argument: object) -> bool:
        """Whether ``operation`` with ``argument`` looks like one that changes data."""
        if operation == "flush":
            return self.has_changes
        text = argument if isinstance(argument, str) else getattr(argument, "text", None)
        return getattr(argument, "is_dml", False) or (
            isinstance(text, str) and not text.lstrip(" (\r\n\t").lower().startswith(_READS)
        )

    @property
    def has_changes(self) -> bool:
        """Whether something was written, or is pending in the session, that is not committed."""
        session = self.session
        # What session.dirty would collect, asked for without collecting it.
        return session is not None and (
            self.wrote or bool(session.new or session.deleted) or session.identity_map.check_modified()
        )

    def _ended(self, operation: str) -> TransactionEnded:
        return TransactionEnded(
            f"session.{operation}() was called after {self.label!r} had ended ({self.root.state.value}), so it did nothing. "
            "A background task, a streaming body or a task that outlives its request needs a transaction of its own: "
            f"`{self.runtime.enter_by} db.transaction() as session`"
        )

    def concurrent_use(self, operation: str, argument: object) -> ConcurrentUse:
        """The error that names the use under way and the one that is refused."""
        other, other_operation, other_argument = self.busy or (None, "use", None)  # a thread may have returned since
        where = self.runtime.locate(other)
        return ConcurrentUse(
            f"two {self.runtime.users} use the session of {self.label!r} at once: "
            f"{_describe(other_operation, other_argument)}{f' at {where}' if where else ''} is still running, and "
            f"{_describe(operation, argument)} was refused. {self.runtime.instead}"
        )


def _describe(operation: str, argument: object) -> str:
    text = str(argument) if argument is not None else ""
    text = " ".join(text.split())
    return f"session.{operation}({text[:120]}{'…' if len(text) > 120 else ''})"  # noqa: PLR2004  # enough to recognise
