"""A request that ends while a task of its own still uses its session."""

import asyncio
from typing import Annotated

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from transact import errors
from transact.fastapi import Database

CHILD: dict[str, asyncio.Task] = {}


def application(db: Database, *, warm: bool) -> FastAPI:
    app = FastAPI(lifespan=db.lifespan)
    db.install(app)

    @app.post("/late")
    async def late(session: Annotated[AsyncSession, db.session()]) -> str:
        if warm:
            await session.execute(text("SELECT 1"))
        CHILD["late"] = asyncio.create_task(
            session.run_sync(
                lambda s: (s.execute(text("SELECT pg_sleep(0.3)")), s.execute(text("INSERT INTO t VALUES (1)")))
            )
        )
        await asyncio.sleep(0)
        return "answered"

    return app


@pytest.mark.engines("postgresql")
@pytest.mark.parametrize("warm", [True, False], ids=["warm", "cold"])
async def test_a_statement_that_outlives_its_request_is_rolled_back_and_gives_its_connection_back(
    database_url, observer, warm
):
    observer.execute("CREATE TABLE t (n integer)")
    db = Database(database_url, pool_size=1, max_overflow=0)
    app = application(db, warm=warm)
    async with app.router.lifespan_context(app):
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://t") as client:
            answer = await client.post("/late")
        assert answer.status_code == 500
        assert answer.json()["code"] == "concurrent-use"
        with pytest.raises(errors.TransactionEnded):
            await CHILD.pop("late")
        assert db.engine.pool.checkedout() == 0
        assert observer.idle_in_transaction() == 0
        assert observer.scalar("SELECT count(*) FROM t") == 0
        async with db.transaction() as session:
            await session.execute(text("INSERT INTO t VALUES (2)"))
    assert observer.rows("SELECT n FROM t") == [(2,)]
