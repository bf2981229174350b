"""Manual mode, where the route itself decides, and the automatic mode without the ORM."""

import logging
from typing import Annotated, Any

import pytest
from fastapi import Response
from sqlalchemy import insert, select, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from tests.fastapi.app import Person
from tests.fastapi.conftest import Local
from transact import errors
from transact.events import Began, Committed, Event, RolledBack

KEPT: dict[str, Any] = {}


def manual(local: Local) -> Any:
    local.db.install(local.app)
    return Annotated[AsyncSession, local.db.manual_session()]


@pytest.mark.parametrize("status", [200, 303, 404, 500])
async def test_what_a_route_committed_itself_stays_whatever_it_answers(
    local: Local, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    session_type = manual(local)

    @local.app.post("/do")
    async def do(session: session_type) -> Response:
        session.add(Person(name="ann"))
        await session.commit()
        return Response(status_code=status)

    assert (await local.post("/do")).status_code == status
    assert local.names() == ["ann"]
    assert caplog.text == ""


@pytest.mark.parametrize("flush", [False, True])
@pytest.mark.parametrize("status", [200, 303, 404])
async def test_a_commit_that_was_forgotten_is_rolled_back_and_told_if_the_answer_claims_success(
    local: Local, status: int, caplog: pytest.LogCaptureFixture, *, flush: bool
) -> None:
    session_type = manual(local)

    @local.app.post("/do/{number}")
    async def do(session: session_type, number: int) -> Response:
        session.add(Person(name="ann"))
        if flush:
            await session.flush()
        return Response(status_code=status)

    assert (await local.post("/do/7")).status_code == status
    assert local.names() == []
    warned = "'POST /do/{number}' answered with success but left changes uncommitted" in caplog.text
    assert warned is (status < 400)


@pytest.mark.parametrize("statement", ["core", "text"])
async def test_a_statement_that_writes_counts_as_a_change(
    local: Local, statement: str, caplog: pytest.LogCaptureFixture
) -> None:
    session_type = manual(local)
    sql = insert(Person).values(name="ann") if statement == "core" else text("INSERT INTO person (name) VALUES ('ann')")

    @local.app.post("/do")
    async def do(session: session_type) -> None:
        await session.execute(sql)

    assert (await local.post("/do")).status_code == 200
    assert local.names() == []
    assert "left changes uncommitted" in caplog.text


async def test_a_route_that_only_read_needs_no_commit_and_no_warning(
    local: Local, caplog: pytest.LogCaptureFixture
) -> None:
    session_type = manual(local)

    @local.app.get("/do")
    async def do(session: session_type) -> None:
        assert (await session.scalars(select(Person))).all() == []
        await session.execute(text("SELECT 1"))

    async with local.client() as client:
        assert (await client.get("/do")).status_code == 200
    assert caplog.text == ""


async def test_begin_savepoints_and_two_transactions_in_one_route(
    local: Local, caplog: pytest.LogCaptureFixture
) -> None:
    session_type = manual(local)

    @local.app.post("/do")
    async def do(session: session_type) -> None:
        async with session.begin():
            session.add(Person(name="one"))
        transaction = await session.begin()
        session.add(Person(name="two"))
        await transaction.commit()
        async with session.begin():
            session.add(Person(name="three"))
            try:
                async with session.begin_nested():
                    session.add(Person(name="two"))
            except errors.UniqueViolation:
                pass
        session.add(Person(name="lost"))
        await session.rollback()

    assert (await local.post("/do")).status_code == 200
    assert local.names() == ["one", "three", "two"]
    assert caplog.text == ""


async def test_an_error_that_a_manual_route_handles_is_its_own_business(local: Local) -> None:
    session_type = manual(local)

    @local.app.post("/do")
    async def do(session: session_type) -> str:
        session.add_all([Person(name="a"), Person(name="a")])
        try:
            await session.commit()
        except errors.UniqueViolation:
            await session.rollback()
        session.add(Person(name="b"))
        await session.commit()
        return "ok"

    assert (await local.post("/do")).json() == "ok"
    assert local.names() == ["b"]


@pytest.mark.engines("sqlite", "postgresql")  # MySQL and MariaDB check nothing at COMMIT
async def test_a_manual_commit_that_fails_leaves_a_connection_that_works(local: Local) -> None:
    session_type = manual(local)

    @local.app.post("/do")
    async def do(session: session_type, boss: int | None = None) -> None:
        session.add(Person(name="a", boss_id=boss))
        await session.commit()

    for _ in range(3):  # more than the pool has
        answer = await local.post("/do?boss=9")
        assert (answer.status_code, answer.json()["code"]) == (409, "foreign-key-violation")
        assert local.observer.idle_in_transaction() == 0
    assert (await local.post("/do")).status_code == 200
    assert local.names() == ["a"]


async def test_a_manual_session_has_ended_too_when_the_response_has_begun(local: Local) -> None:
    session_type = manual(local)

    @local.app.post("/do")
    async def do(session: session_type) -> None:
        session.add(Person(name="ann"))
        await session.commit()
        KEPT["session"] = session

    await local.post("/do")
    session = KEPT.pop("session")
    for use in (
        lambda: session.execute(select(Person)),
        session.begin,
        session.commit,
        session.rollback,
        lambda: session.run_sync(lambda plain: plain.execute(select(1))),
    ):
        with pytest.raises(errors.TransactionEnded):
            await use()
    with pytest.raises(errors.TransactionEnded):
        session.add(Person(name="lost"))
    assert local.db.engine.pool.checkedout() == 0


@pytest.mark.engines("postgresql")
async def test_a_manual_session_beside_an_automatic_one_is_a_transaction_of_its_own(local: Local) -> None:
    session_type = manual(local)

    @local.app.post("/do")
    async def do(own: session_type, session: Annotated[AsyncSession, local.db.session()]) -> Response:
        session.add(Person(name="automatic"))
        await session.flush()
        own.add(Person(name="manual"))
        await own.commit()
        return Response(status_code=409)

    assert (await local.post("/do")).status_code == 409
    assert local.names() == ["manual"]


# The connection.


def connection(local: Local) -> Any:
    local.db.install(local.app)
    return Annotated[AsyncConnection, local.db.connection()]


@pytest.mark.parametrize("status", [200, 409])
async def test_a_connection_alone_commits_or_rolls_back_like_a_session(local: Local, status: int) -> None:
    connection_type = connection(local)

    @local.app.post("/do")
    async def do(connection: connection_type) -> Response:
        await connection.execute(insert(Person).values(name="ann"))
        assert await connection.scalar(select(Person.name)) == "ann"
        assert (await connection.exec_driver_sql("SELECT 1")).scalar_one() == 1
        return Response(status_code=status)

    assert (await local.post("/do")).status_code == status
    assert local.names() == (["ann"] if status == 200 else [])


async def test_a_connection_streams(local: Local) -> None:
    connection_type = connection(local)

    @local.app.post("/do")
    async def do(connection: connection_type) -> list[str]:
        await connection.execute(insert(Person), [{"name": f"p{n}"} for n in range(5)])
        found = []
        async with connection.stream(select(Person.name).order_by(Person.name)) as rows:
            async for row in rows:
                found.append(row.name)
                if len(found) == 3:
                    break
        async with connection.stream_scalars(select(Person.name).order_by(Person.name.desc())) as names:
            found.append(await names.first())
        return found

    answer = await local.post("/do")
    assert (answer.status_code, answer.json()) == (200, ["p0", "p1", "p2", "p4"])
    assert len(local.names()) == 5


@pytest.mark.parametrize("name", ["begin", "begin_nested", "commit", "rollback", "close", "invalidate"])
async def test_a_managed_connection_cannot_be_ended_by_hand(local: Local, name: str) -> None:
    connection_type = connection(local)

    @local.app.post("/do")
    async def do(connection: connection_type) -> str:
        await connection.execute(insert(Person).values(name="ann"))
        with pytest.raises(errors.UsageError, match="managed transaction"):
            await getattr(connection, name)()
        return await connection.scalar(select(Person.name)) or ""

    assert (await local.post("/do")).json() == "ann"
    assert local.names() == ["ann"]


@pytest.mark.parametrize("name", ["commit", "rollback", "close"])
async def test_a_managed_session_cannot_be_ended_by_hand(local: Local, name: str) -> None:
    local.db.install(local.app)

    @local.app.post("/do")
    async def do(session: Annotated[AsyncSession, local.db.session()]) -> None:
        session.add(Person(name="ann"))
        with pytest.raises(errors.UsageError, match="managed transaction 'POST /do'"):
            await getattr(session, name)()

    assert (await local.post("/do")).status_code == 200
    assert local.names() == ["ann"]


async def test_a_swallowed_error_on_the_connection_is_an_unexpected_rollback_too(
    local: Local, caplog: pytest.LogCaptureFixture
) -> None:
    connection_type = connection(local)

    @local.app.post("/do")
    async def do(connection: connection_type) -> str:
        await connection.execute(insert(Person).values(name="ann"))
        try:
            await connection.execute(insert(Person).values(name="ann"))
        except errors.UniqueViolation:
            return "all is well"
        return "never"

    caplog.set_level(logging.ERROR)
    answer = await local.post("/do")
    assert (answer.status_code, answer.json()["code"]) == (500, "unexpected-rollback")
    assert local.names() == []


async def test_a_connection_has_ended_when_the_response_has_begun(local: Local) -> None:
    connection_type = connection(local)

    @local.app.post("/do")
    async def do(connection: connection_type) -> None:
        await connection.execute(insert(Person).values(name="ann"))
        KEPT["connection"] = connection

    assert (await local.post("/do")).status_code == 200
    kept = KEPT.pop("connection")
    with pytest.raises(errors.TransactionEnded):
        await kept.execute(select(Person))
    with pytest.raises(errors.TransactionEnded):
        await kept.scalar(select(Person.name))
    with pytest.raises(errors.TransactionEnded):
        async with kept.stream(select(Person.name)):
            pass
    assert local.db.engine.pool.checkedout() == 0


# The veto.


async def test_a_veto_of_ones_own_decides_by_status_and_headers(local: Local) -> None:
    seen = []

    def veto(status: int, headers: Any) -> bool:
        seen.append((status, headers["X-Keep"]))
        return headers["x-keep"] == "no"

    local.db.install(local.app, veto=veto)

    @local.app.post("/do")
    async def do(session: Annotated[AsyncSession, local.db.session()], name: str, status: int, keep: str) -> Response:
        session.add(Person(name=name))
        return Response(status_code=status, headers={"X-Keep": keep})

    assert (await local.post("/do?name=a&status=500&keep=yes")).status_code == 500
    assert (await local.post("/do?name=b&status=200&keep=no")).status_code == 200
    assert local.names() == ["a"]
    assert seen == [(500, "yes"), (200, "no")]


async def test_a_veto_that_fails_rolls_back(local: Local) -> None:
    def veto(status: int, headers: Any) -> bool:
        raise KeyError(status)

    local.db.install(local.app, veto=veto)

    @local.app.post("/do")
    async def do(session: Annotated[AsyncSession, local.db.session()]) -> None:
        session.add(Person(name="ann"))
        await session.flush()

    assert (await local.post("/do")).status_code == 500
    assert local.names() == []


@pytest.mark.parametrize(("status", "told"), [(200, Committed), (404, RolledBack)])
async def test_reads_on_a_connection_of_their_own_are_told_to_have_ended_as_the_request_does(
    local: Local, status: int, told: type[Event]
) -> None:
    local.db.install(local.app)
    heard: list[type[Event]] = []
    local.db.listen(lambda event: heard.append(type(event)))

    @local.app.get("/do")
    async def do(connection: Annotated[AsyncConnection, local.db.connection(read_only=True)]) -> Response:
        await connection.execute(text("SELECT 1"))
        await connection.execute(text("SELECT 2"))
        return Response(status_code=status)

    async with local.client() as client:
        assert (await client.get("/do")).status_code == status
    assert heard == [Began, told]
