"""A fault raises what the real event raises, and takes the same way through the application."""

import asyncio
import time

import httpx
import pytest
from sqlalchemy import exc, text
from sqlalchemy.exc import DBAPIError

from tests.kit.conftest import add, application, create, numbers
from transact import Retry, errors
from transact._testing.said import SAID
from transact.fastapi import Database


def client_of(db: Database) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(application(db), raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://test")


def family(url: str) -> str:
    return url.partition(":")[0].partition("+")[0]


@pytest.mark.parametrize("kind", SAID)
async def test_a_statement_fails_with_the_class_that_was_asked_for_or_the_engine_has_none(db, database, kind):
    said = SAID[kind]
    dialect = db.engine.dialect.name
    if getattr(said, "mysql" if dialect == "mariadb" else dialect) is None:
        with pytest.raises(errors.UsageError, match="never says"):
            database.faults.fail_statement(kind)
        return
    database.faults.fail_statement(kind, nth=2)
    with pytest.raises(errors.DatabaseError) as caught:
        async with db.transaction() as session:
            await add(session, 1)
            await add(session, 2)
    assert isinstance(caught.value, kind)
    assert isinstance(caught.value, DBAPIError)
    assert await numbers(db) == []


@pytest.mark.parametrize("kind", [errors.UniqueViolation, errors.ForeignKeyViolation, errors.SerializationFailure])
async def test_a_commit_fails_as_it_was_asked_to_and_nothing_is_stored(db, database, kind):
    database.faults.fail_commit(kind)
    async with client_of(db) as client:
        answer = await client.post("/notes/1")
        assert answer.status_code == (503 if kind is errors.SerializationFailure else 409)
        assert (await client.get("/notes")).json() == []
        assert (await client.post("/notes/1")).status_code == 201


@pytest.mark.engines("postgresql", "mariadb")
async def test_a_constraint_can_be_named(db, database):
    database.faults.fail_commit(errors.UniqueViolation, constraint="uq_notes_body")
    with pytest.raises(errors.UniqueViolation) as caught:
        async with db.transaction() as session:
            await add(session, 1)
    assert caught.value.constraint == "uq_notes_body"


async def test_a_commit_that_failed_is_tried_again(db, database):
    database.faults.fail_commit(errors.SerializationFailure, times=2)
    ran = []

    async def work(session) -> None:
        ran.append(1)
        await add(session, 1)

    await db.run(work, retry=Retry(attempts=3, base=0.001))
    assert len(ran) == 3
    assert await numbers(db) == [1]


@pytest.mark.engines("postgresql", "mariadb")
@pytest.mark.parametrize("stored", [True, False])
async def test_a_lost_commit_is_of_unknown_outcome_and_stored_or_not(db, database, stored):
    told = []
    database.faults.lose_commit(stored=stored)
    with pytest.raises(errors.CommitOutcomeUnknown):
        async with db.transaction() as session:
            await add(session, 1)
            db.after_commit(lambda: told.append("committed"))
            db.after_completion(lambda outcome: told.append(outcome.name))
    assert told == ["UNKNOWN"]
    assert await numbers(db) == ([1] if stored else [])
    database.assert_no_connection_held()


@pytest.mark.engines("sqlite")
def test_sqlite_has_no_commit_that_could_be_lost(db, database):
    with pytest.raises(errors.UsageError, match="no connection to a server"):
        database.faults.lose_commit(stored=True)


@pytest.mark.engines("postgresql")
@pytest.mark.parametrize("stored", [True, False])
async def test_with_verify_commit_a_lost_commit_is_found_out(db, database_url, transact_database, stored):
    verifying = Database(database_url, verify_commit=True)
    database = transact_database(verifying)
    database.faults.lose_commit(stored=stored)
    told = []

    async def store() -> None:
        async with verifying.transaction() as session:
            await add(session, 1)
            verifying.after_commit(lambda: told.append("committed"))

    if stored:
        await store()
    else:
        with pytest.raises(errors.ConnectionLost):
            await store()
    assert told == ["committed"] * stored
    assert await numbers(verifying) == [1] * stored


@pytest.mark.engines("postgresql", "mariadb")
async def test_a_lost_connection_is_told_as_the_driver_tells_it(db, database_url, database, observer):
    database.faults.fail_statement(errors.ConnectionLost)
    with pytest.raises(errors.DatabaseError) as feigned:
        async with db.transaction() as session:
            await add(session, 1)
    real_db = Database(database_url)
    async with real_db:
        with pytest.raises(errors.DatabaseError) as real:
            async with real_db.transaction() as session:
                mine = "pg_backend_pid()" if family(database_url) == "postgresql" else "connection_id()"
                number = await session.scalar(text(f"SELECT {mine}"))
                kill = f"SELECT pg_terminate_backend({number})" if "backend" in mine else f"KILL {number}"
                observer.execute(kill)
                await asyncio.sleep(0.05)  # the driver may read the end of the connection, or not yet
                await session.execute(text("SELECT 1"))
    lost = (errors.ConnectionLost, errors.ServerShutdown)  # as whichever word of the server's arrives first says
    assert isinstance(real.value, lost)
    assert isinstance(feigned.value, errors.ConnectionLost)
    assert feigned.value.connection_invalidated == real.value.connection_invalidated is True
    assert issubclass(type(feigned.value), exc.DBAPIError)
    assert await numbers(db) == []


async def test_refused_connections_are_a_database_that_is_not_there(db, database):
    async with client_of(db) as client:
        assert (await client.post("/notes/1")).status_code == 201
        with database.faults.refuse_connections():
            answer = await client.post("/notes/2")
            assert answer.status_code == 503
            assert answer.json()["code"] == "database-unavailable"
        assert (await client.post("/notes/3")).status_code == 201
        assert (await client.get("/notes")).json() == [1, 3]


@pytest.mark.engines("postgresql", "mariadb")
async def test_a_slow_statement_runs_into_the_limit_of_its_transaction(db, database):
    with database.faults.slow(30):
        started = time.monotonic()
        with pytest.raises(errors.TransactionTimeout):
            async with db.transaction(timeout=0.3) as session:
                await add(session, 1)
        assert time.monotonic() - started < 20
    assert await numbers(db) == []


async def test_slow_is_slow(db, database):
    started = time.monotonic()
    with database.faults.slow(0.2):
        assert await numbers(db) == []
    assert time.monotonic() - started >= 0.2


@pytest.mark.engines("sqlite")
def test_a_class_that_no_fault_is_known_for_is_refused(db, database):
    with pytest.raises(errors.UsageError, match="take one of"):
        database.faults.fail_commit(errors.PoolTimeout)
    for wrong in (
        lambda: database.faults.slow(0),
        lambda: database.faults.fail_statement(errors.CheckViolation, nth=0),
    ):
        with pytest.raises(errors.UsageError):
            wrong()


@pytest.mark.engines("postgresql")
async def test_a_real_deferred_constraint_fails_at_commit_each_time(database_url, transact_database):
    db = create(
        database_url,
        "CREATE TABLE parents (id INTEGER PRIMARY KEY)",
        "CREATE TABLE notes (id INTEGER PRIMARY KEY, body VARCHAR(20), parent INTEGER"
        " CONSTRAINT fk_parent REFERENCES parents DEFERRABLE INITIALLY DEFERRED)",
    )
    transact_database(db)
    for number in (1, 2):
        reached = False
        with pytest.raises(errors.ForeignKeyViolation) as caught:
            async with db.transaction() as session:
                await session.execute(text(f"INSERT INTO notes VALUES ({number}, 'x', 7)"))
                reached = True
        assert reached
        assert caught.value.constraint == "fk_parent"
        async with db.transaction() as session:  # what came before must not have made the constraint immediate
            await session.execute(text(f"INSERT INTO notes VALUES ({number}, 'x', {number})"))
            await session.execute(text(f"INSERT INTO parents VALUES ({number})"))
    assert await numbers(db) == [1, 2]


@pytest.mark.engines("sqlite")
async def test_a_real_deferred_constraint_of_sqlite_fails_at_commit_each_time(database_url, transact_database):
    db = create(
        database_url,
        "CREATE TABLE parents (id INTEGER PRIMARY KEY)",
        "CREATE TABLE notes (id INTEGER PRIMARY KEY, parent INTEGER REFERENCES parents DEFERRABLE INITIALLY DEFERRED)",
    )
    transact_database(db)
    for _ in range(2):
        with pytest.raises(errors.ForeignKeyViolation):
            async with db.transaction() as session:
                await session.execute(text("INSERT INTO notes VALUES (1, 7)"))
    async with db.transaction() as session:
        await session.execute(text("INSERT INTO notes VALUES (1, 7)"))
        await session.execute(text("INSERT INTO parents VALUES (7)"))
    assert await numbers(db) == [1]
