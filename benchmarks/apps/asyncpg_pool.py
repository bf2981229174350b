"""The driver by itself, with its own pool: no SQLAlchemy."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
from fastapi import FastAPI

from benchmarks._urls import driven_by
from benchmarks.apps._routes import INSERT_SQL, ONE_SQL, POOL_SIZE, ROWS_SQL, EntryOut, add_empty_route


def make_app(url: str, pool_size: int = POOL_SIZE) -> FastAPI:
    dsn = driven_by("postgresql", url)
    pool: asyncpg.Pool

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        nonlocal pool
        async with asyncpg.create_pool(dsn, min_size=1, max_size=pool_size) as pool:
            yield

    app = FastAPI(lifespan=lifespan)

    @app.post("/insert")
    @app.post("/insert-core")
    async def insert() -> dict[str, int]:
        async with pool.acquire() as connection, connection.transaction():
            return {"id": await connection.fetchval(INSERT_SQL, "x")}

    @app.get("/one")
    async def one() -> dict[str, int]:
        return {"one": await pool.fetchval(ONE_SQL)}

    @app.get("/rows", response_model=list[EntryOut])
    async def rows() -> Any:
        return [dict(record) for record in await pool.fetch(ROWS_SQL)]

    @app.get("/idle")
    async def idle() -> dict[str, str]:
        return {"status": "idle"}

    add_empty_route(app)
    return app
