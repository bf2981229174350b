"""The least that commits before the response begins: what transact's way costs without any of its care.

One plain dependency, one ASGI middleware, one switch into SQLAlchemy's greenlet for COMMIT and the giving back. It has none of
transact's promises, and not even a rollback for a response that tells of a failure: nobody should use it.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import Depends, FastAPI
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.util import greenlet_spawn
from starlette.requests import HTTPConnection

from benchmarks.apps._routes import POOL_SIZE, add_session_routes


class CommitBeforeResponse:
    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def commit_and_send(message: Any) -> None:
            if message["type"] == "http.response.start" and "session" in scope:
                await greenlet_spawn(_commit, scope["session"].sync_session)
            await send(message)

        await self.app(scope, receive, commit_and_send)


def _commit(session: Any) -> None:
    session.commit()
    session.close()


def make_app(url: str, pool_size: int = POOL_SIZE) -> FastAPI:
    engine = create_async_engine(url, pool_size=pool_size, max_overflow=0)
    sessions = async_sessionmaker(engine, expire_on_commit=False)

    async def get_session(connection: HTTPConnection) -> AsyncSession:
        session: AsyncSession = sessions()
        connection.scope["session"] = session
        return session

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await engine.dispose()

    app = FastAPI(lifespan=lifespan)
    app.add_middleware(CommitBeforeResponse)
    add_session_routes(app, Annotated[AsyncSession, Depends(get_session)])
    return app
