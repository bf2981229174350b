"""Thousands of cancellations at random moments of a mixed workload; what was acknowledged is stored, and nothing else leaks."""

import asyncio
import itertools
import os
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any

import pytest
from fastapi import FastAPI
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.middleware.base import BaseHTTPMiddleware

from tests.conformance.conftest import make_db, tables  # noqa: F401  # fixtures
from tests.conformance.tables import Word, store
from tests.engines import Observer
from tests.faults.cancelling import LOSES_CONNECTIONS, AgainError, next_one_works, no_complaints, nothing_is_held
from transact import Isolation, Propagation, Retry, errors
from transact.fastapi import Database

WORKERS = 8
USUAL, LONG = 500, 10_000
MOMENTS = (
    0.001,
    0.005,
    0.02,
    0.1,
)  # seconds from the beginning, on average: some hit early, some at the end, some too late
AGAIN = Retry(attempts=3, base=0.001, max_delay=0.002, on=(AgainError,))


class RefusedError(Exception):
    """What a piece of work raises to be rolled back."""


@dataclass
class Storm:
    """The workload, and what was told of each piece of it."""

    db: Database
    rng: random.Random
    wanted: int
    app: FastAPI = field(default_factory=FastAPI)
    told: dict[int, str] = field(default_factory=dict)
    hooks: dict[int, list[str]] = field(default_factory=dict)
    cancelled: int = 0
    begun: int = 0

    def __post_init__(self) -> None:
        self.app.add_middleware(BaseHTTPMiddleware, dispatch=_pass_on)
        self.db.install(self.app)
        self.app.add_middleware(BaseHTTPMiddleware, dispatch=_pass_on)

        @self.app.post("/{number}")
        async def route(number: int, session: Annotated[AsyncSession, self.db.session(retry=AGAIN)]) -> None:
            await self.pair(session, number)

        @self.app.exception_handler(RefusedError)
        async def refuse(_request: object, error: Exception) -> Any:
            raise error

    async def pair(self, session: AsyncSession, number: int) -> None:
        """What each piece of work stores: two words, or none."""
        ran = self.hooks.setdefault(number, [])

        async def undone(_error: BaseException | None) -> None:
            await asyncio.sleep(0)
            ran.append("rollback")

        self.db.after_commit(lambda: ran.append("commit"))
        self.db.after_rollback(undone)
        await store(session, f"{number} a")
        session.add(Word(text=f"{number} b"))
        if number % 7 == 0:
            raise RefusedError

    # The kinds of work.

    async def block(self, number: int) -> None:
        async with self.db.transaction(isolation=self.rng.choice([None, Isolation.SERIALIZABLE])) as session:
            await self.pair(session, number)

    async def limited(self, number: int) -> None:
        async with self.db.transaction(timeout=60) as session:
            await self.pair(session, number)

    async def savepoint(self, number: int) -> None:
        async with self.db.transaction(), self.db.savepoint() as session:
            await self.pair(session, number)

    async def own(self, number: int) -> None:
        async with self.db.transaction(), self.db.transaction(propagation=Propagation.REQUIRES_NEW) as session:
            await self.pair(session, number)

    async def retried(self, number: int) -> None:
        tried = itertools.count(1)

        async def work(session: AsyncSession) -> None:
            await self.pair(session, number)
            if next(tried) == 1:
                raise AgainError

        await self.db.run(work, retry=AGAIN)

    async def request(self, number: int) -> None:
        sent: list[Any] = []
        leave = asyncio.Event()
        messages = iter([{"type": "http.request", "body": b"", "more_body": False}])

        async def receive() -> Any:
            for message in messages:
                return message
            await leave.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "method": "POST",
            "path": f"/{number}",
            "query_string": b"",
            "headers": [],
            "root_path": "",
        }
        await self.app(scope, receive, send)
        assert sent[0]["status"] == 200

    async def one(self) -> None:
        """Do a piece of work, which may be cancelled at any moment, and remember what was told."""
        self.begun = number = self.begun + 1
        kind = self.rng.choice([self.block, self.limited, self.savepoint, self.own, self.retried, self.request])
        task = asyncio.create_task(kind(number))
        after = self.rng.expovariate(1 / self.rng.choice(MOMENTS))
        times = (after, after + self.rng.expovariate(1000))  # the second may find it cleaning up
        blows = [asyncio.get_running_loop().call_later(seconds, task.cancel) for seconds in times]
        await asyncio.wait([task])
        for blow in blows:
            blow.cancel()
        if task.cancelled():
            self.cancelled += 1
            self.told[number] = "cancelled"
        elif (error := task.exception()) is None:
            self.told[number] = "stored"
        elif isinstance(error, RefusedError | errors.TransientError):
            self.told[number] = "refused"
        else:
            raise error

    async def worker(self) -> None:
        while self.cancelled < self.wanted:
            await self.one()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(WORKERS):
                group.create_task(self.worker())


async def _pass_on(request: Any, call_next: Any) -> Any:
    return await call_next(request)


@pytest.mark.engines("sqlite", "pg18-asyncpg", "pg18-psycopg", "mariadb")
@pytest.mark.usefixtures("tables")
@pytest.mark.skipif(
    LOSES_CONNECTIONS, reason="this SQLAlchemy loses connections that are cancelled while they are made"
)
@pytest.mark.timeout(600)
async def test_after_thousands_of_random_cancellations_the_pool_is_whole_and_what_was_acknowledged_is_stored(
    database_url: str,
    observer: Observer,
    make_db: Callable[..., Database],  # noqa: F811  # a fixture
    long: bool,  # noqa: FBT001  # a fixture
) -> None:
    seed = int(os.environ.get("TRANSACT_TEST_SEED", random.randrange(2**32)))  # noqa: S311  # a seed
    print(f"TRANSACT_TEST_SEED={seed}")  # noqa: T201  # pytest shows it with a failure
    db = make_db(database_url, kind=Database, pool_size=2, max_overflow=2, pool_timeout=30)
    storm = Storm(db, random.Random(seed), LONG if long else USUAL)  # noqa: S311  # that it can be repeated is the point
    async with no_complaints():
        await storm.run()
        await nothing_is_held(db, observer)
    stored = Counter(int(word.partition(" ")[0]) for (word,) in observer.rows("SELECT text FROM words"))
    kinds = Counter((told, stored[number]) for number, told in storm.told.items())
    assert {times for _, times in kinds} == {0, 2}, f"half a transaction: {kinds}"
    assert kinds["stored", 0] == 0, f"acknowledged and lost: {kinds}"
    assert kinds["refused", 2] == 0, f"refused and stored: {kinds}"
    assert set(stored) <= set(storm.told)
    for number, ran in storm.hooks.items():
        assert ran.count("commit") == (stored[number] == 2), f"{number}: {ran}"
        assert not ran or ran[-1] == ("commit" if stored[number] else "rollback"), f"{number}: {ran}"
    assert storm.cancelled >= storm.wanted
    await asyncio.gather(*(next_one_works(db, run) for run in range(4)))  # each on a connection of its own
