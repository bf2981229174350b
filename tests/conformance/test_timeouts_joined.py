"""A timeout on joining can only shorten, for as long as the block that joined runs."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from sqlalchemy import delete
from sqlalchemy.ext.asyncio import AsyncSession

from tests.conformance.limits import AMPLE, BEYOND, HURRY, SHORT, WRITES, limits_told, slow
from tests.conformance.tables import Stored, Word, store
from transact import Database, Propagation, errors

pytestmark = pytest.mark.engines("sqlite", "postgresql", "mariadb")
ONE_OF_EACH = pytest.mark.engines("sqlite", "pg18-asyncpg", "mariadb")
JOINS = pytest.mark.parametrize("joins", [Propagation.REQUIRED, Propagation.MANDATORY, Propagation.NESTED])
OUTER = pytest.mark.parametrize("outer", [None, AMPLE], ids=["in an untimed one", "in a longer one"])


@pytest.fixture
def db(database_url: str, tables: None, make_db: Callable[..., Database]) -> Database:
    return make_db(database_url, pool_size=1, max_overflow=0, pool_timeout=5)


@ONE_OF_EACH
@JOINS
@OUTER
@pytest.mark.parametrize("statements", ["reads", "writes"])
async def test_a_block_that_joins_with_a_shorter_timeout_is_bounded_by_it(
    db: Database, stored: Stored, joins: Propagation, outer: float | None, statements: str
) -> None:
    # SQLite has no part of a write that it has ended, nor of what came before it.
    with pytest.raises((errors.TransactionTimeout, errors.TransactionLost)) as caught:
        async with db.transaction(timeout=outer) as session:
            await store(session, "outer")
            async with db.transaction(propagation=joins, timeout=SHORT):
                await session.execute(slow(session, WRITES) if statements == "writes" else slow(session))
    assert any(isinstance(error, errors.TransactionTimeout) for error in (caught.value, caught.value.__cause__))
    assert stored() == set()


@ONE_OF_EACH
@JOINS
@OUTER
@pytest.mark.parametrize("no_rollback_for", [(), ZeroDivisionError])
async def test_a_block_that_joined_and_ends_only_after_its_own_timeout_is_not_kept(
    db: Database, stored: Stored, joins: Propagation, outer: float | None, no_rollback_for: Any
) -> None:
    with pytest.raises(errors.TransactionTimeout):
        async with db.transaction(timeout=outer) as session:
            async with db.transaction(propagation=joins, timeout=HURRY, no_rollback_for=no_rollback_for):
                await store(session, "inner")
                await asyncio.sleep(BEYOND)
                if no_rollback_for:
                    raise ZeroDivisionError
            pytest.fail("it ended as if nothing had been")
    assert stored() == set()


async def runs_on(session: AsyncSession) -> None:
    await session.execute(slow(session))


async def waits(_session: AsyncSession) -> None:
    await asyncio.sleep(SHORT)


async def waits_and_goes_on(session: AsyncSession) -> None:
    await asyncio.sleep(SHORT)
    await store(session, "late")


@ONE_OF_EACH
@OUTER
@pytest.mark.parametrize("does", [runs_on, waits, waits_and_goes_on])
async def test_a_nested_block_that_takes_too_long_costs_only_itself_if_the_transaction_has_time_left(
    db: Database, stored: Stored, outer: float | None, does: Any
) -> None:
    async with db.transaction(timeout=outer) as session:
        await store(session, "before")
        with pytest.raises(errors.TransactionTimeout):
            async with db.transaction(propagation=Propagation.NESTED, timeout=SHORT):
                await store(session, "inner")
                await does(session)
        await store(session, "after")
    assert stored() == {"before", "after"}


@ONE_OF_EACH
@OUTER
@pytest.mark.parametrize("does", [runs_on, waits, waits_and_goes_on])
async def test_a_block_that_joined_and_takes_too_long_dooms_what_it_joined(
    db: Database, stored: Stored, outer: float | None, does: Any
) -> None:
    with pytest.raises(errors.UnexpectedRollback) as caught:
        async with db.transaction(timeout=outer) as session:
            await store(session, "before")
            with suppress(errors.TransactionTimeout):
                async with db.transaction(timeout=SHORT):
                    await store(session, "inner")
                    await does(session)
    assert isinstance(caught.value.__cause__, errors.TransactionTimeout)
    assert stored() == set()


@ONE_OF_EACH
async def test_a_block_that_joined_before_the_database_was_used_has_nothing_to_be_late_with(
    db: Database, stored: Stored
) -> None:
    async with db.transaction() as session:
        async with db.transaction(timeout=HURRY):
            await asyncio.sleep(BEYOND)
        await store(session, "outer")
    assert stored() == {"outer"}


@ONE_OF_EACH
@JOINS
async def test_a_longer_timeout_on_joining_has_no_effect(db: Database, stored: Stored, joins: Propagation) -> None:
    with pytest.raises(errors.TransactionTimeout, match=rf"{SHORT} s|cancel|interrupted|max_statement_time"):
        async with (
            db.transaction(timeout=SHORT) as session,
            db.transaction(propagation=joins, timeout=AMPLE, lock_timeout=AMPLE),
        ):
            await session.execute(slow(session))
    assert stored() == set()


async def ends(session: AsyncSession) -> None:
    pass


async def fails(session: AsyncSession) -> None:
    raise ZeroDivisionError


@pytest.mark.parametrize("outer", [{}, {"timeout": AMPLE, "lock_timeout": 20}], ids=["untimed", "timed"])
@pytest.mark.parametrize(
    ("joins", "end"),
    [(Propagation.REQUIRED, ends), (Propagation.NESTED, ends), (Propagation.NESTED, fails)],
    ids=["joined", "released", "rolled back"],
)
async def test_after_the_block_the_outer_limits_are_back_on_the_server_too(
    db: Database, stored: Stored, outer: Any, joins: Propagation, end: Any
) -> None:
    async with db.transaction(**outer) as session:
        before = await limits_told(session)
        for _ in range(2):
            with suppress(ZeroDivisionError):
                async with db.transaction(propagation=joins, timeout=AMPLE / 4, lock_timeout=3):
                    if session.get_bind().dialect.name != "sqlite":
                        assert await limits_told(session) != before
                    await store(session, "inner")
                    await end(session)
            after = await limits_told(session)
            assert after.keys() == before.keys()
            # What is left of the outer time is shorter now, by no more than has passed.
            assert all(0 <= before[name] - after[name] < before[name] / 10 + 1 for name in before)
            await session.execute(delete(Word))
        await store(session, "after")
    assert stored() == {"after"}


@ONE_OF_EACH
async def test_blocks_of_two_tasks_that_join_one_transaction_take_only_their_own_limit_with_them(
    db: Database, stored: Stored
) -> None:
    inside, left = asyncio.Event(), asyncio.Event()

    async def first() -> None:
        async with db.transaction(timeout=HURRY):
            await inside.wait()
        left.set()

    async def second() -> None:
        async with db.transaction(timeout=AMPLE):
            inside.set()
            await left.wait()

    async with db.transaction() as session:
        await asyncio.gather(first(), second())
        await asyncio.sleep(BEYOND)
        await store(session, "word")
    assert stored() == {"word"}


@ONE_OF_EACH
async def test_the_tightest_of_several_blocks_bounds_them_all(db: Database, stored: Stored) -> None:
    with pytest.raises(errors.TransactionTimeout):
        async with (
            db.transaction(timeout=AMPLE) as session,
            db.transaction(timeout=SHORT),
            db.transaction(timeout=AMPLE / 2, propagation=Propagation.NESTED),
        ):
            await session.execute(slow(session))
    assert stored() == set()
