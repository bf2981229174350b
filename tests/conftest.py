"""What every test can ask for: a database on one engine after the other, and a second pair of eyes on it."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.engines import BY_ID, Engine, EngineMissingError, Engines, Observer, chosen, observe
from transact._sqlalchemy.plain import plain_engine
from transact._sqlalchemy.pool import TransactPool
from transact._sqlalchemy.runtime import RUNTIMES

ENGINES = pytest.StashKey[Engines]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("transact")
    group.addoption(
        "--all-engines", action="store_true", help="a database engine that is missing is an error (also with CI=true)"
    )
    group.addoption("--long", action="store_true", help="let the tests that can take longer do so")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "engines(*names): run the test on these engines (ids or families: sqlite, postgresql, mariadb) and no others",
    )
    config.addinivalue_line("markers", "long: run the test only with --long")
    config.stash[ENGINES] = Engines()
    # SIGTERM ends the run like Ctrl-C, so that databases are dropped and the embedded server stops.
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):  # one of several processes; the first one tells for all
        session.config.workeroutput["engines"] = session.config.stash[ENGINES].seen()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    node.config.stash[ENGINES].add(getattr(node, "workeroutput", {}).get("engines", {}))


def pytest_unconfigure(config: pytest.Config) -> None:
    config.stash[ENGINES].stack.close()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "database_url" in metafunc.fixturenames:
        marker = metafunc.definition.get_closest_marker("engines")
        names = marker.args if marker else ()
        ids = chosen(names)
        # Where the server's age does not matter by name, a third way to PostgreSQL finds nothing that two have not.
        if not (
            metafunc.config.getoption("--long")
            or {"translation", "examples"} & set(metafunc.module.__name__.split("."))
        ):
            ids = [engine_id for engine_id in ids if engine_id != "pg15-asyncpg" or engine_id in names]
        metafunc.parametrize("database_url", ids, indirect=True)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--long"):
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(pytest.mark.skip(reason="only with --long"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    line = config.stash[ENGINES].summary()
    terminalreporter.write_line(line)
    if report := os.environ.get("TRANSACT_ENGINES_REPORT"):  # scripts/test repeats the line at its end
        Path(report).write_text(f"{line}\n", encoding="utf-8")


def _or_miss(config: pytest.Config, engine_id: str, make: Callable[[Engine], str]) -> str:
    """A database, or else a skip or a failure that says what is missing."""
    engine = BY_ID[engine_id]
    try:
        return make(engine)
    except EngineMissingError as error:
        if config.getoption("--all-engines") or os.environ.get("CI") == "true":
            pytest.fail(f"{engine.server} is missing: {error}", pytrace=False)
        pytest.skip(f"{engine.server} is missing: {error}")


def _database(request: pytest.FixtureRequest, engine_id: str, folder: Path) -> str:
    engines = request.config.stash[ENGINES]
    return _or_miss(request.config, engine_id, lambda engine: engines.empty_database(engine, folder))


def lasting_database(config: pytest.Config, engine_id: str, folder: Path, stack: ExitStack) -> str:
    """A database of its own for a fixture that outlives one test; it is dropped when the stack closes."""
    engines = config.stash[ENGINES]
    return _or_miss(config, engine_id, lambda engine: engines.another_database(engine, folder, stack))


@pytest.fixture(autouse=True)
def closed_at_the_end() -> Iterator[None]:
    """A database that a test does not close is its own failure, and not that of whoever runs when its garbage is collected."""
    before = set(RUNTIMES)
    yield
    made = [runtime for runtime in set(RUNTIMES) - before if hasattr(runtime, "engine")]  # those that were not refused
    pools = [plain_engine(runtime.engine).pool for runtime in made]
    left = [pool.checkedin() for pool in pools if isinstance(pool, TransactPool)]
    assert not any(left), "a database was not closed: its pool has connections that are open"


@pytest.fixture
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The asynchronous SQLAlchemy URL of an empty database, on each engine in turn; see the marker `engines`."""
    return _database(request, request.param, tmp_path)


@pytest.fixture
def sqlite_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty SQLite database, for a law that has nothing to do with the engine."""
    return _database(request, "sqlite", tmp_path)


@pytest.fixture
def postgres_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database on the embedded PostgreSQL, by asyncpg."""
    return _database(request, "pg18-asyncpg", tmp_path)


@pytest.fixture
def observing() -> Iterator[Callable[[str], Observer]]:
    """Opens an observer of any database: `observing(sqlite_url)`."""
    with ExitStack() as stack:
        yield lambda url: stack.enter_context(observe(url))


@pytest.fixture
def observer(database_url: str, observing: Callable[[str], Observer]) -> Observer:
    """A second, independent connection to the test's database; see tests/engines.py."""
    return observing(database_url)


@pytest.fixture(name="long")
def long_run(request: pytest.FixtureRequest) -> bool:
    """Whether the run was asked to take its time (`--long`)."""
    return bool(request.config.getoption("--long"))
