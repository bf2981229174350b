"""context-async-sqlalchemy, as its documentation shows it, with the ASGI middleware."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from context_async_sqlalchemy import ASGIHTTPDBSessionMiddleware, DBConnect, db_session
from fastapi import FastAPI
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

from benchmarks.apps._routes import (
    POOL_SIZE,
    EntryOut,
    add_empty_route,
    insert_item,
    insert_row,
    select_entries,
    select_one,
)


def make_app(url: str, pool_size: int = POOL_SIZE) -> FastAPI:
    def engine(host: str) -> AsyncEngine:
        return create_async_engine(host, pool_size=pool_size, max_overflow=0)

    def sessions(engine: AsyncEngine) -> async_sessionmaker[AsyncSession]:
        return async_sessionmaker(engine, expire_on_commit=False)

    connection = DBConnect(engine, sessions, host=url)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await connection.close()

    app = FastAPI(lifespan=lifespan)
    app.add_middleware(ASGIHTTPDBSessionMiddleware)

    @app.post("/insert")
    async def insert() -> dict[str, int]:
        return await insert_item(await db_session(connection))

    @app.post("/insert-core")
    async def insert_core() -> dict[str, int]:
        return await insert_row(await db_session(connection))

    @app.get("/one")
    async def one() -> dict[str, int]:
        return await select_one(await db_session(connection))

    @app.get("/rows", response_model=list[EntryOut])
    async def rows() -> Any:
        return await select_entries(await db_session(connection))

    @app.get("/idle")
    async def idle() -> dict[str, str]:
        await db_session(connection)
        return {"status": "idle"}

    add_empty_route(app)
    return app
