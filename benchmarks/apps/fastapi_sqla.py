"""fastapi-sqla, as its README shows it: its settings come from the environment, the middleware commits."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import fastapi_sqla
from fastapi import FastAPI

from benchmarks.apps._routes import POOL_SIZE, add_session_routes


def make_app(url: str, pool_size: int = POOL_SIZE) -> FastAPI:
    os.environ |= {"sqlalchemy_url": url, "sqlalchemy_pool_size": str(pool_size), "sqlalchemy_max_overflow": "0"}

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await fastapi_sqla.startup()
        yield

    app = FastAPI(lifespan=lifespan)
    fastapi_sqla.setup_middlewares(app)
    add_session_routes(app, fastapi_sqla.AsyncSession)
    return app
