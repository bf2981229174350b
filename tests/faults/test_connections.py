"""Connections that the server ends or refuses: no failed request from a stale one, and nothing to restart."""

import asyncio
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url

from scripts._postgres import embedded_postgres
from tests.engines import Observer
from tests.faults.proxy import Fault, proxied
from tests.faults.scene import WORDS, Answer, Scene, scene
from tests.observers import observe
from transact import Retry
from transact.fastapi import Database

pytestmark = [pytest.mark.usefixtures("impatient"), pytest.mark.engines("pg18-asyncpg", "pg18-psycopg", "mariadb")]

LIMITED = {
    "postgresql": (
        "CREATE ROLE {name} LOGIN PASSWORD '{name}' CONNECTION LIMIT 1",
        "GRANT USAGE ON SCHEMA public TO {name}",
    ),
    "mysql": (
        "CREATE USER {name} IDENTIFIED BY '{name}' WITH MAX_USER_CONNECTIONS 1",
        "GRANT SELECT ON {database}.* TO {name}",
    ),
}
FORGOTTEN = {"postgresql": ("DROP OWNED BY {name}", "DROP ROLE {name}"), "mysql": ("DROP USER {name}",)}
OTHERS = {
    "postgresql": "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()",
    "mysql": "SELECT id FROM information_schema.processlist WHERE db = database() AND id <> connection_id()",
}


def kill_all(url: str, observer: Observer) -> int:
    """End every other session of the database, as an administrator, a failover or a restart does; return how many."""
    backend = make_url(url).get_backend_name()
    sessions = [session for (session,) in observer.rows(OTHERS[backend])]
    for session in sessions:
        if backend == "postgresql":
            assert observer.scalar("SELECT pg_terminate_backend(?, 3000)", session)
        else:
            observer.execute(f"KILL {session}")
    while observer.rows(OTHERS[backend]):
        pass
    return len(sessions)


@pytest.mark.engines("pg18-psycopg")
async def test_an_error_without_a_code_on_a_connection_that_the_server_ended_is_that_of_a_lost_one(
    database_url: str, observer: Observer
) -> None:
    """psycopg raises it when it is told of the end before it has read it, which a test cannot bring about."""
    closed = psycopg.OperationalError("connection socket closed")
    async with Database(database_url) as db, db.engine.connect() as connection:
        raw = await connection.get_raw_connection()
        is_disconnect = db.engine.dialect.is_disconnect
        assert not is_disconnect(closed, raw.dbapi_connection, None)
        kill_all(database_url, observer)
        assert is_disconnect(closed, raw.dbapi_connection, None)
        assert not is_disconnect(psycopg.errors.DeadlockDetected("a code of the server's"), raw.dbapi_connection, None)
        await connection.invalidate()


@pytest.mark.parametrize("face", ["block", "request"])
@pytest.mark.parametrize("reads_for", [0.01, 0])
async def test_pooled_connections_that_the_server_ended_cost_no_failed_transaction(
    database_url: str, observer: Observer, face: str, reads_for: float
) -> None:
    # Without a proxy, which would have to run to pass the end on, and so would let the driver read it.
    async with scene(database_url, observer) as near, Database(database_url, pool_size=3) as direct:
        place = Scene(near.proxy, direct, observer)
        await place.warm()
        assert kill_all(database_url, observer) == 2
        await asyncio.sleep(reads_for)  # the driver reads of it, or does not
        assert (await place.transact(face)).error == ""
        assert place.stored() == WORDS
        await asyncio.gather(*(direct.ping() for _ in range(3)))
        assert place.held() == 0


async def test_a_session_that_the_server_ended_before_commit_has_stored_nothing_and_may_be_tried_again(
    database_url: str, observer: Observer
) -> None:
    async with scene(database_url, observer) as place:
        attempts = []

        async def work(session: Any) -> None:
            attempts.append(1)
            await place.work(session)
            if len(attempts) == 1:
                kill_all(database_url, observer)
                while place.proxy.connections:
                    await asyncio.sleep(0)

        await place.db.run(work, retry=Retry(2, base=0.001))
        assert len(attempts) == 2
        assert place.stored() == WORDS
        assert place.told == ["after_rollback", "rolled back", "after_commit", "committed"]


@pytest.mark.parametrize("face", ["block", "request"])
async def test_a_server_that_is_down_is_unavailable_until_it_is_back(
    database_url: str, observer: Observer, face: str
) -> None:
    async with scene(database_url, observer) as place:
        await place.warm()
        await place.proxy.strike(Fault.DOWN)
        for _ in range(4):  # more often than the pool has connections
            answer = await place.transact(face)
            assert answer == Answer("DatabaseUnavailable", 503 if face == "request" else None)
            assert place.held() == 0
        await place.proxy.heal()
        place.told.clear()
        assert (await place.transact(face)).error == ""
        assert place.told == ["after_commit", "committed"]


@pytest.mark.parametrize("face", ["block", "request"])
async def test_a_server_that_takes_no_more_connections_is_told_by_its_own_class(
    database_url: str, observer: Observer, face: str
) -> None:
    name = f"user_{uuid.uuid4().hex[:20]}"
    parsed = make_url(database_url).set(username=name, password=name)
    backend = parsed.get_backend_name()
    # libpq keeps the words of a server that refuses a connection, not its code.
    refused = "DatabaseUnavailable" if parsed.drivername.endswith("psycopg") else "TooManyConnections"
    for statement in LIMITED[backend]:
        observer.execute(statement.format(name=name, database=parsed.database))
    try:
        async with scene(parsed.render_as_string(hide_password=False), observer) as place:
            observer.execute(f"GRANT SELECT, INSERT ON words TO {name}")
            async with place.db.engine.connect() as only:
                await only.execute(text("SELECT 1"))
                assert await place.transact(face) == Answer(refused, 503 if face == "request" else None)
            assert place.stored() == ()
            assert (await place.transact(face)).error == ""
    finally:
        for statement in FORGOTTEN[backend]:
            observer.execute(statement.format(name=name))


@pytest.fixture
def cluster() -> Iterator[Path]:
    """A folder that the server's user can reach; pytest's own are private."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name) / "data"


@pytest.mark.engines("pg18-asyncpg", "pg18-psycopg")
async def test_a_server_that_restarts_costs_no_failed_request_once_it_is_back(database_url: str, cluster: Path) -> None:
    with ExitStack() as first, ExitStack() as second:
        url = make_url(first.enter_context(embedded_postgres(fsync=False, data=cluster)))
        url = url.set(drivername=make_url(database_url).drivername)
        with observe(str(url)) as observer:
            observer.execute("CREATE TABLE words (word varchar(20) PRIMARY KEY)")
        async with proxied(str(url)) as (proxy, through), Database(through, pool_size=3) as db:
            place = Scene(proxy, db, observer)
            await place.warm()
            first.close()
            await asyncio.sleep(0.05)  # the proxy passes the end on
            assert await place.request() == Answer("DatabaseUnavailable", 503)
            url = make_url(second.enter_context(embedded_postgres(fsync=False, data=cluster)))
            proxy.target = url.host, url.port
            with observe(str(url)) as place.observer:
                assert await place.request() == Answer("", 201)
                assert place.stored() == WORDS
                assert place.held() == 0
