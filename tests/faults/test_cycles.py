"""The checker of histories finds each anomaly in a history that has it, and nothing in one that some order explains."""

import random
import re
from itertools import permutations

import pytest

from tests.faults.cycles import RULES, Append, Outcome, Read, Transaction, check

# A line is a transaction: what the library has said of it, then x+1 for an append and x(1 2) for a read. A second letter
# after the outcome tells the piece of work of which it is an attempt. The last line is what is stored.
HISTORIES = {
    "one after the other": (
        set(),
        """
        ok x+1 y+2
        ok x(1) x+3 x(1 3)
        ok x(1 3) y(2) y+4
        stored x(1 3) y(2 4)
        """,
    ),
    "of unknown outcome, stored, not stored": (
        set(),
        """
        unknown x+1
        unknown x+2 y+3
        ok x(2) y(3)
        stored x(2) y(3)
        """,
    ),
    "failed, and tried again": (
        set(),
        """
        failed a x+1
        ok a x+2
        stored x(2)
        """,
    ),
    "dirty write": (
        {"G0"},
        """
        ok x+1 y+2
        ok x+3 y+4
        stored x(1 3) y(4 2)
        """,
    ),
    "aborted read": (
        {"G1a"},
        """
        failed x+1
        ok x(1)
        stored x()
        """,
    ),
    "intermediate read": (
        {"G1b", "G-single"},
        """
        ok x+1 x+2
        ok x(1)
        stored x(1 2)
        """,
    ),
    "circular information flow": (
        {"G1c"},
        """
        ok x+1 y(2)
        ok y+2 x(1)
        stored x(1) y(2)
        """,
    ),
    "circular information flow with an overwritten list": (
        {"G1c"},
        """
        ok x+1 y+2
        ok x+3 y+4 z+5
        ok z(5) y+6
        stored x(1 3) y(6 2 4) z(5)
        """,
    ),
    "read skew": (
        {"G-single"},
        """
        ok x+1 y+2
        ok x() y(2)
        stored x(1) y(2)
        """,
    ),
    "lost update": (
        {"G-single"},
        """
        ok x() x+1
        ok x() x+2
        stored x(1 2)
        """,
    ),
    "read that changes": (
        {"G-single"},
        """
        ok x() x(1)
        ok x+1
        stored x(1)
        """,
    ),
    "long fork": (
        {"G-nonadjacent"},
        """
        ok x+1
        ok y+2
        ok x(1) y()
        ok x() y(2)
        stored x(1) y(2)
        """,
    ),
    "write skew": (
        {"G2"},
        """
        ok x() y+1
        ok y() x+2
        stored x(2) y(1)
        """,
    ),
    "write skew of which one is of unknown outcome": (
        {"G2"},
        """
        ok x() y+1
        unknown y() x+2
        stored x(2) y(1)
        """,
    ),
    "a reader sees what the others cannot": (
        {"G2"},
        """
        ok x() y() x+1
        ok y+2
        ok x() y(2)
        stored x(1) y(2)
        """,
    ),
    "lost append": (
        {"lost append"},
        """
        ok x+1
        ok x+2
        stored x(2)
        """,
    ),
    "lost append that was read": (
        {"lost append"},
        """
        ok x+1
        ok x(1)
        stored x()
        """,
    ),
    "half stored": (
        {"lost append"},
        """
        unknown x+1 y+2
        stored x(1) y()
        """,
    ),
    "stored though failed": (
        {"stored though failed"},
        """
        failed x+1
        stored x(1)
        """,
    ),
    "twice in a list": (
        {"duplicate"},
        """
        ok x+1
        ok x+2
        stored x(1 2 1)
        """,
    ),
    "twice in a read": (
        {"duplicate"},
        """
        ok x+1
        ok x(1 1)
        stored x(1)
        """,
    ),
    "two attempts stored": (
        {"duplicate"},
        """
        unknown a x+1
        ok a x+2
        stored x(1 2)
        """,
    ),
    "own append unseen": (
        {"own appends", "G-single"},
        """
        ok x+1 x()
        ok x+2
        stored x(2 1)
        """,
    ),
    "two orders": (
        {"two orders", "G-single"},
        """
        ok x+1
        ok x+2
        ok x(2)
        stored x(1 2)
        """,
    ),
    "made up": (
        {"made up"},
        """
        ok x(7)
        stored x()
        """,
    ),
}


def parse(text: str) -> tuple[list[Transaction], dict[str, tuple[int, ...]]]:
    *lines, last = text.strip().splitlines()
    history = []
    for number, line in enumerate(lines):
        outcome, run = re.match(r"\s*(\w+)(?: (\w) )?", line).groups()
        history.append(Transaction(ord(run) if run else number, Outcome(outcome), tuple(parse_ops(line))))
    return history, {op.key: op.values for op in parse_ops(last)}


def parse_ops(line: str) -> list[Append | Read]:
    found = re.findall(r"(\w)(?:\+(\d+)|\(([\d ]*)\))", line)
    return [
        Append(key, int(value)) if value else Read(key, tuple(int(v) for v in values.split()))
        for key, value, values in found
    ]


@pytest.mark.parametrize("name", HISTORIES)
def test_each_anomaly_is_found_and_named(name: str) -> None:
    expected, text = HISTORIES[name]
    assert check(*parse(text)).keys() == expected


def test_there_is_a_history_for_each_kind_of_cycle() -> None:
    assert {rule.name for rule in RULES} <= set().union(*(names for names, _ in HISTORIES.values()))


Plan = list[tuple[str, int | None]]


def play(plans: list[Plan], turns: list[int]) -> tuple[list[Transaction], dict[str, list[int]]]:
    """Let the plans take their steps on shared lists as ``turns`` says."""
    lists: dict[str, list[int]] = {"x": [], "y": []}
    steps = [iter(plan) for plan in plans]
    done: list[list[Append | Read]] = [[] for _ in plans]
    for turn in turns:
        key, value = next(steps[turn])
        if value is None:
            done[turn].append(Read(key, tuple(lists[key])))
        else:
            lists[key].append(value)
            done[turn].append(Append(key, value))
    return [Transaction(number, Outcome.OK, tuple(ops)) for number, ops in enumerate(done)], lists


def in_turn(plans: list[Plan], order: tuple[int, ...]) -> list[int]:
    return [number for number in order for _ in plans[number]]


def test_cycles_are_found_exactly_where_no_order_of_the_transactions_explains_what_they_read() -> None:
    rng = random.Random(4)  # noqa: S311  # a plan, not a secret
    cyclic = 0
    kinds: set[str] = set()
    for _ in range(600):
        values = iter(range(100))
        plans: list[Plan] = [
            [(rng.choice("xy"), rng.choice([None, next(values)])) for _ in range(rng.randint(1, 3))] for _ in range(4)
        ]
        turns = in_turn(plans, (0, 1, 2, 3))
        rng.shuffle(turns)
        history, final = play(plans, turns)
        explained = any(
            (other_final, [t.ops for t in other]) == (final, [t.ops for t in history])
            for other, other_final in (play(plans, in_turn(plans, order)) for order in permutations(range(4)))
        )
        found = check(history, final).keys() - {"G1b"}
        assert bool(found) != explained
        kinds |= found
        cyclic += bool(found)
    assert 100 < cyclic < 500
    assert kinds == {rule.name for rule in RULES}
