"""The pure part of time limits: what joining does to them, and when the server is told again."""

from math import inf

import pytest

from transact._core.limits import Limits, Told
from transact.options import Options

NOW = 1000.0


def test_a_transaction_that_asks_for_no_limit_has_none() -> None:
    assert Limits.of(Options(), NOW) == Limits()


def test_its_time_begins_when_it_begins() -> None:
    assert Limits.of(Options(timeout=5, lock_timeout=2), NOW) == Limits(1005, 5, 2)
    assert Limits.of(Options(lock_timeout=2), NOW) == Limits(lock_timeout=2)


@pytest.mark.parametrize(
    ("before", "asked", "after"),
    [
        (Limits(), Options(timeout=3, lock_timeout=1), Limits(1003, 3, 1)),
        (Limits(1005, 5, 2), Options(timeout=3, lock_timeout=1), Limits(1003, 3, 1)),
        (Limits(1005, 5, 2), Options(timeout=9, lock_timeout=9), Limits(1005, 5, 2)),
    ],
)
def test_a_timeout_on_joining_can_only_shorten(before: Limits, asked: Options, after: Limits) -> None:
    assert before.shortened(Limits.of(asked, NOW) or Limits()) == after


def test_the_deadline_has_passed_when_nothing_remains() -> None:
    limits = Limits(1005, 5)
    assert [limits.remaining(1004), limits.remaining(1005), limits.remaining(1006)] == [1, 0, 0]
    assert [limits.is_over(1004), limits.is_over(1005)] == [False, True]
    assert (Limits().remaining(NOW), Limits().is_over(NOW)) == (None, False)


def test_nobody_waits_for_a_lock_longer_than_the_tightest_limit_says() -> None:
    assert Limits().longest_wait(30, NOW) == 30
    assert Limits(1005, 5, 7).longest_wait(30, NOW) == 5
    assert Limits(1005, 5, 2).longest_wait(30, NOW) == 2


@pytest.mark.parametrize(
    ("told", "limits", "now", "next_"),
    [
        (Told(), Limits(), NOW, None),
        (Told(), Limits(1010, 10, 2), NOW, Told(10, 2)),
        (Told(10, 2), Limits(1010, 10, 2), 1000.5, None),
        (Told(10, 2), Limits(1010, 10, 2), 1000.6, Told(pytest.approx(9.4), 2)),
        (Told(None, 2), Limits(lock_timeout=2), NOW, None),
        (Told(10, 2), Limits(1010, 10, 1), NOW, Told(10, 1)),
        (Told(10, 2), Limits(lock_timeout=2), NOW, Told(None, 2)),
        (Told(1, None), Limits(1010, 10), NOW, Told(10, None)),
        (Told(inf, inf), Limits(1010, 10, 2), NOW, Told(10, 2)),
    ],
    ids=[
        "no limit",
        "the first statement",
        "little time has passed",
        "a twentieth has passed",
        "locks only, and known",
        "another limit for locks",
        "a block that set a deadline has ended",
        "a block that set a shorter one has ended",
        "taken back",
    ],
)
def test_the_server_is_told_again_when_what_it_knows_is_off_by_a_twentieth(
    told: Told, limits: Limits, now: float, next_: Told | None
) -> None:
    assert told.next(limits, now) == next_


def test_what_was_told_inside_a_savepoint_is_unknown_after_its_rollback() -> None:
    assert Told(3, 2).taken_back() == Told(inf, inf)
    assert Told(3, None).taken_back() == Told(inf, None)
    assert Told(None, 2).taken_back() == Told(None, inf)
