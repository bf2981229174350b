"""The same dependency, which ends before the response is sent: what every other variant is compared with."""

from fastapi import FastAPI

from benchmarks.apps import get_db
from benchmarks.apps._routes import POOL_SIZE


def make_app(url: str, pool_size: int = POOL_SIZE) -> FastAPI:
    return get_db.make_app(url, pool_size, scope="function")
