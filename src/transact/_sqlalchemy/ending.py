"""How a unit of work ends: what may still fail harmlessly, then COMMIT or ROLLBACK, then the hooks that come after."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

from transact._core import events
from transact._core.hooks import Outcome
from transact._core.rules import rolls_back
from transact._core.states import State, first_cause, is_quiet
from transact._sqlalchemy.calling import call, call_hooks
from transact._sqlalchemy.limits import is_over, timed_out
from transact._sqlalchemy.liveness import connection_lost, has_hung_up
from transact._sqlalchemy.reading import runs_alone
from transact._sqlalchemy.session import unguarded
from transact._sqlalchemy.transaction import unexpected_rollback
from transact._sqlalchemy.unit import Unit
from transact._sqlalchemy.verifying import Receipt, ask, take_receipt
from transact.errors import (
    CommitOutcomeUnknown,
    ConcurrentUse,
    StatementTimeout,
    TransactionTimeout,
)

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection


def wants_commit(unit: Unit, error: BaseException | None) -> bool:
    """Whether a transaction whose outermost block ends with ``error`` is to be committed."""
    return not unit.root.marks and (error is None or not rolls_back(unit.root.options, error))


def needs_preparation(unit: Unit) -> bool:
    """Whether something has to run before COMMIT can be sent."""
    return unit.root.calls_before or unit.has_changes


def has_work(unit: Unit) -> bool:
    """Whether ending this transaction means to talk to the database or to run a hook."""
    if runs_alone(unit):
        return unit.root.calls_after
    begun = unit.reads_alone or (unit.session is not None and unit.session.in_transaction())
    return begun or unit.root.calls_after


def prepare(unit: Unit) -> None:
    """Flush, run ``before_commit`` hooks until none is left, flush again: all that may still fail harmlessly."""
    session = unit.plain
    session.flush()
    queue = unit.root.hooks.before_commit
    while queue and not unit.root.marks:
        call(unit, queue.popleft())
        if not unit.root.marks:  # a hook may decide against the commit
            session.flush()


def finish(unit: Unit, error: BaseException | None) -> None:
    """COMMIT or ROLLBACK, give the connection back, run the hooks that come after.

    ``error`` is what left the outermost block. Raises the error of a failed COMMIT, ``CommitOutcomeUnknown``,
    ``UnexpectedRollback``, ``TransactionTimeout``, ``ConcurrentUse`` or ``AfterCommitError``; never ``error`` itself: the
    caller has it.
    """
    marks = unit.root.marks
    if not wants_commit(unit, error):
        roll_back(unit, error or first_cause(marks))
        if error is None and not is_quiet(marks):
            surprise = unexpected_rollback(marks, unit.label)
            raise surprise from surprise.__cause__
    elif (refused := _refusal(unit) or unit.claim_end()) is not None:
        roll_back(unit, refused)
        raise refused
    else:
        _commit(unit)


def finish_unused(unit: Unit, error: BaseException | None) -> bool:
    """End a unit that has nothing to end, not even a session; return whether it was one."""
    root = unit.root
    if (
        unit.session is not None
        or unit.reader is not None
        or unit.busy is not None
        or root.marks
        or root._hooks is not None
    ):
        return False
    if root.state is State.READY:  # nobody has asked for it
        root.move_to(State.ROLLED_BACK)
        return True
    commits = wants_commit(unit, error)
    root.move_to(State.ENDING)
    root.move_to(State.COMMITTED if commits else State.ROLLED_BACK)
    if unit.has_begun:  # its statements had connections of their own
        if commits:
            unit.emit(events.Committed, seconds=unit.seconds)
        else:
            unit.emit(events.RolledBack, seconds=unit.seconds, cause=error)
    return True


def check_commit(unit: Unit) -> None:
    """Raise now what would keep COMMIT from being sent, other than a decision to roll back, and change nothing.

    Raises ``UnexpectedRollback``, ``TransactionLost``, ``ConcurrentUse``, ``TransactionTimeout`` or ``ConnectionLost``.
    """
    marks = unit.root.marks
    if marks and not is_quiet(marks):
        surprise = unexpected_rollback(marks, unit.label)
        raise surprise from surprise.__cause__
    if not marks:
        if (refused := _refusal(unit)) is not None:
            raise refused
        _fail_if_hung_up(unit)


def _refusal(unit: Unit) -> ConcurrentUse | TransactionTimeout | None:
    if unit.busy is not None:
        # Another task's statement is under way: nobody can say whether it belongs to what is to be committed.
        return unit.concurrent_use("commit", None)
    return timed_out(unit) if unit.connection is not None and is_over(unit) else None


def release(unit: Unit) -> None:
    """End the transaction of a unit that only reads, but not the unit: its next statement begins another one."""
    session = unit.session
    if session is None or not session.in_transaction() or unit.marked or unit.claim_end() is not None:
        return
    try:
        with unit.awaiting("release"):
            session.commit()
        unit.connection = None
    finally:
        unit.closing = False
        unit.busy = None


def commit_by_hand(unit: Unit, commit: Callable[[], None]) -> None:
    """Send the COMMIT of a manual session. Raises what ``commit`` raises, ``ConnectionLost`` or ``CommitOutcomeUnknown``."""
    _fail_if_hung_up(unit)
    user = unit.busy
    unit.busy = (unit.runtime.whoami(), "commit", None)
    unit.answered = False
    try:
        with unit.awaiting("COMMIT"):
            commit()
    except BaseException as failed:
        if unit.answered:  # it is stored, and only the giving back of the connection has failed
            unit.rollback_failed(failed)
            unit.gave_back()
        elif answer_is_lost(unit, failed):
            if unit.connection is not None:
                unit.connection.invalidate(failed)
            _raise_unknown(_unknown(unit, failed), failed)
        else:
            raise
    finally:
        unit.busy = user


def _commit(unit: Unit) -> None:
    unit.root.move_to(State.ENDING)
    try:
        receipt = _before_commit(unit)
    except BaseException as failed:
        end_rolled_back(unit, failed)
        raise
    session = unit.session
    try:
        if session is not None and not unit.reads_alone and session.in_transaction():
            with unit.awaiting("COMMIT"):
                unguarded(session).commit(session)
    except BaseException as failed:
        outcome = Outcome.ROLLED_BACK
        if unit.answered:
            unit.rollback_failed(failed)
            outcome = Outcome.COMMITTED
        elif answer_is_lost(unit, failed):
            outcome = _ask(unit, receipt, failed)
        if outcome is Outcome.UNKNOWN:
            _end_unknown(unit, failed)
        if outcome is Outcome.ROLLED_BACK:
            end_rolled_back(unit, failed)
            raise
    end_committed(unit)


def _before_commit(unit: Unit) -> Receipt | None:
    """What has to be known before COMMIT is sent. Raises ``ConnectionLost`` while it is certain that nothing is stored."""
    connection = _fail_if_hung_up(unit)
    if connection is None or unit.runtime.verifier is None or unit.root.options.read_only:
        return None
    with unit.awaiting("receipt"):
        return take_receipt(connection)


def _fail_if_hung_up(unit: Unit) -> Connection | None:
    """The connection that COMMIT will be sent on, if there is one."""
    connection = unit.connection
    if connection is None or unit.autocommit or connection.closed or connection.invalidated:
        return None
    held = connection.connection
    if has_hung_up(held, held.info):
        why = f"the server closed the connection of {unit.label!r} before COMMIT was sent"
        lost = connection_lost(connection.dialect.name, why)
        connection.invalidate(lost)
        raise lost
    return connection


def _ask(unit: Unit, receipt: Receipt | None, failed: BaseException) -> Outcome:
    verifier = unit.runtime.verifier
    if receipt is None or verifier is None or not isinstance(failed, Exception):  # cancelled: it has waited long enough
        return Outcome.UNKNOWN
    return ask(unit.runtime, verifier, receipt)


def end_committed(unit: Unit, *, throw_away: bool = False) -> None:
    """COMMIT has succeeded: give the connection back, or throw it away, and run the hooks. Raises ``AfterCommitError``."""
    unit.close(State.COMMITTED, throw_away=throw_away)
    if unit.has_begun:
        unit.emit(events.Committed, seconds=unit.seconds)
    if unit.root.calls_after:
        call_hooks(unit, None)


def answer_is_lost(unit: Unit, failed: BaseException) -> bool:
    """Whether the statement that ends ``unit`` may have succeeded, though it raised ``failed``."""
    connection = unit.connection
    gone = connection is not None and (connection.invalidated or connection.closed)
    # statement_completion_unknown and transaction_resolution_unknown: PostgreSQL manual, appendix A.
    unknown = getattr(failed, "sqlstate", None) in {"40003", "08007"}
    # The driver gave up waiting, and no server has said that nothing is stored.
    silent = isinstance(failed, StatementTimeout) and (failed.sqlstate, failed.errno) == (None, None)
    return gone or unknown or silent or not isinstance(failed, Exception)


def _end_unknown(unit: Unit, failed: BaseException) -> None:
    unit.close(State.UNKNOWN, throw_away=True)
    unknown = _unknown(unit, failed)
    call_hooks(unit, failed)
    _raise_unknown(unknown, failed)


def _raise_unknown(unknown: CommitOutcomeUnknown, failed: BaseException) -> NoReturn:
    """Raise ``unknown``; but Ctrl-C goes on as it is, or a program that handles errors would not end."""
    if isinstance(failed, KeyboardInterrupt | SystemExit):
        failed.add_note(str(unknown))
        raise failed
    raise unknown from failed


def _unknown(unit: Unit, failed: BaseException) -> CommitOutcomeUnknown:
    unit.emit(events.OutcomeUnknown, seconds=unit.seconds, cause=failed)
    return CommitOutcomeUnknown(
        f"COMMIT of {unit.label!r} was sent and its answer lost: the data may be stored or not. Look before you repeat it"
    )


def roll_back(unit: Unit, error: BaseException | None) -> None:
    """Roll back because of ``error`` and give the connection back. Raises nothing: what fails is told to the listeners."""
    unit.root.move_to(State.ENDING)
    unit.closing = True
    end_rolled_back(unit, error)


def end_rolled_back(unit: Unit, error: BaseException | None) -> None:
    """What ``roll_back`` does with a unit that is already ending."""
    if not unit.leave_end_to_its_user():
        unit.close(State.ROLLED_BACK)
    if unit.has_begun:
        unit.emit(events.RolledBack, seconds=unit.seconds, cause=error)
    if unit.root.calls_after:
        call_hooks(unit, error)
