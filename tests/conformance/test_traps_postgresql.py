"""What PostgreSQL and its drivers do behind one's back, shown on the bare driver first."""

from contextlib import suppress

import pytest
from sqlalchemy import exc
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from tests.conformance.tables import Stored, store
from tests.engines import Observer
from transact import Database, errors

pytestmark = pytest.mark.engines("postgresql")


@pytest.fixture
def taken(observer: Observer, tables: None) -> None:
    observer.execute("INSERT INTO words (text) VALUES ('taken')")


async def test_commit_after_a_swallowed_error_is_a_silent_rollback_on_the_bare_driver(
    database_url: str, taken: None, stored: Stored
) -> None:
    engine = create_async_engine(database_url)
    async with AsyncSession(engine) as session:
        await store(session, "before")
        with suppress(exc.IntegrityError):
            await store(session, "taken")
        await session.commit()  # answered with ROLLBACK, and nobody tells
    await engine.dispose()
    assert stored() == {"taken"}


async def test_the_end_of_a_block_tells_that_its_commit_would_have_been_a_rollback(
    db: Database, taken: None, stored: Stored
) -> None:
    with pytest.raises(errors.UnexpectedRollback) as caught:
        async with db.transaction() as session:
            await store(session, "before")
            with pytest.raises(errors.UniqueViolation) as first:
                await store(session, "taken")
    assert caught.value.__cause__ is first.value
    assert stored() == {"taken"}
