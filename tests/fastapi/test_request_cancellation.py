"""A request that is cancelled at any of its awaits, or whose client leaves there, is stored or not, never half."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from itertools import count, product
from pathlib import Path
from typing import Annotated, Any

import httpx
import pytest
from fastapi import BackgroundTasks, Depends, FastAPI, HTTPException
from fastapi.responses import StreamingResponse
from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import ClientDisconnect

from tests.conformance.conftest import make_db, tables  # noqa: F401  # fixtures
from tests.conformance.tables import Word
from tests.engines import Observer
from tests.faults.cancelling import (
    ALL,
    FIRST,
    LOSES_CONNECTIONS,
    NOTHING,
    OTHER,
    SECOND,
    AgainError,
    Bench,
    Blow,
    Moment,
    Way,
    Work,
    blows,
    by_a_scope,
    by_the_task,
    hooks_agree,
    next_one_works,
    no_complaints,
    nothing_is_held,
    strike,
)
from transact import Retry
from transact.fastapi import Database


@dataclass
class Client:
    """The server's side of one request, and who asked."""

    breaks: bool = False
    sent: list[Any] = field(default_factory=list)
    asked: bool = False
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    async def receive(self) -> dict[str, Any]:
        if not self.asked:
            self.asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        await asyncio.sleep(0)
        if self.gone.is_set() and self.breaks:  # some servers say so, others let the application talk to nobody
            raise OSError("the client has gone")
        self.sent.append(message)

    @property
    def status(self) -> int:
        return next((message["status"] for message in self.sent if message["type"] == "http.response.start"), 0)


async def by_leaving(client: Client, work: Work, blow: Blow) -> None:
    blow.how = client.gone.set
    await work()


async def by_breaking(client: Client, work: Work, blow: Blow) -> None:
    client.breaks = True
    await by_leaving(client, work, blow)


Ending = Callable[[Client, Work, Blow], Awaitable[None]]


def server_side(way: Way) -> Ending:
    async def ending(_client: Client, work: Work, blow: Blow) -> None:
        await way(work, blow)

    ending.__name__ = way.__name__
    return ending


ENDINGS: tuple[Ending, ...] = (server_side(by_the_task), server_side(by_a_scope), by_leaving, by_breaking)


class Site:
    """An application whose routes store two words, each in its own way."""

    def __init__(self, db: Database, around: str) -> None:
        self.db = db
        self.bench = Bench(db, 0)
        self.app = FastAPI()
        if around == "inside":
            self.app.add_middleware(BaseHTTPMiddleware, dispatch=_pass_on)
        db.install(self.app)
        if around == "outside":
            self.app.add_middleware(BaseHTTPMiddleware, dispatch=_pass_on)
        for name in ROUTES:
            self.app.post(f"/{name}")(getattr(self, f"{name}_route")())

    async def ask(self, client: Client, name: str) -> None:
        path = f"/{name}"
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4" if client.breaks else "2.3"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [],
            "client": ("test", 1),
            "server": ("test", 80),
            "state": {},
        }
        try:
            with suppress(OSError, ClientDisconnect):
                await self.app(scope, client.receive, client.send)
        except RuntimeError as error:  # what BaseHTTPMiddleware says if its client left early
            if not client.gone.is_set() or str(error) != "No response returned.":
                raise
        finally:
            assert not self.db.in_transaction

    def automatic_route(self) -> Any:
        async def route(session: Annotated[AsyncSession, self.db.session()]) -> str:
            self.bench.hooks(FIRST, awaits=True)
            await self.bench.store(session, FIRST)
            session.add(Word(text=self.bench.own(SECOND)))
            return "stored"

        return route

    def manual_route(self) -> Any:
        async def route(session: Annotated[AsyncSession, self.db.manual_session()]) -> str:
            await self.bench.store(session, FIRST)
            await self.bench.store(session, SECOND)
            await session.commit()
            await session.execute(select(Word.id).limit(1))
            return "stored"

        return route

    def connection_route(self) -> Any:
        async def route(connection: Annotated[AsyncConnection, self.db.connection()]) -> str:
            self.bench.hooks(FIRST)
            for word in (FIRST, SECOND):
                await connection.execute(insert(Word).values(text=self.bench.own(word)))
            return "stored"

        return route

    def retried_route(self) -> Any:
        again = Retry(attempts=3, base=0.001, max_delay=0.002, on=(AgainError,))

        async def route(session: Annotated[AsyncSession, self.db.session(retry=again)]) -> str:
            self.bench.tried += 1
            self.bench.hooks(f"{self.bench.tried}")
            await self.bench.store(session, f"{self.bench.tried}")
            if self.bench.tried == 1:
                raise AgainError
            return "stored"

        return route

    def refused_route(self) -> Any:
        async def route(session: Annotated[AsyncSession, self.db.session()]) -> str:
            self.bench.hooks(FIRST)
            await self.bench.store(session, FIRST)
            raise HTTPException(409)

        return route

    def reading_route(self) -> Any:
        async def looks(reader: Annotated[AsyncSession, self.db.session(read_only=True)]) -> None:
            await reader.execute(select(Word.id).limit(1))

        async def route(_: Annotated[None, Depends(looks)], session: Annotated[AsyncSession, self.db.session()]) -> str:
            await self.bench.store(session, FIRST)
            await self.bench.store(session, SECOND)
            return "stored"

        return route

    def streaming_route(self) -> Any:
        async def route(session: Annotated[AsyncSession, self.db.session()]) -> StreamingResponse:
            self.bench.hooks(FIRST)
            await self.bench.store(session, FIRST)
            await self.bench.store(session, SECOND)

            async def body() -> AsyncIterator[bytes]:
                yield b"first"
                async with self.db.transaction() as own:
                    await self.bench.store(own, OTHER)
                yield b"last"

            return StreamingResponse(body())

        return route

    def background_route(self) -> Any:
        async def later() -> None:
            async with self.db.transaction() as own:
                await self.bench.store(own, OTHER)

        async def route(session: Annotated[AsyncSession, self.db.session()], tasks: BackgroundTasks) -> str:
            tasks.add_task(later)
            await self.bench.store(session, FIRST)
            await self.bench.store(session, SECOND)
            return "stored"

        return route


async def _pass_on(request: Any, call_next: Any) -> Any:
    return await call_next(request)


WHOLE = (NOTHING, ALL)
AND_MORE = (NOTHING, ALL, ALL | {OTHER})
ROUTES: dict[str, tuple[frozenset[str], ...]] = {
    "automatic": WHOLE,
    "manual": WHOLE,
    "connection": WHOLE,
    "retried": (NOTHING, frozenset({"2"})),
    "refused": (NOTHING,),
    "reading": WHOLE,
    "streaming": AND_MORE,
    "background": AND_MORE,
}
"""What may be stored by each; what comes after nothing is what a 2xx promises at least."""
AROUND = ("nothing", "outside", "inside")
USUAL = (
    ("nothing", ENDINGS[0], Moment.ANSWERED),
    ("outside", ENDINGS[1], Moment.WAITING),
    ("inside", by_leaving, Moment.WAITING),
    ("outside", by_breaking, Moment.ANSWERED),
)


async def play(site: Site, name: str, ending: Ending, blow: Blow, observer: Observer) -> None:
    """Ask once, with a blow, and look at what is left."""
    client = Client()

    async def way(work: Work, blow: Blow) -> None:
        await ending(client, work, blow)

    await strike(way, lambda: site.ask(client, name), blow)
    told = f"{ending.__name__}: {blow}"
    await nothing_is_held(site.db, observer, told)
    found = site.bench.stored(observer)
    may_be_stored = ROUTES[name]
    assert found in may_be_stored, told
    if client.status // 100 == 2:
        assert found in may_be_stored[1:], told
    if not blow.has_fallen:
        assert found == may_be_stored[-1], told
        assert client.status == (200 if found else 409)
        assert not client.sent[-1].get("more_body")
    hooks_agree(site.bench, found, told)


async def sweep(
    name: str, combinations: Iterable[tuple[str, Ending, Moment]], db: Database, observer: Observer
) -> None:
    """Cancel it at each of its awaits, in each way."""
    runs = count(1)
    usual = await next_one_works(db, 0)
    async with no_complaints():
        for around, ending, moment in combinations:
            site = Site(db, around)
            for blow in blows(moment):
                site.bench = Bench(db, next(runs))
                await play(site, name, ending, blow, observer)
                assert await next_one_works(db, site.bench.run) == usual, f"{around} {ending.__name__}: {blow}"


@pytest.mark.engines("sqlite", "pg18-asyncpg", "pg18-psycopg", "mariadb")
@pytest.mark.usefixtures("tables")
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ROUTES)
async def test_a_request_that_is_cancelled_at_any_await_is_stored_or_not_and_leaves_nothing_behind(
    name: str,
    database_url: str,
    observer: Observer,
    make_db: Callable[..., Database],  # noqa: F811  # a fixture
    long: bool,  # noqa: FBT001  # a fixture
) -> None:
    if LOSES_CONNECTIONS and name == "manual":
        pytest.skip("this SQLAlchemy loses connections that a cancelled manual session gives back")
    if not long and ("psycopg" in database_url or "mysql" in database_url):
        pytest.skip("blocks are cancelled there too; requests only with --long")
    db = make_db(database_url, kind=Database, pool_size=1, max_overflow=0, pool_timeout=10)
    await sweep(name, product(AROUND, ENDINGS, Moment) if long else USUAL, db, observer)


FORGOTTEN = ("garbage collector", "never awaited", "was destroyed", "never retrieved", "non-checked-in")


@pytest.mark.engines("sqlite", "pg18-asyncpg", "pg18-psycopg", "mariadb")
@pytest.mark.usefixtures("tables")
def test_a_server_that_is_stopped_while_it_answers_keeps_what_it_acknowledged_and_rolls_back_the_rest(
    database_url: str, observer: Observer, tmp_path: Path
) -> None:
    waiting = ["between", "unbegun"] if database_url.startswith("sqlite") else ["between", "unbegun", "committing"]
    with ExitStack() as stack:
        log = stack.enter_context((tmp_path / "log").open("w"))
        process = stack.enter_context(
            subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("stopping.py"))],
                env=os.environ | {"APP_URL": database_url, "APP_PATIENCE": "0"},
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        )
        stack.callback(process.kill)
        assert process.stdout is not None
        port = int(process.stdout.readline())
        stored = httpx.post(f"http://127.0.0.1:{port}/answered")
        asked = [_ask(port, path, stack) for path in waiting]
        reached = {process.stdout.readline().strip() for _ in waiting}
        process.send_signal(signal.SIGTERM)
        ended = process.wait(30)
        answers = [plain.recv(65536) for plain in asked]
    assert stored.status_code == 200
    assert reached == set(waiting)
    assert ended in {0, -signal.SIGTERM}
    assert not any(answer.startswith(b"HTTP/1.1 2") for answer in answers)
    until = time.monotonic() + 10
    while observer.idle_in_transaction():
        assert time.monotonic() < until
    words = {word for (word,) in observer.rows("SELECT text FROM words")}
    assert words >= {"answered a", "answered b"}
    assert not words & {"between a", "unbegun a"}
    assert len(words & {"committing a", "committing b"}) != 1
    said = (tmp_path / "log").read_text()
    assert not [word for word in FORGOTTEN if word in said], said


def _ask(port: int, path: str, stack: ExitStack) -> socket.socket:
    plain = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30))
    plain.sendall(f"POST /{path} HTTP/1.1\r\nHost: test\r\nContent-Length: 0\r\n\r\n".encode())
    return plain
