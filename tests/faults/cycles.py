"""Elle's method (Kingsbury and Alvaro, VLDB 2020): what transactions read of lists that only grow tells how they depend on
each other, and a cycle of dependencies is an anomaly, named by its kinds of edges (Adya, 1999).

    ww   the next append to a list is another's        wr   it has read another's append
    rw   it has read a list without another's append
"""

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise
from typing import NamedTuple

WW, WR, RW = "ww", "wr", "rw"


class Outcome(Enum):
    """What the library has said of a transaction."""

    OK = "ok"
    FAILED = "failed"  # nothing of it is stored
    UNKNOWN = "unknown"


class Append(NamedTuple):
    key: int | str
    value: int


class Read(NamedTuple):
    key: int | str
    values: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Transaction:
    """One attempt at a piece of work, ``run``. No two transactions append the same value."""

    run: int
    outcome: Outcome
    ops: tuple[Append | Read, ...]

    def appends(self, key: int | str | None = None) -> list[int]:
        return [op.value for op in self.ops if isinstance(op, Append) and key in {None, op.key}]

    def __str__(self) -> str:
        return f"T{self.run}"


Findings = dict[str, list[str]]
Lists = Mapping[int | str, Sequence[int]]
Edges = dict[Transaction, dict[Transaction, set[str]]]


class Rule(NamedTuple):
    """A kind of cycle: an edge of the kind ``first``, and a way back over edges of ``then``."""

    name: str
    first: str
    then: frozenset[str]
    adjacent: bool = True  # whether one rw may follow another


#: The worst first. A snapshot prevents all but the last: in its cycles two rw follow each other (Fekete et al., 2005).
RULES = (
    Rule("G0", WW, frozenset({WW})),
    Rule("G1c", WR, frozenset({WW, WR})),
    Rule("G-single", RW, frozenset({WW, WR})),
    Rule("G-nonadjacent", RW, frozenset({WW, WR, RW}), adjacent=False),
    Rule("G2", RW, frozenset({WW, WR, RW})),
)


def check(history: Iterable[Transaction], final: Lists) -> Findings:
    """What is wrong with ``history``, after which ``final`` is stored: examples by the name of the anomaly."""
    return History(history, final).findings()


class History:
    """Transactions, of which those count that are committed: one of unknown outcome if anybody has seen what it appended."""

    def __init__(self, transactions: Iterable[Transaction], final: Lists) -> None:
        self._all = list(transactions)
        self._final = final
        self._writer = {value: transaction for transaction in self._all for value in transaction.appends()}
        self._stored = {value for values in final.values() for value in values}
        seen = self._stored.union(*(op.values for t, op in _reads(self._all) if t.outcome is Outcome.OK))
        self._counted = dict.fromkeys(
            t for t in self._all if t.outcome is Outcome.OK or (t.outcome is Outcome.UNKNOWN and seen & {*t.appends()})
        )
        self._found: Findings = defaultdict(list)
        self._orders = self._versions()

    def findings(self) -> Findings:
        self._look_at_what_is_stored()
        for transaction, read in _reads(self._counted):
            self._look_at_a_read(transaction, read)
        self._look_for_cycles(self._edges())
        return dict(self._found)

    def _clean(self, values: Iterable[int]) -> list[int]:
        """Without what should not be there, which is told elsewhere."""
        return [value for value in dict.fromkeys(values) if self._writer.get(value) in self._counted]

    def _versions(self) -> dict[int | str, list[int]]:
        """The order in which each list has grown: the longest that anybody has seen of it."""
        orders = {key: self._clean(values) for key, values in self._final.items()}
        for _, read in _reads(self._counted):
            orders[read.key] = max(orders.get(read.key, []), self._clean(read.values), key=len)
        return orders

    def _look_at_what_is_stored(self) -> None:
        done: dict[int, Transaction] = {}
        for key, values in self._final.items():
            self._look_at_values(f"stored {key}", values, "stored though failed")
        for transaction in self._all:
            stored = [value for value in transaction.appends() if value in self._stored]
            if stored and done.setdefault(transaction.run, transaction) is not transaction:
                self._found["duplicate"].append(f"two attempts of {transaction}")
            if lost := [v for v in transaction.appends() if transaction in self._counted and v not in self._stored]:
                self._found["lost append"].append(f"{lost} of {transaction}")

    def _look_at_values(self, where: str, values: Sequence[int], failed: str) -> None:
        for value in dict.fromkeys(values):
            if value not in self._writer:
                self._found["made up"].append(f"{value}: {where}")
            elif self._writer[value].outcome is Outcome.FAILED:
                self._found[failed].append(f"{value} of {self._writer[value]}: {where}")
            if values.count(value) > 1:
                self._found["duplicate"].append(f"{value}: {where}")

    def _look_at_a_read(self, reader: Transaction, read: Read) -> None:
        where = f"{reader} read {read.key} {read.values}"
        self._look_at_values(where, read.values, "G1a")
        earlier = reader.ops[: next(i for i, op in enumerate(reader.ops) if op is read)]
        own = [op.value for op in earlier if isinstance(op, Append) and op.key == read.key]
        if own != [value for value in read.values if self._writer.get(value) is reader]:
            self._found["own appends"].append(f"{own}: {where}")
        values = self._clean(read.values)
        if values != self._orders[read.key][: len(values)]:
            self._found["two orders"].append(f"{where}, and there is {self._orders[read.key]}")
        foreign = [value for value in values if self._writer[value] is not reader]
        if foreign and self._writer[foreign[-1]].appends(read.key)[-1] != foreign[-1]:
            self._found["G1b"].append(f"not all of {self._writer[foreign[-1]]}: {where}")

    def _edges(self) -> Edges:
        edges: Edges = {transaction: defaultdict(set) for transaction in self._counted}

        def add(before: Transaction, after: Transaction, kind: str) -> None:
            if before is not after:
                edges[before][after].add(kind)

        for order in self._orders.values():
            for one, other in pairwise(order):
                add(self._writer[one], self._writer[other], WW)
        for reader, read in _reads(self._counted):
            values, order = self._clean(read.values), self._orders[read.key]
            if foreign := [value for value in values if self._writer[value] is not reader]:
                add(self._writer[foreign[-1]], reader, WR)
            if len(values) < len(order):
                add(reader, self._writer[order[len(values)]], RW)
        return edges

    def _look_for_cycles(self, edges: Edges) -> None:
        for component in components(edges):
            inside = {one: {t: kinds for t, kinds in edges[one].items() if t in component} for one in component}
            rule, cycle = next(found for rule in RULES for found in _cycles(inside, rule))
            self._found[rule.name].append(cycle)


def _reads(transactions: Iterable[Transaction]) -> Iterator[tuple[Transaction, Read]]:
    return ((t, op) for t in transactions for op in t.ops if isinstance(op, Read))


def components(edges: Edges) -> Iterator[set[Transaction]]:
    """The largest sets in which each comes after each other (Tarjan, 1972), without a call per edge."""
    index: dict[Transaction, int] = {}
    low: dict[Transaction, int] = {}
    stack: dict[Transaction, None] = {}
    for root in edges:
        path: list[tuple[Transaction, Iterator[Transaction]]] = []
        enter: Transaction | None = root if root not in index else None
        while enter is not None or path:
            if enter is not None:
                index[enter] = low[enter] = len(index)
                stack[enter] = None
                path.append((enter, iter(edges[enter])))
            node, following = path[-1]
            enter = None
            for after in following:
                if after not in index:
                    enter = after
                    break
                if after in stack:
                    low[node] = min(low[node], index[after])
            if enter is not None:
                continue
            path.pop()
            if path:
                low[path[-1][0]] = min(low[path[-1][0]], low[node])
            if low[node] == index[node]:
                component = _pop_until(stack, node)
                if len(component) > 1:
                    yield component


def _pop_until(stack: dict[Transaction, None], node: Transaction) -> set[Transaction]:
    component: set[Transaction] = set()
    while node not in component:
        component.add(stack.popitem()[0])
    return component


def _cycles(edges: Mapping[Transaction, Mapping[Transaction, set[str]]], rule: Rule) -> Iterator[tuple[Rule, str]]:
    for one, following in edges.items():
        for other, kinds in following.items():
            if rule.first in kinds and (way := _way_back(edges, other, one, rule)):
                yield rule, f"{one} -{rule.first}-> {way}"


def _way_back(
    edges: Mapping[Transaction, Mapping[Transaction, set[str]]], start: Transaction, goal: Transaction, rule: Rule
) -> str | None:
    """The shortest way from ``start`` to ``goal`` by the edges that ``rule`` allows, as text."""
    first = (start, rule.first)
    ways = {first: str(start)}
    queue = deque([first])
    while queue:
        node, came_by = state = queue.popleft()
        may: Callable[[str], bool] = lambda kind, by=came_by: rule.adjacent or (by, kind) != (RW, RW)  # noqa: E731
        if node is goal and may(rule.first):
            return ways[state]
        for after, kinds in edges[node].items():
            for kind in sorted(kinds & rule.then):
                if (after, kind) not in ways and may(kind):
                    ways[after, kind] = f"{ways[state]} -{kind}-> {after}"
                    queue.append((after, kind))
    return None
