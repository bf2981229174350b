"""The embedded PostgreSQL of scripts/_postgres.py starts for anybody and leaves nothing behind."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from scripts._postgres import PostgresError, embedded_postgres

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import signal, sys
from scripts._postgres import embedded_postgres
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets what it runs in the background ignore it
with embedded_postgres(fsync=False) as url:
    print(url, flush=True)
    sys.stdin.read()
"""


@contextmanager
def _program(temporary: Path) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """A process that runs a server, with its temporary folder of its own."""
    environment = {**os.environ, "TMPDIR": str(temporary), "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        yield process, process.stdout.readline().strip()


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A temporary folder that another user can pass through, as /tmp; pytest's own are private."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


def _is_down(url: str) -> bool:
    try:
        psycopg.connect(url, connect_timeout=5).close()
    except psycopg.OperationalError:
        return True
    return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_server_and_removes_its_folder(temporary: Path, number: signal.Signals) -> None:
    with _program(temporary) as (process, url):
        assert not _is_down(url)
        assert list(temporary.iterdir())
        process.send_signal(number)
        process.wait(30)
    assert _is_down(url)
    assert list(temporary.iterdir()) == []


def test_a_program_that_is_killed_takes_the_server_with_it(temporary: Path) -> None:
    with _program(temporary) as (process, url):
        process.kill()
        process.wait(30)
    deadline = time.monotonic() + 30
    while not _is_down(url):
        assert time.monotonic() < deadline
        time.sleep(0.05)  # the server is nobody's child any more: there is nothing to wait on


def test_an_exception_in_the_block_stops_the_server() -> None:
    with pytest.raises(ZeroDivisionError), embedded_postgres(fsync=False) as url:
        raise ZeroDivisionError
    assert _is_down(url)


def test_a_named_folder_keeps_its_rows_and_refuses_a_second_server(temporary: Path) -> None:
    data = temporary / "kept"
    with embedded_postgres(fsync=True, data=data) as url:
        with psycopg.connect(url) as connection:
            connection.execute("CREATE TABLE thing AS SELECT 1 AS id")
            assert connection.execute("SHOW fsync").fetchone() == ("on",)
        with pytest.raises(PostgresError, match="did not start"), embedded_postgres(fsync=True, data=data):
            pass
    with embedded_postgres(fsync=True, data=data) as url, psycopg.connect(url) as connection:
        assert connection.execute("SELECT id FROM thing").fetchall() == [(1,)]


def test_a_folder_that_holds_something_else_is_left_alone(temporary: Path) -> None:
    (temporary / "letter").write_text("mine")
    with pytest.raises(PostgresError, match="name a new folder"), embedded_postgres(fsync=True, data=temporary):
        pass
    assert (temporary / "letter").read_text() == "mine"


def test_the_server_listens_on_this_machine_alone_and_has_room_for_the_tests() -> None:
    with embedded_postgres(fsync=False) as url, psycopg.connect(url) as connection:
        settings = (
            "listen_addresses",
            "unix_socket_directories",
            "max_connections",
            "max_prepared_transactions",
            "fsync",
        )
        values = [connection.execute(f"SHOW {name}").fetchone()[0] for name in settings]
        assert values == ["127.0.0.1", "", "200", "20", "off"]
