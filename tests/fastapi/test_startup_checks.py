"""What can only go wrong is said when the application starts, or at its first request: by route, with what to write."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Annotated, Any

import httpx
import pytest
from fastapi import APIRouter, Depends, FastAPI, WebSocket
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from tests.fastapi.conftest import TestClient
from transact import Isolation, Propagation, errors
from transact.fastapi import Database, Problem

has_generator_endpoints = pytest.mark.skipif(
    importlib.util.find_spec("fastapi.sse") is None, reason="this FastAPI has no generator endpoints"
)


@pytest.fixture
def db(sqlite_url: str) -> Database:
    return Database(sqlite_url)


def start(app: FastAPI) -> None:
    with TestClient(app):
        pass


@pytest.mark.parametrize("ask", ["session", "connection", "manual_session"])
async def test_asking_without_install_is_a_clear_error_at_the_first_request(db: Database, ask: str) -> None:
    app = FastAPI()

    @app.post("/do")
    async def do(session: Annotated[Any, getattr(db, ask)()]) -> None:
        pass

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        with pytest.raises(errors.UsageError, match=r"call db\.install\(app\)"):
            await client.post("/do")


def test_installing_twice_is_refused(db: Database) -> None:
    app = FastAPI()
    db.install(app)
    with pytest.raises(errors.ConfigurationError, match="already"):
        db.install(app)


@pytest.mark.parametrize("wrong", ["a text", 409, None, {"status": 409}, Problem])
def test_a_problem_that_is_none_is_refused(db: Database, wrong: object) -> None:
    with pytest.raises(errors.ConfigurationError, match=r"uq_name.*transact\.fastapi\.Problem"):
        db.install(FastAPI(), problems={"uq_name": wrong})  # type: ignore[dict-item]


@pytest.mark.parametrize("status", [0, 200, 303, 399, 600])
def test_a_problem_has_a_status_of_failure(status: int) -> None:
    with pytest.raises(errors.ConfigurationError, match="400 to 599"):
        Problem(status)


def app_with(db: Database, where: str) -> tuple[FastAPI, Any, str]:
    """An application; where its routes are added; the prefix of their paths."""
    app = FastAPI(lifespan=db.lifespan)
    db.install(app)
    if where == "app":
        return app, app, ""
    if where == "mounted":
        inner = FastAPI()
        app.mount("/sub", inner)
        return app, inner, "/sub"
    inner = APIRouter(prefix="/inner")
    app.state.include = lambda: app.include_router(inner, prefix="/outer")
    return app, inner, "/outer/inner"


@pytest.mark.parametrize("where", ["app", "included", "mounted"])
def test_a_websocket_route_that_asks_for_a_session_is_reported_at_start_up(db: Database, where: str) -> None:
    app, routes, prefix = app_with(db, where)

    async def user(session: Annotated[AsyncSession, db.session()]) -> str:
        return "user"

    @routes.websocket("/chat")
    async def chat(websocket: WebSocket, user: Annotated[str, Depends(user)]) -> None:
        await websocket.accept()

    if where == "included":
        app.state.include()
    with pytest.raises(errors.ConfigurationError, match=rf"{prefix}/chat: a websocket .*db\.transaction\(\)"):
        start(app)


@has_generator_endpoints
@pytest.mark.parametrize("where", ["app", "included", "mounted"])
@pytest.mark.parametrize("kind", ["async", "plain"])
def test_a_generator_endpoint_that_asks_for_a_session_is_reported_at_start_up(
    db: Database, where: str, kind: str
) -> None:
    app, routes, prefix = app_with(db, where)

    async def numbers(session: Annotated[AsyncSession, db.session()]) -> AsyncIterator[int]:
        yield 1

    def plain_numbers(session: Annotated[AsyncSession, db.session()]) -> Iterator[int]:
        yield 1

    routes.get("/numbers")(numbers if kind == "async" else plain_numbers)
    if where == "included":
        app.state.include()
    with pytest.raises(errors.ConfigurationError, match=rf"GET {prefix}/numbers: a generator .*db\.transaction\(\)"):
        start(app)


@has_generator_endpoints
def test_every_route_that_can_only_fail_is_in_the_one_error(db: Database) -> None:
    app, _, _ = app_with(db, "app")

    @app.websocket("/one")
    async def one(websocket: WebSocket, session: Annotated[AsyncSession, db.session()]) -> None:
        pass

    @app.post("/two")
    async def two(session: Annotated[AsyncSession, db.manual_session()]) -> AsyncIterator[int]:
        yield 1

    with pytest.raises(errors.ConfigurationError, match=r"/one[\s\S]*/two"):
        start(app)


@has_generator_endpoints
async def test_without_a_lifespan_the_first_request_reports_it(db: Database) -> None:
    app, _, _ = app_with(db, "app")

    @app.post("/two")
    async def two(session: Annotated[AsyncSession, db.session()]) -> AsyncIterator[int]:
        yield 1

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        with pytest.raises(errors.ConfigurationError, match="/two"):
            await client.get("/other")


@has_generator_endpoints
def test_a_generator_endpoint_whose_dependencies_use_the_session_before_it_starts_is_fine(db: Database) -> None:
    async def check(session: Annotated[AsyncSession, db.session()]) -> int:
        return await session.scalar(text("SELECT 7")) or 0

    app = FastAPI(lifespan=db.lifespan, dependencies=[Depends(check), db.session()])
    db.install(app)

    @app.get("/numbers")
    async def numbers(number: Annotated[int, Depends(check)]) -> AsyncIterator[int]:
        assert db.engine.pool.checkedout() == 0
        yield number
        async with db.transaction() as session:
            yield await session.scalar(text("SELECT 8")) or 0

    with TestClient(app) as client:
        assert client.get("/numbers").text.split() == ["7", "8"]


def test_a_websocket_that_opens_a_transaction_per_message_works_beside(db: Database) -> None:
    app, _, _ = app_with(db, "app")

    @app.websocket("/chat")
    async def chat(websocket: WebSocket) -> None:
        await websocket.accept()
        while True:
            async with db.transaction() as session:
                found = await session.scalar(text("SELECT 7"))
            await websocket.send_json(found)
            if await websocket.receive_text() == "enough":
                return

    with TestClient(app) as client, client.websocket_connect("/chat") as websocket:
        assert websocket.receive_json() == 7
        websocket.send_text("more")
        assert websocket.receive_json() == 7
        websocket.send_text("enough")


def test_a_websocket_that_was_not_checked_is_refused_when_it_asks(db: Database) -> None:
    app = FastAPI()  # not installed

    @app.websocket("/chat")
    async def chat(websocket: WebSocket, session: Annotated[AsyncSession, db.session()]) -> None:
        raise AssertionError

    with (
        pytest.raises(errors.UsageError, match=r"per message with `async with db\.transaction\(\)"),
        TestClient(app) as client,
        client.websocket_connect("/chat"),
    ):
        pass


@pytest.mark.parametrize("name", ["REQUIRES_NEW", "NESTED", "NEVER"])
def test_a_propagation_means_nothing_to_a_request(db: Database, name: str) -> None:
    with pytest.raises(errors.UsageError, match="propagation"):
        db.session(propagation=Propagation[name])


async def test_options_that_contradict_each_other_are_refused(db: Database) -> None:
    app = FastAPI()
    db.install(app)

    async def user(session: Annotated[AsyncSession, db.session()]) -> None:
        pass

    @app.post("/do", dependencies=[Depends(user)])
    async def do(session: Annotated[AsyncSession, db.session(isolation=Isolation.SERIALIZABLE)]) -> None:
        pass

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        answer = await client.post("/do")
    assert (answer.status_code, answer.json()["code"]) == (500, "options-conflict")


@pytest.mark.parametrize("name", ["rollback_for", "no_rollback_for"])
@pytest.mark.parametrize("ask", ["session", "connection"])
def test_exceptions_do_not_decide_about_a_request(db: Database, name: str, ask: str) -> None:
    with pytest.raises(errors.UsageError, match="veto"):
        getattr(db, ask)(**{name: (Exception,)})


def test_a_server_does_not_serve_an_application_whose_routes_can_only_fail(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(
        "from fastapi import FastAPI\n"
        "from transact.fastapi import Database\n"
        "db = Database('sqlite+aiosqlite://')\n"
        "app = FastAPI(lifespan=db.lifespan)\n"
        "db.install(app)\n"
        "@app.websocket('/chat')\n"
        "async def chat(websocket, session=db.session()): ...\n"
    )
    server = [sys.executable, "-m", "uvicorn", "broken:app", "--port", "0"]
    path = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), str(tmp_path))))
    done = subprocess.run(
        server, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode != 0
    assert "/chat: a websocket" in done.stderr
    assert "Uvicorn running" not in done.stderr
