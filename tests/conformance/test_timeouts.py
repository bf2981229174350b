"""A transaction ends by its deadline, whatever it is doing, and what comes too late is not stored."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from typing import Annotated, Any

import pytest
from sqlalchemy import exc, insert, text
from sqlalchemy.ext.asyncio import AsyncSession

from tests.conformance.limits import BEYOND, ENDED, HURRY, SHORT, WRITES, limits_told, nothing_runs, slow
from tests.conformance.surroundings import in_a_request
from tests.conformance.tables import Stored, Word, store
from tests.engines import Observer
from transact import Database, Isolation, Propagation, Retry, errors
from transact.fastapi import Database as FastapiDatabase

pytestmark = pytest.mark.engines("sqlite", "postgresql", "mariadb")
ONE_OF_EACH = pytest.mark.engines("sqlite", "pg18-asyncpg", "mariadb")

Body = Callable[[AsyncSession], Awaitable[None]]
Way = Callable[[Database, Body], Awaitable[None]]


@pytest.fixture
async def db(database_url: str, tables: None, make_db: Callable[..., Database]) -> Database:
    """A database whose pool has one connection: what a transaction leaves behind on it, the next one finds."""
    db = make_db(database_url, kind=FastapiDatabase, pool_size=1, max_overflow=0, pool_timeout=5)
    async with db.engine.connect():
        pass  # to connect takes time, and the tests have little
    return db


async def is_clean(db: Database, stored: Stored, *expected: str) -> None:
    """The pool's one connection has no open transaction, and the next one to use it is not bounded."""
    async with db.transaction() as session:
        await store(session, "next")
        await asyncio.sleep(0)
    assert stored() == {"next", *expected}
    assert db.engine.pool.checkedout() == 0


# A statement that takes too long is ended by the server.


async def reads(session: AsyncSession) -> None:
    await session.execute(slow(session))


async def writes(session: AsyncSession) -> None:
    await session.execute(slow(session, WRITES))


async def streams(session: AsyncSession) -> None:
    rows = await session.stream(slow(session))
    await rows.all()


async def uses_the_connection(session: AsyncSession) -> None:
    await (await session.connection()).execute(slow(session))


async def streams_from_the_connection(session: AsyncSession) -> None:
    async with (await session.connection()).stream(slow(session)) as rows:
        await rows.all()


async def runs_plain_code(session: AsyncSession) -> None:
    await session.run_sync(lambda plain: plain.execute(slow(session)))


async def is_in_a_savepoint_of_its_own(session: AsyncSession) -> None:
    async with session.begin_nested():
        await session.execute(slow(session))


@pytest.mark.parametrize(
    "does",
    [
        reads,
        writes,
        streams,
        uses_the_connection,
        streams_from_the_connection,
        runs_plain_code,
        is_in_a_savepoint_of_its_own,
    ],
)
async def test_a_statement_that_runs_beyond_the_deadline_is_ended_by_the_server(
    db: Database, observer: Observer, stored: Stored, database_url: str, does: Body
) -> None:
    with pytest.raises(errors.TransactionTimeout) as caught:
        async with db.transaction(timeout=2 * SHORT) as session:
            await store(session, "word")
            await does(session)
    error = caught.value
    assert isinstance(error, exc.DBAPIError)
    assert {error.sqlstate, error.errno} & ENDED
    await nothing_runs(observer, database_url)
    await is_clean(db, stored)


@pytest.mark.engines("sqlite", "pg18-asyncpg", "pg18-psycopg", "mariadb")
@pytest.mark.parametrize("options", [{"read_only": True}, {"isolation": Isolation.SERIALIZABLE}], ids=str)
async def test_a_deadline_goes_with_every_other_option(db: Database, stored: Stored, options: Any) -> None:
    async with db.transaction(timeout=5, **options) as session:
        if "isolation" in options and session.get_bind().dialect.name == "postgresql":
            assert await session.scalar(text("SHOW transaction_isolation")) == "serializable"
        if "read_only" in options:
            with pytest.raises(errors.ReadOnlyViolation):
                async with db.savepoint():
                    await store(session, "word")
    with pytest.raises(errors.TransactionTimeout):
        async with db.transaction(timeout=SHORT, **options) as session:
            await session.execute(slow(session))
    await is_clean(db, stored)


# The deadline is checked before every statement.


def for_long() -> Iterator[int]:
    """Count for longer than the deadline, by the clock: how many statements fit in differs from machine to machine."""
    until = time.monotonic() + 10 * SHORT
    n = 0
    while time.monotonic() < until:
        yield n
        n += 1
    pytest.fail("nobody looked at the clock")


async def many_statements(session: AsyncSession) -> None:
    for _ in for_long():
        await session.execute(text("SELECT 1"))


async def many_statements_in_plain_code(session: AsyncSession) -> None:
    def loop(plain: Any) -> None:
        for _ in for_long():
            plain.execute(text("SELECT 1"))

    await session.run_sync(loop)


async def a_flush_of_many_statements(session: AsyncSession) -> None:
    for block in for_long():
        session.add_all([Word(text=f"{block} {n}") for n in range(30_000)])
        await session.flush()


async def a_bulk_insert(session: AsyncSession) -> None:
    for block in for_long():
        await session.execute(insert(Word), [{"text": f"{block} {n}"} for n in range(1000)])


async def lazy_loading(session: AsyncSession) -> None:
    for n in for_long():
        word = Word(text=f"{n}")
        session.add(word)
        await session.flush()
        await session.refresh(word)
        await word.awaitable_attrs.meanings


@ONE_OF_EACH
@pytest.mark.parametrize(
    "does",
    [many_statements, many_statements_in_plain_code, a_flush_of_many_statements, a_bulk_insert, lazy_loading],
)
async def test_the_deadline_is_checked_before_every_statement(db: Database, stored: Stored, does: Body) -> None:
    with pytest.raises(errors.TransactionTimeout):
        async with db.transaction(timeout=SHORT) as session:
            await does(session)
    await is_clean(db, stored)


@ONE_OF_EACH
async def test_a_statement_after_the_deadline_is_not_sent(db: Database, stored: Stored) -> None:
    with pytest.raises(errors.TransactionTimeout, match=f"'mine' took longer than its timeout of {HURRY} s"):
        async with db.transaction(timeout=HURRY, label="mine") as session:
            await asyncio.sleep(BEYOND)
            await store(session, "word")
    await is_clean(db, stored)


# The deadline is checked before COMMIT.


async def in_a_block(db: Database, body: Body) -> None:
    async with db.transaction(timeout=HURRY) as session:
        await body(session)


async def in_a_function(db: Database, body: Body) -> None:
    @db.transactional(timeout=HURRY)
    async def call(session: AsyncSession) -> None:
        await body(session)

    await call()


async def in_a_run(db: Database, body: Body) -> None:
    await db.run(body, timeout=HURRY)


async def in_an_attempt(db: Database, body: Body) -> None:
    async for attempt in db.attempts(timeout=HURRY, retry=Retry(3)):
        async with attempt as session:
            await body(session)


async def in_a_requests_own(db: FastapiDatabase, body: Body) -> None:
    async def route(session: Annotated[AsyncSession, db.session(timeout=HURRY)]) -> None:
        await body(session)

    await in_a_request(db, route)


async def in_a_new_one(db: Database, body: Body) -> None:
    async with db.transaction(), db.transaction(propagation=Propagation.REQUIRES_NEW, timeout=HURRY) as session:
        await body(session)


async def waits_after_it_wrote(session: AsyncSession) -> None:
    await store(session, "word")
    await asyncio.sleep(BEYOND)


async def waits_with_changes_to_flush(session: AsyncSession) -> None:
    session.add(Word(text="word"))
    await asyncio.sleep(BEYOND)


async def waits_before_its_first_statement(session: AsyncSession) -> None:
    await asyncio.sleep(BEYOND)
    session.add(Word(text="word"))


WAYS: list[Way] = [in_a_block, in_a_function, in_a_run, in_an_attempt, in_a_requests_own, in_a_new_one]


@ONE_OF_EACH
@pytest.mark.parametrize(
    ("way", "body"),
    [
        *((way, waits_after_it_wrote) for way in WAYS),
        (in_a_block, waits_with_changes_to_flush),
        (in_a_requests_own, waits_with_changes_to_flush),
        (in_a_block, waits_before_its_first_statement),
    ],
)
async def test_a_transaction_that_is_ready_only_after_its_deadline_is_not_committed(
    db: Database, stored: Stored, way: Way, body: Body
) -> None:
    ran = 0

    async def once(session: AsyncSession) -> None:
        nonlocal ran
        ran += 1
        await body(session)

    with pytest.raises(errors.TransactionTimeout):
        await way(db, once)
    assert ran == 1  # no attempt can make up for it
    await is_clean(db, stored)


@ONE_OF_EACH
@pytest.mark.parametrize("writes_in_it", [False, True])
async def test_hooks_before_commit_have_the_transactions_time(
    db: Database, stored: Stored, *, writes_in_it: bool
) -> None:
    outcomes: list[str] = []
    with pytest.raises(errors.TransactionTimeout):
        async with db.transaction(timeout=HURRY) as session:
            await store(session, "word")
            db.after_commit(lambda: outcomes.append("committed"))
            db.after_completion(lambda outcome: outcomes.append(outcome.value))

            @db.before_commit
            async def hook() -> None:
                await asyncio.sleep(BEYOND)
                if writes_in_it:
                    await store(session, "hook")

    assert outcomes == ["rolled back"]
    await is_clean(db, stored)


@ONE_OF_EACH
async def test_a_transaction_that_never_used_the_database_has_nothing_to_be_late_with(db: Database) -> None:
    done: list[str] = []
    async with db.transaction(timeout=HURRY):
        await asyncio.sleep(BEYOND)
        db.after_commit(lambda: done.append("done"))
    assert done == ["done"]


@ONE_OF_EACH
async def test_an_error_of_the_blocks_own_is_told_also_after_the_deadline(db: Database, stored: Stored) -> None:
    with pytest.raises(ZeroDivisionError):
        async with db.transaction(timeout=HURRY) as session:
            await store(session, "word")
            await asyncio.sleep(BEYOND)
            raise ZeroDivisionError
    await is_clean(db, stored)


# What is over stays over.


async def is_late_by_itself(session: AsyncSession) -> None:
    await asyncio.sleep(SHORT)
    await store(session, "late")


@ONE_OF_EACH
@pytest.mark.parametrize("does", [reads, writes, is_late_by_itself])
async def test_who_swallows_the_timeout_can_neither_go_on_nor_commit(db: Database, stored: Stored, does: Body) -> None:
    with pytest.raises((errors.UnexpectedRollback, errors.TransactionLost)) as caught:
        async with db.transaction(timeout=SHORT) as session:
            with suppress(errors.TransactionTimeout):
                await store(session, "before")  # in a hurry even this may be late
                await does(session)
            for _ in range(2):
                with pytest.raises((errors.UnexpectedRollback, errors.TransactionLost)):
                    await store(session, "after")
            with pytest.raises((errors.UnexpectedRollback, errors.TransactionLost)):
                async with db.savepoint():
                    await store(session, "in a savepoint")
    assert isinstance(caught.value.__cause__, errors.TransactionTimeout)
    await is_clean(db, stored)


@ONE_OF_EACH
@pytest.mark.parametrize("does", [reads, writes, is_late_by_itself])
async def test_a_savepoint_does_not_save_a_transaction_whose_time_is_over(
    db: Database, stored: Stored, does: Body
) -> None:
    with pytest.raises((errors.UnexpectedRollback, errors.TransactionLost)):
        async with db.transaction(timeout=SHORT) as session:
            with suppress(errors.TransactionTimeout, errors.TransactionLost):
                await store(session, "before")
                async with db.savepoint():
                    await does(session)
            with suppress(errors.TransactionTimeout, errors.TransactionLost, errors.UnexpectedRollback):
                await store(session, "after")
    await is_clean(db, stored)


@ONE_OF_EACH
async def test_an_error_that_does_not_roll_back_stores_nothing_after_the_deadline(db: Database, stored: Stored) -> None:
    with pytest.raises(errors.TransactionTimeout):
        async with db.transaction(timeout=HURRY, no_rollback_for=ZeroDivisionError) as session:
            await store(session, "word")
            await asyncio.sleep(BEYOND)
            raise ZeroDivisionError
    await is_clean(db, stored)


@ONE_OF_EACH
async def test_a_timeout_that_does_not_roll_back_stores_nothing(db: Database, stored: Stored) -> None:
    with pytest.raises(errors.TransactionTimeout):
        async with db.transaction(timeout=SHORT, no_rollback_for=Exception) as session:
            await store(session, "word")
            await session.execute(slow(session))
    await is_clean(db, stored)


@ONE_OF_EACH
async def test_two_transactions_of_one_pool_have_each_its_own_deadline(
    database_url: str, tables: None, make_db: Callable[..., Database], stored: Stored
) -> None:
    db = make_db(database_url, pool_size=2, max_overflow=0)
    begun = asyncio.Event()

    async def patient() -> None:
        async with db.transaction(timeout=30, read_only=True) as session:
            await limits_told(session)
            begun.set()
            await asyncio.sleep(2 * BEYOND)
            await limits_told(session)

    async def hurried() -> None:
        await begun.wait()
        async with db.transaction(timeout=SHORT) as session:
            await session.execute(slow(session))

    done = await asyncio.gather(patient(), hurried(), return_exceptions=True)
    assert done[0] is None
    assert isinstance(done[1], errors.TransactionTimeout)


# The wait for a connection is a part of a transaction's time.


@ONE_OF_EACH
@pytest.mark.parametrize("way", WAYS[:5])
async def test_the_wait_for_a_connection_ends_with_the_deadline(
    database_url: str, tables: None, make_db: Callable[..., Database], stored: Stored, way: Way
) -> None:
    db = make_db(database_url, kind=FastapiDatabase, pool_size=1, max_overflow=0, pool_timeout=100)

    async def use(session: AsyncSession) -> None:
        await store(session, "word")

    async with db.engine.connect():  # the only one
        with pytest.raises(errors.TransactionTimeout):
            async with asyncio.timeout(10):
                await way(db, use)
    assert not db._runtime.asking
    await is_clean(db, stored)


@ONE_OF_EACH
async def test_who_is_cancelled_or_served_while_it_waits_for_a_connection_leaves_nothing(
    db: Database, stored: Stored
) -> None:
    async def use(word: str) -> None:
        async with db.transaction(timeout=20) as session:
            await store(session, word)

    async with db.engine.connect():
        cancelled, served = asyncio.create_task(use("cancelled")), asyncio.create_task(use("served"))
        async with asyncio.timeout(5):
            while len(db._runtime.asking) < 2:
                await asyncio.sleep(0.01)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
    await served
    assert not db._runtime.asking
    await is_clean(db, stored, "served")


@ONE_OF_EACH
async def test_a_pool_timeout_that_comes_before_the_deadline_is_the_one_that_is_told(
    database_url: str, tables: None, make_db: Callable[..., Database]
) -> None:
    db = make_db(database_url, pool_size=1, max_overflow=0, pool_timeout=0.1)
    async with db.engine.connect():
        with pytest.raises(errors.PoolTimeout):
            async with db.transaction(timeout=20) as session:
                await store(session, "word")
