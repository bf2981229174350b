"""advanced-alchemy's FastAPI extension, as its documentation shows it, committing by itself."""

from typing import Annotated

from advanced_alchemy.config import EngineConfig
from advanced_alchemy.extensions.fastapi import AdvancedAlchemy, AsyncSessionConfig, SQLAlchemyAsyncConfig
from fastapi import Depends, FastAPI
from sqlalchemy.ext.asyncio import AsyncSession

from benchmarks.apps._routes import POOL_SIZE, add_session_routes


def make_app(url: str, pool_size: int = POOL_SIZE) -> FastAPI:
    app = FastAPI()
    config = SQLAlchemyAsyncConfig(
        connection_string=url,
        commit_mode="autocommit",
        session_config=AsyncSessionConfig(expire_on_commit=False),
        engine_config=EngineConfig(pool_size=pool_size, max_overflow=0),
    )
    alchemy = AdvancedAlchemy(config=config, app=app)
    add_session_routes(app, Annotated[AsyncSession, Depends(alchemy.provide_session())])
    return app
