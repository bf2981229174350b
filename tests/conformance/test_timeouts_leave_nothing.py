"""Time limits are scoped to the transaction: the next user of the connection finds nothing of them."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncSession

from tests.conformance.limits import AMPLE, HURRY, SHORT, limits_told, nothing_runs, own_limits, slow, still_running
from tests.conformance.tables import Stored, Word, store
from tests.engines import Observer
from transact import Database, Isolation, Propagation, errors

pytestmark = pytest.mark.engines("sqlite", "postgresql", "mariadb")
Body = Callable[[AsyncSession], Awaitable[None]]
BOTH: dict[str, Any] = {"timeout": AMPLE, "lock_timeout": 5}
LONG_ENOUGH = {
    "postgresql": text("SELECT pg_sleep(0.15)"),
    "mysql": text("SELECT sleep(0.15)"),
    "sqlite": text(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 300000) SELECT count(*) FROM n"
    ),
}


@pytest.fixture(params=["the server's own settings", "settings of the session"])
def db(request: pytest.FixtureRequest, database_url: str, tables: None, make_db: Callable[..., Database]) -> Database:
    """A database whose pool has one connection: what a transaction leaves behind on it, the next one finds."""
    own = {} if request.param == "the server's own settings" else own_limits(database_url)
    return make_db(database_url, pool_size=1, max_overflow=0, pool_timeout=5, **own)


@pytest.fixture
def connects(db: Database) -> list[object]:
    """The connections that have been made."""
    made: list[object] = []
    event.listen(db.engine.sync_engine, "connect", lambda connection, _record: made.append(connection))
    return made


async def commits(db: Database) -> None:
    async with db.transaction(**BOTH) as session:
        await store(session, "word")


async def only_reads(db: Database) -> None:
    async with db.transaction(**BOTH, read_only=True) as session:
        await limits_told(session)


async def is_serializable(db: Database) -> None:
    async with db.transaction(**BOTH, isolation=Isolation.SERIALIZABLE) as session:
        await store(session, "word")


async def raises(db: Database) -> None:
    with pytest.raises(ZeroDivisionError):
        async with db.transaction(**BOTH) as session:
            await store(session, "word")
            raise ZeroDivisionError


async def is_marked(db: Database) -> None:
    async with db.transaction(**BOTH) as session:
        await store(session, "word")
        db.current.set_rollback_only()


async def fails_in_a_statement(db: Database) -> None:
    with pytest.raises(errors.UniqueViolation):
        async with db.transaction(**BOTH) as session:
            session.add_all([Word(text="same"), Word(text="same")])


async def joins(db: Database) -> None:
    async with db.transaction() as session:
        async with db.transaction(**BOTH):
            await store(session, "word")
        await store(session, "another")


async def joins_as_the_last_thing(db: Database) -> None:
    async with db.transaction() as session:
        await store(session, "another")
        async with db.transaction(**BOTH, propagation=Propagation.NESTED):
            await store(session, "word")


async def rolls_back_a_savepoint(db: Database) -> None:
    async with db.transaction(**BOTH) as session:
        with suppress(ZeroDivisionError):
            async with db.transaction(propagation=Propagation.NESTED, timeout=20, lock_timeout=2):
                await store(session, "word")
                raise ZeroDivisionError


async def runs_on(db: Database) -> None:
    with pytest.raises(errors.TransactionTimeout):
        async with db.transaction(timeout=SHORT, lock_timeout=5) as session:
            await session.execute(slow(session))


async def waits_too_long(db: Database) -> None:
    with pytest.raises(errors.TransactionTimeout):
        async with db.transaction(timeout=HURRY, lock_timeout=5) as session:
            await store(session, "word")
            await asyncio.sleep(HURRY)


async def is_cancelled_between_statements(db: Database) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05), db.transaction(**BOTH) as session:
            await store(session, "word")
            await asyncio.sleep(10)


@pytest.mark.parametrize("db", ["settings of the session"], indirect=True)
@pytest.mark.parametrize(
    "use",
    [
        commits, only_reads, is_serializable, raises, is_marked, fails_in_a_statement, joins, joins_as_the_last_thing,
        rolls_back_a_savepoint, runs_on, waits_too_long, is_cancelled_between_statements,
    ],
)  # fmt: skip
async def test_the_next_user_of_the_connection_finds_the_limits_that_the_connection_came_with(
    db: Database, connects: list[object], stored: Stored, use: Callable[[Database], Awaitable[None]]
) -> None:
    async with db.engine.connect() as connection:
        before = await limits_told(connection)
    await use(db)
    async with db.engine.connect() as connection:
        assert await limits_told(connection) == before
        await connection.execute(LONG_ENOUGH[connection.dialect.name])
    async with db.transaction() as session:
        assert await limits_told(session) == before
        await store(session, "next")
    async with db.transaction(propagation=Propagation.SUPPORTS) as session:
        assert await limits_told(session) == before
    assert "next" in stored()
    assert len(connects) == 1  # it was the same connection all the time


@pytest.mark.parametrize("db", ["the server's own settings"], indirect=True)
async def test_cancelling_a_statement_with_a_deadline_leaves_nothing(
    db: Database, observer: Observer, database_url: str, stored: Stored
) -> None:
    async with db.engine.connect() as connection:
        before = await limits_told(connection)
    begun = asyncio.Event()

    async def run() -> None:
        async with db.transaction(timeout=1.5, lock_timeout=5) as session:
            await store(session, "word")
            begun.set()
            await session.execute(slow(session))

    task = asyncio.create_task(run())
    await begun.wait()
    async with asyncio.timeout(5):
        while db.engine.dialect.name != "sqlite" and not still_running(observer, database_url):
            await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with db.transaction() as session:
        assert await limits_told(session) == before
        await store(session, "next")
    assert stored() == {"next"}
    await nothing_runs(observer, database_url)  # MariaDB ends the statement of a client that has gone at its deadline


@pytest.mark.engines("postgresql", "mariadb")
@pytest.mark.parametrize("db", ["settings of the session"], indirect=True)
@pytest.mark.parametrize("level", [None, Isolation.SERIALIZABLE])
async def test_a_timeout_does_not_lift_a_tighter_limit_that_the_connection_came_with(
    db: Database, level: Isolation | None
) -> None:
    names = {"statement_timeout", "max_statement_time", "idle_in_transaction_session_timeout"}

    async def told(runs: Any) -> dict[str, float]:
        return {name: value for name, value in (await limits_told(runs)).items() if name in names}

    async with db.engine.connect() as connection:
        own = await told(connection)
    async with db.transaction(timeout=3600, isolation=level) as session:
        assert await told(session) == own
        async with db.transaction(timeout=AMPLE / 3):
            assert await told(session) != own
        assert await told(session) == own
