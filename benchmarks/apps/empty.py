"""FastAPI alone. The last of as many routes as the other applications have: each request passes the ones before it."""

from typing import Annotated

from fastapi import Depends, FastAPI

from benchmarks.apps._routes import add_empty_route

OTHERS = ("POST /insert", "POST /insert-core", "GET /one", "GET /rows")


async def get_nothing() -> None:
    """What every dependency costs, whatever it gives."""


async def _nothing() -> None:
    """It is never called."""


def make_app(url: str, pool_size: int = 0) -> FastAPI:  # noqa: ARG001  # there is no database
    app = FastAPI()
    for other in OTHERS:
        method, path = other.split()
        app.add_api_route(path, _nothing, methods=[method])

    @app.get("/idle")
    async def idle(nothing: Annotated[None, Depends(get_nothing)]) -> dict[str, str]:  # noqa: ARG001  # asked for and left alone
        return {"status": "idle"}

    add_empty_route(app)
    return app
