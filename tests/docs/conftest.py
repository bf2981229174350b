"""A MariaDB database for pages that speak of one."""

import os
from pathlib import Path

import pytest

from tests.conftest import ENGINES
from tests.engines import BY_ID, EngineMissingError


@pytest.fixture
def mariadb_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    try:
        return request.config.stash[ENGINES].empty_database(BY_ID["mariadb"], tmp_path)
    except EngineMissingError as error:
        if request.config.getoption("--all-engines") or os.environ.get("CI") == "true":
            pytest.fail(f"MariaDB is missing: {error}", pytrace=False)
        pytest.skip(f"MariaDB is missing: {error}")
