"""Errors as RFC 9457 documents: what they say, what they never say, where the OpenAPI document announces them."""

import inspect
import logging
import re
from typing import Annotated, Any

import pytest
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse
from sqlalchemy import exc, text
from sqlalchemy.ext.asyncio import AsyncSession

from tests.fastapi.app import Person
from tests.fastapi.conftest import Local
from transact import Isolation, errors
from transact.fastapi import Database, Problem

SECRETS = re.compile(
    r"person|uq_|fk_|boss|INSERT|SELECT|(?-i:VALUES)|secret|Traceback|\.py|127\.0\.0\.1|transact_test|test\.db|root",
    re.IGNORECASE,
)
KINDS = [cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, errors.TransactError)]
STATUS = {
    "UniqueViolation": 409, "ExclusionViolation": 409, "ForeignKeyViolation": 409, "IntegrityViolation": 409,
    "NotNullViolation": 422, "CheckViolation": 422, "InvalidData": 422,
    "TransientError": 503, "SerializationFailure": 503, "DeadlockDetected": 503, "LockTimeout": 503,
    "ConnectionLost": 503, "ServerShutdown": 503, "PoolTimeout": 503, "DatabaseUnavailable": 503,
    "TooManyConnections": 503, "RetriesExhausted": 503,
    "StatementTimeout": 504, "TransactionTimeout": 504,
}  # fmt: skip


def check(answer: Any, name: str) -> None:
    """A whole document, and nothing of the database in it."""
    document = answer.json()
    status = STATUS.get(name, 500)
    code = re.sub(r"(?<!^)([A-Z])", r"-\1", name).lower()
    assert answer.headers["content-type"] == "application/problem+json"
    assert document.keys() == {"type", "title", "status", "detail", "code", "retryable"}
    assert (answer.status_code, document["status"], document["code"]) == (status, status, code)
    assert document["type"] == f"urn:transact:problem:{code}"
    assert document["retryable"] is getattr(errors, name).retryable
    assert (answer.headers.get("retry-after") == "1") is (status == 503)
    assert not SECRETS.search(answer.text + str(answer.headers))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
async def test_each_kind_of_error_is_one_document_that_tells_nothing_of_the_database(
    kind: type[errors.TransactError], caplog: pytest.LogCaptureFixture
) -> None:
    app = FastAPI()
    Database("sqlite+aiosqlite://").install(app)
    error = kind("secret", [ValueError("secret")]) if kind is errors.AfterCommitError else kind("secret person SELECT")
    error.constraint = "uq_person_name"  # type: ignore[attr-defined]

    @app.get("/secret-path/{number}")
    async def fail(number: int) -> None:
        raise error

    caplog.set_level(logging.INFO)
    local = Local("", None, app, None)  # type: ignore[arg-type]
    async with local.client() as client:
        check(await client.get("/secret-path/7"), kind.__name__)
    [record] = [record for record in caplog.records if record.name == "transact"]
    assert "GET /secret-path/{number} answered" in record.getMessage()
    assert kind.__name__ in record.getMessage()
    assert (record.levelno == logging.INFO) is (STATUS.get(kind.__name__, 500) < 500)


REAL = {
    "UniqueViolation": "INSERT INTO person (name) VALUES ('secret'), ('secret')",
    "ForeignKeyViolation": "INSERT INTO person (name, boss_id) VALUES ('secret', 99)",
    "NotNullViolation": "INSERT INTO person (name) VALUES (NULL)",
    "InvalidStatement": "SELECT secret FROM person_secret",
}


@pytest.mark.parametrize("name", REAL)
async def test_a_real_error_tells_nothing_of_the_database_and_is_logged_once(
    local: Local, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    local.db.install(local.app)

    @local.app.post("/do")
    async def do(session: Annotated[AsyncSession, local.db.session()]) -> str:
        await session.execute(text(REAL[name]))
        return "ok"

    caplog.set_level(logging.INFO, "transact")
    answer = await local.post("/do")
    if local.db.engine.dialect.name == "sqlite" and name == "InvalidStatement":
        name = answer.json()["code"].title().replace("-", "")  # SQLite has one code for all of these
        assert answer.status_code == 500
    check(answer, name)
    assert caplog.text.count("POST /do answered") == 1
    assert "'secret'" not in caplog.text
    assert local.names() == []


async def test_no_connection_is_a_document_too(caplog: pytest.LogCaptureFixture) -> None:
    db = Database("postgresql+asyncpg://secretuser:secretpass@127.0.0.1:1/transact_test")
    app = FastAPI()
    db.install(app)

    @app.get("/do")
    async def do(session: Annotated[AsyncSession, db.session()]) -> None:
        await session.execute(text("SELECT 1"))

    async with Local("", db, app, None).client() as client:  # type: ignore[arg-type]
        check(await client.get("/do"), "DatabaseUnavailable")
    assert "secretpass" not in caplog.text


@pytest.mark.engines("sqlite", "pg18-asyncpg", "mariadb")
async def test_an_exhausted_pool_is_a_document_too(local: Local) -> None:
    async with Database(local.url, pool_size=1, max_overflow=0, pool_timeout=0) as db:
        db.install(local.app)

        @local.app.get("/do")
        async def do(session: Annotated[AsyncSession, db.session(read_only=True)]) -> None:
            await session.execute(text("SELECT 1"))

        async with (
            db.transaction(read_only=True, isolation=Isolation.REPEATABLE_READ) as session,
            local.client() as client,
        ):
            await session.execute(text("SELECT 1"))
            check(await client.get("/do"), "PoolTimeout")
            assert (await client.get("/do")).status_code == 503


HANDLED = [
    errors.UniqueViolation, errors.IntegrityViolation, errors.DatabaseError, errors.TransactError,
    exc.IntegrityError, exc.DBAPIError, exc.SQLAlchemyError,
]  # fmt: skip


@pytest.mark.parametrize("handled", HANDLED, ids=lambda cls: f"{cls.__module__}.{cls.__name__}")
@pytest.mark.parametrize("when", ["statement", "commit"])
@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("style", ["async", "sync"])
async def test_an_applications_own_handler_for_the_class_gets_the_error(
    sqlite_url: str, handled: type[Exception], when: str, order: str, style: str
) -> None:
    db = Database(sqlite_url)
    app = FastAPI()
    if order == "after":
        db.install(app)

    async def own(request: Request, error: Exception) -> JSONResponse:
        return plain(request, error)

    def plain(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, handled)
        assert isinstance(error, errors.UniqueViolation)
        assert isinstance(error, exc.IntegrityError)
        return JSONResponse("mine", status_code=418)

    app.add_exception_handler(handled, own if style == "async" else plain)
    if order == "before":
        db.install(app)

    @app.post("/do")
    async def do(session: Annotated[AsyncSession, db.session()]) -> str:
        await (await session.connection()).run_sync(Person.metadata.create_all)
        session.add_all([Person(name="a"), Person(name="a")])
        if when == "statement":
            await session.flush()
        return "ok"

    async with db, Local("", db, app, None).client() as client:  # type: ignore[arg-type]
        answer = await client.post("/do")
        assert (answer.status_code, answer.json()) == (418, "mine")
        assert db.engine.pool.checkedout() == 0


@pytest.mark.parametrize("handled", [ValueError, Exception, 500])
async def test_an_error_of_a_hook_at_commit_reaches_the_handler_that_the_route_would_have_had(
    sqlite_url: str, handled: Any
) -> None:
    app = FastAPI()
    db = Database(sqlite_url)
    db.install(app)

    @app.exception_handler(handled)
    def own(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse(repr(error), status_code=500)

    @app.post("/do")
    async def do(session: Annotated[AsyncSession, db.session()]) -> str:
        def fail() -> None:
            raise ValueError("at commit")

        db.before_commit(fail)
        return "ok"

    async with db, Local("", db, app, None).client() as client:  # type: ignore[arg-type]
        assert (await client.post("/do")).json() == "ValueError('at commit')"


async def test_an_http_exception_of_a_hook_at_commit_is_the_answer(sqlite_url: str) -> None:
    app = FastAPI()
    db = Database(sqlite_url)
    db.install(app)

    @app.exception_handler(423)
    def locked(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse("by status", status_code=423)

    @app.post("/do")
    async def do(session: Annotated[AsyncSession, db.session()], status: int) -> str:
        def fail() -> None:
            raise HTTPException(status, "at commit")

        db.before_commit(fail)
        return "ok"

    async with db, Local("", db, app, None).client() as client:  # type: ignore[arg-type]
        assert (await client.post("/do?status=409")).json() == {"detail": "at commit"}
        assert (await client.post("/do?status=423")).json() == "by status"


@pytest.mark.engines("sqlite", "pg18-asyncpg", "mariadb")
async def test_a_critical_hook_that_fails_after_the_commit_does_not_pretend_that_nothing_is_stored(
    local: Local,
) -> None:
    local.db.install(local.app)

    @local.app.post("/do")
    async def do(session: Annotated[AsyncSession, local.db.session()]) -> str:
        def fail() -> None:
            raise ValueError("secret")

        session.add(Person(name="ann"))
        local.db.after_commit(fail, critical=True)
        return "ok"

    answer = await local.post("/do")
    assert (answer.status_code, answer.json()["code"]) == (500, "after-commit-error")
    assert "took effect" in answer.json()["detail"]
    assert local.names() == ["ann"]


# OpenAPI.


def documented(**install: Any) -> dict[str, Any]:
    db = Database("sqlite+aiosqlite://")
    app = FastAPI()
    db.install(app, **install)
    session = Annotated[AsyncSession, db.session()]

    async def user(session: session) -> int:
        return 1

    @app.get("/direct/{path:path}")
    async def direct(session: session, path: str, number: int) -> int: ...

    @app.post("/sub", responses={409: {"description": "mine"}})
    async def sub(user: Annotated[int, Depends(user)]) -> int: ...

    @app.get("/none")
    async def none(number: int) -> int: ...

    router = APIRouter(prefix="/router", dependencies=[Depends(user)])

    @router.delete("/{number}", status_code=204)
    async def included(number: int) -> None: ...

    app.include_router(router, prefix="/prefix")
    inner = FastAPI()

    @inner.get("/none")
    async def mounted(session: session) -> int: ...

    app.mount("/mounted", inner)
    app.openapi()
    return app.openapi()


def test_routes_that_use_the_database_announce_their_problems_and_others_do_not() -> None:
    document = documented(problems={"uq_person_name": Problem(418)})
    paths = document["paths"]
    for operation in (
        paths["/direct/{path}"]["get"],
        paths["/sub"]["post"],
        paths["/prefix/router/{number}"]["delete"],
    ):
        for status in ("409", "418", "422", "500", "503", "504"):
            content = operation["responses"][status]["content"]
            assert content["application/problem+json"]["schema"] == {"$ref": "#/components/schemas/TransactProblem"}
        assert "Retry-After" in operation["responses"]["503"]["headers"]
    assert paths["/none"]["get"]["responses"].keys() == {"200", "422"}
    assert paths["/sub"]["post"]["responses"]["409"]["description"] == "mine"
    assert not re.search("uq_person_name", str(document))


def test_the_frameworks_own_422_stays_beside() -> None:
    content = documented()["paths"]["/direct/{path}"]["get"]["responses"]["422"]["content"]
    assert content["application/json"]["schema"] == {"$ref": "#/components/schemas/HTTPValidationError"}
    assert content.keys() == {"application/json", "application/problem+json"}


def test_the_document_is_whole() -> None:
    document = documented()

    def references(node: Any) -> set[str]:
        if isinstance(node, dict):
            own = {node["$ref"]} if isinstance(node.get("$ref"), str) else set()
            return own.union(*map(references, node.values()))
        return set().union(*map(references, node)) if isinstance(node, list) else set()

    for reference in references(document):
        found: Any = document
        for part in reference.removeprefix("#/").split("/"):
            found = found[part]
    for operations in document["paths"].values():
        for operation in operations.values():
            for status, response in operation["responses"].items():
                assert re.fullmatch(r"[1-5]\d\d", status)
                assert response["description"]
    schema = document["components"]["schemas"]["TransactProblem"]
    assert set(schema["required"]) <= schema["properties"].keys()


def test_an_application_that_uses_no_database_has_no_schema_of_problems() -> None:
    app = FastAPI()
    Database("sqlite+aiosqlite://").install(app)
    assert "components" not in app.openapi()
