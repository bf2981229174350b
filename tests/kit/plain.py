"""What `conftest` has for a `Database`, for a `SyncDatabase`."""

import threading
from typing import Annotated

from fastapi import Depends, FastAPI
from sqlalchemy import text
from sqlalchemy.orm import Session

from transact import SyncDatabase
from transact import fastapi as ours


def add(session: Session, number: int) -> int:
    session.execute(text("INSERT INTO notes (id, body) VALUES (:id, 'x')"), {"id": number})
    return number


def found(db: SyncDatabase) -> list[int]:
    with db.transaction(read_only=True) as session:
        return list(session.scalars(text("SELECT id FROM notes ORDER BY id")))


def routes(db: ours.SyncDatabase) -> FastAPI:
    """Notes are added after a look by a dependency of its own, which has a worker thread of its own."""
    app = FastAPI(lifespan=db.lifespan)
    db.install(app)
    app.state.mailed = []
    app.state.threads = set()
    Given = Annotated[Session, db.session()]  # noqa: N806  # as users write it

    def look(session: Given) -> int:
        app.state.threads.add(threading.current_thread())
        return int(session.scalar(text("SELECT count(*) FROM notes")) or 0)

    @app.post("/notes/{number}", status_code=201)
    def post(number: int, session: Given, _: Annotated[int, Depends(look)]) -> int:
        app.state.threads.add(threading.current_thread())
        db.after_commit(lambda: app.state.mailed.append(number))
        return add(session, number)

    @app.post("/broken/{number}")
    def broken(number: int, session: Given) -> None:
        add(session, number)
        raise RuntimeError("after the write")

    @app.get("/notes")
    def get(session: Annotated[Session, db.session(read_only=True)]) -> list[int]:
        return list(session.scalars(text("SELECT id FROM notes ORDER BY id")))

    return app
