"""The shop, installed on the test's database."""

from collections.abc import AsyncIterator

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
