"""transact with sessions: ``db.session()`` where something is written, ``db.session(read_only=True)`` where it is not."""

from typing import Annotated

from fastapi import FastAPI
from sqlalchemy.ext.asyncio import AsyncSession

from benchmarks.apps._routes import POOL_SIZE, add_session_routes
from transact.fastapi import Database


def make_app(url: str, pool_size: int = POOL_SIZE) -> FastAPI:
    db = Database(url, pool_size=pool_size, max_overflow=0)
    app = FastAPI(lifespan=db.lifespan)
    db.install(app)
    add_session_routes(
        app, Annotated[AsyncSession, db.session()], reading=Annotated[AsyncSession, db.session(read_only=True)]
    )
    return app
