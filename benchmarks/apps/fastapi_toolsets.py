"""fastapi-toolsets, as its documentation shows it: ``db.install(app)``, and the ``Database`` is the dependency."""

from typing import Annotated

from fastapi import Depends, FastAPI
from fastapi_toolsets.db import Database
from sqlalchemy.ext.asyncio import AsyncSession

from benchmarks.apps._routes import POOL_SIZE, add_session_routes


def make_app(url: str, pool_size: int = POOL_SIZE) -> FastAPI:
    db = Database(url, pool_size=pool_size, max_overflow=0)
    app = FastAPI()
    db.install(app)
    add_session_routes(app, Annotated[AsyncSession, Depends(db)])
    return app
