"""What SQLite and Python's sqlite3 do behind one's back, shown on the bare driver first."""

import asyncio
import sqlite3

import pytest
from sqlalchemy import event, exc, insert, select, text
from sqlalchemy.engine import Connection
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from tests.conformance.tables import Stored, Word, store
from tests.engines import Observer
from transact import Database, errors

pytestmark = pytest.mark.engines("sqlite")

ROLLS_BACK = text("INSERT OR ROLLBACK INTO words (text) VALUES ('taken')")


@pytest.fixture
def taken(observer: Observer, tables: None) -> None:
    observer.execute("INSERT INTO words (text) VALUES ('taken')")


async def test_after_an_error_that_rolls_back_by_itself_the_bare_driver_stores_the_half_that_came_after(
    database_url: str, taken: None, stored: Stored
) -> None:
    engine = create_async_engine(database_url)
    async with AsyncSession(engine) as session:
        await store(session, "before")
        with pytest.raises(exc.IntegrityError):
            await session.execute(ROLLS_BACK)
        await store(session, "after")
        await session.commit()
    await engine.dispose()
    assert stored() == {"taken", "after"}


@pytest.mark.parametrize("how", ["savepoint", "begin_nested"])
async def test_an_error_that_rolls_back_by_itself_makes_the_transaction_lost_also_inside_a_savepoint(
    db: Database, taken: None, stored: Stored, how: str
) -> None:
    with pytest.raises(errors.TransactionLost) as lost:
        async with db.transaction() as session:
            await store(session, "before")
            with pytest.raises(errors.TransactionLost):
                async with db.savepoint() if how == "savepoint" else session.begin_nested():
                    await session.execute(ROLLS_BACK)
            with pytest.raises(errors.TransactionLost):
                await store(session, "after")
    assert isinstance(lost.value.__cause__, errors.UniqueViolation)
    assert stored() == {"taken"}


async def test_a_released_savepoint_does_not_survive_a_rollback_though_the_bare_driver_lets_it(
    db: Database, database_url: str, observer: Observer, stored: Stored
) -> None:
    def bare(session: Session) -> None:
        with session.begin_nested():
            session.execute(insert(Word).values(text="bare"))
        session.rollback()

    engine = create_async_engine(database_url)
    async with engine.connect() as connection:
        await connection.run_sync(lambda plain: bare(Session(plain)))
    await engine.dispose()
    bare_driver_kept = stored()
    observer.execute("DELETE FROM words")

    with pytest.raises(ZeroDivisionError):
        async with db.transaction() as session:
            async with session.begin_nested():
                await store(session, "guarded")
            async with db.savepoint():
                await store(session, "too")
            raise ZeroDivisionError
    assert stored() == set()
    assert bare_driver_kept == {"bare"}, "the driver does the right thing by itself: is the listener still needed?"


async def test_who_reads_and_then_writes_beside_another_writer_gets_busy_snapshot_on_the_bare_driver(
    database_url: str, observer: Observer, stored: Stored
) -> None:
    observer.execute("PRAGMA journal_mode = WAL")
    engine = create_async_engine(database_url)

    @event.listens_for(engine.sync_engine, "begin")
    def deferred(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN")  # sqlite3 by itself would read outside of any transaction

    async with AsyncSession(engine) as session:
        await session.execute(select(Word))
        observer.execute("INSERT INTO words (text) VALUES ('another')")
        with pytest.raises(exc.OperationalError) as caught:
            await store(session, "word")
    await engine.dispose()
    assert getattr(caught.value.orig, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY_SNAPSHOT
    assert stored() == {"another"}


async def test_who_reads_and_then_writes_beside_another_writer_succeeds_and_the_other_waits(
    db: Database, stored: Stored
) -> None:
    has_read = asyncio.Event()

    async def another() -> None:
        await has_read.wait()
        async with db.transaction() as session:
            assert list(await session.scalars(select(Word.text))) == ["word"]
            await store(session, "another")

    task = asyncio.create_task(another())
    async with db.transaction() as session:
        await session.execute(select(Word))
        has_read.set()
        await asyncio.sleep(0)  # it waits for its turn from now on
        await store(session, "word")
    await task
    assert stored() == {"word", "another"}


async def test_a_reader_that_becomes_a_writer_is_refused_as_a_reader_and_not_as_one_who_came_too_late(
    db: Database, observer: Observer, stored: Stored
) -> None:
    with pytest.raises(errors.ReadOnlyViolation):
        async with db.transaction(read_only=True) as session:
            await session.execute(select(Word))
            observer.execute("INSERT INTO words (text) VALUES ('another')")
            await store(session, "late")
    assert stored() == {"another"}
