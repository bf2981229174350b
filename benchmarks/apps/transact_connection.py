"""transact without the ORM: ``db.connection()`` and ``db.connection(read_only=True)``."""

from typing import Annotated

from fastapi import FastAPI
from sqlalchemy.ext.asyncio import AsyncConnection

from benchmarks.apps._routes import POOL_SIZE, add_connection_routes
from transact.fastapi import Database


def make_app(url: str, pool_size: int = POOL_SIZE) -> FastAPI:
    db = Database(url, pool_size=pool_size, max_overflow=0)
    app = FastAPI(lifespan=db.lifespan)
    db.install(app)
    add_connection_routes(
        app,
        Annotated[AsyncConnection, db.connection()],
        reading=Annotated[AsyncConnection, db.connection(read_only=True)],
    )
    return app
