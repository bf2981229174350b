"""SQLAlchemy Core by hand: each route opens its own block, and nothing is injected."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from sqlalchemy.ext.asyncio import create_async_engine

from benchmarks.apps._routes import POOL_SIZE, EntryOut, add_empty_route, insert_row, select_one, select_rows


def make_app(url: str, pool_size: int = POOL_SIZE) -> FastAPI:
    engine = create_async_engine(url, pool_size=pool_size, max_overflow=0)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await engine.dispose()

    app = FastAPI(lifespan=lifespan)

    @app.post("/insert")
    @app.post("/insert-core")
    async def insert() -> dict[str, int]:
        async with engine.begin() as connection:
            return await insert_row(connection)

    @app.get("/one")
    async def one() -> dict[str, int]:
        async with engine.begin() as connection:
            return await select_one(connection)

    @app.get("/rows", response_model=list[EntryOut])
    async def rows() -> Any:
        async with engine.begin() as connection:
            return await select_rows(connection)

    @app.get("/idle")
    async def idle() -> dict[str, str]:
        return {"status": "idle"}

    add_empty_route(app)
    return app
