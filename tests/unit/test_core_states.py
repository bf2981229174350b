"""States, marks, rules, hook queues and events, without any database."""

import dataclasses
import itertools

import pytest

from transact._core import events
from transact._core.hooks import AfterCommit, Hooks, Outcome
from transact._core.rules import rolls_back
from transact._core.states import ENDED, MOVES, OPEN, Mark, Marker, State, first_cause, is_quiet, lost_to, move
from transact.options import Options

LEGAL = {
    (State.READY, State.ACTIVE),
    (State.READY, State.ROLLED_BACK),
    (State.ACTIVE, State.ROLLBACK_ONLY),
    (State.ACTIVE, State.ENDING),
    (State.ROLLBACK_ONLY, State.ENDING),
    (State.ENDING, State.COMMITTED),
    (State.ENDING, State.ROLLED_BACK),
    (State.ENDING, State.UNKNOWN),
}


@pytest.mark.parametrize(("now", "then"), list(itertools.product(State, State)))
def test_a_move_is_made_if_it_is_legal_and_otherwise_a_fault_of_the_library(now: State, then: State) -> None:
    if (now, then) in LEGAL:
        assert move(now, then) is then
    else:
        with pytest.raises(AssertionError, match=now.value):
            move(now, then)


def test_an_ended_transaction_never_opens_again_and_a_broken_one_never_commits_without_ending() -> None:
    assert all(not MOVES[state] for state in ENDED)
    assert not OPEN & ENDED
    assert State.COMMITTED not in MOVES[State.ROLLBACK_ONLY]


ERROR = ValueError("secret value")


@pytest.mark.parametrize(
    ("mark", "note"),
    [
        (Mark(Marker.REQUEST, "register", own=True), "set_rollback_only() was called in 'register'"),
        (
            Mark(Marker.REQUEST, "register", own=True, where="app.py:3", reason="no stock"),
            "set_rollback_only() was called in 'register' at app.py:3 (no stock)",
        ),
        (
            Mark(Marker.PARTICIPANT, "inner", own=False, where="app.py:3", cause=ERROR),
            "a joined block failed in 'inner' at app.py:3 (ValueError)",
        ),
        (Mark(Marker.DATABASE, "inner", own=False, reason="why", cause=ERROR), "a statement failed in 'inner' (why)"),
    ],
)
def test_a_mark_says_what_who_where_and_why_and_no_value(mark: Mark, note: str) -> None:
    assert mark.note() == note


REQUESTED = Mark(Marker.REQUEST, "outer", own=True)
BY_OTHERS = Mark(Marker.REQUEST, "inner", own=False)
FAILED = Mark(Marker.DATABASE, "outer", own=True, cause=ERROR)


@pytest.mark.parametrize(
    ("marks", "quiet"),
    [
        ([], False),
        ([REQUESTED], True),
        ([BY_OTHERS], False),
        ([FAILED], False),
        ([FAILED, REQUESTED], True),
        ([BY_OTHERS, FAILED], False),
    ],
)
def test_a_rollback_is_quiet_if_the_block_that_ends_asked_for_it(
    marks: list[Mark],
    quiet: bool,  # noqa: FBT001  # a row of the table
) -> None:
    assert is_quiet(marks) is quiet


def test_the_first_cause_is_that_of_the_earliest_mark_that_has_one() -> None:
    later = Mark(Marker.PARTICIPANT, "inner", own=False, cause=KeyError())
    assert first_cause([REQUESTED, FAILED, later]) is ERROR
    assert first_cause([REQUESTED]) is None
    assert first_cause([]) is None


def test_a_transaction_is_lost_if_any_mark_says_that_the_server_rolled_it_back() -> None:
    lost = Mark(Marker.LOST, "outer", own=True, cause=ERROR)
    assert lost_to([REQUESTED, lost]) is lost
    assert lost_to([REQUESTED, FAILED]) is None


class Base(Exception): ...


class Derived(Base): ...


class Both(Derived, KeyError): ...


@pytest.mark.parametrize(
    ("rollback_for", "no_rollback_for", "error", "expected"),
    [
        ((), (), ValueError(), True),
        ((ValueError,), (), KeyError(), True),
        ((), (Base,), Base(), False),
        ((), (Base,), Derived(), False),
        ((), (Derived,), Base(), True),
        ((Derived,), (Base,), Derived(), True),
        ((Base,), (Derived,), Derived(), False),
        ((Base,), (Base,), Base(), True),
        ((KeyError,), (Base,), Both(), False),
        ((KeyError,), (LookupError,), Both(), True),
        ((), (Exception,), GeneratorExit(), True),
        ((), (BaseException,), GeneratorExit(), False),
    ],
)
def test_the_nearest_class_in_the_mro_decides_and_a_tie_rolls_back(
    rollback_for: tuple,
    no_rollback_for: tuple,
    error: BaseException,
    expected: bool,  # noqa: FBT001  # a row of the table
) -> None:
    options = Options(rollback_for=rollback_for, no_rollback_for=no_rollback_for)
    assert rolls_back(options, error) is expected


def filled(name: str) -> Hooks:
    def hook(phase: str):
        def call() -> str:
            return f"{phase} of {name}"

        return call

    hooks = Hooks()
    hooks.before_commit.append(hook("before"))
    hooks.after_commit.append(AfterCommit(hook("after"), critical=True))
    hooks.after_rollback.append(hook("undone"))
    hooks.after_completion.append(hook("end"))
    return hooks


def names(hooks: Hooks) -> dict[str, list[str]]:
    return {
        "before_commit": [hook() for hook in hooks.before_commit],
        "after_commit": [hook.call() for hook in hooks.after_commit],
        "after_rollback": [hook() for hook in hooks.undo],
        "after_completion": [hook() for hook in hooks.after_completion],
    }


@pytest.mark.parametrize("phase", ["after_commit", "after_rollback", "after_completion"])
def test_only_hooks_of_the_phases_after_the_end_come_after_it(phase: str) -> None:
    hooks = Hooks()
    hooks.before_commit.append(lambda: None)
    assert not hooks.come_after
    getattr(hooks, phase).append(lambda: None)
    assert hooks.come_after


def test_hooks_of_released_savepoints_come_after_the_end_too() -> None:
    outer, inner = Hooks(), Hooks()
    inner.after_rollback.append(lambda: None)
    inner.release_to(outer)
    assert outer.come_after


def test_a_released_savepoint_hands_everything_over_and_rollbacks_go_deepest_first() -> None:
    outer, inner = filled("outer"), filled("inner")
    inner.release_to(outer)
    assert names(outer) == {
        "before_commit": ["before of outer", "before of inner"],
        "after_commit": ["after of outer", "after of inner"],
        "after_rollback": ["undone of inner", "undone of outer"],
        "after_completion": ["end of outer", "end of inner"],
    }
    assert all(hook.critical for hook in outer.after_commit)


def test_a_savepoint_that_is_rolled_back_takes_its_hooks_with_it_but_those_that_always_run() -> None:
    outer, inner = filled("outer"), filled("inner")
    to_run = inner.roll_back_to(outer)
    assert [hook() for hook in to_run] == ["undone of inner"]
    assert names(outer) == {
        "before_commit": ["before of outer"],
        "after_commit": ["after of outer"],
        "after_rollback": ["undone of outer"],
        "after_completion": ["end of outer", "end of inner"],
    }


def test_there_are_three_outcomes() -> None:
    assert {outcome.value for outcome in Outcome} == {"committed", "rolled back", "unknown"}


@pytest.mark.parametrize("kind", events.Event.__subclasses__())
def test_every_event_is_frozen_and_names_its_database_and_label(kind: type[events.Event]) -> None:
    facts = {field.name: None for field in dataclasses.fields(kind)}
    event = kind(**{**facts, "database": "shop", "label": "register"})
    assert (event.database, event.label) == ("shop", "register")
    with pytest.raises(dataclasses.FrozenInstanceError):
        event.label = "other"  # type: ignore[misc]
