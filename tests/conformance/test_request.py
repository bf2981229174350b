"""What only a request does: when its transaction counts as open, and what happens before its response begins."""

import asyncio
from collections.abc import Callable
from typing import Annotated, Any

import httpx
import pytest
from fastapi import Depends, FastAPI
from fastapi.responses import JSONResponse
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncSession

from tests.conformance.tables import Stored, Word, store
from transact import Propagation, errors
from transact.fastapi import Database

pytestmark = pytest.mark.engines("sqlite", "pg18-asyncpg", "mariadb")


class Inner(Exception):
    """What a managed block raises."""


@pytest.fixture
def db(database_url: str, tables: None, make_db: Callable[..., Database]) -> Database:
    return make_db(database_url, kind=Database)


@pytest.fixture
def app(db: Database) -> FastAPI:
    app = FastAPI()
    db.install(app)
    return app


async def post(app: Any, target: str = "/") -> httpx.Response:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        return await client.post(target)


async def test_the_connection_is_taken_and_begin_sent_at_the_first_statement_of_a_request(
    db: Database, app: FastAPI
) -> None:
    seen: list[object] = []
    event.listen(db.engine.sync_engine, "begin", lambda _: seen.append("begin"))

    @app.post("/")
    async def route(session: Annotated[AsyncSession, db.session()]) -> None:
        seen.append(db.engine.pool.checkedout())
        session.add(Word(text="word"))
        seen.append(db.engine.pool.checkedout())
        await session.flush()
        seen.append(db.engine.pool.checkedout())

    assert (await post(app)).status_code == 200
    assert seen == [0, 0, "begin", 1]


@pytest.mark.parametrize("who", ["nobody", "the route", "a dependency", "a reader"])
async def test_a_requests_transaction_counts_as_open_from_the_moment_a_route_or_dependency_has_asked_for_the_session(
    db: Database, app: FastAPI, stored: Stored, who: str
) -> None:
    async def asks(session: Annotated[AsyncSession, db.session()]) -> None: ...

    async def reads(session: Annotated[AsyncSession, db.session(read_only=True)]) -> None: ...

    async def looks() -> bool:
        return db.in_transaction

    dependency = {"nobody": None, "the route": asks, "a dependency": asks, "a reader": reads}[who]

    @app.post("/", dependencies=[Depends(looks)] + ([Depends(dependency)] if dependency and who != "the route" else []))
    async def route(session: Annotated[Any, db.session() if who == "the route" else None] = None) -> dict[str, bool]:
        mandatory = True
        try:
            async with db.transaction(propagation=Propagation.MANDATORY) as joined:
                await store(joined, "word")
        except errors.NoTransaction:
            mandatory = False
        return {"open": db.in_transaction, "joined": mandatory, "stored": "word" in stored()}

    expected = who in {"the route", "a dependency"}
    assert (await post(app)).json() == {"open": expected, "joined": expected, "stored": False}
    assert stored() == ({"word"} if expected else set())


async def test_before_asking_no_hook_can_be_registered_and_none_is_lost(db: Database, app: FastAPI) -> None:
    @app.post("/")
    async def route() -> None:
        db.after_commit(lambda: None)

    answer = await post(app)
    assert (answer.status_code, answer.json()["code"]) == (500, "no-transaction")


@pytest.mark.parametrize("status", [200, 409])
async def test_flush_hooks_and_commit_come_before_the_response_and_each_hook_is_awaited(
    db: Database, app: FastAPI, stored: Stored, status: int
) -> None:
    order: list[object] = []
    for name in ("commit", "rollback"):
        event.listen(db.engine.sync_engine, name, lambda _, name=name: order.append(name))

    def hook(name: str) -> Callable[..., Any]:
        async def run(*_: object) -> None:
            await asyncio.sleep(0)
            order.append((name, db.engine.pool.checkedout(), *sorted(stored())))

        return run

    @app.post("/")
    async def route(session: Annotated[AsyncSession, db.session()]) -> JSONResponse:
        session.add(Word(text="word"))
        for name in ("before_commit", "after_commit", "after_rollback", "after_completion"):
            getattr(db, name)(hook(name))
        if status != 200:
            await session.flush()  # or there would be nothing to roll back
        return JSONResponse(None, status)

    async def watched(scope: Any, receive: Any, send: Any) -> None:
        async def sending(message: Any) -> None:
            order.append(message["type"])
            await send(message)

        await app(scope, receive, sending)

    assert (await post(watched)).status_code == status
    committed = [("before_commit", 1), "commit", ("after_commit", 0, "word"), ("after_completion", 0, "word")]
    rolled_back = ["rollback", ("after_rollback", 0), ("after_completion", 0)]
    assert order == [
        *(committed if status == 200 else rolled_back),
        "http.response.start",
        "http.response.body",
    ]


@pytest.mark.parametrize("propagation", [Propagation.REQUIRED, Propagation.MANDATORY], ids=lambda p: p.value)
async def test_an_exception_out_of_a_managed_block_that_a_handler_renders_as_success_rolls_back_and_is_a_500_problem(
    db: Database, app: FastAPI, stored: Stored, propagation: Propagation
) -> None:
    @app.exception_handler(Inner)
    async def fine(_request: object, _error: Exception) -> JSONResponse:
        return JSONResponse("all is well")

    @app.post("/")
    async def route(session: Annotated[AsyncSession, db.session()]) -> None:
        await store(session, "lost")
        async with db.transaction(propagation=propagation):
            raise Inner

    answer = await post(app)
    assert (answer.status_code, answer.json()["code"]) == (500, "unexpected-rollback")
    assert stored() == set()


async def test_an_unexpected_rollback_at_the_end_of_a_request_is_a_500_problem_and_nothing_is_stored(
    db: Database, app: FastAPI, stored: Stored, caplog: pytest.LogCaptureFixture
) -> None:
    @app.post("/")
    async def route(session: Annotated[AsyncSession, db.session()]) -> str:
        await store(session, "lost")
        with pytest.raises(Inner):
            async with db.transaction(label="the participant"):
                raise Inner
        return "all is well"

    answer = await post(app)
    assert (answer.status_code, answer.headers["content-type"]) == (500, "application/problem+json")
    assert answer.json()["code"] == "unexpected-rollback"
    assert "participant" not in answer.text
    assert "the participant" in caplog.text  # whom the log names
    assert stored() == set()
