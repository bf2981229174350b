"""An application with `async def` and `def` routes: its two databases over one server, with and without one transaction."""

from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text

from tests.engines import Observer
from tests.kit.conftest import add as add_async
from tests.kit.conftest import application, numbers
from tests.kit.plain import add, found, routes
from transact import Database, SyncDatabase, errors
from transact.pytest_plugin import DatabaseUnderTest

pytestmark = pytest.mark.engines("sqlite", "pg18-psycopg", "mariadb")
Kit = Callable[..., DatabaseUnderTest[Any]]


@pytest.fixture
def both(db: Database, sync_db: SyncDatabase, transact_database: Kit) -> DatabaseUnderTest[Database]:
    database = transact_database(db)
    transact_database(sync_db, sharing=db)
    return database


def test_routes_of_both_kinds_see_the_data_of_each_other_if_they_share(db, sync_db, both, observer: Observer):
    app = application(db)
    sync_db.install(app)
    app.mount("/plain", routes(sync_db))
    with TestClient(app, raise_server_exceptions=False) as client:
        assert client.post("/notes/1").status_code == 201
        assert client.post("/plain/notes/2").status_code == 201
        assert client.post("/plain/notes/1").status_code == 409
        assert client.post("/notes/2").status_code == 409
        both.faults.fail_statement(errors.NotNullViolation)
        assert client.post("/plain/broken/3").status_code == 422
        both.faults.fail_commit(errors.SerializationFailure)
        assert client.post("/plain/notes/3").status_code == 503
        assert client.get("/notes").json() == client.get("/plain/notes").json() == [1, 2]
    assert observer.rows("SELECT * FROM notes") == []


@pytest.mark.engines("pg18-psycopg", "mariadb")
def test_what_fails_and_what_streams_does_so_in_the_words_of_the_driver_that_was_asked(db, sync_db, both):
    with sync_db.transaction() as session:
        for number in range(3):
            add(session, number)
    with sync_db.transaction(read_only=True) as session:
        rows = session.execute(text("SELECT id FROM notes ORDER BY id"), execution_options={"stream_results": True})
        assert [row.id for row in rows.yield_per(2)] == [0, 1, 2]
    both.faults.lose_commit(stored=True)
    with pytest.raises(errors.CommitOutcomeUnknown), sync_db.transaction() as session:
        add(session, 3)
    with both.faults.refuse_connections(), pytest.raises(errors.DatabaseUnavailable):
        found(sync_db)
    with pytest.raises(errors.UniqueViolation) as caught, sync_db.transaction() as session:
        add(session, 3)
    assert isinstance(caught.value.orig, sync_db.engine.dialect.loaded_dbapi.Error)
    assert found(sync_db) == [0, 1, 2, 3]
    both.assert_no_connection_held()


async def test_an_open_transaction_of_one_kind_is_waited_for_by_the_other(db, sync_db, transact_database: Kit):
    transact_database(db, patience=0.2)
    transact_database(sync_db, sharing=db)
    async with db.transaction(label="first") as session:
        await add_async(session, 1)
        with pytest.raises(errors.UsageError, match="transaction of 'first' is open"), sync_db.transaction() as plain:
            add(plain, 2)
    assert await numbers(db) == found(sync_db) == [1]


@pytest.mark.engines("pg18-asyncpg", "pg18-psycopg")
def test_drivers_that_cannot_share_are_told_and_then_see_nothing_of_each_other(
    db, database_url, transact_database: Kit
):
    plain_url = database_url.replace("+asyncpg", "+psycopg")
    sync_db = SyncDatabase(plain_url)
    transact_database(sync_db)
    with pytest.raises(errors.UsageError, match="not of a SyncDatabase"):
        transact_database(db, sharing=sync_db)
    if "asyncpg" in database_url:
        database = transact_database(db)
        with pytest.raises(errors.UsageError, match="write their statements in different ways"):
            transact_database(SyncDatabase(plain_url), sharing=db)
        with TestClient(application(db)) as client:
            assert client.post("/notes/1").status_code == 201
        assert found(sync_db) == []
        database.assert_no_connection_held()
    else:
        with pytest.raises(errors.UsageError, match="has no transaction of its own in this test"):
            transact_database(SyncDatabase(plain_url), sharing=db)
        transact_database(db)
        with pytest.raises(errors.UsageError, match="these are two databases"):
            transact_database(SyncDatabase(f"{plain_url}_other"), sharing=db)


@pytest.mark.engines("pg18-asyncpg")
async def test_two_that_do_not_share_do_not_wait_for_ever_for_what_the_other_holds(
    db, database_url, transact_database: Kit
):
    sync_db = SyncDatabase(database_url.replace("+asyncpg", "+psycopg"))
    transact_database(db, patience=0.2)
    transact_database(sync_db, patience=0.2)
    async with db.transaction() as session:
        await add_async(session, 1)
    sync_db.run(add, 2)
    with pytest.raises(errors.LockTimeout):
        sync_db.run(add, 1)
    with pytest.raises(errors.LockTimeout):
        async with db.transaction() as session:
            await add_async(session, 2)
    assert (await numbers(db), found(sync_db)) == ([1], [2])


@pytest.mark.engines("sqlite")
def test_on_sqlite_both_kinds_have_to_share(db, sync_db, both, transact_database: Kit):
    with pytest.raises(errors.UsageError, match="SQLite lets only one of them write"):
        transact_database(SyncDatabase(sync_db.engine.url))
    with pytest.raises(errors.UsageError, match="has no transaction of its own in this test"):
        transact_database(SyncDatabase(sync_db.engine.url), sharing=sync_db)
