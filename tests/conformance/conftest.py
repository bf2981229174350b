"""A database with tables on each engine, and the law that stands behind every test here: nothing is left behind."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable

import pytest

from tests.conformance.tables import Stored, create_tables
from tests.engines import Observer
from transact import Database
from transact.events import Event


@pytest.fixture
async def make_db(request: pytest.FixtureRequest) -> AsyncIterator[Callable[..., Database]]:
    """Make databases that are closed at the end; then their pools must be whole and the server must see no open transaction."""
    made: list[Database] = []

    def make(url: str, *, kind: type[Database] = Database, **arguments: object) -> Database:
        db = kind(url, **arguments)
        made.append(db)
        return db

    yield make
    taken = [db.engine.pool.checkedout() for db in made if hasattr(db.engine.pool, "checkedout")]
    units = [unit for db in made for unit in (*db._runtime.units.values(), *db._runtime.waiting)]
    idle = 0
    if "database_url" in request.fixturenames:
        idle = await _idle(request.getfixturevalue("observer"))
    for db in made:
        await db.close()
    assert not any(taken), "connections were not given back to the pool"
    assert not units, "units of work that think they hold a connection, or wait for one"
    assert idle == 0, "the server sees transactions that nobody ends"


async def _idle(observer: Observer) -> int:
    # A connection that was thrown away is gone for the server a moment later; there is no event to wait for.
    until = time.monotonic() + 2
    while (idle := observer.idle_in_transaction()) and time.monotonic() < until:
        await asyncio.sleep(0.02)
    return idle


@pytest.fixture
def tables(database_url: str, observer: Observer) -> None:
    create_tables(observer, database_url)


@pytest.fixture
def db(database_url: str, tables: None, make_db: Callable[..., Database]) -> Database:
    """A database with empty tables `words` and `meanings`."""
    return make_db(database_url)


@pytest.fixture
def stored(observer: Observer, tables: None) -> Stored:
    """What another connection finds in `words`."""
    return lambda: {word for (word,) in observer.rows("SELECT text FROM words")}


@pytest.fixture
def events(db: Database) -> list[Event]:
    """The events of `db`, as they come."""
    seen: list[Event] = []
    db.listen(seen.append)
    return seen
