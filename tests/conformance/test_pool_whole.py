"""Everything that was taken from the pool is given back, whatever way it goes."""

import asyncio
import gc
import random
import threading
import warnings
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress

import pytest
from sqlalchemy import event, text

from tests.conformance.tables import store
from transact import Database, errors
from transact._sqlalchemy.line import Line, Place

CAPACITY = 3
ROUNDS = 10_000


async def assert_whole(db: Database, capacity: int = CAPACITY) -> None:
    """All connections are back, each can be taken, and not one more."""
    pool = db.engine.pool
    assert pool.checkedout() == 0
    assert pool._line.waiting == 0
    assert list(pool._line.taken) == []
    db._runtime.max_waiting = 0
    async with AsyncExitStack() as stack:
        for _ in range(capacity):
            await stack.enter_async_context(db.engine.connect())
        with pytest.raises(errors.PoolTimeout):
            await db.engine.connect().start()
    db._runtime.max_waiting = None


async def waiting(db: Database, number: int) -> None:
    for _ in range(1000):
        if db.engine.pool._line.waiting == number:
            return
        await asyncio.sleep(0)
    raise AssertionError(f"{db.engine.pool._line.waiting} wait, not {number}")


async def held(db: Database) -> AsyncExitStack:
    """All connections of the pool, taken."""
    async with AsyncExitStack() as stack:
        for _ in range(CAPACITY):
            await stack.enter_async_context(db.engine.connect())
        return stack.pop_all()


async def cancelled(task: asyncio.Task[object]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def take(db: Database) -> None:
    async with db.engine.connect():
        pass


async def cancelled_while_it_waits(db: Database) -> None:
    async with await held(db):
        task = asyncio.create_task(take(db))
        await waiting(db, 1)
        await cancelled(task)


async def cancelled_in_the_instant_when_it_is_served(db: Database) -> None:
    stack = await held(db)
    tasks = [asyncio.create_task(take(db)) for _ in range(2)]
    await waiting(db, 2)
    served = asyncio.create_task(stack.aclose())
    while db.engine.pool._line.waiting == 2:
        await asyncio.sleep(0)
    await cancelled(tasks[0])
    await asyncio.gather(served, tasks[1])


async def timed_out(db: Database) -> None:
    async with await held(db):
        db.engine.pool._timeout = 0.01
        with pytest.raises(errors.PoolTimeout):
            await take(db)


async def invalidated(db: Database) -> None:
    async with db.engine.connect() as connection:
        await connection.invalidate()


async def detached(db: Database) -> None:
    async with db.engine.connect() as connection:
        raw = await connection.get_raw_connection()
        raw.detach()


async def left_to_the_garbage_collector(db: Database) -> None:
    with warnings.catch_warnings(action="ignore"):
        connection = await db.engine.connect().start()
        driver = (await connection.get_raw_connection()).driver_connection
        task = asyncio.create_task(take(db))
        del connection
        gc.collect()
        await task
        # Older versions of SQLAlchemy leave this driver's thread running; newer ones stop it, and to close it then may hang.
        if db.engine.dialect.name == "sqlite" and driver._running:
            await driver.close()


async def closed_while_it_is_held(db: Database) -> None:
    stack = await held(db)
    task = asyncio.create_task(take(db))
    await waiting(db, 1)
    old = db.engine.pool
    await db.close()
    await stack.aclose()
    await task
    assert list(old._line.taken) == []
    await db.open()


async def failed_to_connect(db: Database) -> None:
    class Refused(Exception):
        pass

    def refuse(*_: object) -> None:
        raise Refused

    await db.engine.dispose()
    event.listen(db.engine.sync_engine, "do_connect", refuse)
    try:
        failures = await asyncio.gather(*(take(db) for _ in range(2 * CAPACITY)), return_exceptions=True)
    finally:
        event.remove(db.engine.sync_engine, "do_connect", refuse)
    assert {type(failure) for failure in failures} == {Refused}


WAYS: list[Callable[[Database], Awaitable[None]]] = [
    cancelled_while_it_waits,
    cancelled_in_the_instant_when_it_is_served,
    timed_out,
    invalidated,
    detached,
    left_to_the_garbage_collector,
    closed_while_it_is_held,
    failed_to_connect,
]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.engines("sqlite", "pg18-asyncpg", "mariadb")
async def test_a_connection_comes_back_whatever_way_it_goes(database_url: str, tables: None, make_db, way) -> None:
    db = make_db(database_url, pool_size=2, max_overflow=1)
    async with asyncio.timeout(30):
        for _ in range(3):
            await way(db)
            await assert_whole(db)


def test_a_pool_serves_one_event_loop_after_the_other_also_when_one_ended_in_the_middle(sqlite_url: str) -> None:
    db = Database(sqlite_url, pool_size=2, max_overflow=1)

    async def hold(holding: asyncio.Event) -> None:
        async with await held(db):
            holding.set()
            await asyncio.Event().wait()

    async def leave_some_holding_and_some_waiting() -> list[asyncio.Task[None]]:
        holding = asyncio.Event()
        left = [asyncio.create_task(hold(holding))]
        await holding.wait()
        left += [asyncio.create_task(take(db)) for _ in range(3)]
        await waiting(db, 3)
        return left

    for _ in range(3):
        assert all(task.cancelled() for task in asyncio.run(leave_some_holding_and_some_waiting()))
        asyncio.run(assert_whole(db))
    asyncio.run(db.close())


def test_who_waited_in_an_event_loop_that_is_closed_is_passed_over() -> None:
    line = Line(1)
    first, second = Place(1), Place(1)
    assert line.take(first)
    loop = asyncio.new_event_loop()
    task = loop.create_task(line.wait(Place(1), 30))
    loop.run_until_complete(asyncio.sleep(0))
    task._log_destroy_pending = False
    loop.close()
    assert not line.take(second)
    line.give_back(first)
    assert line.take(second)


async def test_a_place_that_comes_back_in_another_thread_wakes_who_waits_for_it() -> None:
    line = Line(1)
    held = Place(1)
    assert line.take(held)
    loop = asyncio.get_running_loop()
    started = loop.time()
    threading.Timer(0.05, line.give_back, [held]).start()
    assert await line.wait(Place(1), 20)
    assert loop.time() - started < 10  # a loop that nobody wakes sleeps for all of the 20 seconds


async def operation(db: Database, chance: random.Random, number: int) -> None:
    kind = chance.randrange(20)
    if kind == 0:
        await invalidated(db)
    elif kind == 1:
        await detached(db)
    elif kind < 4:
        async with db.transaction() as session:
            await store(session, f"word {number}")
    elif kind < 6:
        async with db.engine.connect() as connection:
            await connection.execute(text("SELECT 1"))
    else:
        async with db.engine.connect():
            for _ in range(chance.randrange(3)):
                await asyncio.sleep(0)


async def cancelled_at_random(db: Database, chance: random.Random, number: int) -> None:
    task = asyncio.create_task(operation(db, chance, number))
    if chance.random() < 0.5:
        for _ in range(chance.choice([0, 1, 2, 3, 5, 10, 30])):
            await asyncio.sleep(0)
        task.cancel()
    with suppress(asyncio.CancelledError, errors.PoolTimeout):
        await task


@pytest.mark.engines("sqlite", "pg18-asyncpg", "mariadb")
async def test_after_random_cancellations_the_pool_is_whole(
    database_url: str, tables: None, make_db, *, long: bool
) -> None:
    # SQLite's connections cost least; the others make a new one after most cancellations.
    rounds = ROUNDS if long or database_url.startswith("sqlite") else ROUNDS // 20
    seed = random.randrange(2**32)  # noqa: S311  # repeatable
    db = make_db(database_url, pool_size=2, max_overflow=1)
    numbers = iter(range(rounds))

    async def client(own: int) -> None:
        chance = random.Random(seed + own)  # noqa: S311  # repeatable
        for number in numbers:
            await cancelled_at_random(db, chance, number)

    try:
        async with asyncio.timeout(100):
            await asyncio.gather(*map(client, range(12)))
        await assert_whole(db)
    except BaseException as error:
        error.add_note(f"seed {seed}")
        raise
