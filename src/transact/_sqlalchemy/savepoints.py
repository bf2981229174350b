"""Savepoints: setting one, releasing it, rolling back to it."""

from __future__ import annotations

from sqlalchemy.orm import Session, SessionTransaction

from transact._core import events
from transact._core.rules import rolls_back
from transact._core.states import Marker, State, first_cause, is_quiet
from transact._sqlalchemy.calling import run_hooks
from transact._sqlalchemy.transaction import Transaction, unexpected_rollback
from transact._sqlalchemy.unit import Unit
from transact.errors import DatabaseError
from transact.options import Options


def enter_savepoint(unit: Unit, parent: Transaction, options: Options, label: str) -> Transaction:
    """Set a savepoint and return its scope. Raises ``UnexpectedRollback`` in a rollback-only transaction."""
    session = unit.plain
    nested = session.begin_nested()
    core = session.connection().get_nested_transaction()
    scope = Transaction(unit, parent, kind="savepoint", options=options, label=label)
    unit.savepoints[core] = (scope, nested)
    return scope


def leave_savepoint(unit: Unit, scope: Transaction, error: BaseException | None) -> None:
    """Release the savepoint, or roll back to it; raises ``UnexpectedRollback`` if it was marked by others.

    Raises ``TransactionLost`` if the server has rolled back all: in place of a normal end, and of the database's error, which
    whoever catches it around a savepoint takes for undone.

    Raises ``ConcurrentUse`` if another task uses the session now, and ``TransactionEnded`` if the block outlived its
    transaction.
    """
    if not unit.root.is_open:
        if error is None:
            unit.check_not_ended("savepoint")
        return
    if unit.busy is not None:
        refused = unit.concurrent_use("savepoint", None)
        unit.root.mark(Marker.PARTICIPANT, cause=refused)
        raise refused
    core, nested = next((c, n) for c, (s, n) in unit.savepoints.items() if s is scope)
    marks = [*unit.root.marks, *scope.marks]
    released = False
    try:
        if (error is None or not rolls_back(scope.options, error)) and not marks:
            with unit.awaiting("RELEASE"):
                nested.commit()
            released = True
    except BaseException as failed:
        error = failed
        raise
    finally:
        del unit.savepoints[core]
        if released:
            _released(scope)
        else:
            _roll_back(unit, scope, nested, error or first_cause(marks))
        unit.recount_marks()
    hides_loss = unit.lost and isinstance(error, DatabaseError)
    if not released and (hides_loss or (error is None and not is_quiet(marks))):
        surprise = unexpected_rollback(marks, scope.label)
        raise surprise from surprise.__cause__


def _released(scope: Transaction) -> None:
    scope.move_to(State.ENDING)
    scope.move_to(State.COMMITTED)
    scope.hooks.release_to(scope.around.hooks)


def _roll_back(unit: Unit, scope: Transaction, nested: SessionTransaction, error: BaseException | None) -> None:
    scope.move_to(State.ENDING)
    try:
        # A flush that failed has rolled back to the savepoint already, and its transaction may be gone.
        if nested in _open_transactions(unit.plain):
            with unit.awaiting("ROLLBACK"):
                nested.rollback()
    except BaseException as failed:  # noqa: BLE001  # no answer in time included; the first error is the one to tell; the transaction is lost either way
        unit.rollback_failed(failed)
        if not unit.root.marks:
            unit.root.mark(Marker.CONNECTION, cause=failed)
    scope.move_to(State.ROLLED_BACK)
    unit.emit(events.SavepointRolledBack, cause=error)
    run_hooks(unit, "after_rollback", scope.hooks.roll_back_to(scope.around.hooks), error)


def _open_transactions(session: Session) -> list[SessionTransaction]:
    found = []
    transaction = session.get_nested_transaction() or session.get_transaction()
    while transaction is not None:
        found.append(transaction)
        transaction = transaction.parent
    return found
