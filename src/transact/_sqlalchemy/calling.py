"""Hooks are called: in which order, with what they may see, and what becomes of one that fails."""

from __future__ import annotations

import inspect

from transact._core import events
from transact._core.hooks import Hook, Outcome
from transact._core.states import State
from transact._sqlalchemy.unit import Unit
from transact.errors import AfterCommitError
from transact.options import Options


def call_hooks(unit: Unit, error: BaseException | None) -> None:
    """Run the hooks for how ``unit`` has ended; ``error`` rolled it back. Raises ``AfterCommitError``."""
    hooks, state = unit.root.hooks, unit.root.state
    if state is not State.COMMITTED:
        unknown = state is State.UNKNOWN
        if not unknown:
            run_hooks(unit, "after_rollback", hooks.undo, error)
        outcome = Outcome.UNKNOWN if unknown else Outcome.ROLLED_BACK
        run_hooks(unit, "after_completion", hooks.after_completion, outcome)
        return
    if hooks.after_commit:
        _hide_transactions(unit)
    failures = [_run_hook(unit, "after_commit", hook.call) for hook in hooks.after_commit]
    run_hooks(unit, "after_completion", hooks.after_completion, Outcome.COMMITTED)
    critical = [f for f, hook in zip(failures, hooks.after_commit, strict=True) if f is not None and hook.critical]
    if critical:
        raise AfterCommitError(f"{unit.label!r} is committed, but hooks failed", critical)


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
    about_to_run = unit.runtime.about_to_run
    if about_to_run is not None and not about_to_run(phase, hook, unit.label, arguments):
        return None
    try:
        call(unit, hook, *arguments)
    except Exception as failed:  # noqa: BLE001  # the outcome stands, whatever a hook raises
        unit.emit(events.HookFailed, phase=phase, cause=failed)
        return failed
    return None


def call(unit: Unit, hook: Hook, *arguments: object) -> None:
    """Call one hook, and await what it returns if that can be awaited."""
    result = hook(*arguments)
    if inspect.isawaitable(result):
        unit.runtime.wait(result)
