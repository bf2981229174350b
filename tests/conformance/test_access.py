"""Read-only transactions and isolation levels: the server keeps them, and the next transaction does not inherit them."""

import pytest
from sqlalchemy import select, text

from tests.conformance.tables import Stored, Word, store
from tests.engines import Observer
from transact import Database, Isolation, errors

EVERY = pytest.mark.engines("sqlite", "postgresql", "mariadb")


@pytest.fixture
def one(database_url: str, tables: None, make_db) -> Database:
    """A database whose pool has one connection: what a transaction leaves behind on it, the next one finds."""
    return make_db(database_url, pool_size=1, max_overflow=0, pool_timeout=2)


@EVERY
async def test_a_write_in_a_read_only_transaction_is_refused_by_the_server_and_the_next_one_may_write(
    one: Database, stored: Stored
) -> None:
    for turn in range(2):
        with pytest.raises(errors.ReadOnlyViolation):
            async with one.transaction(read_only=True) as session:
                await session.execute(select(Word))
                await store(session, "refused")
        with pytest.raises(errors.ReadOnlyViolation):
            async with one.transaction(read_only=True) as session:
                await session.execute(text("INSERT INTO words (text) VALUES ('raw')"))
        with pytest.raises(errors.ReadOnlyViolation):
            async with one.transaction(read_only=True) as session:
                session.add(Word(text="flushed"))
        async with one.transaction() as session:
            await store(session, f"written {turn}")
    assert stored() == {"written 0", "written 1"}


async def test_a_read_only_transaction_that_was_cut_off_leaves_a_connection_that_may_write(
    one: Database, stored: Stored
) -> None:
    with pytest.raises(ZeroDivisionError):
        async with one.transaction(read_only=True) as session:
            await session.execute(select(Word))
            raise ZeroDivisionError
    async with one.engine.begin() as connection:
        await connection.execute(text("INSERT INTO words (text) VALUES ('by the engine')"))
    async with one.session_factory.begin() as session:
        await store(session, "by the factory")
    assert stored() == {"by the engine", "by the factory"}


async def test_the_read_engine_refuses_writes_and_shares_the_pool(one: Database, stored: Stored) -> None:
    with pytest.raises(errors.ReadOnlyViolation):
        async with one.read_engine.begin() as connection:
            await connection.execute(text("INSERT INTO words (text) VALUES ('x')"))
    async with one.read_engine.connect() as connection:
        assert (await connection.execute(select(Word.text))).all() == []
    assert one.read_engine.pool is one.engine.pool
    assert stored() == set()


async def test_a_read_only_call_inside_a_writing_transaction_joins_it(one: Database, stored: Stored) -> None:
    async with one.transaction() as session:
        await store(session, "word")
        async with one.transaction(read_only=True) as reader:
            assert (await reader.scalars(select(Word.text))).all() == ["word"]
    assert stored() == {"word"}


@pytest.mark.engines("postgresql")
@pytest.mark.parametrize("level", list(Isolation))
async def test_the_isolation_level_reaches_the_server_and_is_gone_afterwards(one: Database, level: Isolation) -> None:
    show = text("SHOW transaction_isolation")
    given = "read committed" if level is Isolation.READ_UNCOMMITTED else level.value.lower()  # more than was asked for
    async with one.transaction(isolation=level) as session:
        assert await session.scalar(show) == given
    async with one.transaction() as session:
        assert await session.scalar(show) == "read committed"
    with pytest.raises(ZeroDivisionError):
        async with one.transaction(isolation=level, read_only=True) as session:
            assert await session.scalar(show) == given
            raise ZeroDivisionError
    async with one.transaction() as session:
        assert await session.scalar(show) == "read committed"
        assert await session.scalar(text("SHOW transaction_read_only")) == "off"


@pytest.mark.engines("mariadb")
@pytest.mark.parametrize("level", list(Isolation))
async def test_the_isolation_level_reaches_mariadb_and_is_gone_afterwards(one: Database, level: Isolation) -> None:
    show = text("SELECT @@session.tx_isolation")
    async with one.transaction() as session:
        usual = await session.scalar(show)
    async with one.transaction(isolation=level) as session:
        assert await session.scalar(show) == level.value.replace(" ", "-")
    async with one.transaction() as session:
        assert await session.scalar(show) == usual


@pytest.mark.engines("postgresql")
async def test_the_databases_own_level_is_the_default_and_a_transaction_may_name_another(
    database_url: str, tables: None, make_db
) -> None:
    db = make_db(database_url, isolation=Isolation.REPEATABLE_READ, pool_size=1, max_overflow=0)
    show = text("SHOW transaction_isolation")
    async with db.transaction() as session:
        assert await session.scalar(show) == "repeatable read"
        async with db.transaction(), db.savepoint():
            pass  # a block that names none has not asked for another
        async with db.transaction(isolation=Isolation.REPEATABLE_READ):
            pass
    async with db.transaction(isolation=Isolation.SERIALIZABLE) as session:
        assert await session.scalar(show) == "serializable"
    async with db.read_engine.connect() as connection:
        assert await connection.scalar(show) == "repeatable read"
    async with db.session_factory() as session:
        assert await session.scalar(show) == "repeatable read"


@pytest.mark.engines("sqlite")
@pytest.mark.parametrize("level", list(Isolation))
async def test_sqlite_gives_every_level_that_is_asked_for(one: Database, stored: Stored, level: Isolation) -> None:
    async with one.transaction(isolation=level) as session:
        await store(session, "word")
        assert await session.scalar(text("PRAGMA read_uncommitted")) == 0
    assert stored() == {"word"}


@pytest.mark.engines("postgresql")
async def test_a_serialization_failure_has_its_class(one: Database, observer: Observer, stored: Stored) -> None:
    observer.execute("INSERT INTO words (text) VALUES ('word')")
    with pytest.raises(errors.SerializationFailure) as caught:
        async with one.transaction(isolation=Isolation.REPEATABLE_READ) as session:
            await session.execute(select(Word))
            observer.execute("UPDATE words SET text = 'other'")
            await session.execute(text("UPDATE words SET text = 'mine'"))
    assert caught.value.retryable
    assert stored() == {"other"}
