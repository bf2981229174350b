"""The plugin as pytest and its users meet it."""

import subprocess
import sys

import pytest

from transact import errors

SQLITE = "sqlite+aiosqlite:///test.db"
HEAD = f"""
    import pytest
    from sqlalchemy import text
    from transact import Database, errors

    @pytest.fixture
    def database(transact_database):
        return transact_database({SQLITE!r})

    async def store(db):
        async with db.transaction() as session:
            await session.execute(text("CREATE TABLE t (id INTEGER)"))
    """


def run(pytester: pytest.Pytester, source: str, *arguments: str) -> pytest.RunResult:
    pytester.makepyfile(HEAD + source)
    return pytester.runpytest_subprocess("-p", "transact.pytest_plugin", *arguments)


def test_loading_the_plugin_imports_no_sqlalchemy_and_no_driver():
    heavy = "('sqlalchemy', 'fastapi', 'pydantic', 'asyncpg', 'psycopg', 'aiosqlite', 'asyncmy')"
    program = f"import sys, transact.pytest_plugin; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_pytest_finds_the_plugin_and_loads_it_once(pytester, monkeypatch):
    # As an installed distribution would be found.
    folder = pytester.mkdir("transact_kit-1.dist-info")
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: transact-kit\nVersion: 1\n", encoding="utf-8")
    (folder / "entry_points.txt").write_text(
        "[pytest11]\ntransact.pytest_plugin = transact.pytest_plugin\n", encoding="utf-8"
    )
    pytester.syspathinsert(pytester.path)
    pytester.makeconftest("pytest_plugins = ['transact.pytest_plugin']")
    pytester.makepyfile("def test_it(request): assert request.config.pluginmanager.hasplugin('transact.pytest_plugin')")
    pytester.runpytest_subprocess().assert_outcomes(passed=1)
    pytester.runpytest_subprocess("-p", "transact.pytest_plugin").assert_outcomes(passed=1)


TESTS = """
    {mark}
    @pytest.mark.parametrize("count", [1, 2])
    async def test_it(database, count):
        await store(database.database)
    """


def test_it_works_under_pytest_asyncio(pytester):
    run(pytester, TESTS.format(mark="@pytest.mark.asyncio"), "-o", "asyncio_mode=strict").assert_outcomes(passed=2)


def test_it_works_under_the_plugin_of_anyio(pytester):
    backend = '\n    @pytest.fixture\n    def anyio_backend():\n        return "asyncio"\n'
    result = run(pytester, backend + TESTS.format(mark="@pytest.mark.anyio"), "-p", "no:asyncio", "-p", "anyio")
    result.assert_outcomes(passed=2)


def test_a_fault_that_was_not_reached_fails_its_test(pytester):
    result = run(
        pytester,
        """
    async def test_forgotten(database):
        database.faults.fail_commit(errors.SerializationFailure)

    async def test_taken_back(database):
        database.faults.fail_commit(errors.SerializationFailure)
        database.faults.refuse_connections()
        database.faults.clear()

    async def test_reached(database):
        database.faults.fail_commit(errors.SerializationFailure)
        with pytest.raises(errors.SerializationFailure):
            await store(database.database)
    """,
        "-o",
        "asyncio_mode=auto",
    )
    result.assert_outcomes(passed=3, errors=1)
    result.stdout.fnmatch_lines(["*UsageError: fail_commit(SerializationFailure): armed, and the test ended before*"])


def test_a_database_that_is_under_test_already_is_refused(transact_database, sqlite_url):
    database = transact_database(sqlite_url)
    with pytest.raises(errors.UsageError, match="called twice in one test"):
        transact_database(database.database)
    with pytest.raises(errors.UsageError, match="called twice in one test"):
        transact_database(sqlite_url)


def test_a_bad_url_is_refused_as_everywhere(transact_database):
    with pytest.raises(errors.ConfigurationError):
        transact_database("postgresql://app@localhost/shop")
    with pytest.raises(errors.UsageError, match="give it the application's Database"):
        transact_database(42)


def test_a_server_that_is_not_there_is_told_where_the_test_asks_for_it(transact_database):
    with pytest.raises(errors.DatabaseUnavailable):
        transact_database("postgresql+asyncpg://nobody@127.0.0.1:1/nothing")
