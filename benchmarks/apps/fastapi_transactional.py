"""fastapi-transactional, as its README shows it: ``configure`` once, and ``async_session_manager`` around the work."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi_transactional import async_session_manager, configure
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

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
    engine = create_async_engine(url, pool_size=pool_size, max_overflow=0)
    configure(async_session_factory=async_sessionmaker(bind=engine, expire_on_commit=False))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await engine.dispose()

    app = FastAPI(lifespan=lifespan)

    @app.post("/insert")
    async def insert() -> dict[str, int]:
        async with async_session_manager() as session:
            return await insert_item(session)

    @app.post("/insert-core")
    async def insert_core() -> dict[str, int]:
        async with async_session_manager() as session:
            return await insert_row(session)

    @app.get("/one")
    async def one() -> dict[str, int]:
        async with async_session_manager() as session:
            return await select_one(session)

    @app.get("/rows", response_model=list[EntryOut])
    async def rows() -> Any:
        async with async_session_manager() as session:
            return await select_entries(session)

    @app.get("/idle")
    async def idle() -> dict[str, str]:
        async with async_session_manager():
            return {"status": "idle"}

    add_empty_route(app)
    return app
