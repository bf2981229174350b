"""The kit around a `SyncDatabase`: plain tests, and `def` routes in worker threads."""

import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text
from sqlalchemy.orm import Session

from tests.engines import Observer
from tests.kit.conftest import create
from tests.kit.plain import add, found, routes
from tests.sync.in_place import sync_url
from transact import Database, Propagation, Retry, SyncDatabase, errors
from transact._testing.database import Kit as KitOfTests
from transact.pytest_plugin import DatabaseUnderTest

pytestmark = pytest.mark.engines("sqlite", "pg18-psycopg", "mariadb")
Kit = Callable[..., DatabaseUnderTest[Any]]
DEFERRED = "DEFERRABLE INITIALLY DEFERRED"


@pytest.fixture
def sync(sync_db: SyncDatabase, transact_database: Kit) -> DatabaseUnderTest[SyncDatabase]:
    return transact_database(sync_db)


def test_commits_are_kept_to_the_end_of_the_test_and_rollbacks_are_not(sync_db, sync, observer: Observer):
    @sync_db.transactional(retry=Retry(2, base=0.001))
    def register(session: Session, number: int) -> int:
        return add(session, number)

    assert register(1) == 1
    with sync_db.transaction() as session:
        with pytest.raises(errors.UniqueViolation), sync_db.savepoint():
            add(session, 1)
        add(session, 2)
    with pytest.raises(ZeroDivisionError), sync_db.transaction() as session:
        _ = add(session, 3) / 0
    with sync_db.session_factory() as session:
        add(session, 4)
        session.commit()
        add(session, 5)
    with sync_db.engine.begin() as connection:
        connection.execute(text("INSERT INTO notes VALUES (6, 'x')"))
    with pytest.raises(errors.ReadOnlyViolation), sync_db.transaction(read_only=True) as session:
        add(session, 7)
    with sync_db.transaction() as session:
        rows = session.execute(text("SELECT id FROM notes ORDER BY id"), execution_options={"stream_results": True})
        assert [row.id for row in rows.yield_per(2)] == [1, 2, 4, 6]
    assert found(sync_db) == [1, 2, 4, 6]
    assert observer.rows("SELECT * FROM notes") == []
    sync.assert_no_connection_held()


def test_a_test_that_has_ended_has_left_nothing(db, sync_db, observer: Observer):
    kit = KitOfTests()
    try:
        for shares in (False, True, False):
            with kit.use() as transact_database:
                if shares:
                    transact_database(db)
                transact_database(sync_db, sharing=db if shares else None)
                assert found(sync_db) == []
                sync_db.run(add, 1)
            assert observer.rows("SELECT * FROM notes") == []
    finally:
        kit.close()
    assert found(sync_db) == []


def test_def_routes_see_what_they_commit_and_the_database_keeps_nothing(sync_db, sync, observer: Observer):
    app = routes(sync_db)
    with TestClient(app, raise_server_exceptions=False) as client:
        with sync.capture_hooks() as hooks, sync.assert_queries(2):
            assert client.post("/notes/1").status_code == 201
        assert hooks.after_commit == ["<lambda>"]
        assert client.post("/broken/2").status_code == 500
        assert client.post("/notes/1").status_code == 409
        with sync_db.transaction() as session:  # between requests, in the thread of the test
            add(session, 3)
        assert client.get("/notes").json() == [1, 3]
    assert app.state.mailed == [1]
    assert threading.current_thread() not in app.state.threads
    sync.assert_no_connection_held()
    assert observer.rows("SELECT * FROM notes") == []


@pytest.mark.engines("pg18-psycopg")
def test_concurrent_requests_in_worker_threads_take_turns_and_keep_apart(sync_db, sync):
    with TestClient(routes(sync_db), raise_server_exceptions=False) as client:

        def ask(number: int) -> None:
            paths = [f"/notes/{number}", f"/broken/{number + 50}", f"/notes/{number}"]
            statuses.append([client.post(path).status_code for path in paths])

        statuses: list[list[int]] = []
        threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert statuses == [[201, 500, 409]] * 8
        assert client.get("/notes").json() == list(range(8))
    assert not sync_db.in_transaction


@pytest.mark.engines("pg18-psycopg")
def test_a_worker_thread_that_serves_another_request_meanwhile_does_not_mix_them(sync_db, transact_database: Kit):
    transact_database(sync_db, patience=0.2)
    first, second = contextvars.copy_context(), contextvars.copy_context()
    with ThreadPoolExecutor(1) as worker:

        def serve(request: contextvars.Context, part: Callable[..., Any], *args: object) -> Any:
            return worker.submit(request.run, part, *args).result()

        block = sync_db.transaction(label="first")
        serve(first, add, serve(first, block.__enter__), 1)
        with pytest.raises(errors.UsageError, match="transaction of 'first' is open"):
            serve(second, sync_db.run, lambda session: add(session, 2))
        serve(first, block.__exit__, None, None, None)
    assert found(sync_db) == [1]


@pytest.mark.engines("pg18-psycopg", "mariadb")
def test_an_inner_transaction_of_its_own_ends_by_itself(sync_db, sync):
    with sync_db.transaction() as session:
        add(session, 1)
        with sync_db.transaction(propagation=Propagation.REQUIRES_NEW) as inner:
            add(inner, 2)
            with pytest.raises(errors.UsageError, match="the inner one has to end first"):
                session.execute(text("SELECT 1"))
        with (
            pytest.raises(ZeroDivisionError),
            sync_db.transaction(propagation=Propagation.REQUIRES_NEW) as inner,
        ):
            _ = add(inner, 3) / 0
        with sync_db.transaction(propagation=Propagation.NOT_SUPPORTED) as inner:
            add(inner, 4)
    assert found(sync_db) == [1, 2, 4]


@pytest.mark.engines("pg18-psycopg")
def test_what_the_driver_itself_is_asked_for_belongs_to_the_transaction(sync_db, sync, observer: Observer):
    with sync_db.transaction() as session:
        driver = session.connection().connection.driver_connection
        with driver.cursor().copy("COPY notes FROM STDIN") as copy:
            copy.write_row((1, "x"))
        assert session.scalar(text("SELECT count(*) FROM notes")) == 1
        driver.commit()
        add(session, 2)
        driver.rollback()
    assert found(sync_db) == [1]
    assert observer.rows("SELECT * FROM notes") == []


@pytest.mark.engines("pg18-psycopg")
def test_a_thread_that_waits_in_vain_for_another_is_told_so(sync_db, transact_database: Kit):
    transact_database(sync_db, patience=0.2)
    told: list[BaseException] = []

    def second() -> None:
        try:
            with sync_db.transaction(label="second") as session:
                add(session, 2)
        except errors.UsageError as error:
            told.append(error)

    with sync_db.transaction(label="first") as session:
        add(session, 1)
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert "'second' has waited 0.2 s" in str(told[0])
    assert "transaction of 'first' is open" in str(told[0])
    assert found(sync_db) == [1]


def test_faults_strike_where_they_are_armed(sync_db, sync):
    with TestClient(routes(sync_db), raise_server_exceptions=False) as client:
        sync.faults.fail_commit(errors.SerializationFailure)
        assert client.post("/notes/1").status_code == 503
        sync.faults.fail_statement(errors.UniqueViolation, nth=2)
        assert client.post("/notes/1").status_code == 409
        with sync.faults.refuse_connections():
            assert client.post("/notes/1").json()["code"] == "database-unavailable"
        with sync.faults.slow(0.01):
            assert client.get("/notes").json() == []
        assert client.post("/notes/1").status_code == 201
        assert client.get("/notes").json() == [1]


@pytest.mark.engines("pg18-psycopg", "mariadb")
@pytest.mark.parametrize("stored", [True, False])
def test_a_lost_commit_is_of_unknown_outcome_and_stored_or_not(sync_db, sync, stored):
    sync.faults.lose_commit(stored=stored)
    with pytest.raises(errors.CommitOutcomeUnknown), sync_db.transaction() as session:
        add(session, 1)
    sync.faults.fail_statement(errors.ConnectionLost)
    with pytest.raises(errors.ConnectionLost), sync_db.transaction() as session:
        add(session, 2)
    assert found(sync_db) == [1] * stored
    sync.assert_no_connection_held()


@pytest.mark.engines("pg18-psycopg", "mariadb")
def test_a_slow_statement_runs_into_the_limit_of_its_transaction(sync_db, sync):
    with sync.faults.slow(30), pytest.raises(errors.TransactionTimeout), sync_db.transaction(timeout=0.3) as session:
        add(session, 1)
    assert found(sync_db) == []


@pytest.mark.engines("pg18-psycopg")
@pytest.mark.parametrize("stored", [True, False])
def test_with_verify_commit_a_lost_commit_is_found_out(db, database_url, transact_database: Kit, stored):
    verifying = SyncDatabase(database_url, verify_commit=True)
    transact_database(verifying).faults.lose_commit(stored=stored)

    @verifying.transactional
    def store(session: Session) -> int:
        return add(session, 1)

    if stored:
        store()
    else:
        with pytest.raises(errors.ConnectionLost):
            store()
    assert found(verifying) == [1] * stored


@pytest.mark.engines("sqlite", "pg18-psycopg")
def test_a_deferred_constraint_fails_when_the_application_commits(database_url, transact_database: Kit):
    create(
        database_url,
        "CREATE TABLE notes (id INTEGER PRIMARY KEY, body VARCHAR(20),"
        f" parent INTEGER REFERENCES notes (id) {DEFERRED})",
    )
    db = SyncDatabase(sync_url(database_url))
    transact_database(db)
    for _ in range(2):
        with pytest.raises(errors.ForeignKeyViolation), db.transaction() as session:
            session.execute(text("INSERT INTO notes VALUES (1, 'x', 7)"))
            reached = True
        assert reached
    assert found(db) == []


def test_it_is_made_of_a_url_that_only_a_sync_driver_has(database_url, db, transact_database: Kit):
    made = transact_database(sync_url(database_url)).database
    assert isinstance(made, Database if "psycopg" in database_url else SyncDatabase)
