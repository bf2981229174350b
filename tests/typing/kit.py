"""What type checkers make of the test kit's fixture. mypy and pyright read this; nobody runs it."""

from typing import Any, assert_type

from transact import Database, SyncDatabase
from transact.fastapi import Database as InstalledDatabase
from transact.pytest_plugin import DatabaseUnderTest, TransactDatabase


def database(transact_database: TransactDatabase, db: InstalledDatabase, sync_db: SyncDatabase) -> None:
    assert_type(transact_database(db).database, InstalledDatabase)
    assert_type(transact_database(sync_db, sharing=db).database, SyncDatabase)
    assert_type(transact_database("sqlite+aiosqlite://"), DatabaseUnderTest[Any])


def without_an_argument(under_test: DatabaseUnderTest) -> None:
    assert_type(under_test.database, Database)


def fixture(transact_database: TransactDatabase, db: InstalledDatabase) -> DatabaseUnderTest:
    found = transact_database(db)
    return found  # noqa: RET504  # as tests annotate it that were written for any Database
