"""A block that is cancelled at any of its awaits is stored or not, never half, and nothing of it is left behind."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count, product
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from tests.conformance.conftest import make_db, tables  # noqa: F401  # fixtures
from tests.conformance.tables import Word
from tests.engines import Observer
from tests.faults.cancelling import (
    ALL,
    BY_HOOK,
    FIRST,
    INNER,
    NOTHING,
    OTHER,
    SECOND,
    WAYS,
    AgainError,
    Bench,
    Blow,
    Moment,
    Way,
    blows,
    by_a_scope,
    by_the_task,
    hooks_agree,
    next_one_works,
    no_complaints,
    nothing_is_held,
    strike,
)
from transact import Database, Isolation, Propagation, Retry

EVERYWHERE = pytest.mark.engines("sqlite", "pg18-asyncpg", "pg18-psycopg", "mariadb")


async def plain(bench: Bench) -> None:
    async with bench.db.transaction() as session:
        bench.hooks(FIRST)
        session.add(Word(text=bench.own(FIRST)))
        await session.flush()
        assert bench.own(FIRST) in (await session.scalars(select(Word.text))).all()
        session.add(Word(text=bench.own(SECOND)))  # flushed before COMMIT


async def cold(bench: Bench) -> None:
    async with bench.db.transaction() as session:
        bench.hooks(FIRST)
        await bench.store(session, FIRST)
        await bench.store(session, SECOND)


async def savepoints(bench: Bench) -> None:
    async with bench.db.transaction() as session:
        bench.hooks(FIRST)
        await bench.store(session, FIRST)
        async with bench.db.savepoint():
            bench.hooks(SECOND)
            await bench.store(session, SECOND)
        with pytest.raises(AgainError):
            async with bench.db.savepoint():
                bench.hooks(INNER, awaits=True)
                await bench.store(session, INNER)
                raise AgainError


async def requires_new(bench: Bench) -> None:
    async with bench.db.transaction() as session:
        bench.hooks(FIRST)
        if not bench.is_sqlite:  # which has one writer at a time
            await bench.store(session, FIRST)
        async with bench.db.transaction(propagation=Propagation.REQUIRES_NEW) as own:
            bench.hooks(INNER)
            await bench.store(own, INNER)
        if bench.is_sqlite:
            await bench.store(session, FIRST)
        await bench.store(session, SECOND)


async def autocommit(bench: Bench) -> None:
    async with bench.db.transaction(propagation=Propagation.NOT_SUPPORTED) as session:
        await bench.store(session, FIRST)
        await bench.store(session, SECOND)


async def decorated(bench: Bench) -> None:
    @bench.db.transactional(retry=Retry(attempts=3, base=0.001, max_delay=0.002, on=(AgainError,)))
    async def work(session: AsyncSession) -> None:
        bench.tried += 1
        bench.hooks(f"{bench.tried}")
        await bench.store(session, f"{bench.tried}")
        if bench.tried == 1:
            raise AgainError

    await work()


async def attempts(bench: Bench) -> None:
    async for attempt in bench.db.attempts(retry=Retry(attempts=3, base=0.001, max_delay=0.002, on=(AgainError,))):
        async with attempt as session:
            bench.tried += 1
            bench.hooks(f"{bench.tried}")
            await bench.store(session, f"{bench.tried}")
            if bench.tried == 1:
                raise AgainError


async def limited(bench: Bench) -> None:
    async with bench.db.transaction(timeout=30, lock_timeout=20, isolation=Isolation.SERIALIZABLE) as session:
        bench.hooks(FIRST)
        await bench.store(session, FIRST)
        async with bench.db.transaction(timeout=10):
            await bench.store(session, SECOND)


async def awaiting_hooks(bench: Bench) -> None:
    async def before() -> None:
        await bench.store(session, SECOND)

    async def after() -> None:
        async with bench.db.transaction() as own:
            await bench.store(own, BY_HOOK)

    async with bench.db.transaction() as session:
        bench.hooks(FIRST, awaits=True)
        bench.db.before_commit(before)
        bench.db.after_commit(after)
        await bench.store(session, FIRST)


async def streaming(bench: Bench) -> None:
    async with bench.db.transaction() as session:
        bench.hooks(FIRST)
        await bench.store(session, FIRST)
        await bench.store(session, SECOND)
        mine = select(Word).where(Word.text.like(bench.own("%")))
        async for _ in await session.stream(mine, execution_options={"yield_per": 1}):
            pass


async def waiting_for_another(bench: Bench) -> None:
    """Two tasks and one connection; on SQLite there is one for each, but one turn to write."""
    began, waits = asyncio.Event(), asyncio.Event()

    async def other() -> None:
        async with bench.db.transaction() as session:
            await bench.store(session, OTHER)
            began.set()
            await waits.wait()

    holder = asyncio.create_task(other())
    try:
        await began.wait()
        async with bench.db.transaction() as session:
            bench.hooks(FIRST)
            asyncio.get_running_loop().call_soon(waits.set)
            await bench.store(session, FIRST)
            await bench.store(session, SECOND)
    finally:
        waits.set()
        while not holder.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([holder])
        await holder


@dataclass(frozen=True)
class Scenario:
    """A piece of work, and what another connection may find stored after it was cancelled."""

    work: Callable[[Bench], Awaitable[None]]
    may_be_stored: tuple[frozenset[str], ...] = (NOTHING, ALL)
    pool: int = 1
    warm: bool = True
    arguments: dict[str, Any] = field(default_factory=dict)


SCENARIOS = {
    "plain": Scenario(plain),
    "cold": Scenario(cold, warm=False),
    "savepoints": Scenario(savepoints),
    "requires_new": Scenario(requires_new, (NOTHING, frozenset({INNER}), ALL | {INNER}), pool=2),
    "autocommit": Scenario(autocommit, (NOTHING, frozenset({FIRST}), ALL)),
    "decorated": Scenario(decorated, (NOTHING, frozenset({"2"}))),
    "attempts": Scenario(attempts, (NOTHING, frozenset({"2"}))),
    "limited": Scenario(limited),
    "awaiting_hooks": Scenario(awaiting_hooks, (NOTHING, ALL | {BY_HOOK})),
    "streaming": Scenario(streaming),
    "verified": Scenario(plain, arguments={"verify_commit": True}),
    "waiting_for_a_connection": Scenario(waiting_for_another, (frozenset({OTHER}), ALL | {OTHER})),
    "waiting_beside_another": Scenario(waiting_for_another, (frozenset({OTHER}), ALL | {OTHER}), pool=2),
}

USUAL = ((by_the_task, Moment.ANSWERED), (by_a_scope, Moment.WAITING))


async def play(scenario: Scenario, way: Way, blow: Blow, bench: Bench, observer: Observer) -> frozenset[str]:
    """Do it once with a blow, and look at what is left."""
    db = bench.db
    if not scenario.warm:
        await db.close()
        await db.open()

    async def work() -> None:
        try:
            await scenario.work(bench)
        finally:
            assert not db.in_transaction

    await strike(way, work, blow)
    told = f"{way.__name__}: {blow}"
    await nothing_is_held(db, observer, told)
    found = bench.stored(observer)
    assert found in scenario.may_be_stored, told
    assert blow.has_fallen or found == scenario.may_be_stored[-1], told
    hooks_agree(bench, found, told)
    return found


async def sweep(scenario: Scenario, ways: Iterable[tuple[Way, Moment]], db: Database, observer: Observer) -> None:
    """Cancel it at each of its awaits, in each way."""
    usual = await next_one_works(db, 0)
    seen = set()
    runs = count(1)
    async with no_complaints():
        for way, moment in ways:
            for blow in blows(moment):
                run = next(runs)
                seen.add(await play(scenario, way, blow, Bench(db, run), observer))
                assert await next_one_works(db, run) == usual, f"{way.__name__}: {blow}"
    assert scenario.may_be_stored[-1] in seen
    assert len(seen) > 1


@EVERYWHERE
@pytest.mark.usefixtures("tables")
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", SCENARIOS)
async def test_a_block_that_is_cancelled_at_any_await_is_stored_or_not_and_leaves_nothing_behind(
    name: str,
    database_url: str,
    observer: Observer,
    make_db: Callable[..., Database],  # noqa: F811  # a fixture
    long: bool,  # noqa: FBT001  # a fixture
) -> None:
    scenario = SCENARIOS[name]
    db = make_db(database_url, pool_size=scenario.pool, max_overflow=0, pool_timeout=10, **scenario.arguments)
    await sweep(scenario, product(WAYS, Moment) if long else USUAL, db, observer)
