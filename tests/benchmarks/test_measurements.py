"""The benchmarks run and count right. What they find is told by docs/performance.md, and judged by nobody here."""

import asyncio
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import asyncpg
import psycopg
import pytest
from httpx import ASGITransport, AsyncClient

from benchmarks import cpu, instructions, memory, round_trips, summary, sync_cpu, sync_standstill, testing
from benchmarks.__main__ import PAGES, _marks, filled, measurements
from benchmarks._command import with_tables
from benchmarks._environments import ROOT
from benchmarks._urls import driven_by
from benchmarks._variants import EMPTY, FEW, OURS, PEERS
from benchmarks._workers import WorkerError, started
from benchmarks.apps import (
    asyncpg_pool,
    bare,
    core,
    empty,
    get_db,
    get_db_function,
    sync_get_db,
    sync_transact,
    transact,
    transact_connection,
)
from benchmarks.cpu import ROUTES

MODULES = (empty, asyncpg_pool, core, get_db, get_db_function, bare, transact, transact_connection)


@pytest.fixture
def bench_url(postgres_url):
    with with_tables(postgres_url):
        yield postgres_url


def test_the_variants_of_the_tables_are_the_modules_of_the_folder():
    assert [f"benchmarks.apps.{variant.name}" for variant in OURS] == [module.__name__ for module in MODULES]


async def answers(module, url):
    """What each route answers, without the ids, which every INSERT has new."""
    found = {}
    app = module.make_app(url)
    async with (
        app.router.lifespan_context(app),
        AsyncClient(transport=ASGITransport(app), base_url="http://bench") as client,
    ):
        for method, path, _ in ROUTES:
            answer = await client.request(method, path)
            body = answer.json()
            found[path] = (answer.status_code, sorted(body) if path.startswith("/insert") else body)
    return found


def test_every_variant_answers_every_route_alike(bench_url):
    found = {module: asyncio.run(answers(module, bench_url)) for module in MODULES[1:]}
    assert all(status == 200 for each in found.values() for status, _ in each.values())
    assert len(found[get_db]["/rows"][1]) == 100
    assert all(each == found[get_db] for each in found.values())


def test_def_routes_answer_as_the_others_do(bench_url):
    url = driven_by("postgresql+psycopg", bench_url)
    found = [asyncio.run(answers(module, url)) for module in (get_db_function, sync_get_db, sync_transact)]
    assert found[0] == found[1] == found[2]


def test_def_routes_are_measured_beside_async_ones(bench_url):
    rows = [line for line in sync_cpu.report(bench_url, "a server", True).splitlines() if " · " in line]
    assert len(rows) == 2 * len(sync_cpu.CONTROLS)
    assert all(line.count("·") == len(ROUTES) for line in rows)


@pytest.mark.long
def test_cpu_is_measured_for_every_variant_on_every_route(bench_url):
    printed = cpu.report(bench_url, "a server", True)
    rows = [line for line in printed.splitlines() if line.count("·") == len(ROUTES)]
    assert len(rows) == 2 * len([variant for variant in FEW if variant is not EMPTY])


@pytest.mark.long
@pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind is not installed")
def test_instructions_are_counted_alike_each_time(bench_url):
    def counts():
        report = instructions.report(bench_url, "a server", True)
        return [
            float(line.split(" | ")[1].partition(" ·")[0].replace(",", ""))
            for line in report.splitlines()
            if " · " in line
        ]

    first = counts()
    assert len(first) == 2
    assert counts() == pytest.approx(first, rel=0.02)


def test_an_insert_is_three_round_trips_and_an_unused_session_none(bench_url):
    printed = round_trips.report(bench_url, "a server", True)
    for row in [line.split(" | ") for line in printed.splitlines() if "get_db" in line or "transact" in line]:
        assert row[1] == "3: BEGIN, INSERT, COMMIT"
        assert row[3].rstrip(" |") == "0"


def test_memory_is_measured(bench_url):
    assert "db.session" in memory.report(bench_url, "a server", True)


def test_the_test_kit_is_measured_beside_other_ways_to_a_clean_database(postgres_url):
    assert printed_rows(testing.report(postgres_url, "a server", True)) == 4


def test_def_routes_are_measured_with_a_get_db_and_with_transact(postgres_url):
    assert printed_rows(sync_standstill.report(postgres_url, "a server", True)) == 2


def printed_rows(report):
    return sum(line.startswith("| ") for line in report.splitlines()) - 2  # its head


def test_variants_have_processes_of_their_own_and_one_that_dies_says_why(bench_url):
    broken = replace(PEERS[0], name="no_such_module")
    failed = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("benchmarks._workers.python_of", lambda _: Path(sys.executable))
        with started(bench_url, [EMPTY, broken], failed) as workers:
            assert list(workers) == [EMPTY]
            assert workers[EMPTY].cost("GET", "/empty", 1).cpu > 0
            with pytest.raises(WorkerError, match="GET /nowhere answered 404"):
                workers[EMPTY].cost("GET", "/nowhere", 1)
    assert "No module named 'benchmarks.apps.no_such_module'" in failed[broken]


@pytest.mark.long
def test_the_readmes_figures_are_measured_on_both_engines(bench_url):
    printed = summary.report(bench_url, "a server", True)
    assert "PostgreSQL" in printed
    assert "SQLite" in printed


def test_the_command_makes_the_measurement_that_is_named(postgres_url):
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--quick", "growth"],
        cwd=ROOT,
        env={**os.environ, "TRANSACT_TEST_POSTGRESQL": driven_by("postgresql", postgres_url)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "an `after_commit` hook" in done.stdout


async def test_a_wait_of_the_client_is_one_round_trip(postgres_url):
    async with round_trips.counting(driven_by("postgresql", postgres_url)) as (proxy, through):
        connection = await asyncpg.connect(through)
        await connection.fetchval("SELECT 1")  # prepares it as well
        proxy.counter = round_trips.Counter()
        await connection.fetchval("SELECT 1")
        assert proxy.counter == round_trips.Counter(["SELECT 1"], 1)
        async with connection.transaction():
            await connection.fetchval("SELECT 1")
        assert proxy.counter.trips == 4
        await connection.close()


async def test_statements_that_do_not_wait_for_each_other_are_one_round_trip(postgres_url):
    async with (
        round_trips.counting(driven_by("postgresql", postgres_url)) as (proxy, through),
        await psycopg.AsyncConnection.connect(through, autocommit=True) as connection,
    ):
        proxy.counter = round_trips.Counter()
        async with connection.pipeline():
            for number in range(3):
                await connection.execute(f"SELECT {number}")
        assert len(proxy.counter.statements) == 3
        assert proxy.counter.trips == 1


def test_figures_replace_only_what_stands_between_their_marks():
    page = "before\n\n<!-- bench: a -->\nold\n<!-- end: a -->\n\n<!-- bench: b -->\nother\n<!-- end: b -->\n"
    assert filled(page, "a", "new\n") == page.replace("\nold\n", "\n\nnew\n\n")
    assert filled(page, "c", "new\n") == page


def test_every_measurement_has_one_place_in_the_documentation():
    pages = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    for name in measurements():
        assert [pages.count(mark) for mark in _marks(name)] == [1, 1], name
