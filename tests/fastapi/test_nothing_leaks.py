"""In no state does a response tell anything of the database or the program, and no log line tells a password or can be forged."""

import inspect
import logging
import re
from contextlib import ExitStack
from itertools import product
from typing import Annotated, Any
from urllib.parse import quote

import httpx
import pytest
from fastapi import APIRouter, FastAPI
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncSession

from tests.fastapi.app import Person, Shown
from tests.fastapi.conftest import Local
from tests.fastapi.error_states import CONNECTING, FAMILIES, PASSWORD, STATES, State, canary_user, scene
from tests.observers import Observer, observe
from transact import Retry, errors
from transact.fastapi import Database, Problem

THREE = pytest.mark.engines("sqlite", "pg18-asyncpg", "pg18-psycopg", "mariadb")
LEAK = re.compile(
    r"canary|select|insert|update |values ?\(|constraint|table|column|schema|password|traceback|\.py\b|line \d|127\.0\.0\.1|localhost"
    r"|transact_test|test\.db|asyncpg|psycopg|asyncmy|aiosqlite|sqlite|postgres|mariadb|mysql|sqlalchemy|errno|sqlstate|\b0x",
    re.IGNORECASE,
)
KINDS = [cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, errors.TransactError)]


def whole(answer: httpx.Response) -> str:
    """All that the client gets."""
    head = "\n".join(f"{name}: {value}" for name, value in answer.headers.multi_items())
    return f"{answer.status_code} {answer.reason_phrase}\n{head}\n\n{answer.text}"


def leaks(answer: httpx.Response) -> list[str]:
    return LEAK.findall(whole(answer))


async def ask(app: FastAPI) -> httpx.Response:
    async with Local("", None, app, None).client() as client:  # type: ignore[arg-type]
        return await client.post("/do")


def code_of(answer: httpx.Response) -> str:
    return answer.json()["code"] if answer.headers["content-type"] == "application/problem+json" else answer.text


def told(found: dict[str, httpx.Response], expected: dict[str, str]) -> None:
    """Each answer is one of the kinds that are expected, and says no more than that."""
    kinds = {name: code_of(answer) for name, answer in found.items()}
    assert {name: code for name, code in kinds.items() if code not in expected[name].split()} == {}
    assert {name: leaks(answer) for name, answer in found.items() if leaks(answer)} == {}


def secrets_in_logs(caplog: pytest.LogCaptureFixture) -> list[str]:
    formatter = logging.Formatter("%(name)s %(message)s")
    return [line for record in caplog.records if PASSWORD in (line := formatter.format(record))]


def forged(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The messages of the library's records that are not one line of what a terminal shows as it is."""
    messages = [record.getMessage() for record in caplog.records if record.name == "transact"]
    assert messages
    return [message for message in messages if not message.isprintable()]


def application(db: Database, run: Any, **options: Any) -> FastAPI:
    app = FastAPI()
    db.install(app)

    @app.post("/do")
    async def do(session: Annotated[AsyncSession, db.session(**options)]) -> str:
        await run(session)
        return "ok"

    return app


@THREE
async def test_in_no_state_does_a_response_tell_anything_of_the_database_nor_a_log_the_password(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    family = FAMILIES[make_url(database_url).get_backend_name()]
    states = {name: state for name, state in STATES.items() if family in state.engines}
    found, seen = {}, []
    async with scene(database_url, echo=True) as here:
        here.db.listen(lambda event: seen.append(repr(event)))

        async def answer(state: State) -> httpx.Response:
            return await ask(application(here.db, lambda session: state.provoke(here, session), **state.options))

        for name, state in states.items():
            found[name] = await answer(state)
            assert here.db.engine.pool.checkedout() == 0, name
            assert here.observer.idle_in_transaction() == 0, name
        assert PASSWORD not in repr(here.db) + str(here.db) + repr(here.db.engine) + repr(here.db.engine.pool)
    told(found, {name: state.codes for name, state in states.items()})
    assert secrets_in_logs(caplog) == []
    assert forged(caplog) == []
    assert seen
    assert not [event for event in seen if PASSWORD in event]


@pytest.mark.engines("pg18-asyncpg", "pg18-psycopg", "mariadb")
async def test_a_connection_that_cannot_be_made_tells_neither_where_nor_as_whom(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    found, raised = {}, []

    async def use(session: AsyncSession) -> None:
        try:
            await session.execute(text("SELECT 1"))
        except Exception as error:
            raised.append(error)
            raise

    with ExitStack() as stack:
        own = stack.enter_context(canary_user(database_url, "canary_own"))
        full = stack.enter_context(canary_user(database_url, "canary_full", 1))
        stack.enter_context(observe(full.render_as_string(hide_password=False)))
        for name, (change, _) in CONNECTING.items():
            async with Database(own.set(**change)) as db:
                found[name] = await ask(application(db, use))
    told(found, {name: codes for name, (_, codes) in CONNECTING.items()})
    assert secrets_in_logs(caplog) == []
    assert len(raised) == len(CONNECTING)
    for error in raised:
        said = [str(error), repr(error), repr(error.args), *getattr(error, "__notes__", ())]
        said += [repr(vars(error)), str(error.__cause__), repr(error.__cause__), repr(error.__context__)]
        assert PASSWORD not in "\n".join(said)


@pytest.mark.engines("mariadb")
async def test_a_wrong_password_is_told_to_nobody(database_url: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with canary_user(database_url, "canary_wrong") as own:
        async with Database(own.set(password=f"{PASSWORD}-wrong")) as db:
            answer = await ask(application(db, lambda session: session.execute(text("SELECT 1"))))
    told({"wrong": answer}, {"wrong": "permission-denied"})
    assert secrets_in_logs(caplog) == []


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
async def test_nothing_that_an_error_carries_is_in_the_answer(kind: type[errors.TransactError]) -> None:
    cause = ValueError("canary cause")

    class CanaryError(kind):  # type: ignore[misc,valid-type]
        """An application's own."""

    own = {"canary constraint": Problem(418, detail="Taken")}
    for cls, problems in product((kind, CanaryError), ({}, own)):
        group = issubclass(kind, errors.AfterCommitError)
        error = cls("canary", [cause]) if group else cls("canary")
        for name in ("constraint", "table", "sqlstate", "orig", "statement", "detail", "hint"):
            setattr(error, name, f"canary {name}")
        error.columns, error.errno, error.params = ("canary_column",), 1, {"canary": "canary"}  # type: ignore[attr-defined]
        error.add_note("canary note")
        error.__cause__ = cause
        app = FastAPI()
        db = Database("sqlite+aiosqlite://")
        db.install(app, problems=problems)

        async def fail(request: Any, failure: Exception = error) -> None:
            raise failure

        app.router.add_route("/do", fail, methods=["POST"])
        answer = await ask(app)
        assert leaks(answer) == []
        assert ((answer.status_code, answer.json()["detail"]) == (418, "Taken")) is bool(problems)
        assert answer.json().keys() == {"type", "title", "status", "detail", "code", "retryable"}


async def test_an_error_that_is_nobodys_is_a_plain_500(sqlite_url: str) -> None:
    async with Database(sqlite_url) as db:

        async def fail(_: AsyncSession) -> None:
            raise ValueError("canary")

        answer = await ask(application(db, fail))
    assert (answer.status_code, answer.text) == (500, "Internal Server Error")
    assert leaks(answer) == []


# A line of the log is one event, whatever a client or a schema is called.

FORGERY = "x\r\nERROR transact forged \x1b[2J\x00\u2028\u202e"


@THREE
async def test_no_name_and_no_path_can_forge_a_line_of_the_log(
    database_url: str, observer: Observer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    name = FORGERY.replace("\x00", "")  # which no server takes
    marks = "``" if "mysql" in database_url else '""'
    table, rule = (f"{marks[0]}{thing} {name}{marks[1]}" for thing in ("table", "uq"))
    observer.execute(f"CREATE TABLE {table} (a integer, CONSTRAINT {rule} UNIQUE (a))")
    app, inner = FastAPI(), APIRouter()
    async with Database(database_url) as db:
        db.install(app)
        session = Annotated[AsyncSession, db.session(label=f"label {FORGERY}", retry=Retry(2, base=0))]

        async def failing(_: Any) -> None:
            raise ValueError(FORGERY)

        @inner.post("/taken")
        async def taken(session: session) -> None:
            db.after_rollback(failing)
            await session.execute(text(f"INSERT INTO {table} VALUES (1), (1)"))

        @inner.post("/chance")
        async def chance(session: session) -> None:
            error = errors.SerializationFailure(FORGERY)
            error.sqlstate = FORGERY
            raise error

        @inner.post("/unknown")
        async def unknown(session: session) -> None:
            raise errors.CommitOutcomeUnknown(FORGERY)

        @inner.post("/discarded")
        async def discarded(session: Annotated[AsyncSession, db.manual_session()]) -> None:
            await session.execute(text(f"INSERT INTO {table} VALUES (1)"))

        @inner.post("/unflushed")
        async def unflushed(session: session) -> Shown:
            session.add(Person(name="ann"))
            return {}

        app.mount("/{tenant}", inner)
        async with Local("", db, app, observer).client() as client:
            for path in ("taken", "chance", "unknown", "discarded", "unflushed"):
                await client.post(f"/{quote(FORGERY)}/{path}")
    assert forged(caplog) == []
    said = [record.getMessage() for record in caplog.records if record.name == "transact"]
    expected = (
        "unique-violation",
        "an after_rollback hook",
        "attempt 1",
        "retries-exhausted",
        "outcome-unknown",
        "left changes",
        "flush",
    )
    assert {words for words in expected if not any(words in message for message in said)} == set()


@pytest.mark.parametrize("method", ["GET", "PO\r\nST\x1b[2J", ""])
async def test_a_method_and_a_prefix_cannot_forge_a_line_of_the_log(
    caplog: pytest.LogCaptureFixture, method: str
) -> None:
    app = FastAPI()
    Database("sqlite+aiosqlite://").install(app)

    async def fail(request: Any) -> None:
        raise errors.UniqueViolation(FORGERY)

    app.router.add_route("/do", fail, methods=[method] if method else None)
    caplog.set_level(logging.DEBUG)
    scope = {
        "type": "http",
        "method": method or "GET",
        "path": "/do",
        "root_path": FORGERY,
        "query_string": b"",
        "headers": [],
    }
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request", "body": b""}

    await app(scope, receive, send)
    assert sent[0]["status"] == 409
    assert forged(caplog) == []
