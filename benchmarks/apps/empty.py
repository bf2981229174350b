"""FastAPI alone."""

from fastapi import FastAPI

from benchmarks.apps._routes import add_empty_route


def make_app(url: str, pool_size: int = 0) -> FastAPI:  # noqa: ARG001  # there is no database
    app = FastAPI()
    add_empty_route(app)
    return app
