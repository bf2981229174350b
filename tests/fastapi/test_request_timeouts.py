"""A request whose transaction is not over in time stores nothing and answers 504."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import pytest
from fastapi import Depends
from sqlalchemy import insert, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from tests.conformance.limits import AMPLE, BEYOND, HURRY, SHORT, limits_told, slow
from tests.fastapi.app import Person
from tests.fastapi.conftest import Local
from transact import Retry, errors
from transact.fastapi import Database

pytestmark = pytest.mark.engines("sqlite", "pg18-asyncpg", "pg18-psycopg", "mariadb")
PERSON = insert(Person).values(name="late")
Runs = AsyncSession | AsyncConnection


async def runs_on(runs: Runs) -> None:
    await runs.execute(PERSON)
    await runs.execute(slow(runs))


async def streams(runs: Runs) -> None:
    await runs.execute(PERSON)
    rows = await runs.stream(slow(runs))
    await rows.all()


async def waits(runs: Runs) -> None:
    await runs.execute(PERSON)
    await asyncio.sleep(SHORT)


async def runs_on_in_plain_code(runs: Runs) -> None:
    def work(plain: Any) -> None:
        plain.execute(PERSON)
        plain.execute(slow(runs))

    await runs.run_sync(work)


async def swallows(runs: Runs) -> None:
    await runs.execute(PERSON)
    try:
        await runs.execute(slow(runs))
    except errors.TransactionTimeout:
        return


@pytest.mark.parametrize("connection", [False, True], ids=["a session", "a connection"])
@pytest.mark.parametrize("does", [runs_on, streams, waits, runs_on_in_plain_code])
async def test_a_request_that_takes_too_long_answers_504_and_stores_nothing(
    local: Local, does: Callable[[Runs], Awaitable[None]], *, connection: bool
) -> None:
    local.db.install(local.app)
    given = local.db.connection if connection else local.db.session

    @local.app.post("/")
    async def route(runs: Annotated[Any, given(timeout=SHORT)]) -> str:
        await does(runs)
        return "done"

    answer = await local.post("/")
    assert answer.status_code == 504
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["code"] == "transaction-timeout"
    assert answer.json()["retryable"] is False
    assert local.names() == []


async def test_a_route_that_swallows_the_timeout_does_not_answer_with_success(local: Local) -> None:
    local.db.install(local.app)

    @local.app.post("/")
    async def route(session: Annotated[AsyncSession, local.db.session(timeout=SHORT)]) -> str:
        await swallows(session)
        return "done"

    assert (await local.post("/")).status_code >= 500
    assert local.names() == []


async def test_changes_that_a_route_leaves_to_be_flushed_have_its_time(local: Local) -> None:
    local.db.install(local.app)

    @local.app.post("/")
    async def route(session: Annotated[AsyncSession, local.db.session(timeout=HURRY)]) -> str:
        session.add(Person(name="late"))
        await asyncio.sleep(BEYOND)
        return "done"

    assert (await local.post("/")).status_code == 504
    assert local.names() == []


@pytest.mark.engines("sqlite", "pg18-asyncpg", "mariadb")
@pytest.mark.parametrize("first", [HURRY, AMPLE, None])
async def test_of_two_who_ask_for_a_requests_session_the_shorter_timeout_holds(
    local: Local, first: float | None
) -> None:
    local.db.install(local.app)
    second = AMPLE if first == HURRY else HURRY

    async def user(session: Annotated[AsyncSession, local.db.session(timeout=first)]) -> None:
        await session.execute(text("SELECT 1"))

    @local.app.post("/", dependencies=[Depends(user)])
    async def route(session: Annotated[AsyncSession, local.db.session(timeout=second)]) -> str:
        await session.execute(PERSON)
        await asyncio.sleep(BEYOND)
        return "done"

    assert (await local.post("/")).status_code == 504
    assert local.names() == []


@pytest.mark.engines("sqlite", "pg18-asyncpg", "mariadb")
async def test_a_requests_time_begins_when_its_session_is_asked_for(local: Local) -> None:
    local.db.install(local.app)

    async def slow_login() -> None:
        await asyncio.sleep(2 * SHORT)

    @local.app.post("/", dependencies=[Depends(slow_login)])
    async def route(session: Annotated[AsyncSession, local.db.session(timeout=2 * SHORT)]) -> str:
        await session.execute(PERSON)
        return "done"

    assert (await local.post("/")).status_code == 200
    assert local.names() == ["late"]


@pytest.mark.engines("sqlite", "pg18-asyncpg", "mariadb")
async def test_a_request_that_never_used_the_database_is_not_late(local: Local) -> None:
    local.db.install(local.app)

    @local.app.post("/")
    async def route(session: Annotated[AsyncSession, local.db.session(timeout=HURRY)]) -> str:
        await asyncio.sleep(BEYOND)
        return "done"

    assert (await local.post("/")).status_code == 200


@pytest.mark.engines("sqlite", "pg18-asyncpg", "mariadb")
async def test_a_request_is_not_tried_again_when_its_time_is_over(local: Local) -> None:
    local.db.install(local.app)
    ran = 0

    @local.app.post("/")
    async def route(session: Annotated[AsyncSession, local.db.session(timeout=HURRY, retry=Retry(3))]) -> str:
        nonlocal ran
        ran += 1
        await session.execute(PERSON)
        await asyncio.sleep(BEYOND)
        return "done"

    assert (await local.post("/")).status_code == 504
    assert ran == 1
    assert local.names() == []


@pytest.mark.engines("sqlite", "pg18-asyncpg", "mariadb")
@pytest.mark.parametrize("kind", ["automatic", "reading", "manual"])
async def test_the_databases_timeout_holds_for_requests_and_not_for_manual_sessions(local: Local, kind: str) -> None:
    db = Database(local.url, timeout=HURRY)
    db.install(local.app)
    dependency = {"automatic": db.session(), "reading": db.session(read_only=True), "manual": db.manual_session()}[kind]

    @local.app.post("/")
    async def route(session: Annotated[AsyncSession, dependency]) -> str:
        await session.execute(text("SELECT 1"))
        await asyncio.sleep(BEYOND)
        await session.execute(text("SELECT 1"))
        return "done"

    async with db:
        assert (await local.post("/")).status_code == (200 if kind == "manual" else 504)


async def test_a_requests_limits_are_gone_from_its_connection_afterwards(local: Local) -> None:
    db = Database(local.url, pool_size=1, max_overflow=0)
    db.install(local.app)

    @local.app.post("/")
    async def route(
        session: Annotated[AsyncSession, db.session(timeout=AMPLE, lock_timeout=3)],
        connection: Annotated[AsyncConnection, db.connection(timeout=AMPLE / 2)],
    ) -> str:
        await connection.execute(PERSON)
        await session.execute(text("SELECT 1"))
        return "done"

    async with db:
        async with db.engine.connect() as connection:
            before = await limits_told(connection)
        assert (await local.post("/")).status_code == 200
        async with db.engine.connect() as connection:
            assert await limits_told(connection) == before
