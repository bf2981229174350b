"""A transaction that stands still: PostgreSQL ends its session, and the program is told at its next use."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from tests.conformance.limits import AMPLE, SHORT, count_statements, limits_told
from tests.conformance.tables import Stored, store
from tests.engines import Observer
from transact import Database, Isolation, Propagation, errors
from transact.events import Event, RollbackFailed

pytestmark = pytest.mark.engines("postgresql")
Body = Callable[[Database, AsyncSession], Awaitable[None]]


@pytest.fixture
def db(database_url: str, tables: None, make_db: Callable[..., Database]) -> Database:
    return make_db(database_url, pool_size=1, max_overflow=0, pool_timeout=5)


async def goes_on(_db: Database, session: AsyncSession) -> None:
    await store(session, "late")


async def ends(_db: Database, session: AsyncSession) -> None:
    pass


async def sets_a_savepoint(db: Database, session: AsyncSession) -> None:
    async with db.savepoint():
        pytest.fail("it was too late for that")


@asynccontextmanager
async def plain(_db: Database, _session: AsyncSession) -> AsyncIterator[None]:
    yield


@asynccontextmanager
async def in_a_savepoint(db: Database, _session: AsyncSession) -> AsyncIterator[None]:
    async with db.savepoint():
        yield


@asynccontextmanager
async def in_a_savepoint_of_its_own(_db: Database, session: AsyncSession) -> AsyncIterator[None]:
    async with session.begin_nested():
        yield


@pytest.mark.parametrize(
    ("around", "then"),
    [
        (plain, goes_on),
        (plain, ends),
        (plain, sets_a_savepoint),
        (in_a_savepoint, ends),
        (in_a_savepoint_of_its_own, goes_on),
        (in_a_savepoint_of_its_own, ends),
    ],
)
async def test_a_session_that_stands_idle_beyond_its_deadline_is_ended_and_its_program_told(
    db: Database, stored: Stored, around: Any, then: Body, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[Event] = []
    db.listen(seen.append)
    with pytest.raises(errors.TransactionTimeout):
        async with db.transaction(timeout=SHORT) as session, around(db, session):
            await store(session, "word")
            await its_session_is_ended(session)
            await then(db, session)
    # The server was told to end it: nothing here is a fault that somebody has to look at.
    assert not [event for event in seen if isinstance(event, RollbackFailed)]
    assert not [record for record in caplog.records if record.levelname == "ERROR" and "ROLLBACK" in record.message]
    async with db.transaction() as session:
        await store(session, "next")
    assert stored() == {"next"}


async def its_session_is_ended(session: AsyncSession) -> None:
    """Wait until the connection is gone, without a use of it."""
    driver = (await (await session.connection()).get_raw_connection()).driver_connection
    closed = driver.is_closed if hasattr(driver, "is_closed") else None
    async with asyncio.timeout(5):
        if closed is None:  # psycopg does not look by itself
            await asyncio.sleep(SHORT + 1.3)
        while closed is not None and not closed():
            await asyncio.sleep(0.02)


async def test_locks_of_a_program_that_hangs_are_free_a_second_after_its_deadline(
    db: Database, observer: Observer, stored: Stored
) -> None:
    observer.execute("INSERT INTO words (text) VALUES ('row')")
    observer.execute("SET lock_timeout = '10s'")
    with pytest.raises(errors.TransactionTimeout):
        async with db.transaction(timeout=SHORT) as session:
            await session.execute(text("UPDATE words SET text = 'mine'"))
            # The program holds on, and somebody else can go on.
            await asyncio.to_thread(observer.execute, "UPDATE words SET text = 'theirs'")
    assert stored() == {"theirs"}


# What the server is told, and how often.


async def test_a_hundred_quick_statements_cost_one_round_trip_more(db: Database) -> None:
    async with db.transaction():
        pass
    sent = count_statements(db.engine)
    async with db.transaction(timeout=AMPLE, lock_timeout=5) as session:
        for n in range(100):
            await session.execute(text(f"SELECT {n}"))
    assert len(sent) == 101


@pytest.mark.parametrize("level", [Isolation.REPEATABLE_READ, Isolation.SERIALIZABLE])
async def test_being_told_takes_no_snapshot_before_the_transactions_own_first_statement(
    db: Database, observer: Observer, level: Isolation
) -> None:
    lock = text("LOCK TABLE words IN EXCLUSIVE MODE")
    for number in range(2):
        observer.execute("BEGIN")
        observer.execute("LOCK TABLE words IN EXCLUSIVE MODE")
        async with db.transaction(isolation=level, timeout=AMPLE, lock_timeout=20) as session:
            locking = asyncio.create_task(_run(session, lock))
            async with asyncio.timeout(5):
                while not observer.scalar("SELECT count(*) FROM pg_locks WHERE NOT granted"):
                    await asyncio.sleep(0.01)
            observer.execute(f"INSERT INTO words (text) VALUES ('{number}')")
            observer.execute("COMMIT")
            await locking
            assert await session.scalar(text("SELECT count(*) FROM words")) == number + 1
            told = await limits_told(session)
            assert 0 < told["statement_timeout"] <= AMPLE * 1000
            assert told["lock_timeout"] == 20_000


async def _run(session: AsyncSession, statement: Any) -> None:
    await session.execute(statement)


async def test_the_server_is_never_told_more_than_a_twentieth_beyond_the_deadline(db: Database) -> None:
    loop = asyncio.get_running_loop()
    started = loop.time()
    async with db.transaction(timeout=1) as session:
        await session.execute(text("SELECT 1"))
        while loop.time() < started + 0.6:
            told = (await limits_told(session))["statement_timeout"] / 1000
            assert told <= 1 - (loop.time() - started) + 1 / 20 + 0.1
            await asyncio.sleep(0.03)


async def test_what_a_rolled_back_savepoint_took_back_is_told_again(db: Database) -> None:
    async with db.transaction() as session:
        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                async with db.transaction(propagation=Propagation.NESTED, timeout=AMPLE, lock_timeout=7):
                    assert (await limits_told(session))["lock_timeout"] == 7000
                    raise ZeroDivisionError
            assert (await limits_told(session))["lock_timeout"] == 0
    async with db.transaction(timeout=AMPLE, lock_timeout=7) as session:
        with pytest.raises(ZeroDivisionError):
            async with db.savepoint():
                assert (await limits_told(session))["lock_timeout"] == 7000
                raise ZeroDivisionError
        told = await limits_told(session)
        assert told["lock_timeout"] == 7000
        assert 0 < told["statement_timeout"] <= AMPLE * 1000


async def test_a_savepoint_that_is_rolled_back_gives_the_server_no_time_back(db: Database) -> None:
    async with db.transaction(timeout=1) as session:
        await session.execute(text("SELECT 1"))
        with pytest.raises(ZeroDivisionError):
            async with db.savepoint():
                await asyncio.sleep(0.3)
                inside = (await limits_told(session))["statement_timeout"]
                raise ZeroDivisionError
        assert (await limits_told(session))["statement_timeout"] <= inside
