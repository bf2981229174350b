"""REQUIRES_NEW and NOT_SUPPORTED need a second connection, and whoever waits for one holds the first meanwhile."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Annotated

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import select, text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncSession

from tests.conformance.tables import Stored, Word, store
from tests.engines import Observer
from transact import Database, Propagation, errors
from transact import fastapi as face

pytestmark = pytest.mark.engines("pg18-asyncpg", "pg18-psycopg", "mariadb")

REQUIRES_NEW, NOT_SUPPORTED = Propagation.REQUIRES_NEW, Propagation.NOT_SUPPORTED
OUTER = {"O1", "O2"}
BOTH = pytest.mark.parametrize("propagation", [REQUIRES_NEW, NOT_SUPPORTED], ids=lambda p: p.value)
ENDLESS = 600.0  # seconds; a test that waits for it fails by a bound of its own
PATIENCE = 20.0


@BOTH
async def test_a_task_that_holds_the_whole_pool_is_refused_another_connection_at_once_and_the_outer_still_commits(
    database_url: str, tables: None, make_db, stored: Stored, propagation: Propagation
) -> None:
    small = make_db(database_url, pool_size=1, max_overflow=0, pool_timeout=ENDLESS)
    async with asyncio.timeout(PATIENCE), small.transaction() as session:
        await store(session, "O1")
        with pytest.raises(errors.PoolSelfDeadlock, match="all 1"):
            async with small.transaction(propagation=propagation) as second:
                await store(second, "I")
        await store(session, "O2")
    assert stored() == OUTER


@BOTH
async def test_a_block_that_suspends_another_has_a_session_and_a_connection_of_its_own(
    db: Database, stored: Stored, propagation: Propagation
) -> None:
    async def wire(session: AsyncSession) -> object:
        return (await (await session.connection()).get_raw_connection()).driver_connection

    async with db.transaction() as session:
        await store(session, "O1")
        async with db.transaction(propagation=propagation) as second:
            assert second is not session
            assert await wire(second) is not await wire(session)
            await store(second, "I")
            assert stored() == ({"I"} if propagation is NOT_SUPPORTED else set())  # which is in autocommit
        assert stored() == {"I"}
    assert stored() == {"O1", "I"}


@pytest.mark.parametrize("size", [1, 2, 3])
async def test_as_many_transactions_may_suspend_each_other_as_the_pool_has_connections(
    database_url: str, tables: None, make_db, stored: Stored, size: int
) -> None:
    db = make_db(database_url, pool_size=1, max_overflow=size - 1, pool_timeout=ENDLESS)

    async def dig(level: int) -> None:
        async with db.transaction(propagation=REQUIRES_NEW) as session:
            await store(session, f"{level}")
            if level > size:
                return
            try:
                await dig(level + 1)
            except errors.PoolSelfDeadlock:
                assert level == size
                await store(session, "refused")

    async with asyncio.timeout(PATIENCE):
        await dig(1)
    assert stored() == {"refused"} | {f"{level}" for level in range(1, size + 1)}


@pytest.mark.engines("sqlite", "pg18-asyncpg", "pg18-psycopg", "mariadb")
async def test_requires_new_takes_the_only_connection_while_the_outer_has_not_begun(
    database_url: str, tables: None, make_db, stored: Stored
) -> None:
    small = make_db(database_url, pool_size=1, max_overflow=0)
    async with small.transaction() as session:
        async with small.transaction(propagation=REQUIRES_NEW) as second:
            await store(second, "I")
        await store(session, "O1")
    assert stored() == {"I", "O1"}


@BOTH
async def test_a_wait_for_a_second_connection_is_bounded_by_the_pools_timeout_and_the_outer_still_commits(
    database_url: str, tables: None, make_db, stored: Stored, propagation: Propagation
) -> None:
    small = make_db(database_url, pool_size=2, max_overflow=0, pool_timeout=0.2)
    async with small.engine.connect(), asyncio.timeout(PATIENCE), small.transaction() as session:
        await store(session, "O1")
        with pytest.raises(errors.PoolTimeout):
            async with small.transaction(propagation=propagation) as second:
                await store(second, "I")
        await store(session, "O2")
    assert stored() == OUTER


@pytest.fixture
def role(database_url: str, observer: Observer) -> Iterator[tuple[str, Callable[[], None]]]:
    """The URL of a user of its own, and what stops that user from making another connection."""
    mariadb = "mysql" in database_url
    name = f"outer_{make_url(database_url).database}"
    observer.execute(f"CREATE USER {name}" if mariadb else f"CREATE ROLE {name} LOGIN SUPERUSER")
    if mariadb:
        observer.execute(f"GRANT ALL ON *.* TO {name}")
    lock = f"ALTER USER {name} ACCOUNT LOCK" if mariadb else f"ALTER ROLE {name} NOLOGIN"
    url = make_url(database_url).set(username=name, password=None).render_as_string(hide_password=False)
    yield url, lambda: observer.execute(lock)
    observer.execute(f"DROP USER {name}" if mariadb else f"DROP ROLE {name}")


@BOTH
async def test_requires_new_whose_begin_fails_leaves_the_outer_untouched_and_usable(
    role: tuple[str, Callable[[], None]], tables: None, stored: Stored, propagation: Propagation
) -> None:
    url, lock_out = role
    async with Database(url) as db:
        async with db.transaction() as session:
            await store(session, "O1")
            lock_out()
            with pytest.raises(errors.DatabaseError):
                async with db.transaction(propagation=propagation) as second:
                    await store(second, "I")
            assert not db.current.rollback_only
            await store(session, "O2")
        assert db.engine.pool.checkedout() == 0
    assert stored() == OUTER


async def test_who_outlives_what_it_suspended_may_take_the_connection_that_was_given_back(
    database_url: str, tables: None, make_db, stored: Stored
) -> None:
    small = make_db(database_url, pool_size=1, max_overflow=0, pool_timeout=ENDLESS)
    entered, ended = asyncio.Event(), asyncio.Event()

    async def child() -> None:
        async with small.transaction(propagation=REQUIRES_NEW) as session:
            entered.set()
            await ended.wait()
            await store(session, "I")

    async with small.transaction() as session:
        await store(session, "O1")
        task = asyncio.create_task(child())
        await entered.wait()
    ended.set()
    async with asyncio.timeout(PATIENCE):
        await task
    assert stored() == {"O1", "I"}


# Many requests at once.


def audited(db: face.Database, *, holders: int) -> FastAPI:
    """An application whose route writes, waits until so many requests hold a connection, and needs a second one."""
    app = FastAPI()
    db.install(app)
    holding: list[int] = []
    all_hold = asyncio.Event()

    @app.post("/{n}")
    async def route(n: int, session: Annotated[AsyncSession, db.session()]) -> None:
        await store(session, f"outer {n}")
        holding.append(n)
        if len(holding) >= holders:
            all_hold.set()
        await all_hold.wait()
        async with db.transaction(propagation=REQUIRES_NEW) as second:
            await store(second, f"inner {n}")

    return app


async def ask(app: FastAPI, *, requests: int) -> dict[int, httpx.Response]:
    async with (
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client,
        asyncio.timeout(PATIENCE),
    ):
        answers = await asyncio.gather(*(client.post(f"/{n}") for n in range(requests)))
    return dict(enumerate(answers))


async def test_of_twenty_requests_that_each_need_a_second_connection_from_a_pool_of_ten_all_finish_or_fail_fast(
    database_url: str, tables: None, make_db, stored: Stored
) -> None:
    db = make_db(database_url, kind=face.Database, pool_size=10, max_overflow=0, pool_timeout=ENDLESS)
    answers = await ask(audited(db, holders=10), requests=20)
    served = {n for n, answer in answers.items() if answer.status_code == 200}
    refused = {n: answer for n, answer in answers.items() if n not in served}
    assert len(served) >= 9  # who fails makes way for one that holds and waits
    assert refused  # ten held everything and waited: somebody had to give way
    assert {(a.status_code, a.json()["code"], "retry-after" in a.headers) for a in refused.values()} == {
        (503, "pool-timeout", True)
    }
    assert stored() == {f"{what} {n}" for n in served for what in ("outer", "inner")}
    assert db.engine.pool.checkedout() == 0


async def test_requests_that_leave_one_connection_free_all_finish_whatever_they_wait_for(
    database_url: str, tables: None, make_db, stored: Stored
) -> None:
    db = make_db(database_url, kind=face.Database, pool_size=10, max_overflow=0, pool_timeout=ENDLESS)
    answers = await ask(audited(db, holders=9), requests=9)
    assert {answer.status_code for answer in answers.values()} == {200}
    assert stored() == {f"{what} {n}" for n in range(9) for what in ("outer", "inner")}


async def test_who_is_cancelled_while_it_waits_for_a_second_connection_counts_no_longer(
    database_url: str, tables: None, make_db, stored: Stored
) -> None:
    db = make_db(database_url, pool_size=2, max_overflow=0, pool_timeout=ENDLESS)
    began, entered, go_on = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def waits() -> None:
        async with db.transaction() as session:
            await store(session, "lost")
            began.set()
            await go_on.wait()
            entered.set()
            async with db.transaction(propagation=REQUIRES_NEW) as second:
                await second.execute(text("SELECT 1"))

    task = asyncio.create_task(waits())
    await began.wait()
    async with asyncio.timeout(PATIENCE), db.transaction() as session:
        await store(session, "O1")
        go_on.set()
        await entered.wait()
        assert len(db._runtime.waiting) == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with db.transaction(propagation=REQUIRES_NEW) as second:
            await store(second, "I")
    assert stored() == {"O1", "I"}


# SQLite, where not the pool but the one writer is what everybody waits for.


@pytest.mark.engines("sqlite")
@BOTH
@pytest.mark.parametrize("how", ["statement", "text", "flush", "autoflush", "end"])
async def test_a_second_writer_on_sqlite_is_refused_at_once_and_the_outer_still_commits(
    db: Database, stored: Stored, propagation: Propagation, how: str
) -> None:
    async with asyncio.timeout(PATIENCE), db.transaction() as session:
        await store(session, "O1")
        with pytest.raises(errors.PoolSelfDeadlock, match="one writer"):
            async with db.transaction(propagation=propagation) as second:
                await write(second, how)
        await store(session, "O2")
    assert stored() == OUTER


async def write(session: AsyncSession, how: str) -> None:
    if how == "statement":
        await store(session, "I")
    elif how == "text":
        await session.execute(text("INSERT INTO words (text) VALUES ('I')"))
    else:
        session.add(Word(text="I"))
        if how == "flush":
            await session.flush()
        elif how == "autoflush":
            await session.execute(select(Word))


@pytest.mark.engines("sqlite")
async def test_reading_beside_a_suspended_writer_on_sqlite_is_fine(db: Database, stored: Stored) -> None:
    async with db.transaction() as session:
        await store(session, "O1")
        for options in ({"propagation": NOT_SUPPORTED}, {"propagation": REQUIRES_NEW, "read_only": True}):
            async with db.transaction(**options) as second:
                assert await second.scalar(text("SELECT count(*) FROM words")) == 0
        await store(session, "O2")
    assert stored() == OUTER
