"""The application of the measurements that load a server: the same routes on a hand-written ``get_db`` and on transact."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import Depends, FastAPI
from fastapi.responses import StreamingResponse
from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Mapped, mapped_column

from benchmarks.apps._routes import POOL_SIZE, Base, insert_item, select_one
from transact import Isolation, Retry
from transact.fastapi import Database

HERE = __name__
GET_DB = "get_db"
GET_DB_FUNCTION = 'get_db, scope="function"'
TRANSACT = "transact"
WAIT = 0.2  # seconds of a handler for something that is not the database
WORK = 0.2  # seconds that /work keeps the database busy
CHUNK = "x" * 65536


class Counter(Base):
    __tablename__ = "bench_counters"

    id: Mapped[int] = mapped_column(primary_key=True)
    number: Mapped[int]


@dataclass(frozen=True)
class Sessions:
    """What a variant hands to its routes, for ``Depends``; ``block`` begins a transaction that ends within a route."""

    read: Any
    write: Any
    block: Any


def make_app(
    url: str, variant: str, *, serializable: bool = False, max_waiting: int | None = None, attempts: int = 1
) -> FastAPI:
    """``attempts`` and ``max_waiting`` are for transact alone."""
    app = FastAPI()
    if variant == TRANSACT:
        isolation = Isolation.SERIALIZABLE if serializable else None
        db = Database(url, pool_size=POOL_SIZE, max_overflow=0, max_waiting=max_waiting, isolation=isolation)
        db.install(app)
        retry = Retry(attempts=attempts) if attempts > 1 else None
        sessions = Sessions(db.session(read_only=True), db.session(retry=retry), db.transaction)
    else:
        level = {"isolation_level": "SERIALIZABLE"} if serializable else {}
        sessions = _hand_written(url, "function" if variant == GET_DB_FUNCTION else None, level)
    _add_short(app, sessions)
    _add_long(app, sessions)
    return app


def _hand_written(url: str, scope: Literal["function"] | None, level: dict[str, Any]) -> Sessions:
    engine = create_async_engine(url, pool_size=POOL_SIZE, max_overflow=0, **level)
    factory = async_sessionmaker(engine, expire_on_commit=False)

    async def get_db() -> AsyncIterator[AsyncSession]:
        async with factory() as session, session.begin():
            yield session

    depends = Depends(get_db, scope=scope)
    return Sessions(depends, depends, factory.begin)


def _add_short(app: FastAPI, sessions: Sessions) -> None:
    reads = Annotated[AsyncSession, sessions.read]
    writes = Annotated[AsyncSession, sessions.write]

    @app.get("/one")
    async def one(session: reads) -> dict[str, int]:
        return await select_one(session)

    @app.post("/count")
    async def count(session: writes) -> dict[str, int]:
        number = (await session.scalar(select(Counter.number).where(Counter.id == 1)) or 0) + 1
        await session.execute(update(Counter).where(Counter.id == 1).values(number=number))
        return {"number": number}


def _add_long(app: FastAPI, sessions: Sessions) -> None:
    reads = Annotated[AsyncSession, sessions.read]
    writes = Annotated[AsyncSession, sessions.write]

    @app.post("/work")
    async def work(session: writes) -> dict[str, int]:
        done = await insert_item(session)
        await session.execute(select(func.pg_sleep(WORK)))
        return done

    @app.get("/export")
    async def export(session: reads, megabytes: int) -> StreamingResponse:
        await select_one(session)

        async def chunks() -> AsyncIterator[str]:
            for _ in range(megabytes * 16):
                yield CHUNK

        return StreamingResponse(chunks(), media_type="text/csv")

    @app.get("/read-and-wait")
    async def read_and_wait(session: reads) -> dict[str, int]:
        found = await select_one(session)
        await asyncio.sleep(WAIT)
        return found

    @app.post("/write-and-wait")
    async def write_and_wait(session: writes) -> dict[str, int]:
        done = await insert_item(session)
        await asyncio.sleep(WAIT)
        return done

    @app.post("/commit-and-wait")
    async def commit_and_wait() -> dict[str, int]:
        async with sessions.block() as session:
            done = await insert_item(session)
        await asyncio.sleep(WAIT)
        return done
