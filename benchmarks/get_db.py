"""CPU per request: a hand-written ``get_db`` and transact, in alternating rounds on one application each.

    python benchmarks/get_db.py [--url URL] [--rounds 15] [--requests 200]

Requests are made in the process itself, without a server or a network, so that what is measured is FastAPI, SQLAlchemy, the
driver and the session's care. CPU time is that of the whole process. The figure of a variant is the median of its rounds;
the ratio is the median of the rounds' ratios to the first variant, which takes out what the machine did meanwhile.
"""

import argparse
import asyncio
import gc
import platform
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

from transact.fastapi import Database


def hand_written(url: str, scope: Any) -> tuple[FastAPI, AsyncEngine, Any]:
    """The dependency that applications copy from each other; ``scope`` is the argument of ``Depends``, if any."""
    engine = create_async_engine(url, pool_size=20, max_overflow=10, pool_timeout=30)
    sessions = async_sessionmaker(engine, expire_on_commit=False)

    async def get_db() -> AsyncIterator[AsyncSession]:
        async with sessions() as session:
            try:
                yield session
                await session.commit()
            except Exception:
                await session.rollback()
                raise

    depends = Depends(get_db, scope=scope) if scope else Depends(get_db)
    return FastAPI(), engine, Annotated[AsyncSession, depends]


def ours(url: str) -> tuple[FastAPI, AsyncEngine, Any]:
    db = Database(url)
    app = FastAPI()
    db.install(app)
    return app, db.engine, Annotated[AsyncSession, db.session()]


def add_routes(app: FastAPI, session_type: Any) -> None:
    @app.post("/insert")
    async def insert(session: session_type) -> dict[str, str]:
        await session.execute(text("INSERT INTO bench (name) VALUES (:name)"), {"name": "x"})
        return {"status": "created"}

    @app.post("/idle")
    async def idle(session: session_type) -> dict[str, str]:  # noqa: ARG001  # asked for and left alone
        return {"status": "idle"}


async def request(app: FastAPI, path: str) -> None:
    """One request, as a server would make it."""
    body = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> dict[str, Any]:
        return body.pop() if body else await asyncio.Future()

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start" and message["status"] != 200:  # noqa: PLR2004
            raise RuntimeError(f"{path} answered {message['status']}")

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
        "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "", "headers": [(b"host", b"bench")],
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80),
    }  # fmt: skip
    await app(scope, receive, send)  # type: ignore[arg-type]


async def round_of(app: FastAPI, path: str, requests: int) -> float:
    """Seconds of CPU per request."""
    gc.collect()
    started = time.process_time()
    for _ in range(requests):
        await request(app, path)
    return (time.process_time() - started) / requests


async def measure(url: str, rounds: int, requests: int) -> None:
    variants = {
        "get_db": hand_written(url, None),
        'get_db, scope="function"': hand_written(url, "function"),
        "transact": ours(url),
    }
    for app, _, session_type in variants.values():
        add_routes(app, session_type)
    engine = variants["get_db"][1]
    key = "SERIAL PRIMARY KEY" if engine.dialect.name == "postgresql" else "INTEGER PRIMARY KEY"
    async with engine.begin() as connection:
        await connection.execute(text("DROP TABLE IF EXISTS bench"))
        await connection.execute(text(f"CREATE TABLE bench (id {key}, name TEXT)"))
    print(
        f"FastAPI {version('fastapi')}, SQLAlchemy {version('sqlalchemy')}, {engine.dialect.name}+{engine.dialect.driver},"
        f" Python {platform.python_version()}, one machine; {rounds} rounds of {requests} requests"
    )
    for path in ("/insert", "/idle"):
        taken: dict[str, list[float]] = {name: [] for name in variants}
        for number in range(rounds + 1):
            for name, (app, _, _) in variants.items():
                seconds = await round_of(app, path, requests)
                if number:  # the first round warms up
                    taken[name].append(seconds)
        report(path, taken)
    for _, other, _ in variants.values():
        await other.dispose()


def report(path: str, taken: dict[str, list[float]]) -> None:
    first = next(iter(taken.values()))
    print(f"\n| POST {path} | CPU per request | ratio |\n|---|---|---|")
    for name, seconds in taken.items():
        ratio = statistics.median(a / b for a, b in zip(seconds, first, strict=True))
        print(f"| {name} | {statistics.median(seconds) * 1e6:.0f} µs | {ratio:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="an async SQLAlchemy URL (default: a SQLite file in a temporary folder)")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--requests", type=int, default=200)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        url = given.url or f"sqlite+aiosqlite:///{Path(folder) / 'bench.db'}"
        asyncio.run(measure(url, given.rounds, given.requests))


if __name__ == "__main__":
    main()
