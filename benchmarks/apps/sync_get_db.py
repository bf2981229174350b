"""The plain dependency that applications copy from each other, which ends before the response is sent."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Depends, FastAPI
from sqlalchemy import create_engine
from sqlalchemy.orm import Session, sessionmaker

from benchmarks.apps._routes import POOL_SIZE
from benchmarks.apps._sync_routes import add_routes


def make_app(url: str, pool_size: int = POOL_SIZE) -> FastAPI:
    engine = create_engine(url, pool_size=pool_size, max_overflow=0)
    sessions = sessionmaker(engine, expire_on_commit=False)

    def get_db() -> Iterator[Session]:
        with sessions() as session, session.begin():
            yield session

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        engine.dispose()

    app = FastAPI(lifespan=lifespan)
    add_routes(app, Annotated[Session, Depends(get_db, scope="function")])
    return app
