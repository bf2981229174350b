"""Closing a database beside what still uses it: that goes on to its end, and then no connection is left open."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from sqlalchemy import event, select
from sqlalchemy.pool import AsyncAdaptedQueuePool, QueuePool

from tests.conformance.tables import Stored, Word, store
from transact import Database

Use = Callable[[Database], Awaitable[object]]
MakeDb = Callable[..., Database]


async def write(db: Database) -> None:
    async with db.transaction() as session:
        await store(session, "word")


async def read(db: Database) -> None:
    async with db.transaction(read_only=True) as session:
        await session.execute(select(Word))


async def use_the_engine(db: Database) -> None:
    async with db.engine.connect() as connection:
        await connection.execute(select(Word))


async def use_a_session_of_ones_own(db: Database) -> None:
    async with db.session_factory() as session:
        await session.execute(select(Word))


USES: dict[str, Use] = {use.__name__: use for use in (write, read, use_the_engine, use_a_session_of_ones_own)}


def connections(db: Database) -> set[Any]:
    """The connections that are open, as they come and go."""
    opened: set[Any] = set()
    event.listen(db.engine.sync_engine, "connect", lambda connection, _: opened.add(connection))
    event.listen(db.engine.sync_engine, "close", lambda connection, _: opened.discard(connection))
    return opened


def own_pool(db_url: str, make_db: MakeDb) -> Database:
    """A database whose pool is not this library's."""
    kind = make_db("sqlite+aiosqlite://").engine.pool
    return make_db(db_url, engine_options={"poolclass": AsyncAdaptedQueuePool if kind._is_asyncio else QueuePool})


@pytest.mark.parametrize("pool", ["ours", "the application's"])
async def test_a_first_statement_after_the_database_was_closed_works_and_its_connection_is_closed_with_its_block(
    database_url: str, db: Database, make_db: MakeDb, stored: Stored, pool: str
) -> None:
    db = db if pool == "ours" else own_pool(database_url, make_db)
    opened = connections(db)
    async with db.transaction() as session:
        await db.close()
        await store(session, "word")
        assert len(opened) == 1
    assert opened == set()
    assert stored() == {"word"}


@pytest.mark.parametrize("pool", ["ours", "the application's"])
async def test_a_connection_that_is_held_while_the_database_is_closed_is_closed_when_it_comes_back(
    database_url: str, db: Database, make_db: MakeDb, stored: Stored, pool: str
) -> None:
    db = db if pool == "ours" else own_pool(database_url, make_db)
    opened = connections(db)
    async with db.transaction() as session:
        await store(session, "word")
        await db.close()
        assert len(opened) == 1
    assert opened == set()
    assert stored() == {"word"}


@pytest.mark.parametrize("use", ["use_the_engine", "use_a_session_of_ones_own"])
async def test_what_is_no_verb_works_on_a_closed_database_and_leaves_no_connection_open(db: Database, use: str) -> None:
    opened = connections(db)
    await db.close()
    await USES[use](db)
    assert opened == set()
    assert db.engine.pool.checkedout() == 0


@pytest.mark.parametrize("use", USES)
async def test_a_database_that_is_opened_again_keeps_its_connections_again(db: Database, use: str) -> None:
    opened = connections(db)
    await USES["use_the_engine"](db)
    await db.close()
    await USES["use_the_engine"](db)
    await db.open()
    await USES[use](db)
    [kept] = opened
    await USES[use if use != "write" else "read"](db)
    assert opened == {kept}
    await db.close()
    assert opened == set()
