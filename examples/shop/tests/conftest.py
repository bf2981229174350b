"""The shop under test: its tables are made once, and each test ends as if it had never been."""

import asyncio
from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient

from examples.shop.app import app
from examples.shop.database import db
from examples.shop.migrate import upgrade
from transact.pytest_plugin import DatabaseUnderTest, TransactDatabase


@pytest.fixture(scope="session")
def tables() -> None:
    async def make() -> None:
        async with db:
            await upgrade(db)

    asyncio.run(make())


@pytest.fixture
def database(tables: None, transact_database: TransactDatabase) -> DatabaseUnderTest:  # noqa: ARG001  # they come first
    return transact_database(db)


@pytest.fixture
def shop(database: DatabaseUnderTest) -> Iterator[TestClient]:
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client
    database.assert_no_connection_held()
