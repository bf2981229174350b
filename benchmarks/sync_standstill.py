"""What becomes of 200 requests at once to a `def` route on a pool of 5: with a `get_db` of one's own, and with transact.

python -m benchmarks.sync_standstill [--url URL] [--quick]
"""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import httpx
from fastapi import Depends, FastAPI
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session

from benchmarks._command import command
from benchmarks._report import table
from benchmarks._urls import driven_by
from transact.fastapi import SyncDatabase

REQUESTS = 200
POOL = {"pool_size": 5, "max_overflow": 0, "pool_timeout": 5}
WORK = 0.01
SELECT = text("SELECT count(*) FROM standstill")  # as a dependency does that looks for the user
INSERT = text("INSERT INTO standstill (n) VALUES (1)")


@contextmanager
def by_hand(url: str) -> Iterator[FastAPI]:
    """The dependency that tutorials show."""
    app = FastAPI()
    engine = create_engine(url, **POOL)

    def get_db() -> Iterator[Session]:
        with Session(engine) as session:
            yield session
            session.commit()

    def check(session: Annotated[Session, Depends(get_db)]) -> None:
        session.execute(SELECT)

    @app.post("/", dependencies=[Depends(check)])
    def add(session: Annotated[Session, Depends(get_db)]) -> None:
        session.execute(INSERT)
        time.sleep(WORK)

    yield app
    engine.dispose()


@contextmanager
def by_transact(url: str) -> Iterator[FastAPI]:
    """The same route."""
    app = FastAPI()
    db = SyncDatabase(url, **POOL)
    db.install(app)

    def check(session: Annotated[Session, db.session()]) -> None:
        session.execute(SELECT)

    @app.post("/", dependencies=[Depends(check)])
    def add(session: Annotated[Session, db.session()]) -> None:
        session.execute(INSERT)
        time.sleep(WORK)

    yield app
    db.close()


async def ask(app: FastAPI, requests: int) -> tuple[str, str, str]:
    """Send all requests at once; return how many were answered, how many failed, and after how long the last."""
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=120) as client:
        started = time.perf_counter()
        answers = await asyncio.gather(*(client.post("/") for _ in range(requests)))
    answered = sum(answer.is_success for answer in answers)
    return str(answered), str(requests - answered), f"{time.perf_counter() - started:.1f} s"


def report(url: str, server: str, quick: bool) -> str:  # noqa: FBT001  # every measurement is called like this
    requests = 10 if quick else REQUESTS
    plain = driven_by("postgresql+psycopg", url)
    engine = create_engine(plain)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE standstill (n INTEGER)"))
    try:
        rows = []
        for shown, make in VARIANTS.items():
            with make(plain) as app:
                rows.append((shown, *asyncio.run(ask(app, requests))))
    finally:
        with engine.begin() as connection:
            connection.execute(text("DROP TABLE standstill"))
        engine.dispose()
    head = (f"{requests} requests at once, a pool of {POOL['pool_size']}, `pool_timeout={POOL['pool_timeout']}`",)
    return f"With psycopg. {server}.\n\n{table((*head, 'answered', 'failed', 'after'), rows)}"


VARIANTS = {"a `get_db` of one's own, with `yield` and `commit()`": by_hand, "`db.session()`": by_transact}

if __name__ == "__main__":
    command(report, __doc__)
