"""A database behind a faulty network, and one transaction on it: as a block, and as a request of an application."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, NamedTuple, TypeVar

import httpx
from fastapi import FastAPI
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from tests.engines import Observer
from tests.faults.proxy import Proxy, proxied
from tests.faults.wire import Step
from transact import errors
from transact.fastapi import Database
from transact.fastapi.problems import code_of

RESPONSE = "response"
WORDS = ("first", "inner", "last")
_CODES = {code_of(c): c.__name__ for c in vars(errors).values() if isinstance(c, type)}


class Answer(NamedTuple):
    """What the caller of a transaction gets: the error's class, if there is one, and the status of a request."""

    error: str = ""
    status: int | None = None


@dataclass
class Scene:
    """``told`` is what the hooks of the transaction were told."""

    database: ClassVar[Any] = Database
    proxy: Proxy
    db: Any
    observer: Observer
    told: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.app = FastAPI()
        self.db.install(self.app)

        @self.app.post("/words", status_code=201)
        async def write(session: Annotated[AsyncSession, self.db.session()]) -> str:
            await self.work(session)
            return "stored"

    async def work(self, session: AsyncSession) -> None:
        """The transaction that comes to every step."""
        db = self.db
        db.after_commit(lambda: self.told.append("after_commit"))
        db.after_rollback(lambda _: self.told.append("after_rollback"))
        db.after_completion(lambda outcome: self.told.append(outcome.value))
        await session.execute(text("INSERT /* first */ INTO words VALUES ('first')"))
        async with db.savepoint():
            await session.execute(text("INSERT INTO words VALUES ('inner')"))
        await session.execute(text("INSERT /* last */ INTO words VALUES ('last')"))
        await self.proxy.reach(Step.IDLE)

    async def transact(self, face: str) -> Answer:
        """Run it as a ``block`` or a ``request``."""
        return await (self.block() if face == "block" else self.request())

    async def block(self) -> Answer:
        """Run it as a block."""
        try:
            async with self.db.transaction() as session:
                await self.work(session)
        except Exception as error:
            return Answer(type(error).__name__)
        return Answer()

    async def request(self) -> Answer:
        """Run it as a request; the class is the one that the problem document names."""
        transport = httpx.ASGITransport(self._watched, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            response = await client.post("/words")
        if response.is_success:
            return Answer("", response.status_code)
        assert ("Retry-After" in response.headers) == (response.status_code == 503)
        return Answer(_CODES[response.json()["code"]], response.status_code)

    async def _watched(self, scope: Any, receive: Any, send: Any) -> None:
        async def noted(message: Any) -> None:
            if message["type"] == "http.response.start":
                self.proxy.passed.append(RESPONSE)
            await send(message)

        await self.app(scope, receive, noted)

    async def warm(self) -> None:
        """Let the pool hold two connections."""
        async with self.db.engine.connect() as one, self.db.engine.connect() as other:
            for connection in (one, other):
                await connection.execute(text("SELECT 1"))
        self.proxy.passed.clear()

    def stored(self) -> tuple[str, ...]:
        """What another connection, past the proxy, finds in the table."""
        return tuple(word for (word,) in self.observer.rows("SELECT word FROM words ORDER BY word"))

    def held(self) -> int:
        """Connections that are not back in the pool."""
        return self.db.engine.pool.checkedout() + len(self.db._runtime.units)

    async def idle_in_transaction(self) -> int:
        """Transactions that the server keeps open though nobody will end them."""
        for _ in range(100):  # a server takes its time to see that a client has gone, and tells nobody when it does
            if not self.observer.idle_in_transaction():
                break
            await asyncio.sleep(0.02)
        return self.observer.idle_in_transaction()

    async def next_works(self) -> None:
        """A transaction that comes after all this succeeds, with nothing restarted."""
        async with self.db.transaction() as session:
            await session.execute(text("INSERT INTO words VALUES ('next')"))
        assert "next" in self.stored()


SceneKind = TypeVar("SceneKind", bound=Scene)


async def cancelled(work: Awaitable[Answer], when: asyncio.Event) -> Answer:
    """The answer of ``work`` if its caller loses patience: it is cancelled, as often as it takes (psycopg: twice)."""
    task = asyncio.ensure_future(work)
    await when.wait()
    for _ in range(200):
        task.cancel()
        done, _ = await asyncio.wait([task], timeout=0.03)
        if done:
            break
    return Answer("CancelledError") if task.cancelled() else task.result()


@asynccontextmanager
async def scene(
    url: str, observer: Observer, kind: type[SceneKind] = Scene, **arguments: Any
) -> AsyncIterator[SceneKind]:
    """A scene with an empty table. When it is left, nothing may be held, in the pool or on the server."""
    observer.execute("CREATE TABLE words (word varchar(20) PRIMARY KEY)")
    async with asyncio.timeout(15), proxied(url) as (proxy, through):
        db = kind.database(through, **{"pool_size": 3, "max_overflow": 0, "pool_timeout": 5, **arguments})
        made = kind(proxy, db, observer)
        async with db.lifespan():
            yield made
            await proxy.heal()
            assert made.held() == 0
            assert await made.idle_in_transaction() == 0
