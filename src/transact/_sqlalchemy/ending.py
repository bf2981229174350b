"""How a unit of work ends: what may still fail harmlessly, then COMMIT or ROLLBACK, then the hooks that come after."""

from __future__ import annotations

import inspect

from transact._core import events
from transact._core.hooks import Hook, Outcome
from transact._core.rules import rolls_back
from transact._core.states import State, first_cause, is_quiet
from transact._sqlalchemy.transaction import unexpected_rollback
from transact._sqlalchemy.unit import Unit
from transact.errors import AfterCommitError, CommitOutcomeUnknown
from transact.options import Options


def wants_commit(unit: Unit, error: BaseException | None) -> bool:
    """Whether a transaction whose outermost block ends with ``error`` is to be committed."""
    return not unit.root.marks and (error is None or not rolls_back(unit.root.options, error))


def needs_preparation(unit: Unit) -> bool:
    """Whether something has to run before COMMIT can be sent."""
    return bool(unit.root.hooks.before_commit) or unit.has_changes


def has_work(unit: Unit) -> bool:
    """Whether ending this transaction means to talk to the database or to run a hook."""
    hooks = unit.root.hooks
    begun = unit.session is not None and unit.session.in_transaction()
    return begun or bool(hooks.after_commit or hooks.after_rollback or hooks.after_completion)


def prepare(unit: Unit) -> None:
    """Flush, run ``before_commit`` hooks until none is left, flush again: all that may still fail harmlessly."""
    session = unit.handle.sync_session
    session.flush()
    queue = unit.root.hooks.before_commit
    while queue and not unit.root.marks:
        _call(unit, queue.popleft())
        if not unit.root.marks:  # a hook may decide against the commit
            session.flush()


def finish(unit: Unit, error: BaseException | None) -> None:
    """COMMIT or ROLLBACK, give the connection back, run the hooks that come after.

    ``error`` is what left the outermost block. Raises the error of a failed COMMIT, ``CommitOutcomeUnknown``,
    ``UnexpectedRollback``, ``ConcurrentUse`` or ``AfterCommitError``; never ``error`` itself: the caller has it.
    """
    marks = unit.root.marks
    if not wants_commit(unit, error):
        roll_back(unit, error or first_cause(marks))
        if error is None and not is_quiet(marks):
            surprise = unexpected_rollback(marks, unit.label)
            raise surprise from surprise.__cause__
    elif unit.busy is not None:
        # Another task's statement is under way: nobody can say whether it belongs to what is to be committed.
        refused = unit.concurrent_use("commit", None)
        roll_back(unit, refused)
        raise refused
    else:
        _commit(unit)


def release(unit: Unit) -> None:
    """End the transaction of a unit that only reads, but not the unit: its next statement begins another one."""
    session = unit.session
    if session is None or not session.in_transaction() or unit.busy is not None or unit.marked:
        return
    unit.closing = True
    unit.busy = (unit.runtime.whoami(), "release", None)
    try:
        session.commit()
        unit.connection = None
    finally:
        unit.closing = False
        unit.busy = None


def _commit(unit: Unit) -> None:
    unit.root.move_to(State.ENDING)
    unit.closing = True
    unit.busy = (unit.runtime.whoami(), "commit", None)
    session = unit.session
    try:
        if session is not None and session.in_transaction():
            session.commit()
    except BaseException as failed:
        if _answer_is_lost(unit, failed):
            _end_unknown(unit, failed)
        _end_rolled_back(unit, failed)
        raise
    unit.close(State.COMMITTED)
    if unit.connection is not None and not unit.autocommit:
        unit.emit(events.Committed, seconds=unit.seconds)
    hooks = unit.root.hooks
    if hooks.after_commit:
        _hide_transactions(unit)
    failures = [_run_hook(unit, "after_commit", hook.call) for hook in hooks.after_commit]
    run_hooks(unit, "after_completion", hooks.after_completion, Outcome.COMMITTED)
    critical = [f for f, hook in zip(failures, hooks.after_commit, strict=True) if f is not None and hook.critical]
    if critical:
        raise AfterCommitError(f"{unit.label!r} is committed, but hooks failed", critical)


def _answer_is_lost(unit: Unit, failed: BaseException) -> bool:
    connection = unit.connection
    gone = connection is not None and (connection.invalidated or connection.closed)
    # statement_completion_unknown and transaction_resolution_unknown: PostgreSQL manual, appendix A.
    return gone or getattr(failed, "sqlstate", None) in {"40003", "08007"}


def _end_unknown(unit: Unit, failed: BaseException) -> None:
    unit.close(State.UNKNOWN, throw_away=True)
    unit.emit(events.OutcomeUnknown, seconds=unit.seconds, cause=failed)
    run_hooks(unit, "after_completion", unit.root.hooks.after_completion, Outcome.UNKNOWN)
    raise CommitOutcomeUnknown(
        f"COMMIT of {unit.label!r} was sent and its answer lost: the data may be stored or not. Look before you repeat it"
    ) from failed


def roll_back(unit: Unit, error: BaseException | None) -> None:
    """Roll back because of ``error`` and give the connection back. Raises nothing: what fails is told to the listeners."""
    unit.root.move_to(State.ENDING)
    unit.closing = True
    _end_rolled_back(unit, error)


def _end_rolled_back(unit: Unit, error: BaseException | None) -> None:
    me = unit.runtime.whoami()
    if unit.busy is not None and unit.busy[0] is not me:
        # Another task's statement is on the wire, and ROLLBACK cannot be sent beside it: that task rolls back and gives
        # the connection back when its statement returns.
        unit.closing = False
        unit.root.move_to(State.ROLLED_BACK)
    else:
        unit.close(State.ROLLED_BACK)
    if unit.connection is not None and not unit.autocommit:
        unit.emit(events.RolledBack, seconds=unit.seconds, cause=error)
    hooks = unit.root.hooks
    run_hooks(unit, "after_rollback", hooks.after_rollback, error)
    run_hooks(unit, "after_completion", hooks.after_completion, Outcome.ROLLED_BACK)


def run_hooks(unit: Unit, phase: str, hooks: list[Hook], argument: object) -> None:
    """Call each hook with ``argument``; one that fails is told to the listeners, and the others still run.

    No transaction is open while they run, not even one that waits for this: what they store commits by itself.
    """
    if hooks:
        _hide_transactions(unit)
    for hook in hooks:
        _run_hook(unit, phase, hook, argument)


def _hide_transactions(unit: Unit) -> None:
    """Let the running task, which is the hooks' own, see no open transaction."""
    waiting = unit if unit.root.is_open else unit.suspended
    hidden = Unit(unit.runtime, Options(), unit.label, autocommit=True, suspended=waiting) if waiting else None
    unit.runtime.current.set(hidden.root if hidden else None)


def _run_hook(unit: Unit, phase: str, hook: Hook, *arguments: object) -> Exception | None:
    try:
        _call(unit, hook, *arguments)
    except Exception as failed:  # noqa: BLE001  # the outcome stands, whatever a hook raises
        unit.emit(events.HookFailed, phase=phase, cause=failed)
        return failed
    return None


def _call(unit: Unit, hook: Hook, *arguments: object) -> None:
    result = hook(*arguments)
    if inspect.isawaitable(result):
        unit.runtime.wait(result)
