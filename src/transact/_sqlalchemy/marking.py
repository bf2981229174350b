"""What makes a unit of work, or a savepoint in it, one that can only be rolled back, and what that refuses."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from sqlalchemy.engine import Connection, ExceptionContext
from sqlalchemy.orm import Session, SessionTransaction

from transact._core.rules import rolls_back
from transact._core.states import Mark, Marker, lost_to
from transact._sqlalchemy.limits import mark_late
from transact._sqlalchemy.transaction import Transaction, raise_location, unexpected_rollback
from transact.errors import TransactionTimeout, UsageError

if TYPE_CHECKING:
    from transact._sqlalchemy.unit import Unit


class Marking:
    """The part of a ``Unit`` that keeps the marks; see there for the attributes."""

    __slots__ = ("_users_savepoints", "closing", "connection", "managed", "marked", "root", "savepoints", "session")

    if TYPE_CHECKING:
        root: Transaction
        session: Session | None
        connection: Connection | None
        managed: bool
        closing: bool
        marked: bool
        # Core's own objects for savepoints tell whose savepoint an error happened in: a scope's, or the user's.
        savepoints: dict[object, tuple[Transaction, SessionTransaction]]
        _users_savepoints: dict[object, Mark]

        @property
        def label(self) -> str: ...

    def check_marks(self) -> None:
        """Raise ``UnexpectedRollback`` if the innermost scope that the server can roll back is rollback-only.

        ``TransactionLost`` if the server has rolled back all by itself.
        """
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

    def failed(self, context: ExceptionContext, error: BaseException, *, lost: bool) -> None:
        """A statement failed: the transaction, or the savepoint it ran in, can only be rolled back (on every engine).

        ``lost``: the server has ended the transaction by itself, whatever savepoint the statement ran in.
        """
        if not self.managed or self.closing or self.connection is None:
            return
        if context.is_disconnect:
            self.root.mark(Marker.CONNECTION, cause=error)
        elif lost:
            self._lose(error)
        elif isinstance(error, TransactionTimeout):
            mark_late(cast("Unit", self), error)
        else:
            self.mark_innermost(Marker.DATABASE, error)

    def _lose(self, error: BaseException) -> None:
        self.root.mark(Marker.LOST, cause=error)
        transaction = self.connection.get_transaction() if self.connection is not None else None
        if transaction is not None:
            # SQLAlchemy sends nothing in a transaction that is not active: no ROLLBACK TO, which could only fail and hide
            # the error, and no statement, which the server would run in a new transaction. It does send one ROLLBACK, now,
            # which ends what the server keeps beyond the data, such as READ ONLY.
            transaction.is_active = False

    @property
    def lost(self) -> bool:
        """Whether the server has ended the transaction by itself."""
        return lost_to(self.root.marks) is not None

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
        return (
            self.lost
            or nested in self._users_savepoints
            or (nested in self.savepoints and bool(self.savepoints[nested][0].marks))
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
        if self._users_savepoints or (self.marked and self.lost):
            self.check_marks()

    def recount_marks(self) -> None:
        """A savepoint is gone and its marks with it."""
        scopes = [self.root, *(scope for scope, _ in self.savepoints.values())]
        self.marked = bool(self._users_savepoints) or any(scope.marks for scope in scopes)

    # Joined blocks.

    def leave_joined(self, scope: Transaction, error: BaseException | None) -> None:
        """A block that joined ends: if it fails, what it joined can only be rolled back.

        Raises ``TransactionLost`` in place of a normal end if nothing is left of what it did.
        """
        if error is None and scope.is_open and self.lost:
            self.check_marks()
        if error is not None and scope.is_open and rolls_back(scope.options, error):
            scope.mark(Marker.PARTICIPANT, cause=error, where=raise_location(error.__traceback__))
