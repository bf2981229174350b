"""Migrations and tables say the same, in both directions, on every driver."""

import subprocess
import sys

import pytest

from tests.examples.serving import ROOT, environment, import_shop, schema_differences, tables
from transact import Database

TABLES = {"users", "profiles", "products", "orders", "order_lines"}


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSACT_URL", "")  # so that it is put back at the end


async def test_migrations_lead_to_the_tables_and_back_to_nothing(database_url: str) -> None:
    migrate = import_shop(database_url, "migrate")
    async with Database(database_url) as db:
        for _ in range(2):
            await migrate.upgrade(db)
            assert await tables(database_url) == TABLES
            assert await schema_differences(database_url) == []
            await migrate.downgrade(db, "base")
            assert await tables(database_url) == set()


async def test_each_migration_can_be_undone_by_itself(database_url: str) -> None:
    migrate = import_shop(database_url, "migrate")
    async with Database(database_url) as db:
        await migrate.upgrade(db)
        await migrate.downgrade(db, "0001")
        assert await tables(database_url) == {"users", "profiles"}
        await migrate.upgrade(db)
        assert await tables(database_url) == TABLES


@pytest.mark.engines("sqlite", "pg18-asyncpg", "pg18-psycopg", "mariadb")
async def test_the_alembic_command_reads_the_same_environment(database_url: str) -> None:
    command = [sys.executable, "-m", "alembic", "-c", "examples/shop/alembic.ini", "upgrade", "head"]
    done = subprocess.run(command, cwd=ROOT, env=environment(database_url), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert await tables(database_url) == TABLES
