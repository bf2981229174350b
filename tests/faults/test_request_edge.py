"""The edge where requests come in: whatever they are made of, the answer is honest, and nothing is stored or held for it."""

import asyncio
import json
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy.ext.asyncio import AsyncSession

from tests.engines import Observer
from tests.examples.serving import import_shop
from tests.faults.asgi import PATIENCE, Exchange, Message, body_messages, exchange
from transact import Retry, errors
from transact.fastapi import Database

TABLES = ("users", "profiles", "products", "orders", "order_lines")
STORED = (
    f"SELECT coalesce(sum(stock), 0), {', '.join(f'(SELECT count(*) FROM {table})' for table in TABLES)} FROM products"
)
MIB = 1024 * 1024


@dataclass
class Shop:
    """The shop in this process, and who looks after it."""

    runner: asyncio.Runner
    app: Any
    db: Database
    observer: Observer

    def ask(self, messages: list[Message], **scope: Any) -> Exchange:
        """One request, and the laws of every request."""
        before = self.observer.rows(STORED)
        made = self.runner.run(self._ask(messages, scope))
        made.check()
        assert made.status < 500, made.body
        if not 200 <= made.status < 300:
            assert self.observer.rows(STORED) == before
        return made

    async def _ask(self, messages: list[Message], scope: dict[str, Any]) -> Exchange:
        tasks = asyncio.all_tasks()
        made = await exchange(self.app, messages, **scope)
        assert self.db.engine.pool.checkedout() == 0
        assert asyncio.all_tasks() == tasks
        return made


@pytest.fixture(params=[None, Retry(2, base=0)], ids=["once", "retry"])
def shop(
    request: pytest.FixtureRequest, database_url: str, observer: Observer, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Shop]:
    """The shop as it is, and with requests that may be tried again, so that their bodies are kept."""
    monkeypatch.setenv("TRANSACT_URL", "")  # so that it is put back at the end
    monkeypatch.setattr(Database, "from_env", partial(Database.from_env, retry=request.param))
    app, db = (import_shop(database_url, module) for module in ("app", "database"))
    with asyncio.Runner() as runner:
        runner.run(import_shop(database_url, "migrate").upgrade(db.db))
        yield Shop(runner, app.app, db.db, observer)
        assert observer.idle_in_transaction() == 0
        runner.run(db.db.close())
    import_shop("", "schemas")  # nobody else gets this application


# What requests are made of.

WEIRD = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from(
        [10**30, -(10**400), 2**31, 2**63, 1e308, float("nan"), float("inf"), "", "\0", "\ud800", "\udc00x", "\ufffd"]
    ),
    st.integers(),
    st.floats(),
    st.text(st.characters(), max_size=300),
    st.lists(st.integers(0, 3), max_size=3),
    st.dictionaries(st.text(max_size=5), st.none(), max_size=2),
)
NAMES = st.text(min_size=1, max_size=200)


def _mostly(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.fixed_dictionaries({name: st.one_of(right, WEIRD) for name, right in fields.items()})


ACCOUNT = _mostly(
    username=NAMES, email=st.emails(), profile=st.fixed_dictionaries({}, optional={"full_name": NAMES, "bio": WEIRD})
)
PRODUCT = _mostly(name=NAMES, stock=st.integers(0, 9))
ORDER = _mostly(lines=st.lists(_mostly(product_id=st.integers(0, 3), quantity=st.integers(0, 3)), max_size=4))
VALUES = st.one_of(
    ACCOUNT, PRODUCT, ORDER, st.recursive(WEIRD, lambda inner: st.lists(inner, max_size=3), max_leaves=5)
)


@st.composite
def documents(draw: st.DrawFn) -> bytes:
    """JSON, and what an accident makes of it."""
    written = json.dumps(draw(VALUES), ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")
    spoil: Callable[[bytes], bytes] = draw(
        st.sampled_from([
            bytes, bytes, bytes, bytes,
            lambda raw: raw[: draw(st.integers(0, len(raw)))],
            lambda raw: raw * 2,
            lambda raw: raw.decode("utf-8", "surrogatepass").encode("utf-16", "surrogatepass"),
            lambda raw: b"\xef\xbb\xbf" + raw,
            lambda raw: b"[" * 3000 + raw,
            lambda raw: raw.replace(b"1", b"9" * 5000),
            lambda raw: raw.replace(b'"', b'"\xff', 1),
        ])
    )  # fmt: skip
    return spoil(written)


FORM = b'--x\r\nContent-Disposition: form-data; name="username"; filename="\xff\0"\r\n\r\nann\r\n--x--'
BODIES = st.one_of(
    documents(), documents(), st.binary(max_size=200), st.sampled_from([b"", FORM, FORM[:-9], b"username=%ff&a=%"])
)
TYPES = st.sampled_from([
    b"application/json", b"application/json", b"application/json", b"application/json; charset=utf-16", b"text/plain", b"",
    b"application/json; charset=\xff", b"multipart/form-data; boundary=x", b"multipart/form-data", b"application/problem+json",
    b"application/x-www-form-urlencoded", b"application/json;" * 50, b";;;=", b"application/\xff+json",
])  # fmt: skip
NAMED = [b"content-length", b"host", b"cookie", b"accept", b"x-forwarded-for", b"transfer-encoding", b"expect", b"range",
         b"if-none-match", b"origin", b"authorization", b"upgrade"]  # fmt: skip
HEADERS = st.lists(
    st.tuples(st.one_of(st.sampled_from(NAMED), st.binary(max_size=20)), st.binary(max_size=200)), max_size=8
)
MANY = [(b"x-%d" % number, b"v" * 100) for number in range(2000)]

PATHS = st.one_of(
    st.sampled_from(["/register/", "/users/", "/orders/", "/products/"]),
    st.sampled_from(
        [
            "/users/1",
            "/orders/1",
            "/users/0",
            f"/users/{10**40}",
            "/users/\0",
            "/users/\u0661",
            "/openapi.json",
            "/docs",
        ]
    ),
    st.sampled_from(
        ["", "/", "//", "/../users/", "/register", "*", "http://x/users/", "/users/%", "/users/1/", "\r\n"]
    ),
    st.text(max_size=40).map("/users/".__add__),
    st.text(max_size=40),
)
VERBS = (
    ["POST"] * 6 + ["GET"] * 3 + ["PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE", "CONNECT", "get", "", "P\0ST"]
)
# Only ASCII, as servers let nothing else through: RFC 3986, and the raw requests below.
ASCII = st.binary(max_size=60).map(lambda raw: bytes(byte & 0x7F for byte in raw))
QUERIES = st.one_of(
    st.just(b""),
    ASCII,
    st.lists(
        st.tuples(
            st.sampled_from([b"name", b"user_id", b"q", b"after", b"limit", b"x"]),
            st.one_of(ASCII, st.sampled_from([b"1", b"2", b"%00", b"%ff", b"%ED%A0%80", b"9" * 400, b"-1", b"%25_\\"])),
        ).map(b"=".join),
        max_size=3,
    ).map(b"&".join),
)  # fmt: skip


SCOPES = st.fixed_dictionaries(
    {
        "method": st.sampled_from(VERBS),
        "path": PATHS,
        "query_string": QUERIES,
        "headers": st.builds(lambda kind, more: [(b"content-type", kind), *more], TYPES, HEADERS),
    }
)


@st.composite
def pieces(draw: st.DrawFn, bodies: st.SearchStrategy[bytes] = BODIES) -> list[bytes]:
    """A body, cut anywhere; some pieces are empty."""
    body = draw(bodies)
    cuts = sorted(draw(st.lists(st.integers(0, len(body)), max_size=4)))
    return [body[start:end] for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True)]


def law(long: bool, examples: int) -> Callable[[Any], Any]:  # noqa: FBT001
    """How Hypothesis runs here: the same examples every time, unless the run may be long."""
    return settings(
        max_examples=examples * (30 if long else 1),
        derandomize=not long,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


@pytest.mark.engines("sqlite", "pg18-asyncpg", "mariadb")
def test_no_request_gets_a_5xx_or_stores_anything_that_is_not_acknowledged(shop: Shop, long: bool) -> None:  # noqa: FBT001
    seen = set()

    @law(long, 100)
    @given(SCOPES, pieces(), st.sampled_from([True, True, True, False]))
    @example({"method": "POST", "path": "/users/", "query_string": b"name=ann", "headers": MANY}, [], True)
    def whatever(scope: dict[str, Any], pieces: list[bytes], ends: bool) -> None:  # noqa: FBT001
        seen.add(shop.ask(body_messages(pieces, ends=ends), **scope).status)

    whatever()
    assert seen >= {200, 404, 405, 422}


@pytest.mark.engines("sqlite", "pg18-asyncpg", "mariadb")
def test_a_body_is_stored_as_a_whole_or_refused_whatever_it_holds(shop: Shop, long: bool) -> None:  # noqa: FBT001
    seen = set()
    shop.ask(body_messages([b'{"name": "first", "stock": 1000}']), method="POST", path="/products/", headers=JSON)
    shop.ask(body_messages([]), method="POST", path="/users/", query_string=b"name=first")

    @law(long, 100)
    @given(st.sampled_from(["/register/", "/products/", "/orders/"]), pieces(documents()))
    @example("/register/", [b'{"username": "ann", "\\ud800": 1}'])
    def sent(path: str, pieces: list[bytes]) -> None:
        query = b"user_id=1" if path == "/orders/" else b""
        made = shop.ask(body_messages(pieces), method="POST", path=path, query_string=query, headers=JSON)
        seen.add(made.status)

    sent()
    assert seen >= {201, 422}
    assert (
        shop.observer.scalar("SELECT count(*) FROM users") == shop.observer.scalar("SELECT count(*) FROM profiles") + 1
    )


JSON = [(b"content-type", b"application/json")]


# A request that is tried again.

ASGI = {"version": "3.0", "spec_version": "2.4"}  # before, Starlette's streams look for a disconnect in what they echo


@contextmanager
def trying(url: str, failures: int, until: int | None = None) -> Iterator[tuple[asyncio.Runner, FastAPI]]:
    """An application that reads `until` bytes, fails by chance, and tells what it has read once it no longer fails."""
    db, app = Database(url), FastAPI()
    db.install(app)
    session = Annotated[AsyncSession, db.session(retry=Retry(failures + 1, base=0))]
    calls: list[int] = []

    @app.post("/do")
    async def do(session: session, request: Request) -> StreamingResponse:
        calls.append(0)
        stream = request.stream()
        if len(calls) <= failures:
            read = 0
            async for part in stream:
                read += len(part)
                if until is not None and read >= until:
                    break
            raise errors.SerializationFailure("by chance")
        return StreamingResponse(stream)

    with asyncio.Runner() as runner:
        yield runner, app
        assert db.engine.pool.checkedout() == 0


def test_each_attempt_reads_the_body_from_its_beginning_however_it_came(sqlite_url: str, long: bool) -> None:  # noqa: FBT001
    @law(long, 100)
    @given(pieces(st.binary(max_size=300)), st.integers(1, 3), st.none() | st.integers(0, 300))
    @example([b"a" * 65_536, b"b" * 65_537, b""], 2, None)
    @example([b"a" * MIB], 1, 7)
    def sent(pieces: list[bytes], failures: int, until: int | None) -> None:
        with trying(sqlite_url, failures, until) as (runner, app):
            made = runner.run(exchange(app, body_messages(pieces), method="POST", path="/do", asgi=ASGI))
        made.check()
        assert (made.status, made.body) == (200, b"".join(pieces))

    sent()


# Memory.


#: Sizes of the pieces, their number, and how many MiB more a request then holds when it can be tried again.
TRICKLES = [(64, MIB // 64, 1), (4096, MIB // 4096, 1), (MIB // 2, 2, 1), (65_536, 64, 0)]


@pytest.mark.parametrize(("size", "number", "more"), TRICKLES)
async def test_a_request_that_can_be_tried_again_holds_a_mebibyte_more_at_most_in_whatever_pieces_its_body_comes(
    sqlite_url: str, size: int, number: int, more: int
) -> None:
    for count in (1, 4):
        plain, kept = [await _held(sqlite_url, count, size, number, retry) for retry in (None, Retry(2))]
        assert kept - plain < count * (more * 1.2 + 0.05) * MIB


async def _held(url: str, count: int, size: int, number: int, retry: Retry | None) -> int:
    """Bytes that `count` requests hold that have sent so many pieces, and never send the rest."""
    db, app = Database(url), FastAPI()
    db.install(app)
    options: Any = {"retry": retry} if retry else {}

    @app.post("/do")
    async def do(session: Annotated[AsyncSession, db.session(**options)], request: Request) -> None:
        async for _ in request.stream():
            pass

    waiting = asyncio.Semaphore(0)

    async def client() -> None:
        left = iter(range(number))

        async def receive() -> Message:
            if next(left, None) is not None:  # a new object each time, as from a network
                return {"type": "http.request", "body": bytes(size), "more_body": True}
            waiting.release()
            await asyncio.Event().wait()
            raise AssertionError

        scope = {"type": "http", "method": "POST", "path": "/do", "query_string": b"", "headers": []}
        await app(scope, receive, None)  # type: ignore[arg-type]  # it never answers

    async def running() -> list[asyncio.Task[None]]:
        tasks = [asyncio.create_task(client()) for _ in range(count)]
        async with asyncio.timeout(PATIENCE):
            for _ in tasks:
                await waiting.acquire()
        return tasks

    async def stop(tasks: list[asyncio.Task[None]]) -> None:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)

    await stop(await running())  # what is made once
    tracemalloc.start()
    try:
        tasks = await running()
        held, _ = tracemalloc.get_traced_memory()
        await stop(tasks)
    finally:
        tracemalloc.stop()
    assert db.engine.pool.checkedout() == 0
    return held
