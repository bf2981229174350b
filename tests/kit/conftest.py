"""An application, its tables, and a database that is under test."""

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

import pytest
from fastapi import FastAPI
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from tests.sync.in_place import sync_url
from transact.fastapi import Database, SyncDatabase
from transact.pytest_plugin import DatabaseUnderTest


def create(database_url: str, *statements: str) -> Database:
    """A database with tables, made as an application's own set-up makes them: in a loop that is gone when tests run."""
    db = Database(database_url)

    async def make() -> None:
        async with db, db.engine.begin() as connection:
            for statement in statements:
                await connection.execute(text(statement))

    with ThreadPoolExecutor(1) as thread:  # a test may be running in a loop here
        thread.submit(asyncio.run, make()).result()
    return db


@pytest.fixture
def db(database_url: str) -> Database:
    engine = " ENGINE=InnoDB" if database_url.startswith("mysql") else ""
    return create(database_url, f"CREATE TABLE notes (id INTEGER PRIMARY KEY, body VARCHAR(20) NOT NULL){engine}")


@pytest.fixture
def database(db: Database, transact_database: Callable[..., DatabaseUnderTest]) -> DatabaseUnderTest:
    return transact_database(db)


@pytest.fixture
def sync_db(db: Database, database_url: str) -> Iterator[SyncDatabase]:  # the tables come first
    with SyncDatabase(sync_url(database_url)) as sync_db:
        yield sync_db


async def add(session: AsyncSession, number: int, body: str = "x") -> None:
    await session.execute(text("INSERT INTO notes (id, body) VALUES (:id, :body)"), {"id": number, "body": body})


async def numbers(db: Database) -> list[int]:
    async with db.transaction() as session:
        return list((await session.scalars(text("SELECT id FROM notes ORDER BY id"))).all())


def application(db: Database) -> FastAPI:
    """Notes are added, listed and lost; what was mailed is told."""
    app = FastAPI(lifespan=db.lifespan)
    db.install(app)
    app.state.mailed = []
    Session = Annotated[AsyncSession, db.session()]  # noqa: N806  # as users write it
    ReadSession = Annotated[AsyncSession, db.session(read_only=True)]  # noqa: N806

    @app.post("/notes/{number}", status_code=201)
    async def post(number: int, session: Session) -> dict[str, int]:
        await add(session, number)

        def mail() -> None:
            app.state.mailed.append(number)

        db.after_commit(mail)
        return {"id": number}

    @app.post("/broken/{number}")
    async def broken(number: int, session: Session) -> None:
        await add(session, number)
        raise RuntimeError("after the write")

    @app.get("/notes")
    async def get(session: ReadSession) -> list[int]:
        found: Any = await session.scalars(text("SELECT id FROM notes ORDER BY id"))
        return list(found.all())

    @app.get("/sneaky")
    async def sneaky(session: ReadSession) -> None:
        await add(session, 99)

    return app
