"""Isolation really works: Hermitage's scenarios, played in lock-step by transactions of ours on every engine and level."""

import asyncio
import re
from collections.abc import Callable
from contextvars import Context
from itertools import product
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from tests.conformance.hermitage import (
    COLUMNS,
    COMMIT,
    FAILURES,
    HAPPENS,
    ROLLBACK,
    SCENARIOS,
    SET_UP,
    Scenario,
    column,
)
from tests.engines import Observer
from transact import Database, Isolation, errors

BOUND = 20  # seconds; for what would otherwise never end


class RolledBack(Exception):
    """What a transaction raises to be rolled back."""


class Actor:
    """A transaction in a task of its own, which takes its next step when told."""

    def __init__(self, play: "Play", group: asyncio.TaskGroup, *, read_only: bool) -> None:
        self._play = play
        self._told: asyncio.Queue[tuple[int, str]] = asyncio.Queue()
        self.rows: list[int] = []  # of the steps that it has been told and has not done
        self.open = True
        self.task = group.create_task(self._run(read_only=read_only), context=Context())

    def tell(self, row: int, sql: str) -> None:
        if self.open:
            self.rows.append(row)
            self._told.put_nowait((row, sql))

    async def _run(self, *, read_only: bool) -> None:
        failed: errors.TransactError | None = None
        try:
            async with self._play.db.transaction(isolation=self._play.level, read_only=read_only) as session:
                while (told := await self._told.get())[1] not in {COMMIT, ROLLBACK}:
                    try:
                        self._done(await take(session, told[1]))
                    except errors.TransactError as error:
                        failed = error
                        raise
                if told[1] == ROLLBACK:
                    raise RolledBack
            self._end("ok")
        except RolledBack:
            self._end("ok")
        except errors.TransactError as error:
            self._end(next(cell for kind, cell in FAILURES.items() if isinstance(failed or error, kind)))

    def _end(self, cell: str) -> None:
        self._done(cell)
        self.open = False
        self.rows.clear()  # what it has been told meanwhile it will never do

    def _done(self, cell: str) -> None:
        self._play.results[self.rows.pop(0)] = cell
        self._play.moved.set()


async def take(session: AsyncSession, sql: str) -> str:
    result = await session.execute(text(sql))
    return (",".join(str(value) for value in result.scalars()) or "none") if result.returns_rows else "ok"


class Play:
    """One scenario on one level. After each step everybody is idle or waits for a lock, and the server says so."""

    def __init__(self, db: Database, observer: Observer, level: Isolation) -> None:
        self.db = db
        self.level = level
        self.moved = asyncio.Event()
        self.results: dict[int, str] = {}
        self._waited: set[int] = set()
        self._actors: dict[str, Actor] = {}
        self._observer = observer
        self._waiting = WAITING[db.engine.dialect.name]

    async def perform(self, scenario: Scenario, *, read_only: bool) -> list[str]:
        """What has come of each step, and what is stored."""
        async with asyncio.timeout(BOUND), asyncio.TaskGroup() as group:
            for name in sorted({step.actor for step in scenario.steps}):
                self._actors[name] = Actor(self, group, read_only=read_only and name in scenario.readers)
            for row, step in enumerate(scenario.steps):
                self._actors[step.actor].tell(row, step.sql)
                await self._settle()
        cells = [self._cell(row) for row in range(len(scenario.steps))]
        stored = self._observer.rows("SELECT value FROM test ORDER BY id")
        return [*cells, ",".join(str(value) for (value,) in stored)]

    def _cell(self, row: int) -> str:
        result = self.results.get(row, "-")
        return f"wait {result}" if row in self._waited else result

    async def _settle(self) -> None:
        while busy := [actor for actor in self._actors.values() if actor.rows]:
            self.moved.clear()
            # Where all wait for each other, nobody ends; the server is about to break it up.
            open_ = [actor for actor in self._actors.values() if actor.open]
            if len(busy) < len(open_) and self._waiting(self._observer, busy) == len(busy):
                self._waited.update(actor.rows[0] for actor in busy)
                return
            try:
                await asyncio.wait_for(self.moved.wait(), 0.005)  # then ask the server again
            except TimeoutError:
                continue


def _waiting_on_postgresql(observer: Observer, _busy: list[Actor]) -> int:
    return int(
        observer.scalar(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE datname = current_database() AND cardinality(pg_blocking_pids(pid)) > 0"
        )
    )


def _waiting_on_mariadb(observer: Observer, _busy: list[Actor]) -> int:
    # information_schema.INNODB_TRX would be easier to read, but is a copy that is up to 0.1 s old.
    [(_, _, status)] = observer.rows("SHOW ENGINE INNODB STATUS")
    ours = {
        session for (session,) in observer.rows("SELECT id FROM information_schema.processlist WHERE db = database()")
    }
    waits = [part for part in status.split("---TRANSACTION ") if "TRX HAS BEEN WAITING" in part]
    return len(ours & {int(found[1]) for part in waits if (found := re.search(r"thread id (\d+)", part))})


def _waiting_on_sqlite(_observer: Observer, busy: list[Actor]) -> int:
    return sum(_waits_for_its_turn(actor.task) for actor in busy)


def _waits_for_its_turn(task: asyncio.Task[None]) -> bool:
    # Writers queue in the program, so it is the program that is asked: where does the task wait?
    names: list[str] = []
    waiting = task.get_coro()
    while (frame := getattr(waiting, "cr_frame", None)) is not None:
        names.append(frame.f_code.co_qualname)
        waiting = waiting.cr_await
    return "Line.wait" in names


WAITING: dict[str, Callable[[Observer, list[Actor]], int]] = {
    "postgresql": _waiting_on_postgresql,
    "mysql": _waiting_on_mariadb,
    "sqlite": _waiting_on_sqlite,
}


# PostgreSQL has three levels and SQLite one, whatever it is asked for.
LEVELS = {
    "postgresql": (Isolation.READ_COMMITTED, Isolation.REPEATABLE_READ, Isolation.SERIALIZABLE),
    "mysql": tuple(Isolation),
    "sqlite": (Isolation.READ_UNCOMMITTED, Isolation.SERIALIZABLE),
}


def with_snapshot_isolation(value: str, observer: Observer) -> dict[str, Any]:
    """Options of an engine on MariaDB, whose default differs between versions; none where the server does not know it."""
    known = observer.rows("SHOW VARIABLES LIKE 'innodb_snapshot_isolation'")
    return {"connect_args": {"init_command": f"SET SESSION innodb_snapshot_isolation = {value}"}} if known else {}


@pytest.mark.engines("sqlite", "postgresql", "mariadb")
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
async def test_each_level_makes_of_each_scenario_what_its_table_says(
    database_url: str, observer: Observer, make_db: Callable[..., Database], scenario: Scenario
) -> None:
    """The levels share the connections, so that one that stayed behind would show."""
    options = with_snapshot_isolation("OFF", observer) if database_url.startswith("mysql") else {}
    db = make_db(database_url, engine_options=options)
    dialect = db.engine.dialect.name
    found, expected = {}, {}
    for level, read_only in product(LEVELS[dialect], [False, True] if scenario.readers else [False]):
        if dialect == "sqlite" and read_only and level in {Isolation.READ_UNCOMMITTED, Isolation.READ_COMMITTED}:
            continue  # each statement is a transaction of its own: see test_reads.py
        for statement in SET_UP:
            observer.execute(statement)
        found[level, read_only] = await Play(db, observer, level).perform(scenario, read_only=read_only)
        expected[level, read_only] = scenario.expected(column(dialect, level, read_only=read_only))
    assert found == expected


@pytest.mark.engines("mariadb")
async def test_innodb_snapshot_isolation_lets_mariadbs_repeatable_read_prevent_what_postgresqls_does(
    database_url: str, observer: Observer, make_db: Callable[..., Database]
) -> None:
    options = with_snapshot_isolation("ON", observer)
    if not options:
        pytest.skip("this server has no innodb_snapshot_isolation")
    db = make_db(database_url, engine_options=options)
    happened = set()
    for scenario in SCENARIOS:
        for statement in SET_UP:
            observer.execute(statement)
        cells = await Play(db, observer, Isolation.REPEATABLE_READ).perform(scenario, read_only=False)
        if scenario.has_happened(cells):
            happened.add(scenario.name)
        elif scenario.name in HAPPENS["maria RR"]:
            assert any(cell.endswith("serial") for cell in cells)
    assert happened == HAPPENS["pg RR"]


@pytest.mark.parametrize("name", COLUMNS)
def test_each_level_lets_happen_what_its_manual_admits_and_nothing_else(name: str) -> None:
    happened = {scenario.name for scenario in SCENARIOS if scenario.has_happened(scenario.expected(name))}
    assert happened == HAPPENS[name]
