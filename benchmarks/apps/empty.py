"""FastAPI alone. The last of as many routes as the other applications have: each request passes the ones before it."""

from fastapi import FastAPI

from benchmarks.apps._routes import add_empty_route

OTHERS = ("POST /insert", "POST /insert-core", "GET /one", "GET /rows", "GET /idle")


def make_app(url: str, pool_size: int = 0) -> FastAPI:  # noqa: ARG001  # there is no database
    app = FastAPI()
    for other in OTHERS:
        method, path = other.split()
        app.add_api_route(path, _nothing, methods=[method])
    add_empty_route(app)
    return app


async def _nothing() -> None:
    """It is never called."""
