"""The request's one transaction, however the application is put together."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import pytest
from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, StreamingResponse
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.gzip import GZipMiddleware

from tests.fastapi.app import Person
from tests.fastapi.conftest import Local, TestClient
from transact import errors
from transact.fastapi import Database, Problem

pytestmark = pytest.mark.engines("sqlite", "pg18-asyncpg", "mariadb")
RAN: list[str] = []


def people(db: Database) -> APIRouter:
    router = APIRouter()

    @router.post("/add")
    async def add(
        session: Annotated[AsyncSession, db.session()],
        tasks: BackgroundTasks,
        name: str,
        boss: int | None = None,
        status: int | None = None,
    ) -> dict[str, str]:
        session.add(Person(name=name, boss_id=boss))
        tasks.add_task(RAN.append, name)
        if status:
            await session.flush()
            raise HTTPException(status, "refused")
        return {"name": name * 1000}

    @router.post("/stream")
    async def stream(session: Annotated[AsyncSession, db.session()], name: str, boss: int | None = None) -> Any:
        session.add(Person(name=name, boss_id=boss))

        async def body() -> AsyncIterator[bytes]:
            yield b"first"
            yield b"last"

        return StreamingResponse(body())

    return router


async def check_all(local: Local, prefix: str, app: FastAPI | None = None) -> None:
    """A commit, a rollback, a commit that fails: each is told as it is."""
    RAN.clear()
    async with local.client(app, raising=True) as client:
        answer = await client.post(f"{prefix}/add?name=ann")
        assert (answer.status_code, answer.json()) == (200, {"name": "ann" * 1000})
        assert (await client.post(f"{prefix}/add?name=bob&status=404")).status_code == 404
        answer = await client.post(f"{prefix}/add?name=cat&boss=9")
        assert (answer.status_code, answer.json()["code"]) == (409, "foreign-key-violation")
        answer = await client.post(f"{prefix}/stream?name=dan")
        assert (answer.status_code, answer.text) == (200, "firstlast")
        answer = await client.post(f"{prefix}/stream?name=eve&boss=9")
        assert (answer.status_code, answer.json()["code"]) == (409, "foreign-key-violation")
    assert local.names() == ["ann", "dan"]
    assert RAN == ["ann"]


async def test_nested_routers_with_prefixes(local: Local, caplog: pytest.LogCaptureFixture) -> None:
    local.db.install(local.app)
    inner = APIRouter(prefix="/inner")
    inner.include_router(people(local.db), prefix="/{kind}")
    local.app.include_router(inner, prefix="/outer")
    caplog.set_level(logging.INFO, "transact")
    await check_all(local, "/outer/inner/staff")
    assert "POST /outer/inner/{kind}/add answered 409 foreign-key-violation" in caplog.text


@pytest.mark.parametrize("place", ["application", "router", "included", "route"])
async def test_dependencies_without_a_parameter_belong_to_the_request(local: Local, place: str) -> None:
    async def audit(session: Annotated[AsyncSession, local.db.session()]) -> None:
        session.add(Person(name="audit"))

    here = {at: [Depends(audit)] if at == place else [] for at in ("application", "router", "included", "route")}
    app = FastAPI(dependencies=here["application"])
    local.db.install(app)
    router = APIRouter(dependencies=here["router"])

    @router.post("/do", dependencies=here["route"])
    async def do(status: int = 200) -> None:
        if status != 200:
            raise HTTPException(status)

    app.include_router(router, dependencies=here["included"])
    async with local.client(app) as client:
        assert (await client.post("/do?status=403")).status_code == 403
        assert local.names() == []
        assert (await client.post("/do")).status_code == 200
    assert local.names() == ["audit"]


async def test_route_dependencies_services_and_the_connection_share_one_transaction(local: Local) -> None:
    db = local.db
    db.install(local.app)
    session_type = Annotated[AsyncSession, db.session()]

    async def user(session: session_type) -> Person:
        person = Person(name="user")
        session.add(person)
        await session.flush()
        return person

    async def service() -> AsyncSession:
        async with db.transaction() as session:
            session.add(Person(name="service"))
            return session

    @local.app.post("/do")
    async def do(
        session: session_type,
        again: Annotated[AsyncSession, db.session()],
        connection: Annotated[AsyncConnection, db.connection()],
        user: Annotated[Person, Depends(user)],
        status: int,
    ) -> None:
        assert session is again
        assert user in session
        assert await service() is session
        await session.flush()
        assert (await connection.scalars(select(Person.name).order_by(Person.name))).all() == ["service", "user"]
        assert db.current.session is session
        raise HTTPException(status) if status >= 400 else StopHere

    class StopHere(Exception):
        pass

    @local.app.exception_handler(StopHere)
    def stop(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse("stopped")

    assert (await local.post("/do?status=409")).status_code == 409
    assert local.names() == []
    assert (await local.post("/do?status=200")).json() == "stopped"
    assert local.names() == ["service", "user"]


async def test_two_requests_never_share_a_session(local: Local) -> None:
    local.db.install(local.app)
    met = asyncio.Barrier(2)
    seen: set[AsyncSession] = set()

    @local.app.post("/meet")
    async def meet(session: Annotated[AsyncSession, local.db.session(read_only=True)]) -> None:
        await session.execute(text("SELECT 1"))
        seen.add(session)
        await met.wait()

    async with local.client() as client:
        answers = await asyncio.gather(client.post("/meet"), client.post("/meet"))
    assert [answer.status_code for answer in answers] == [200, 200]
    assert len(seen) == 2


async def test_a_dependency_can_be_overridden(local: Local) -> None:
    db = local.db
    db.install(local.app)
    wanted = db.session()

    @local.app.post("/do")
    async def do(session: Annotated[AsyncSession, wanted]) -> str:
        session.add(Person(name="ann"))
        return type(session).__name__

    class Fake:
        def add(self, person: Person) -> None:
            pass

    local.app.dependency_overrides[wanted.dependency] = Fake
    assert (await local.post("/do")).json() == "Fake"
    assert local.names() == []
    local.app.dependency_overrides.clear()
    assert (await local.post("/do")).status_code == 200
    assert local.names() == ["ann"]


@pytest.mark.parametrize("installed", ["outer", "both", "inner"])
async def test_a_mounted_application_shares_the_database(local: Local, installed: str) -> None:
    inner = FastAPI()
    if installed != "inner":
        local.db.install(local.app)
    if installed != "outer":
        local.db.install(inner)
    inner.include_router(people(local.db))
    local.app.mount("/sub", inner)
    await check_all(local, "/sub")


async def test_a_mounted_application_answers_with_its_own_handlers_also_for_its_commit(local: Local) -> None:
    inner = FastAPI()
    local.db.install(local.app)
    local.db.install(inner, problems={"uq_person_name": Problem(418, detail="inner")})
    inner.include_router(people(local.db))
    local.app.mount("/sub", inner)
    assert (await local.post("/sub/add?name=ann")).status_code == 200
    assert (await local.post("/sub/add?name=ann")).status_code == 418


class Plain:
    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def sending(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-seen", b"1")]
            await send(message)

        await self.app(scope, receive, sending)


class Base(BaseHTTPMiddleware):
    async def dispatch(self, request: Request, call_next: Any) -> Any:
        response = await call_next(request)
        response.headers["x-seen"] = "1"
        return response


@pytest.mark.parametrize("order", ["around", "inside", "both"])
@pytest.mark.parametrize("middleware", [Plain, Base, GZipMiddleware])
async def test_other_middleware_changes_nothing(local: Local, order: str, middleware: type) -> None:
    if order in {"inside", "both"}:
        local.app.add_middleware(middleware)
    local.db.install(local.app)
    if order in {"around", "both"}:
        local.app.add_middleware(middleware)
    local.app.include_router(people(local.db))
    await check_all(local, "")


class SwallowsAll(Plain):
    """Catches even what is none of its business, and answers in its own way."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await self.app(scope, receive, send)
        except BaseException:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"all is well"})


class SendsTheRest(Plain):
    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        with contextlib.suppress(BaseException):
            await self.app(scope, receive, send)
        await send({"type": "http.response.body", "body": b"more"})


@pytest.mark.parametrize("middleware", [SwallowsAll, SendsTheRest])
async def test_a_dropped_response_stays_dropped_whatever_is_caught_inside(local: Local, middleware: type) -> None:
    local.app.add_middleware(middleware)
    local.db.install(local.app)
    local.app.include_router(people(local.db))
    answer = await local.post("/add?name=ann&boss=9")
    assert (answer.status_code, answer.json()["code"]) == (409, "foreign-key-violation")
    assert local.names() == []


async def test_a_request_made_inside_a_transaction_leaves_it_open(local: Local) -> None:
    local.db.install(local.app)

    @local.app.post("/look")
    async def look(_: Annotated[AsyncSession, local.db.session()]) -> bool:
        return local.db.in_transaction

    async with local.db.transaction(label="around"):
        assert (await local.post("/look")).json() is True
        assert local.db.current.label == "around"


class SaysNothing(Plain):
    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:  # that is what is wrong with it
        async def say_nothing(_message: Any) -> None:
            """The answer is lost."""

        await self.app(scope, receive, say_nothing)


async def test_a_request_that_nobody_answers_is_rolled_back_and_holds_nothing(local: Local) -> None:
    local.app.add_middleware(SaysNothing)
    local.db.install(local.app)

    @local.app.post("/add")
    async def add(session: Annotated[AsyncSession, local.db.session()]) -> None:
        session.add(Person(name="ann"))
        await session.flush()

    with pytest.raises(AssertionError):  # httpx has got no answer
        await local.post("/add")
    assert local.names() == []
    assert local.db.engine.pool.checkedout() == 0


async def test_a_middleware_that_gives_up_waiting_cancels_the_request_and_rolls_back(local: Local) -> None:
    flushed = asyncio.Event()

    class Impatient(BaseHTTPMiddleware):
        async def dispatch(self, request: Request, call_next: Any) -> Any:
            waiting = asyncio.create_task(flushed.wait())
            answering = asyncio.create_task(call_next(request))
            await asyncio.wait([waiting, answering], return_when=asyncio.FIRST_COMPLETED)
            answering.cancel()
            raise HTTPException(504)

    local.db.install(local.app)
    local.app.add_middleware(Impatient)
    ended = asyncio.Event()

    @local.app.post("/wait")
    async def wait(session: Annotated[AsyncSession, local.db.session()]) -> None:
        session.add(Person(name="ann"))
        await session.flush()
        flushed.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    assert (await local.post("/wait")).status_code == 500  # outside of the middleware that renders exceptions
    assert ended.is_set()
    assert local.names() == []


async def test_two_databases_in_one_application(local: Local, tmp_path) -> None:
    async with Database(f"sqlite+aiosqlite:///{tmp_path}/other.db", name="other", metadata=Person.metadata) as other:
        async with other.engine.begin() as connection:
            await connection.run_sync(Person.metadata.create_all)
        local.db.install(local.app)
        other.install(local.app, problems={"uq_person_name": Problem(418)})
        local.app.include_router(people(local.db))
        local.app.include_router(people(other), prefix="/other")
        await check_all(local, "")
        async with local.client() as client:
            assert (await client.post("/other/add?name=ann")).status_code == 200
            assert (await client.post("/other/add?name=bob&status=404")).status_code == 404
            assert (await client.post("/other/add?name=ann")).status_code == 418
        async with other.transaction() as session:
            assert (await session.scalars(select(Person.name))).all() == ["ann"]


def test_the_test_client_runs_the_lifespan(sqlite_url: str) -> None:
    db = Database(sqlite_url)
    told = []

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with db.lifespan(app):
            async with db.engine.begin() as connection:
                await connection.run_sync(Person.metadata.create_all)
            told.append("up")
            yield
        told.append("down")

    app = FastAPI(lifespan=lifespan)
    db.install(app)
    app.include_router(people(db))
    with TestClient(app) as client:
        assert client.post("/add?name=ann").status_code == 200
        assert client.post("/add?name=ann").json()["code"] == "unique-violation"
        assert told == ["up"]
    assert told == ["up", "down"]
    assert db.engine.pool.checkedin() == 0
    with TestClient(app, raise_server_exceptions=False) as client:  # opened again
        assert client.post("/add?name=bob").status_code == 200


def test_a_database_that_is_closed_says_so(sqlite_url: str) -> None:
    db = Database(sqlite_url)
    app = FastAPI(lifespan=db.lifespan)
    db.install(app)
    app.include_router(people(db))
    with TestClient(app):
        pass
    client = TestClient(app)
    assert client.post("/add?name=ann").json()["code"] == "usage-error"


async def test_a_request_that_is_cancelled_while_it_ends_gives_every_connection_back(local: Local) -> None:
    db = local.db
    db.install(local.app)

    @local.app.post("/both")
    async def both(
        session: Annotated[AsyncSession, db.session(read_only=True)],
        manual: Annotated[AsyncSession, db.manual_session()],
    ) -> None:
        await session.execute(select(Person))
        manual.add(Person(name="lost"))
        await manual.flush()

    @db.listen
    def changes_discarded(event: Any) -> None:
        if type(event).__name__ == "ChangesDiscarded":
            task.cancel()

    task = asyncio.ensure_future(local.post("/both"))
    with pytest.raises(asyncio.CancelledError):
        await task
    assert db.engine.pool.checkedout() == 0
    assert local.names() == []


async def test_errors_before_the_response_reach_the_caller(local: Local) -> None:
    local.db.install(local.app)

    @local.app.post("/fail")
    async def fail(session: Annotated[AsyncSession, local.db.session()]) -> None:
        session.add(Person(name="ann"))
        await session.flush()
        raise errors.NoTransaction("mine")

    assert (await local.post("/fail")).json()["code"] == "no-transaction"
    assert local.names() == []
