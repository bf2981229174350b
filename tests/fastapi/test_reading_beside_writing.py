"""A request that asks for a read-only session and for one that writes."""

from typing import Annotated

import httpx
import pytest
from fastapi import Depends, HTTPException
from sqlalchemy import func, select, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from tests.fastapi.app import Person
from tests.fastapi.conftest import Local
from transact import Isolation
from transact.errors import ReadOnlyViolation
from transact.fastapi import Database

COUNT = select(func.count()).select_from(Person)


async def test_a_dependency_that_only_reads_does_not_make_its_routes_writes_fail(local: Local) -> None:
    local.db.install(local.app)

    async def user(session: Annotated[AsyncSession, local.db.session(read_only=True)]) -> int:
        return await session.scalar(COUNT)

    @local.app.post("/people")
    async def create(
        before: Annotated[int, Depends(user)], session: Annotated[AsyncSession, local.db.session()]
    ) -> int:
        session.add(Person(name=f"person {before}"))
        return before

    assert (await local.post("/people")).json() == 0
    assert (await local.post("/people")).json() == 1
    assert local.names() == ["person 0", "person 1"]


async def test_what_only_reads_is_the_writing_session_if_that_was_asked_for_before(local: Local) -> None:
    local.db.install(local.app)

    @local.app.post("/people")
    async def create(
        session: Annotated[AsyncSession, local.db.session()],
        reading: Annotated[AsyncSession, local.db.session(read_only=True)],
        connection: Annotated[AsyncConnection, local.db.connection(read_only=True)],
    ) -> int:
        assert reading is session
        session.add(Person(name="ann"))
        await session.flush()
        return await connection.scalar(COUNT)

    assert (await local.post("/people")).json() == 1
    assert local.names() == ["ann"]


async def test_a_request_holds_one_connection_when_it_has_read_and_then_writes(local: Local) -> None:
    db = Database(local.url, pool_size=1, max_overflow=0, pool_timeout=1)
    db.install(local.app)

    async def user(session: Annotated[AsyncSession, db.session(read_only=True)]) -> int:
        return await session.scalar(COUNT)

    @local.app.post("/people")
    async def create(user: Annotated[int, Depends(user)], session: Annotated[AsyncSession, db.session()]) -> None:
        session.add(Person(name="ann"))
        await session.flush()

    async with db:
        assert (await local.post("/people")).status_code == 200
        assert db.engine.pool.checkedout() == 0
    assert local.names() == ["ann"]


@pytest.mark.engines("postgresql")
async def test_a_snapshot_that_was_asked_for_stays_while_the_request_writes(local: Local) -> None:
    local.db.install(local.app)
    snapshot = local.db.session(read_only=True, isolation=Isolation.REPEATABLE_READ)

    @local.app.post("/people")
    async def create(
        reading: Annotated[AsyncSession, snapshot], writing: Annotated[AsyncSession, local.db.session()]
    ) -> list[int]:
        before = await reading.scalar(COUNT)
        local.observer.execute("INSERT INTO person (name) VALUES ('bob')")
        return [before, await reading.scalar(COUNT), await writing.scalar(COUNT)]

    assert (await local.post("/people")).json() == [0, 0, 1]


async def test_a_failing_request_gives_both_connections_back_and_stores_nothing(local: Local) -> None:
    local.db.install(local.app)

    @local.app.post("/people")
    async def create(
        reading: Annotated[AsyncSession, local.db.session(read_only=True)],
        writing: Annotated[AsyncSession, local.db.session()],
    ) -> None:
        writing.add(Person(name="ann"))
        await writing.flush()
        await reading.scalar(COUNT)
        raise HTTPException(418)

    answer: httpx.Response = await local.post("/people")
    assert answer.status_code == 418
    assert local.names() == []


async def test_when_the_writing_session_has_begun_the_reading_one_reads_in_its_transaction(local: Local) -> None:
    db = Database(
        local.url, pool_size=1, max_overflow=0, pool_timeout=0
    )  # whoever needed a second connection would fail
    db.install(local.app)

    @local.app.post("/people")
    async def create(
        reading: Annotated[AsyncSession, db.session(read_only=True)],
        writing: Annotated[AsyncSession, db.session()],
    ) -> list[int]:
        before = await reading.scalar(COUNT)
        writing.add(Person(name="ann"))
        await writing.flush()
        return [before, await reading.scalar(COUNT)]

    async with db:
        assert (await local.post("/people")).json() == [0, 1]
        assert db.engine.pool.checkedout() == 0
    assert local.names() == ["ann"]


async def test_what_only_reads_may_not_write_in_the_transaction_of_the_writing_session_either(local: Local) -> None:
    local.db.install(local.app)

    @local.app.post("/people")
    async def create(
        reading: Annotated[AsyncSession, local.db.session(read_only=True)],
        connection: Annotated[AsyncConnection, local.db.connection(read_only=True)],
        writing: Annotated[AsyncSession, local.db.session()],
    ) -> None:
        writing.add(Person(name="ann"))
        await writing.flush()
        with pytest.raises(ReadOnlyViolation):
            await connection.exec_driver_sql("INSERT INTO person (name) VALUES ('bob')")
        with pytest.raises(ReadOnlyViolation):
            await reading.execute(text("INSERT INTO person (name) VALUES ('bob')"))
        reading.add(Person(name="carl"))
        with pytest.raises(ReadOnlyViolation):
            await reading.flush()

    assert (await local.post("/people")).status_code == 500
    assert local.names() == []
