"""What every variant has in common: the tables, the statements and the routes. Nothing here knows any of the libraries."""

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict
from sqlalchemy import Row, insert, select, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

POOL_SIZE = 10
ROWS = 100


class Base(DeclarativeBase):
    pass


class Item(Base):
    __tablename__ = "bench_items"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


class Entry(Base):
    """A row of the table that is only read, which holds ``ROWS`` of them."""

    __tablename__ = "bench_entries"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    amount: Mapped[int]


class EntryOut(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    id: int
    name: str
    amount: int


#: For the driver without SQLAlchemy: what SQLAlchemy makes of the statements below.
INSERT_SQL = "INSERT INTO bench_items (name) VALUES ($1) RETURNING bench_items.id"
ONE_SQL = "SELECT 1"
ROWS_SQL = "SELECT bench_entries.id, bench_entries.name, bench_entries.amount FROM bench_entries"


async def insert_item(session: AsyncSession) -> dict[str, int]:
    """One INSERT by the ORM."""
    item = Item(name="x")
    session.add(item)
    await session.flush()
    return {"id": item.id}


async def insert_row(executor: AsyncSession | AsyncConnection) -> dict[str, int]:
    """One INSERT by Core."""
    table = Item.__table__
    result = await executor.execute(insert(table).values(name="x").returning(table.c.id))  # type: ignore[arg-type]
    return {"id": result.scalar_one()}


async def select_one(executor: AsyncSession | AsyncConnection) -> dict[str, int]:
    return {"one": (await executor.execute(text(ONE_SQL))).scalar_one()}


async def select_entries(session: AsyncSession) -> Sequence[Entry]:
    """All the entries, as objects."""
    return (await session.scalars(select(Entry))).all()


async def select_rows(executor: AsyncSession | AsyncConnection) -> Sequence[Row[Any]]:
    """All the entries, as rows."""
    return (await executor.execute(select(Entry.__table__))).all()


def add_empty_route(app: FastAPI) -> None:
    @app.get("/empty")
    async def empty() -> dict[str, str]:
        return {"status": "empty"}


def add_session_routes(app: FastAPI, session: Any, reading: Any = None) -> None:
    """Add the routes of a variant that hands out an ``AsyncSession``; the annotations say how it is asked for."""
    reading = reading or session

    @app.post("/insert")
    async def orm_insert(session: session) -> dict[str, int]:
        return await insert_item(session)

    @app.post("/insert-core")
    async def core_insert(session: session) -> dict[str, int]:
        return await insert_row(session)

    @app.get("/one")
    async def one(session: reading) -> dict[str, int]:
        return await select_one(session)

    @app.get("/rows", response_model=list[EntryOut])
    async def rows(session: reading) -> Any:
        return await select_entries(session)

    @app.get("/idle")
    async def idle(session: session) -> dict[str, str]:  # noqa: ARG001  # asked for and left alone
        return {"status": "idle"}

    add_empty_route(app)


def add_connection_routes(app: FastAPI, connection: Any, reading: Any = None) -> None:
    """Add the routes of a variant that hands out an ``AsyncConnection``: without the ORM, both INSERT routes are one."""
    reading = reading or connection

    @app.post("/insert")
    @app.post("/insert-core")
    async def core_insert(connection: connection) -> dict[str, int]:
        return await insert_row(connection)

    @app.get("/one")
    async def one(connection: reading) -> dict[str, int]:
        return await select_one(connection)

    @app.get("/rows", response_model=list[EntryOut])
    async def rows(connection: reading) -> Any:
        return await select_rows(connection)

    @app.get("/idle")
    async def idle(connection: connection) -> dict[str, str]:  # noqa: ARG001  # asked for and left alone
        return {"status": "idle"}

    add_empty_route(app)
