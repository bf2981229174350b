"""A workload that tells what it has done: tasks that append numbers to lists and read them, in transactions of ours."""

import asyncio
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count

from sqlalchemy import Column, Integer, MetaData, Table, Text, literal, select, update
from sqlalchemy.dialects import registry
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.schema import CreateTable

from tests.engines import Observer
from tests.faults.cycles import Append, Outcome, Read, Transaction
from transact import Database, Isolation, Retry, errors

TASKS = 8
KEYS = 3  # lists at a time; few, so that everybody meets
PER_KEYS = 40  # transactions after which the next lists follow; so that none becomes long
RETRY = Retry(attempts=10, base=0.005, max_delay=0.1)
LISTS = Table(
    "lists",
    MetaData(),
    Column("k", Integer, primary_key=True, autoincrement=False),
    Column("v", Text, nullable=False),
)


class GaveUpError(Exception):
    """What a transaction raises that thinks better of it."""


@dataclass(frozen=True)
class Plan:
    """A transaction to be: the lists that it appends to (true) and reads (false), one after the other."""

    number: int
    steps: tuple[tuple[bool, int], ...]
    read_only: bool
    gives_up: bool


def plans(rng: random.Random, size: int) -> Iterator[Plan]:
    for number in range(size):
        first = number // PER_KEYS * KEYS
        appends = rng.choice((0.0, 0.5, 0.5, 0.8))
        steps = tuple((rng.random() < appends, first + rng.randrange(KEYS)) for _ in range(rng.randint(2, 5)))
        reads = not any(append for append, _ in steps)
        yield Plan(number, steps, read_only=reads and rng.random() < 0.5, gives_up=rng.random() < 0.1)


def create_lists(observer: Observer, url: str, size: int) -> None:
    """A row for each list; `size` transactions will follow."""
    dialect = registry.load(url.partition("://")[0].replace("+", "."))()
    observer.execute("DROP TABLE IF EXISTS lists")
    observer.execute(str(CreateTable(LISTS).compile(dialect=dialect)))
    for key in range((size // PER_KEYS + 1) * KEYS):
        observer.execute("INSERT INTO lists (k, v) VALUES (?, '')", key)


def parse(stored: str) -> tuple[int, ...]:
    return tuple(int(value) for value in stored.split())


def final(observer: Observer) -> dict[int | str, tuple[int, ...]]:
    """What is stored."""
    return {key: parse(values) for key, values in observer.rows("SELECT k, v FROM lists")}


@dataclass
class Workload:
    """``before``: called with each plan before its transaction begins, for instance to make it fail."""

    db: Database
    level: Isolation
    before: Callable[[Plan], None] = lambda _: None

    async def perform(self, seed: int, size: int) -> list[Transaction]:
        """Run ``size`` transactions in TASKS tasks. The history has each attempt, by what the library said of it."""
        self._history: list[Transaction] = []
        self._values = count(1)
        todo = plans(random.Random(seed), size)  # noqa: S311  # a plan, not a secret
        async with asyncio.TaskGroup() as group:
            for _ in range(TASKS):
                group.create_task(self._work(todo))
        return self._history

    async def _work(self, todo: Iterator[Plan]) -> None:
        for plan in todo:
            self.before(plan)
            await self._run(plan)

    async def _run(self, plan: Plan) -> None:
        attempts: list[list[Append | Read]] = []

        async def work(session: AsyncSession) -> None:
            attempts.append(ops := [])
            for append, key in plan.steps:
                if append:
                    ops.append(Append(key, next(self._values)))
                    await append_value(session, ops[-1])
                else:
                    ops.append(Read(key, await read_list(session, key)))
            if plan.gives_up:
                raise GaveUpError

        try:
            await self.db.run(work, isolation=self.level, read_only=plan.read_only, retry=RETRY)
            outcome = Outcome.OK
        except errors.CommitOutcomeUnknown:
            outcome = Outcome.UNKNOWN
        except (errors.TransactError, GaveUpError):
            outcome = Outcome.FAILED
        # Another attempt says of the one before it that nothing of that is stored.
        outcomes = [*[Outcome.FAILED] * (len(attempts) - 1), outcome]
        for ops, said in zip(attempts, outcomes[-len(attempts) :], strict=True):
            self._history.append(Transaction(plan.number, said, tuple(ops)))


async def append_value(session: AsyncSession, op: Append) -> None:
    grown = update(LISTS).where(LISTS.c.k == op.key).values(v=LISTS.c.v + literal(f"{op.value} "))
    result = await session.execute(grown.prefix_with("/* last */"))  # what the proxy knows a statement by
    assert result.rowcount == 1


async def read_list(session: AsyncSession, key: int) -> tuple[int, ...]:
    return parse((await session.execute(select(LISTS.c.v).where(LISTS.c.k == key))).scalar_one())
