"""The README's table, row by row: what a hand-written get_db does on the installed FastAPI, and what transact does."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Annotated, Any

import pytest
from fastapi import BackgroundTasks, Depends, FastAPI
from fastapi.responses import JSONResponse, StreamingResponse
from sqlalchemy import event, text
from sqlalchemy.exc import IntegrityError, InvalidRequestError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

from tests.docs.pages import ROOT, table
from transact.fastapi import Database

PINS = (ROOT / "requirements-dev.txt").read_text(encoding="utf-8")
pytestmark = pytest.mark.skipif(
    any(f"{name}=={version(name)}\n" not in PINS for name in ("fastapi", "SQLAlchemy")),
    reason="the README's table is about the versions of requirements-dev.txt",
)

HEADING = "A hand-written get_db, and transact"
GET_DB, FUNCTION, TRANSACT = "get_db", "get_db, scope=function", "transact"
ROWS: set[str] = set()


def row(cell: str) -> Callable[[Any], Any]:
    """Say which row of the table a test stands behind."""
    ROWS.add(cell)
    return lambda test: test


@dataclass
class Service:
    """An application with the routes of this file, on a pool of two."""

    variant: str
    app: FastAPI
    engine: AsyncEngine
    statements: list[str] = field(default_factory=list)

    async def call(self, path: str, on_message: Callable[[dict[str, Any]], Awaitable[None]] | None = None) -> Any:
        """One request at the level of ASGI; the first message of the answer is the first that a client can see."""
        body = [{"type": "http.request", "body": b"", "more_body": False}]
        answer: dict[str, Any] = {"body": b"", "error": None}

        async def receive():
            return body.pop() if body else await asyncio.Future()

        async def send(message):
            if on_message is not None:
                await on_message(message)
            if message["type"] == "http.response.start":
                answer["status"] = message["status"]
            else:
                answer["body"] += message["body"]

        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
            "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "", "headers": [],
        }  # fmt: skip
        try:
            await self.app(scope, receive, send)
        except Exception as error:
            answer["error"] = error
        return answer


HANDED_OUT: list[AsyncSession] = []


def hand_written(url: str, scope: Any) -> tuple[FastAPI, AsyncEngine, Any]:
    engine = create_async_engine(url, pool_size=2, max_overflow=0, pool_timeout=0.2)
    sessions = async_sessionmaker(engine, expire_on_commit=False)
    if engine.dialect.name == "sqlite":
        event.listen(engine.sync_engine, "connect", lambda c, _: c.cursor().execute("PRAGMA foreign_keys = ON"))

    async def get_db() -> AsyncIterator[AsyncSession]:
        async with sessions() as session:
            HANDED_OUT.append(session)  # for the end of the test: one of the laws is about a leak
            try:
                yield session
                await session.commit()
            except Exception:
                await session.rollback()
                raise

    depends = Depends(get_db, scope=scope) if scope else Depends(get_db)
    return FastAPI(), engine, Annotated[AsyncSession, depends]


def ours(url: str) -> tuple[FastAPI, AsyncEngine, Any]:
    db = Database(url, pool_size=2, max_overflow=0, pool_timeout=0.2)
    app = FastAPI()
    db.install(app)
    return app, db.engine, Annotated[AsyncSession, db.session()]


def add_routes(app: FastAPI, session_type: Any) -> None:
    async def write(session):
        await session.execute(text("INSERT INTO a VALUES (1)"))
        return {}

    async def late(session):
        await session.execute(text("INSERT INTO b VALUES (99)"))  # refers to nothing; checked at COMMIT
        return {}

    async def swallow(session):
        await session.execute(text("INSERT INTO a VALUES (2)"))
        with contextlib.suppress(IntegrityError):
            await session.execute(text("INSERT INTO a VALUES (1)"))
        return {}

    async def returned(session):
        await session.execute(text("INSERT INTO a VALUES (3)"))
        return JSONResponse({}, status_code=409)

    async def stream(session):
        await session.execute(text("SELECT 1"))
        return StreamingResponse(iter([b"x", b"y"]))

    async def gather(session):
        results = await asyncio.gather(
            session.execute(text("SELECT 1")), session.execute(text("SELECT 2")), return_exceptions=True
        )
        return [type(result).__name__ for result in results]

    async def background(session, tasks: BackgroundTasks):
        async def later():
            await session.execute(text("INSERT INTO a VALUES (4)"))

        tasks.add_task(later)
        return {}

    async def idle(session):
        return {}

    for route in (write, late, swallow, returned, stream, gather, background, idle):
        route.__annotations__["session"] = session_type
        app.post(f"/{route.__name__}")(route)


@pytest.fixture
async def services(request):
    """The three variants on one database, with tables `a` and `b`; `b` refers to `a`, checked at COMMIT."""
    postgresql = "postgres_url" in request.fixturenames
    url = request.getfixturevalue("postgres_url" if postgresql else "sqlite_url")
    look = request.getfixturevalue("observing")(url)
    look.execute("CREATE TABLE a (n INTEGER PRIMARY KEY)")
    look.execute("CREATE TABLE b (n INTEGER REFERENCES a (n) DEFERRABLE INITIALLY DEFERRED)")
    found = {}
    for variant, (app, engine, session_type) in {
        GET_DB: hand_written(url, None),
        FUNCTION: hand_written(url, "function"),
        TRANSACT: ours(url),
    }.items():
        add_routes(app, session_type)
        found[variant] = Service(variant, app, engine)
    yield Each(list(found.values()), look)
    while HANDED_OUT:
        await HANDED_OUT.pop().close()
    for service in found.values():
        await service.engine.dispose()


@dataclass
class Each:
    """Asks every variant the same question, with empty tables for each."""

    services: list[Service]
    look: Any

    async def answers(self, question: Callable[[Service, Any], Awaitable[Any]]) -> dict[str, Any]:
        found = {}
        for service in self.services:
            self.look.execute("DELETE FROM b")
            self.look.execute("DELETE FROM a")
            found[service.variant] = await question(service, self.look)
        return found


@row("COMMIT happens")
async def test_get_db_commits_after_the_client_has_its_answer_and_transact_before(services):
    async def question(service, look):
        seen = []

        async def on_message(message):
            seen.append((message["type"], look.scalar("SELECT count(*) FROM a")))

        await service.call("/write", on_message)
        return seen[0]

    start = "http.response.start"
    assert await services.answers(question) == {GET_DB: (start, 0), FUNCTION: (start, 1), TRANSACT: (start, 1)}


@row("COMMIT fails (a deferred foreign key)")
async def test_get_db_answers_200_for_a_commit_that_fails_and_transact_409(services):
    async def question(service, look):
        answer = await service.call("/late")
        assert look.scalar("SELECT count(*) FROM b") == 0
        return answer["status"]

    assert await services.answers(question) == {GET_DB: 200, FUNCTION: 500, TRANSACT: 409}


@row("the route swallows an `IntegrityError`, PostgreSQL")
async def test_get_db_answers_200_and_stores_nothing_on_postgresql_after_a_swallowed_error_and_transact_answers_500(
    services, postgres_url
):
    assert await services.answers(after_swallowing) == {GET_DB: (200, 0), FUNCTION: (200, 0), TRANSACT: (500, 0)}


@row("the same on SQLite")
async def test_get_db_stores_the_other_half_on_sqlite_after_a_swallowed_error_and_transact_answers_as_on_postgresql(
    services,
):
    assert await services.answers(after_swallowing) == {GET_DB: (200, 1), FUNCTION: (200, 1), TRANSACT: (500, 0)}


async def after_swallowing(service, look):
    look.execute("INSERT INTO a VALUES (1)")
    answer = await service.call("/swallow")
    return answer["status"], look.scalar("SELECT count(*) FROM a WHERE n = 2")


@row("the route *returns* a 409 after a write")
async def test_get_db_stores_what_an_answer_of_409_denies_and_transact_does_not(services):
    async def question(service, look):
        answer = await service.call("/returned")
        return answer["status"], look.scalar("SELECT count(*) FROM a")

    assert await services.answers(question) == {GET_DB: (409, 1), FUNCTION: (409, 1), TRANSACT: (409, 0)}


@row("two slow clients read, a pool of two, a third request")
async def test_get_db_holds_its_connection_while_a_slow_client_reads_and_transact_does_not(services):
    async def question(service, _look):
        stalled, go_on = asyncio.Queue(), asyncio.Event()

        async def slow(message):
            if message["type"] == "http.response.body":
                await stalled.put(True)
                await go_on.wait()

        readers = [asyncio.create_task(service.call("/stream", slow)) for _ in range(2)]
        for _ in readers:
            await stalled.get()
        third = await service.call("/stream")
        go_on.set()
        await asyncio.gather(*readers)
        return third["status"], type(third["error"]).__name__

    assert await services.answers(question) == {
        GET_DB: (500, "TimeoutError"),
        FUNCTION: (200, "NoneType"),
        TRANSACT: (200, "NoneType"),
    }


@row("`asyncio.gather` on the session, no connection yet")
async def test_gather_on_a_cold_session_is_an_internal_error_of_sqlalchemy_or_concurrent_use(services, postgres_url):
    async def question(service, _look):
        return (await service.call("/gather"))["body"].decode()

    theirs, kind = '["CursorResult","InvalidRequestError"]', InvalidRequestError.__name__
    assert kind in theirs
    assert await services.answers(question) == {
        GET_DB: theirs,
        FUNCTION: theirs,
        TRANSACT: '["CursorResult","ConcurrentUse"]',
    }


@row("the same with a connection in the pool")
async def test_gather_on_a_warm_pool_passes_with_get_db_and_is_concurrent_use_with_transact(services, postgres_url):
    async def question(service, _look):
        await service.call("/write")
        return (await service.call("/gather"))["body"].decode()

    theirs = '["CursorResult","CursorResult"]'
    assert await services.answers(question) == {
        GET_DB: theirs,
        FUNCTION: theirs,
        TRANSACT: '["CursorResult","ConcurrentUse"]',
    }


@row("a background task writes with the request's session")
async def test_a_background_task_with_the_requests_session_holds_a_connection_or_loses_its_write_or_is_refused(
    services, postgres_url
):
    async def question(service, look):
        answer = await service.call("/background")
        refused = answer["error"] is not None
        return look.scalar("SELECT count(*) FROM a"), service.engine.pool.checkedout(), refused

    assert await services.answers(question) == {GET_DB: (1, 0, False), FUNCTION: (0, 1, False), TRANSACT: (0, 0, True)}


@row("statements of a route that leaves its session alone")
async def test_a_route_that_leaves_its_session_alone_sends_no_statement_in_any_variant(services):
    async def question(service, _look):
        sent = []
        event.listen(service.engine.sync_engine, "before_cursor_execute", lambda *args: sent.append(args[2]))
        await service.call("/idle")
        return sent, service.engine.pool.checkedout()

    assert await services.answers(question) == {GET_DB: ([], 0), FUNCTION: ([], 0), TRANSACT: ([], 0)}


def test_every_row_of_the_readmes_table_has_a_test_here():
    rows = {cells[0] for cells in table(ROOT / "README.md", HEADING)}
    assert rows == ROWS


def test_the_readme_names_the_versions_that_its_table_was_measured_with():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"Measured with FastAPI {version('fastapi')} and SQLAlchemy {version('SQLAlchemy')}" in text
