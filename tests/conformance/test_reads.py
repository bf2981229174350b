"""Reads without BEGIN: what they cost, what they hold, and what the server refuses them."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from sqlalchemy import insert, select, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.util import greenlet_spawn

from tests.conformance.tables import Meaning, Stored, Word, store
from tests.engines import Observer
from tests.faults.proxy import Proxy, proxied
from transact import Database, Isolation, Propagation, errors
from transact._sqlalchemy.connection import GuardedConnection
from transact._sqlalchemy.faces import end
from transact._sqlalchemy.unit import Unit
from transact.events import Began, Committed, Event, RolledBack
from transact.options import Options

WIRED = pytest.mark.engines("postgresql", "mariadb")
READ = select(Word.text).order_by(Word.text)
WARM = 12
"""So often a statement is sent before a driver has prepared it and does nothing more about it."""


@pytest.fixture
def one(database_url: str, tables: None, make_db: Callable[..., Database]) -> Database:
    """A database whose pool has one connection, for readers and writers alike."""
    return make_db(database_url, pool_size=1, max_overflow=0, pool_timeout=2)


@pytest.fixture
async def counted(database_url: str, tables: None) -> AsyncIterator[tuple[Database, Proxy]]:
    """The same behind a proxy that counts round trips."""
    async with proxied(database_url) as (proxy, url), Database(url, pool_size=1, max_overflow=0) as db:
        yield db, proxy


def reading(db: Database) -> tuple[Unit, GuardedConnection]:
    """What a request with ``db.connection(read_only=True)`` has."""
    unit = Unit(db._runtime, Options(read_only=True), "reading")
    return unit, GuardedConnection(unit)


async def trips(proxy: Proxy, use: Callable[[], Awaitable[object]], *, times: int = 4) -> float:
    """How many round trips one ``use`` takes when it has been used for a while."""
    for _ in range(WARM):
        await use()
    before = proxy.round_trips
    for _ in range(times):
        await use()
    return (proxy.round_trips - before) / times


@WIRED
async def test_a_read_is_one_round_trip(counted: tuple[Database, Proxy]) -> None:
    db, proxy = counted
    _, connection = reading(db)

    async def by_session() -> None:
        async with db.transaction(read_only=True) as session:
            await session.execute(READ)

    async def by_orm() -> None:
        async with db.transaction(read_only=True) as session:
            await session.scalars(select(Word))

    async def by_connection() -> None:
        await connection.execute(READ)

    async def by_engine() -> None:
        async with db.read_engine.connect() as plain:
            await plain.execute(READ)

    for use in (
        by_session,
        by_orm,
        by_connection,
        by_engine,
        lambda: db.run(lambda s: s.execute(READ), read_only=True),
    ):
        assert await trips(proxy, use) == 1


@WIRED
async def test_readers_on_the_connections_of_writers_cost_them_no_round_trip_on_postgresql_and_a_begin_on_mariadb(
    counted: tuple[Database, Proxy], observer: Observer
) -> None:
    db, proxy = counted

    async def write() -> None:
        async with db.transaction() as session:
            await store(session, "word")
            await session.execute(text("DELETE FROM words"))

    async def read_and_write() -> None:
        async with db.transaction(read_only=True) as session:
            await session.execute(READ)
        await write()

    alone = await trips(proxy, write)
    assert await trips(proxy, read_and_write) <= 1 + alone + (db.engine.dialect.name != "postgresql")


async def test_who_has_read_and_waits_holds_no_connection(db: Database) -> None:
    async with db.transaction(read_only=True) as session:
        assert (await session.scalars(READ)).all() == []
        assert db.engine.pool.checkedout() == 0
        assert (await session.execute(select(Word))).all() == []
        assert db.engine.pool.checkedout() == 0
    unit, connection = reading(db)
    assert (await connection.execute(READ)).all() == []
    assert await connection.scalar(READ) is None
    assert (await connection.exec_driver_sql("SELECT 1")).scalar_one() == 1
    assert unit.session is None
    assert db.engine.pool.checkedout() == 0


async def test_many_who_read_and_wait_share_one_connection(one: Database) -> None:
    everybody = asyncio.Barrier(10)

    async def read_and_wait() -> None:
        async with one.transaction(read_only=True) as session:
            await session.scalars(READ)
            await everybody.wait()
            assert (await session.scalars(READ)).all() == []

    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        for _ in range(10):
            group.create_task(read_and_wait())


async def test_a_reader_inside_a_reader_needs_no_second_connection(one: Database) -> None:
    async with one.transaction(read_only=True) as outer:
        await outer.scalars(READ)
        async with one.transaction(read_only=True, propagation=Propagation.REQUIRES_NEW) as inner:
            assert (await inner.scalars(READ)).all() == (await outer.scalars(READ)).all() == []


async def writes_by_text(session: AsyncSession) -> None:
    await session.execute(text("INSERT INTO words (text) VALUES ('refused')"))


async def writes_by_flush(session: AsyncSession) -> None:
    session.add(Word(text="refused"))
    await session.flush()


async def writes_by_connection(session: AsyncSession) -> None:
    connection = await session.connection()
    await connection.execute(insert(Word).values(text="refused"))


async def writes_in_a_savepoint(session: AsyncSession) -> None:
    async with session.begin_nested():
        await store(session, "refused")


async def writes_beside_a_driver(session: AsyncSession) -> None:
    await (await session.connection()).get_raw_connection()
    await store(session, "refused")


WRITES = [writes_by_text, writes_by_flush, writes_by_connection, writes_in_a_savepoint, writes_beside_a_driver, store]


@pytest.mark.parametrize("write", WRITES, ids=lambda write: write.__name__)
async def test_the_server_refuses_a_reader_every_write_and_lets_the_next_user_of_the_connection_write(
    one: Database, stored: Stored, write: Callable[..., Awaitable[None]]
) -> None:
    arguments = ("refused",) if write is store else ()
    for _ in range(2):
        with pytest.raises(errors.ReadOnlyViolation):
            async with one.transaction(read_only=True) as session:
                await session.scalars(READ)
                await write(session, *arguments)
        async with one.transaction() as session:
            await session.execute(text("DELETE FROM words"))
            await store(session, "stored")
    assert stored() == {"stored"}


async def test_a_connection_of_a_request_is_refused_writes_too(one: Database, stored: Stored) -> None:
    _, connection = reading(one)
    with pytest.raises(errors.ReadOnlyViolation):
        await connection.execute(insert(Word).values(text="refused"))
    _, connection = reading(one)
    with pytest.raises(errors.ReadOnlyViolation):
        await connection.exec_driver_sql("INSERT INTO words (text) VALUES ('refused')")
    assert stored() == set()


async def by_autocommit(db: Database) -> None:
    async with db.transaction(propagation=Propagation.NOT_SUPPORTED) as session:
        await store(session, "a word")


async def by_engine(db: Database) -> None:
    async with db.engine.begin() as connection:
        await connection.execute(insert(Word).values(text="a word"))


async def by_autocommit_engine(db: Database) -> None:
    async with db.engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        await connection.execute(insert(Word).values(text="a word"))


async def by_factory(db: Database) -> None:
    async with db.session_factory.begin() as session:
        await store(session, "a word")


async def by_level(db: Database) -> None:
    async with db.transaction(isolation=Isolation.SERIALIZABLE) as session:
        await store(session, "a word")


async def by_driver(db: Database) -> None:
    raw: Any = await db.engine.raw_connection()
    statement = "INSERT INTO words (text) VALUES ('a word')"

    def write() -> None:
        raw.cursor().execute(statement)
        raw.commit()

    if db.engine.dialect.driver == "asyncpg":
        await raw.driver_connection.execute(statement)
    else:
        await greenlet_spawn(write)
    await greenlet_spawn(raw.close)


WRITERS = [by_autocommit, by_engine, by_autocommit_engine, by_factory, by_level, by_driver]


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
async def test_after_a_reader_every_writer_can_write_and_after_him_a_reader_is_refused_again(
    one: Database, stored: Stored, observer: Observer, write: Callable[[Database], Awaitable[None]]
) -> None:
    for _ in range(2):
        async with one.transaction(read_only=True) as session:
            await session.scalars(READ)
        await write(one)
        assert stored() == {"a word"}
        with pytest.raises(errors.ReadOnlyViolation):
            async with one.transaction(read_only=True) as session:
                assert (await session.scalars(READ)).all() == ["a word"]
                await store(session, "refused")
        observer.execute("DELETE FROM words")


async def test_each_statement_of_a_reader_sees_what_was_stored_before_it(one: Database, observer: Observer) -> None:
    async with one.transaction() as session:
        await store(session, "before")
    async with one.transaction(read_only=True) as session:
        assert (await session.scalars(READ)).all() == ["before"]
        observer.execute("INSERT INTO words (text) VALUES ('since')")
        assert (await session.scalars(READ)).all() == ["before", "since"]
    async with one.transaction(read_only=True) as session:
        observer.execute("DELETE FROM words")
        assert (await session.scalars(READ)).all() == []


async def test_a_snapshot_is_one_transaction_that_keeps_its_connection(one: Database, observer: Observer) -> None:
    async with one.transaction(read_only=True, isolation=Isolation.REPEATABLE_READ) as session:
        assert (await session.scalars(READ)).all() == []
        assert one.engine.pool.checkedout() == 1
        observer.execute("INSERT INTO words (text) VALUES ('since')")
        assert (await session.scalars(READ)).all() == []


@pytest.mark.parametrize("options", [{"timeout": 30}, {"lock_timeout": 30}], ids=str)
async def test_limits_make_a_reader_one_transaction(one: Database, options: dict[str, Any]) -> None:
    async with one.transaction(read_only=True, **options) as session:
        await session.scalars(READ)
        assert one.engine.pool.checkedout() == 1
    async with one.transaction(read_only=True) as session:
        await session.scalars(READ)
        assert one.engine.pool.checkedout() == 0
        async with one.transaction(**options) as joined:
            await joined.scalars(READ)
            assert one.engine.pool.checkedout() == 1


async def test_what_is_loaded_later_is_a_statement_by_itself(one: Database, observer: Observer) -> None:
    observer.execute("INSERT INTO words (id, text) VALUES (1, 'word')")
    observer.execute("INSERT INTO meanings (id, word_id) VALUES (7, 1)")
    async with one.transaction(read_only=True) as session:
        word = (await session.scalars(select(Word))).one()
        assert [meaning.id for meaning in await word.awaitable_attrs.meanings] == [7]
        observer.execute("UPDATE words SET text = 'changed'")
        await session.refresh(word)
        assert word.text == "changed"
        assert (await session.get(Meaning, 7)).word_id == 1
        assert await session.run_sync(lambda sync: sync.scalar(READ)) == "changed"
        assert one.engine.pool.checkedout() == 0
    assert word.text == "changed"


async def test_a_stream_keeps_its_connection_until_it_has_been_read(one: Database, observer: Observer) -> None:
    for number in range(3):
        observer.execute(f"INSERT INTO words (text) VALUES ('{number}')")
    async with one.transaction(read_only=True) as session:
        result = await session.stream(READ.execution_options(yield_per=1))
        assert await result.scalars().first() == "0"
        await session.scalars(READ)
        assert one.engine.pool.checkedout() == 0
        assert [row.text async for row in await session.stream(READ)] == ["0", "1", "2"]
        await session.scalars(READ)
        assert one.engine.pool.checkedout() == 0
        result = await session.stream(READ)
        await result.fetchone()
    assert one.engine.pool.checkedout() == 0
    unit, connection = reading(one)
    async with connection.stream(READ) as rows:
        assert [row.text async for row in rows] == ["0", "1", "2"]
    assert await connection.scalar(READ) == "0"
    assert one.engine.pool.checkedout() == 0
    assert unit.connection is None
    result = await connection.stream(READ)
    await result.fetchone()
    await end(unit, None)
    assert one.engine.pool.checkedout() == 0


async def test_a_savepoint_shields_a_reader_from_a_statement_that_fails(one: Database) -> None:
    async with one.transaction(read_only=True) as session:
        with pytest.raises(errors.DatabaseError):
            async with one.savepoint():
                await session.execute(text("SELECT nothing FROM nowhere"))
        assert one.engine.pool.checkedout() == 0
        with pytest.raises(errors.DatabaseError):
            async with session.begin_nested():
                await session.execute(text("SELECT nothing FROM nowhere"))
        assert (await session.scalars(READ)).all() == []
        assert one.engine.pool.checkedout() == 0
        async with one.transaction(propagation=Propagation.NESTED) as nested:
            await nested.scalars(READ)


async def test_a_statement_that_fails_outside_of_a_savepoint_dooms_a_reader_as_it_dooms_a_writer(one: Database) -> None:
    with pytest.raises(errors.UnexpectedRollback):
        async with one.transaction(read_only=True) as session:
            with pytest.raises(errors.DatabaseError):
                await session.execute(text("SELECT nothing FROM nowhere"))
            with pytest.raises(errors.UnexpectedRollback):
                await session.scalars(READ)


async def test_hooks_of_a_reader_run_and_what_its_listeners_hear_is_that_of_one_transaction(
    one: Database, stored: Stored
) -> None:
    said: list[object] = []
    seen: list[type[Event]] = []
    one.listen(lambda event: seen.append(type(event)))

    async def after() -> None:
        said.append("after")
        async with one.transaction() as session:
            await store(session, "from a hook")

    async with one.transaction(read_only=True) as session:
        one.before_commit(lambda: said.append("before"))
        one.after_commit(after)
        one.after_completion(said.append)
        for _ in range(3):
            await session.scalars(READ)
    assert [str(word).rpartition(".")[2] for word in said] == ["before", "after", "COMMITTED"]
    assert seen == [Began, Committed, Began, Committed]
    assert stored() == {"from a hook"}
    seen.clear()
    async with one.transaction(read_only=True) as session:
        await session.scalars(READ)
        one.current.set_rollback_only()
        with pytest.raises(errors.UnexpectedRollback):
            await session.scalars(READ)
    assert RolledBack in seen


@pytest.mark.engines("postgresql")
async def test_a_database_that_is_read_only_by_default_stays_so_for_writers_on_the_connections_of_readers(
    one: Database, observer: Observer
) -> None:
    name = one.engine.url.database
    observer.execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
    try:
        async with one.transaction(read_only=True) as session:
            await session.scalars(READ)
        with pytest.raises(errors.ReadOnlyViolation):
            async with one.transaction() as session:
                await store(session, "refused")
    finally:
        observer.execute("SET default_transaction_read_only = off")
        observer.execute(f'ALTER DATABASE "{name}" RESET default_transaction_read_only')


@pytest.mark.engines("mariadb")
async def test_a_session_that_is_read_only_from_its_start_stays_so_for_writers_on_the_connections_of_readers(
    database_url: str, tables: None, make_db: Callable[..., Database]
) -> None:
    arguments = {"connect_args": {"init_command": "SET SESSION TRANSACTION READ ONLY"}}
    one = make_db(database_url, pool_size=1, max_overflow=0, engine_options=arguments)
    async with one.transaction(read_only=True) as session:
        await session.scalars(READ)
    with pytest.raises(errors.ReadOnlyViolation):
        async with one.transaction() as session:
            await store(session, "refused")
