"""The routes of ``_routes`` as plain ``def``, which the server runs in worker threads."""

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from sqlalchemy import insert, select, text
from sqlalchemy.orm import Session

from benchmarks.apps._routes import ONE_SQL, Entry, EntryOut, Item


def insert_item(session: Session) -> dict[str, int]:
    """One INSERT by the ORM."""
    item = Item(name="x")
    session.add(item)
    session.flush()
    return {"id": item.id}


def insert_row(session: Session) -> dict[str, int]:
    """One INSERT by Core."""
    table = Item.__table__
    result = session.execute(insert(table).values(name="x").returning(table.c.id))  # type: ignore[arg-type]
    return {"id": result.scalar_one()}


def select_one(session: Session) -> dict[str, int]:
    return {"one": session.execute(text(ONE_SQL)).scalar_one()}


def select_entries(session: Session) -> Sequence[Entry]:
    """All the entries, as objects."""
    return session.scalars(select(Entry)).all()


def add_routes(app: FastAPI, session: Any, reading: Any = None) -> None:
    """Add the routes of a variant that hands out a ``Session``; the annotations say how it is asked for."""
    reading = reading or session

    @app.post("/insert")
    def orm_insert(session: session) -> dict[str, int]:
        return insert_item(session)

    @app.post("/insert-core")
    def core_insert(session: session) -> dict[str, int]:
        return insert_row(session)

    @app.get("/one")
    def one(session: reading) -> dict[str, int]:
        return select_one(session)

    @app.get("/rows", response_model=list[EntryOut])
    def rows(session: reading) -> Any:
        return select_entries(session)

    @app.get("/idle")
    def idle(session: session) -> dict[str, str]:  # noqa: ARG001  # asked for and left alone
        return {"status": "idle"}

    @app.get("/empty")
    def empty() -> dict[str, str]:
        return {"status": "empty"}
