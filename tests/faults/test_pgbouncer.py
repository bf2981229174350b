"""Behind PgBouncer in transaction mode each transaction may get another server session: nothing may be left on any of them."""

import asyncio
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, select, text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncSession

from tests.conformance.conftest import db, events, make_db, stored, tables  # noqa: F401  # fixtures
from tests.conformance.tables import Word
from tests.engines import Observer
from transact import Database, Isolation, errors

pytestmark = pytest.mark.engines("pg18-asyncpg", "pg18-psycopg")

#: What docs/databases.md tells users to write.
SETTING: dict[str, dict[str, Any]] = {
    "asyncpg": {"statement_cache_size": 0, "prepared_statement_cache_size": 0},
    "psycopg": {"prepare_threshold": None},
}
SETTINGS = text(
    "SELECT current_setting('statement_timeout'), current_setting('lock_timeout'), current_setting('transaction_timeout'),"
    " current_setting('transaction_isolation'), current_setting('transaction_read_only')"
)
CLEAN = ("0", "0", "0", "read committed", "off")


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port


def listens(port: int) -> bool:
    with socket.socket() as asking:
        return asking.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def pooled_url(database_url: str, tmp_path: Path) -> Iterator[str]:
    """The test's database through a PgBouncer that has two sessions for all clients, and gives the one last used."""
    if shutil.which("pgbouncer") is None:
        if os.environ.get("CI") == "true":
            pytest.fail("pgbouncer is missing", pytrace=False)
        pytest.skip("pgbouncer is missing: apt-get install pgbouncer")
    url, port = make_url(database_url), free_port()
    folder = tmp_path / "pgbouncer"
    folder.mkdir()
    for parent in (folder, *folder.parents[:3]):
        parent.chmod(0o755)  # it refuses to run as root, and then has to read this as somebody else
    password = f" password={url.password}" if url.password else ""
    (folder / "pgbouncer.ini").write_text(
        f"[databases]\n{url.database} = host={url.host} port={url.port} dbname={url.database} user={url.username}{password}\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n"
        "pool_mode = transaction\ndefault_pool_size = 2\nignore_startup_parameters = extra_float_digits\n",
        encoding="utf-8",
    )
    command = ["pgbouncer", "-q", *(["-u", "nobody"] if os.geteuid() == 0 else []), str(folder / "pgbouncer.ini")]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            until = time.monotonic() + 10
            while not listens(port) and time.monotonic() < until:
                assert server.poll() is None, "pgbouncer has stopped"
                time.sleep(0.01)
            yield url.set(host="127.0.0.1", port=port, username="anybody").render_as_string(hide_password=False)
        finally:
            server.terminate()


@pytest.fixture
def pooled(
    observer: Observer,
    pooled_url: str,
    make_db: Callable[..., Database],  # noqa: F811  # a fixture
) -> Callable[[], Database]:
    """Databases with pools of their own, as the processes of one application have."""
    driver = make_url(pooled_url).get_driver_name()
    return lambda: make_db(pooled_url, engine_options={"connect_args": SETTING[driver]})


async def settings(session: AsyncSession) -> tuple[str, ...]:
    return tuple((await session.execute(SETTINGS)).one())


OPTIONS: dict[str, dict[str, Any]] = {
    "timeouts": {"timeout": 5, "lock_timeout": 2},
    "isolation": {"isolation": Isolation.SERIALIZABLE},
    "read only": {"read_only": True},
}


@pytest.mark.parametrize("options", list(OPTIONS.values()), ids=list(OPTIONS))
async def test_nothing_that_a_transaction_sets_is_there_for_the_next_client_of_the_same_session(
    pooled: Callable[[], Database], options: dict[str, Any]
) -> None:
    one, other = pooled(), pooled()
    async with one.transaction(**options) as session:
        pid = await session.scalar(text("SELECT pg_backend_pid()"))
        assert await settings(session) != CLEAN
    with pytest.raises(ZeroDivisionError):
        async with one.transaction(**options) as session:
            await session.execute(text("SELECT 1"))
            raise ZeroDivisionError
    async with other.transaction() as session:
        assert await session.scalar(text("SELECT pg_backend_pid()")) == pid
        assert await settings(session) == CLEAN


async def test_with_the_documented_setting_many_clients_share_few_sessions(
    pooled: Callable[[], Database],
    tables: None,  # noqa: F811  # a fixture
    observer: Observer,
) -> None:
    one, other = pooled(), pooled()

    async def work(number: int) -> None:
        database = (one, other)[number % 2]
        async with database.transaction(timeout=30) as session:
            await session.execute(insert(Word).values(text=str(number)))
            async with database.savepoint():
                found = await session.scalars(select(Word).where(Word.text == str(number)))
                assert found.one().text == str(number)

    await asyncio.gather(*(work(number) for number in range(60)))
    assert observer.scalar("SELECT count(*) FROM words") == 60


async def test_without_the_setting_the_error_names_it(
    observer: Observer,
    pooled_url: str,
    make_db: Callable[..., Database],  # noqa: F811
) -> None:
    one, other = make_db(pooled_url), make_db(pooled_url)
    for _ in range(6):  # psycopg prepares what it has sent five times
        await exclaim(one)
    with pytest.raises(errors.DatabaseError) as caught:
        async with other.transaction() as session:  # has the session on which the statement is prepared
            await session.execute(text("SELECT 1"))
            await asyncio.create_task(exclaim(one))
    assert "PgBouncer" in caught.value.__notes__[0]


async def exclaim(database: Database) -> None:
    async with database.transaction() as session:
        await session.execute(text("SELECT CAST(:word AS text) || '!'"), {"word": "hey"})
