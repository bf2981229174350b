"""The shop, installed on the test's database."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from tests.examples.serving import import_shop


@pytest.fixture
async def shop(database_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the shop, which runs in this process on an empty database."""
    monkeypatch.setenv("TRANSACT_URL", "")  # so that it is put back at the end
    app = import_shop(database_url, "app").app
    db = import_shop(database_url, "database").db
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://shop") as http:
        await import_shop(database_url, "migrate").upgrade(db)
        yield http
        assert db.engine.pool.checkedout() == 0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave the example's tests out of the measuring of coverage: see `serving.environment`."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker("no_cover")
