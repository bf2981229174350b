"""The dependency that applications copy from each other."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import Depends, FastAPI
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from benchmarks.apps._routes import POOL_SIZE, add_session_routes


def make_app(url: str, pool_size: int = POOL_SIZE, **depends: Any) -> FastAPI:
    """``depends`` are further arguments of ``Depends``."""
    engine = create_async_engine(url, pool_size=pool_size, max_overflow=0)
    sessions = async_sessionmaker(engine, expire_on_commit=False)

    async def get_db() -> AsyncIterator[AsyncSession]:
        async with sessions() as session, session.begin():
            yield session

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await engine.dispose()

    app = FastAPI(lifespan=lifespan)
    add_session_routes(app, Annotated[AsyncSession, Depends(get_db, **depends)])
    return app
