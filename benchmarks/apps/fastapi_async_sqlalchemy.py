"""fastapi-async-sqlalchemy, as its README shows it: the middleware commits, and ``db.session`` is the request's."""

from typing import Any

from fastapi import FastAPI
from fastapi_async_sqlalchemy import SQLAlchemyMiddleware, db

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
    app = FastAPI()
    app.add_middleware(
        SQLAlchemyMiddleware,
        db_url=url,
        engine_args={"pool_size": pool_size, "max_overflow": 0},
        session_args={"expire_on_commit": False},
        commit_on_exit=True,
    )

    @app.post("/insert")
    async def insert() -> dict[str, int]:
        return await insert_item(db.session)

    @app.post("/insert-core")
    async def insert_core() -> dict[str, int]:
        return await insert_row(db.session)

    @app.get("/one")
    async def one() -> dict[str, int]:
        return await select_one(db.session)

    @app.get("/rows", response_model=list[EntryOut])
    async def rows() -> Any:
        return await select_entries(db.session)

    @app.get("/idle")
    async def idle() -> dict[str, str]:
        db.session  # noqa: B018  # asking is enough
        return {"status": "idle"}

    add_empty_route(app)
    return app
