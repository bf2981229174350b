"""A database for each row of a table, and the patience of the library made short: no fault here takes longer than it has to."""

from pathlib import Path

import pytest

from tests.conftest import _database
from transact._sqlalchemy import limits, shielding, verifying


@pytest.fixture
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database on the engine that is the parameter: rows of a table choose their engines themselves."""
    return _database(request, request.param, tmp_path)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shielding, "GRACE", 0.05)
    monkeypatch.setattr(limits, "GRACE", 0.2)
    monkeypatch.setattr(verifying, "_PAUSE", 0.01)
