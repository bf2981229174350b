"""Where a timeout comes from, and where it is refused."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from tests.conformance.limits import AMPLE, BEYOND, HURRY
from tests.conformance.tables import Stored, store
from transact import Database, Propagation, Retry, errors

pytestmark = pytest.mark.engines("sqlite", "pg18-asyncpg", "mariadb")


@pytest.fixture
def hurried(database_url: str, tables: None, make_db: Callable[..., Database]) -> Database:
    """A database whose transactions have little time unless they say otherwise."""
    return make_db(database_url, timeout=HURRY)


async def is_late(session: AsyncSession) -> None:
    await session.execute(text("SELECT 1"))
    await asyncio.sleep(BEYOND)
    await session.execute(text("SELECT 1"))


@pytest.mark.parametrize("verb", ["transaction", "transactional", "run", "attempts", "a new one", "a savepoint"])
async def test_the_databases_timeout_is_that_of_its_transactions(hurried: Database, verb: str) -> None:
    with pytest.raises(errors.TransactionTimeout):
        match verb:
            case "transaction":
                async with hurried.transaction() as session:
                    await is_late(session)
            case "transactional":
                await hurried.transactional(is_late)()
            case "run":
                await hurried.run(is_late)
            case "attempts":
                async for attempt in hurried.attempts(retry=Retry(2)):
                    async with attempt as session:
                        await is_late(session)
            case "a new one":
                async with (
                    hurried.transaction(timeout=AMPLE),
                    hurried.transaction(propagation=Propagation.REQUIRES_NEW) as session,
                ):
                    await is_late(session)
            case _:
                async with hurried.transaction(), hurried.savepoint() as session:
                    await is_late(session)


@pytest.mark.parametrize("timeout", [AMPLE, BEYOND * 3])
async def test_a_blocks_own_timeout_wins_over_the_databases(hurried: Database, stored: Stored, timeout: float) -> None:
    async with hurried.transaction(timeout=timeout) as session:
        await is_late(session)
        await store(session, "in time")
    assert stored() == {"in time"}


@pytest.mark.parametrize(
    "joins", [Propagation.REQUIRED, Propagation.NESTED, Propagation.MANDATORY, Propagation.SUPPORTS]
)
async def test_the_databases_timeout_is_not_that_of_a_block_that_joins(
    hurried: Database, stored: Stored, joins: Propagation
) -> None:
    async with hurried.transaction(timeout=AMPLE), hurried.transaction(propagation=joins) as session:
        await is_late(session)
        await store(session, "in time")
    assert stored() == {"in time"}


@pytest.mark.parametrize("propagation", [Propagation.SUPPORTS, Propagation.NOT_SUPPORTED, Propagation.NEVER])
async def test_what_runs_without_a_transaction_has_no_timeout(
    hurried: Database, stored: Stored, propagation: Propagation
) -> None:
    async with hurried.transaction(propagation=propagation) as session:
        await is_late(session)
        await store(session, "word")
    for option in ({"timeout": 1}, {"lock_timeout": 1}):
        with pytest.raises(errors.OptionsConflict):
            async with hurried.transaction(propagation=propagation, **option):
                pytest.fail("it has no transaction that could be bounded")
    assert stored() == {"word"}


@pytest.mark.parametrize("option", ["timeout", "lock_timeout"])
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), "5", True], ids=repr)
async def test_a_timeout_that_makes_no_sense_is_refused_at_once(hurried: Database, option: str, value: Any) -> None:
    with pytest.raises(errors.UsageError, match=option):
        async with hurried.transaction(**{option: value}):
            pytest.fail("it must not run")
    if option == "timeout":
        with pytest.raises(errors.ConfigurationError, match=option):
            Database("sqlite+aiosqlite://", timeout=value)


async def test_a_timeout_can_come_from_the_environment(
    database_url: str, tables: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRANSACT_URL", database_url)
    monkeypatch.setenv("TRANSACT_TIMEOUT", str(HURRY))
    async with Database.from_env() as db:
        with pytest.raises(errors.TransactionTimeout):
            await db.run(is_late)
    monkeypatch.setenv("TRANSACT_TIMEOUT", "soon")
    with pytest.raises(errors.ConfigurationError, match="TRANSACT_TIMEOUT"):
        Database.from_env()


async def test_each_attempt_has_the_timeout_anew(
    database_url: str, tables: None, make_db: Callable[..., Database], stored: Stored
) -> None:
    db = make_db(database_url)
    ran = 0

    async def attempt(session: AsyncSession) -> None:
        nonlocal ran
        ran += 1
        await store(session, "word")
        await asyncio.sleep(0.2)
        if ran < 4:
            raise errors.SerializationFailure("again")

    await db.run(attempt, timeout=0.5, retry=Retry(5, base=0))
    assert ran == 4
    assert stored() == {"word"}
