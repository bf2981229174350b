"""The wait for a lock ends after `lock_timeout`, whoever holds it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from sqlalchemy import text, update

from tests.conformance.limits import AMPLE, SHORT
from tests.conformance.tables import Stored, Word, store
from tests.engines import Observer
from transact import Database, Propagation, Retry, errors

pytestmark = pytest.mark.engines("sqlite", "postgresql", "mariadb")
SERVERS = pytest.mark.engines("postgresql", "mariadb")
UPDATE = update(Word).where(Word.id == 1000).values(text="mine")


@pytest.fixture
async def db(database_url: str, tables: None, make_db: Callable[..., Database], observer: Observer) -> Database:
    observer.execute("INSERT INTO words (id, text) VALUES (1000, 'row')")
    db = make_db(database_url, pool_size=2, max_overflow=0, pool_timeout=10)
    async with db.engine.connect(), db.engine.connect():
        pass  # the first connection to a SQLite file needs it for itself, to switch it to WAL
    return db


@asynccontextmanager
async def locked_by_this_program(db: Database, observer: Observer) -> AsyncIterator[None]:
    """Another transaction of this program has the row, and on SQLite the turn."""
    locked, done = asyncio.Event(), asyncio.Event()

    async def hold() -> None:
        async with db.transaction() as session:
            await session.execute(update(Word).where(Word.id == 1000).values(text=Word.text))
            locked.set()
            await done.wait()

    holder = asyncio.create_task(hold())
    await locked.wait()
    try:
        yield
    finally:
        done.set()
        await holder


@asynccontextmanager
async def locked_by_another(db: Database, observer: Observer) -> AsyncIterator[None]:
    """Somebody whom this program does not know has it."""
    observer.execute("BEGIN IMMEDIATE" if db.engine.dialect.name == "sqlite" else "BEGIN")
    try:
        observer.execute("UPDATE words SET text = text WHERE id = 1000")
        yield
    finally:
        observer.execute("COMMIT")


LOCKED = pytest.mark.parametrize("locked", [locked_by_this_program, locked_by_another])


@LOCKED
async def test_a_wait_for_a_lock_ends_with_lock_timeout_and_nothing_is_stored(
    db: Database, observer: Observer, stored: Stored, locked: Any
) -> None:
    async with locked(db, observer):
        with pytest.raises(errors.LockTimeout):
            async with db.transaction(lock_timeout=SHORT) as session:
                if db.engine.dialect.name != "sqlite":
                    await store(session, "word")
                await session.execute(UPDATE)
    assert stored() == {"row"}


@LOCKED
async def test_a_deadline_that_comes_before_the_lock_timeout_is_the_one_that_is_told(
    db: Database, observer: Observer, stored: Stored, locked: Any
) -> None:
    async with locked(db, observer):
        with pytest.raises(errors.TransactionTimeout):
            async with db.transaction(timeout=SHORT, lock_timeout=AMPLE) as session:
                await session.execute(UPDATE)
    assert stored() == {"row"}


@LOCKED
async def test_a_lock_timeout_that_comes_before_the_deadline_is_the_one_that_is_told(
    db: Database, observer: Observer, stored: Stored, locked: Any
) -> None:
    async with locked(db, observer):
        with pytest.raises(errors.LockTimeout):
            async with db.transaction(timeout=AMPLE, lock_timeout=SHORT) as session:
                await session.execute(UPDATE)
    assert stored() == {"row"}


@LOCKED
async def test_who_gets_the_lock_in_time_goes_on(db: Database, observer: Observer, stored: Stored, locked: Any) -> None:
    async def wait_for_it() -> None:
        async with db.transaction(timeout=AMPLE, lock_timeout=20) as session:
            await session.execute(UPDATE)

    async with locked(db, observer):
        waiter = asyncio.create_task(wait_for_it())
        await asyncio.sleep(0.1)
        assert not waiter.done()
    await waiter
    assert stored() == {"mine"}


@pytest.mark.engines("pg18-asyncpg", "pg18-psycopg", "mariadb")
async def test_a_lock_timeout_makes_the_transaction_rollback_only(
    db: Database, observer: Observer, stored: Stored
) -> None:
    async with locked_by_this_program(db, observer):
        with pytest.raises(errors.UnexpectedRollback) as caught:
            async with db.transaction(lock_timeout=SHORT) as session:
                await store(session, "before")
                with suppress(errors.LockTimeout):
                    await session.execute(UPDATE)
                with pytest.raises(errors.UnexpectedRollback):
                    await store(session, "after")
    assert isinstance(caught.value.__cause__, errors.LockTimeout)
    assert stored() == {"row"}


@pytest.mark.engines("pg18-asyncpg", "pg18-psycopg", "mariadb")
@pytest.mark.parametrize("nested", [True, False], ids=["a nested block's own", "the transaction's"])
async def test_in_a_savepoint_a_lock_timeout_costs_the_savepoint_only(
    db: Database, observer: Observer, stored: Stored, *, nested: bool
) -> None:
    outer, inner = ({}, {"lock_timeout": SHORT}) if nested else ({"lock_timeout": SHORT}, {})
    async with locked_by_this_program(db, observer), db.transaction(**outer) as session:
        await store(session, "before")
        with pytest.raises(errors.LockTimeout):
            async with db.transaction(propagation=Propagation.NESTED, **inner):
                await store(session, "inner")
                await session.execute(UPDATE)
        await store(session, "after")
    assert stored() == {"before", "after", "row"}


@SERVERS
@pytest.mark.parametrize("joins", [Propagation.REQUIRED, Propagation.NESTED])
async def test_a_longer_lock_timeout_on_joining_has_no_effect(
    db: Database, observer: Observer, stored: Stored, joins: Propagation
) -> None:
    async with locked_by_this_program(db, observer):
        with pytest.raises(errors.LockTimeout):
            async with (
                db.transaction(lock_timeout=SHORT) as session,
                db.transaction(lock_timeout=AMPLE, propagation=joins),
            ):
                await session.execute(UPDATE)
    assert stored() == {"row"}


async def test_a_lock_timeout_is_retried_and_a_deadline_is_not(
    db: Database, observer: Observer, stored: Stored
) -> None:
    ran: list[str] = []

    async def attempt(session: Any, name: str) -> None:
        ran.append(name)
        await session.execute(UPDATE)

    async with locked_by_this_program(db, observer):
        with pytest.raises(errors.RetriesExhausted) as caught:
            await db.run(attempt, "lock", lock_timeout=SHORT, retry=Retry(2, base=0))
        assert isinstance(caught.value.__cause__, errors.LockTimeout)
        with pytest.raises(errors.TransactionTimeout):
            await db.run(attempt, "time", timeout=SHORT, retry=Retry(2, base=0))
    assert ran == ["lock", "lock", "time"]
    assert stored() == {"row"}


@pytest.mark.engines("mariadb")
async def test_mariadb_waits_for_locks_in_whole_seconds_rounded_up(db: Database) -> None:
    for asked, told in [(0.2, 1), (1, 1), (1.2, 2)]:
        async with db.transaction(lock_timeout=asked) as session:
            row = await session.execute(text("SELECT @@innodb_lock_wait_timeout, @@lock_wait_timeout"))
            assert tuple(row.one()) == (told, told)


@pytest.mark.engines("sqlite")
async def test_readers_of_sqlite_wait_for_nobody(db: Database, observer: Observer) -> None:
    async with locked_by_another(db, observer), db.transaction(lock_timeout=SHORT, read_only=True) as session:
        assert await session.scalar(text("SELECT count(*) FROM words")) == 1
