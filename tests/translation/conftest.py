from collections.abc import AsyncIterator

import pytest_asyncio
from _pytest.fixtures import FixtureRequest

from tests.translation.bench import Bench, open_bench


@pytest_asyncio.fixture
async def bench(request: FixtureRequest, database_url: str) -> AsyncIterator[Bench]:
    """A database of each engine in turn, with the schema, to provoke errors in."""
    async with open_bench(request.node.callspec.params["database_url"], database_url) as bench:
        yield bench


@pytest_asyncio.fixture
async def sqlite_bench(sqlite_url: str) -> AsyncIterator[Bench]:
    """The same on SQLite only, for a law that has nothing to do with the engine."""
    async with open_bench("sqlite", sqlite_url) as bench:
        yield bench
