"""A server of the application per engine, and what looks after each test: nothing is held, nothing is left open."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from tests.conftest import lasting_database
from tests.engines import chosen
from tests.fastapi.app import Base
from tests.observers import Observer, observe
from transact.fastapi import Database

with warnings.catch_warnings(action="ignore"):  # newer Starlette would rather have httpx2
    from starlette.testclient import TestClient

__all__ = ["Answer", "Local", "Site", "TestClient"]


@dataclass
class Answer:
    """A response as it came over the wire."""

    raw: bytes

    @property
    def status(self) -> int:
        return int(self.raw.split(b" ", 2)[1])

    @property
    def body(self) -> bytes:
        """The one body; fails if the head promises another length than what came."""
        head, _, body = self.raw.partition(b"\r\n\r\n")
        lengths = re.findall(rb"(?im)^content-length: *(\d+)", head)
        assert [len(body)] == [int(length) for length in lengths]
        assert self.raw.count(b"HTTP/1.1 ") == 1
        return body


@dataclass
class Site:
    """A running server, its database, and clients for it."""

    url: str
    port: int
    process: subprocess.Popen[str]
    log: Path
    client: httpx.Client
    observer: Observer
    log_start: int = 0

    @property
    def is_sqlite(self) -> bool:
        return self.url.startswith("sqlite")

    def names(self) -> list[str]:
        return [name for (name,) in self.observer.rows("SELECT name FROM person ORDER BY name")]

    def logged(self) -> str:
        """What the server logged since the test began."""
        return self.log.read_text(encoding="utf-8")[self.log_start :]

    def connect(self, method: str, target: str, *, receive_buffer: int | None = None) -> socket.socket:
        """Send a request over a socket of one's own."""
        plain = socket.socket()
        if receive_buffer is not None:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        plain.settimeout(10)
        plain.connect(("127.0.0.1", self.port))
        head = f"{method} {target} HTTP/1.1\r\nHost: test\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
        plain.sendall(head.encode())
        return plain

    def raw(self, method: str, target: str) -> Answer:
        """Ask, and read until the server closes."""
        with self.connect(method, target) as plain:
            return Answer(b"".join(iter(lambda: plain.recv(65536), b"")))

    def outcome(self, key: str) -> str:
        """Wait for what the server tells under this key."""
        return self.client.get("/_outcome", params={"key": key}).raise_for_status().json()

    def wait_for_commit(self) -> None:
        """Wait until the server of PostgreSQL is inside a COMMIT."""
        asleep = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'"
        give_up = time.monotonic() + 10
        while self.observer.scalar(asleep) == 0:
            assert time.monotonic() < give_up

    def counts(self) -> dict[str, int]:
        return self.client.get("/_counts").json()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "server" in metafunc.fixturenames:
        marker = metafunc.definition.get_closest_marker("engines")
        metafunc.parametrize("server", chosen(marker.args if marker else ()), indirect=True, scope="session")


def _stop(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=10)


@pytest.fixture(scope="session")
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    log = folder / "log"
    with ExitStack() as stack:
        url = lasting_database(request.config, request.param, folder, stack)
        process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("app.py"))],
            env=os.environ | {"APP_URL": url},
            stdout=subprocess.PIPE,
            stderr=stack.enter_context(log.open("w")),
            text=True,
        )
        stack.callback(_stop, process)
        port = process.stdout.readline().strip()
        assert port, log.read_text()
        client = stack.enter_context(httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=15))
        observer = stack.enter_context(observe(url))
        yield Site(url, int(port), process, log, client, observer)


@pytest.fixture
def site(server: Site) -> Iterator[Site]:
    """The server with empty tables. After the test it must hold no connection, and no transaction may be open."""
    for table in ("person", "slow"):
        server.observer.execute(f"DELETE FROM {table}")
    server.log_start = server.log.stat().st_size
    yield server
    # A connection that was just being made for a task whose request has ended goes back when it is there.
    give_up = time.monotonic() + 5
    while held := server.client.get("/_pool").json():
        assert time.monotonic() < give_up, f"{held} connections were not given back"
    assert server.observer.idle_in_transaction() == 0


@dataclass
class Local:
    """An application in this process, for laws of composition; `client` asks it without a network."""

    url: str
    db: Database
    app: FastAPI
    observer: Observer

    def names(self) -> list[str]:
        return [name for (name,) in self.observer.rows("SELECT name FROM person ORDER BY name")]

    @asynccontextmanager
    async def client(self, app: FastAPI | None = None, *, raising: bool = False) -> AsyncIterator[httpx.AsyncClient]:
        transport = httpx.ASGITransport(app or self.app, raise_app_exceptions=raising)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            yield client

    async def post(self, target: str, **kwargs: Any) -> httpx.Response:
        async with self.client() as client:
            return await client.post(target, **kwargs)


@pytest.fixture
async def local(database_url: str, observer: Observer) -> AsyncIterator[Local]:
    """A database with the tables of app.py, and an application without routes. After the test nothing may be held."""
    db = Database(database_url, pool_size=2, max_overflow=0, pool_timeout=5, metadata=Base.metadata)
    async with db:
        async with db.engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
        yield Local(database_url, db, FastAPI(), observer)
        assert db.engine.pool.checkedout() == 0
        assert observer.idle_in_transaction() == 0
