"""SQLite's writers take turns, and waiting for one stops nobody else."""

import asyncio
from contextvars import Context

import pytest
import sqlalchemy
from sqlalchemy import text

from tests.conformance.tables import Stored, store
from transact import Database, errors

pytestmark = pytest.mark.engines("sqlite")


async def test_writers_are_served_in_the_order_in_which_they_came(db: Database, stored: Stored) -> None:
    order: list[int] = []
    everybody = asyncio.Barrier(15)

    async def connect() -> None:
        async with db.engine.connect():
            await everybody.wait()

    await asyncio.gather(*(connect() for _ in range(15)))  # new connections are not ready in order

    async def write(number: int) -> None:
        async with db.transaction() as session:
            await store(session, f"word {number}")
            order.append(number)

    await asyncio.gather(*(write(number) for number in range(15)))
    assert order == list(range(15))
    assert len(stored()) == 15


async def test_a_writer_that_waits_too_long_gets_a_lock_timeout_and_the_other_commits(
    database_url: str, db: Database, stored: Stored
) -> None:
    async with Database(f"{database_url}?timeout=0.05") as impatient:
        async with impatient.transaction() as session:
            await store(session, "first")

            async def second() -> None:
                async with impatient.transaction() as other:
                    await store(other, "second")

            with pytest.raises(errors.LockTimeout) as raised:
                await asyncio.create_task(second(), context=Context())
            assert isinstance(raised.value, sqlalchemy.exc.OperationalError)
            assert raised.value.errno == 5
        assert impatient.engine.pool.checkedout() == 0
        await impatient.run(store, "third")
    assert stored() == {"first", "third"}


@pytest.mark.parametrize("end", ["cancel", "raise", "commit"])
async def test_however_a_writer_ends_the_next_gets_its_turn(db: Database, stored: Stored, end: str) -> None:
    began = asyncio.Event()

    async def first() -> None:
        async with db.transaction() as session:
            await store(session, "first")
            began.set()
            if end == "cancel":
                await session.execute(
                    text("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n")
                )
            if end == "raise":
                raise ValueError

    task = asyncio.create_task(first())
    await began.wait()
    if end == "cancel":
        task.cancel()
    async with asyncio.timeout(20):
        await db.run(store, "second")
    await asyncio.gather(task, return_exceptions=True)
    assert stored() == ({"first", "second"} if end == "commit" else {"second"})


async def test_a_writer_that_is_cancelled_while_it_waits_takes_no_turn(db: Database, stored: Stored) -> None:
    async def waiting() -> None:
        async with db.transaction() as other:
            await store(other, "never")

    async with db.transaction() as session:
        await store(session, "first")
        waiter = asyncio.create_task(waiting(), context=Context())
        while db.engine.pool.checkedout() < 2:
            await asyncio.sleep(0)
        waiter.cancel()
        await asyncio.gather(waiter, return_exceptions=True)
    await db.run(store, "second")
    assert stored() == {"first", "second"}


async def test_readers_do_not_queue(db: Database) -> None:
    async def read() -> int | None:
        async with db.transaction(read_only=True) as reading:
            return await reading.scalar(text("SELECT count(*) FROM words"))

    async with db.transaction() as session:
        await store(session, "word")
        async with asyncio.timeout(5):
            await asyncio.create_task(db.ping(), context=Context())
            assert await asyncio.create_task(read(), context=Context()) == 0
