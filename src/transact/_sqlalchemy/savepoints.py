"""Savepoints: setting one, releasing it, rolling back to it."""

from __future__ import annotations

from sqlalchemy.orm import Session, SessionTransaction

from transact._core import events
from transact._core.rules import rolls_back
from transact._core.states import Marker, State, first_cause, is_quiet
from transact._sqlalchemy.calling import run_hooks
from transact._sqlalchemy.transaction import Transaction, unexpected_rollback
from transact._sqlalchemy.unit import Unit
from transact.errors import DatabaseError, TransactionEnded
from transact.options import Options


def enter_savepoint(unit: Unit, parent: Transaction, options: Options, label: str) -> Transaction:
    """Set a savepoint and return its scope. Raises ``UnexpectedRollback`` in a rollback-only transaction."""
    session = unit.plain
    outermost = unit.enter("begin_nested", None)  # or another one could be set before this one is known
    try:
        nested = session.begin_nested()
        core = session.connection().get_nested_transaction()
        scope = Transaction(unit, parent, kind="savepoint", options=options, label=label)
        unit.savepoints[core] = (scope, nested)
    finally:
        if outermost:
            unit.leave()
    return scope


def leave_savepoint(unit: Unit, scope: Transaction, error: BaseException | None) -> None:
    """Release the savepoint, or roll back to it; raises ``UnexpectedRollback`` if it was marked by others.

    Raises ``TransactionLost`` if the server has rolled back all: in place of a normal end, and of the database's error, which
    whoever catches it around a savepoint takes for undone.

    Raises ``ConcurrentUse`` if another task uses the session now, and ``TransactionEnded`` if the block outlived its
    transaction.
    """
    failed = None
    try:
        if not unit.root.is_open:
            unit.check_not_ended("savepoint")
            return
        with unit.ending_savepoint():
            marks = [*unit.root.marks, *scope.marks]
            keeps = (error is None or not rolls_back(scope.options, error)) and not marks
            failed = _end(unit, scope, keeps=keeps)
    except TransactionEnded:
        if failed is not None:
            raise failed from None
        if error is None:
            raise
        return
    if keeps and failed is None:
        scope.hooks.release_to(scope.around.hooks)
        return
    error = failed or error
    _tell_rolled_back(unit, scope, error or first_cause(marks))
    if failed is not None:
        raise failed
    hides_loss = unit.lost and isinstance(error, DatabaseError)
    if hides_loss or (error is None and not is_quiet(marks)):
        surprise = unexpected_rollback(marks, scope.label)
        raise surprise from surprise.__cause__


def _end(unit: Unit, scope: Transaction, *, keeps: bool) -> BaseException | None:
    """Send RELEASE, or ROLLBACK TO; return the error of a RELEASE that failed and so was a rollback too."""
    core, nested = next((c, n) for c, (s, n) in unit.savepoints.items() if s is scope)
    failed: BaseException | None = None
    if keeps:
        try:
            with unit.awaiting("RELEASE"):
                SessionTransaction.commit(nested)  # it is claimed, also if it goes on in another task
        except BaseException as error:  # noqa: BLE001  # raised when it is rolled back
            failed = error
    del unit.savepoints[core]
    scope.move_to(State.ENDING)
    if keeps and failed is None:
        scope.move_to(State.COMMITTED)
    else:
        _roll_back(unit, nested)
        scope.move_to(State.ROLLED_BACK)
    unit.recount_marks()
    return failed


def _roll_back(unit: Unit, nested: SessionTransaction) -> None:
    try:
        # A flush that failed has rolled back to the savepoint already, and its transaction may be gone.
        if nested in _open_transactions(unit.plain):
            with unit.awaiting("ROLLBACK"):
                SessionTransaction.rollback(nested)
    except BaseException as failed:  # noqa: BLE001  # no answer in time included; the first error is the one to tell; the transaction is lost either way
        unit.rollback_failed(failed)
        if not unit.root.marks:
            unit.root.mark(Marker.CONNECTION, cause=failed)


def _tell_rolled_back(unit: Unit, scope: Transaction, cause: BaseException | None) -> None:
    unit.emit(events.SavepointRolledBack, cause=cause)
    run_hooks(unit, "after_rollback", scope.hooks.roll_back_to(scope.around.hooks), cause)


def _open_transactions(session: Session) -> list[SessionTransaction]:
    found = []
    transaction = session.get_nested_transaction() or session.get_transaction()
    while transaction is not None:
        found.append(transaction)
        transaction = transaction.parent
    return found
