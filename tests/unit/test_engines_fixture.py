"""The fixtures that hand out databases keep their own promises."""

import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import create_async_engine

from tests.conftest import ENGINES as RUN
from tests.conftest import lasting_database
from tests.engines import BY_ID, ENGINES, Engines, Observer, chosen, observe

EVERYWHERE = pytest.mark.engines("sqlite", "postgresql", "mariadb")


async def _create_and_fill(url: str) -> None:
    engine = create_async_engine(url)
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE thing (id integer primary key, name varchar(20))"))
        await connection.execute(text("INSERT INTO thing VALUES (1, 'a'), (2, 'b%')"))
    await engine.dispose()


@EVERYWHERE
@pytest.mark.parametrize("turn", [1, 2])
async def test_every_test_gets_an_empty_database(database_url: str, observer: Observer, turn: int) -> None:
    await _create_and_fill(database_url)  # fails in the second turn if the first one's table is still there
    assert observer.rows("SELECT id, name FROM thing ORDER BY id") == [(1, "a"), (2, "b%")]


@EVERYWHERE
async def test_an_observer_takes_question_marks_on_every_engine(database_url: str, observer: Observer) -> None:
    await _create_and_fill(database_url)
    assert observer.scalar("SELECT id FROM thing WHERE name LIKE 'b%' AND name = ?", "b%") == 2
    observer.execute("DELETE FROM thing WHERE id = ?", 2)
    assert observer.rows("SELECT id FROM thing") == [(1,)]


@EVERYWHERE
async def test_an_observer_sees_committed_rows_only_and_who_is_idle_in_a_transaction(
    database_url: str, observer: Observer
) -> None:
    await _create_and_fill(database_url)
    assert observer.idle_in_transaction() == 0
    engine = create_async_engine(database_url)
    async with engine.connect() as connection:
        await connection.execute(text("DELETE FROM thing"))
        assert observer.idle_in_transaction() == 1
        assert observer.scalar("SELECT count(*) FROM thing") == 2
        await connection.commit()
        assert observer.idle_in_transaction() == 0
        assert observer.scalar("SELECT count(*) FROM thing") == 0
    await engine.dispose()


@pytest.mark.engines("postgresql")
@pytest.mark.parametrize("turn", [1, 2])
async def test_a_transaction_that_a_test_left_open_or_prepared_does_not_block_the_next_test(
    database_url: str, observer: Observer, turn: int
) -> None:
    await _create_and_fill(database_url)
    assert observer.scalar("SELECT count(*) FROM thing") == 2  # its own, and nothing of the test before
    observer.execute("BEGIN")
    observer.execute("LOCK TABLE thing")
    if observer.scalar("SHOW max_prepared_transactions") != "0":
        observer.execute("PREPARE TRANSACTION 'left over'")


@EVERYWHERE
async def test_a_lasting_database_is_not_emptied_for_other_tests(
    database_url: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    engine_id = request.node.callspec.params["database_url"]
    with ExitStack() as stack:
        url = lasting_database(request.config, engine_id, tmp_path, stack)
        await _create_and_fill(url)
        request.config.stash[RUN].empty_database(BY_ID[engine_id], tmp_path)
        assert stack.enter_context(observe(url)).scalar("SELECT count(*) FROM thing") == 2


def test_the_fixtures_for_one_engine_name_that_engine(
    sqlite_url: str, postgres_url: str, observing: Callable[[str], Observer]
) -> None:
    assert make_url(sqlite_url).drivername == "sqlite+aiosqlite"
    assert make_url(postgres_url).drivername == "postgresql+asyncpg"
    assert observing(sqlite_url).scalar("SELECT 1") == observing(postgres_url).scalar("SELECT 1")


def test_a_marker_names_engines_by_id_or_family() -> None:
    assert chosen(()) == [engine.id for engine in ENGINES]
    assert chosen(("postgresql",)) == [engine.id for engine in ENGINES if engine.family == "postgresql"]
    assert chosen(("mariadb", "sqlite")) == ["sqlite", "mariadb"]
    with pytest.raises(ValueError, match="no such engine: oracle"):
        chosen(("oracle",))


def test_the_summary_tells_which_engines_ran_and_why_the_others_did_not() -> None:
    engines = Engines(
        versions={"sqlite": "sqlite 3.1"}, drivers={"sqlite": {"aiosqlite"}}, missing={"mariadb-machine": "no answer"}
    )
    line = engines.summary()
    assert line.startswith("engines: sqlite 3.1 (aiosqlite); not run: ")
    assert "mariadb-machine (no answer)" in line
    assert "postgresql-embedded (no test asked for it)" in line


@pytest.mark.parametrize(("asked", "outcome"), [((), "skipped"), (("--all-engines",), "errors")])
def test_a_missing_engine_is_a_skip_for_a_user_and_an_error_with_all_engines(
    pytester: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    asked: tuple[str],
    outcome: str,
) -> None:
    monkeypatch.setenv("TRANSACT_TEST_MARIADB", "mysql://root@127.0.0.1:1/")
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.delenv("TRANSACT_ENGINES_REPORT", raising=False)
    pytester.makepyfile("import pytest\n@pytest.mark.engines('mariadb')\ndef test_it(database_url): pass\n")
    root = str(request.config.rootpath)
    monkeypatch.setenv("PYTHONPATH", root, prepend=os.pathsep)
    result = pytester.runpytest_subprocess(
        "-p",
        "tests.conftest",
        "-c",
        f"{root}/pyproject.toml",
        "--rootdir",
        root,
        *asked,
        str(pytester.path),
    )
    assert result.parseoutcomes() == {outcome: 1}
    result.stdout.fnmatch_lines(["*mariadb-machine is missing: nothing usable at 127.0.0.1:1: *"])
