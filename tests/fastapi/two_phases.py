"""An application whose databases commit in two phases, each behind a proxy, and what its tests look at."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import ForeignKey, String
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.util import greenlet_spawn

import transact
from tests.conftest import lasting_database
from tests.engines import Observer, observe
from tests.faults.proxy import Proxy, proxied
from tests.faults.wire import Step
from transact._core.branches import Xid
from transact._core.hooks import Outcome
from transact.fastapi import Database
from transact.fastapi.threads import SyncDatabase

PATIENCE = 15
Body = Callable[[Session, Session, str, str | None], None]


class Base(DeclarativeBase):
    pass


class Word(Base):
    __tablename__ = "words"

    word: Mapped[str] = mapped_column(String(50), primary_key=True)
    after: Mapped[str | None] = mapped_column(ForeignKey("words.word", deferrable=True, initially="DEFERRED"))


@dataclass
class Place:
    """An application with databases that commit in two phases, each behind a proxy; who resolves has ways around those."""

    urls: dict[str, str]
    observers: dict[str, Observer]
    app: FastAPI = field(default_factory=FastAPI)
    databases: dict[str, Any] = field(default_factory=dict)
    proxies: dict[str, Proxy] = field(default_factory=dict)
    behind: dict[str, str] = field(default_factory=dict)
    direct: list[Any] = field(default_factory=list)
    told: list[Any] = field(default_factory=list)

    def stored(self) -> dict[str, list[str]]:
        """What each database holds."""
        return {
            name: [word for (word,) in observer.rows("SELECT word FROM words ORDER BY word")]
            for name, observer in self.observers.items()
        }

    def where(self) -> list[str]:
        return [name for name, words in self.stored().items() if words]

    def prepared(self) -> list[str]:
        """The databases in which something is prepared, as their servers say."""
        return [name for name in self.observers if self._left(name)]

    def _left(self, name: str) -> list[str]:
        if make_url(self.urls[name]).get_backend_name() == "postgresql":
            listed = "SELECT gid FROM pg_prepared_xacts WHERE database = current_database()"
            return [gid for (gid,) in self.observers[name].rows(listed)]
        rows = self.observers[name].rows("XA RECOVER")  # of the whole server, where other tests run
        found = [Xid.parse(number, length, data.decode()) for number, length, _, data in rows]
        return [str(xid) for xid in found if xid is not None and xid.database == self.known_as(name)]

    def known_as(self, name: str) -> str:
        """The ``name=`` of a database, which no other test uses."""
        return f"{name}-{make_url(self.urls[name]).database}"[:36]

    def clear_away(self) -> list[str]:
        """End what is left prepared; return where that was."""
        found = self.prepared()
        for name in found:
            postgres = make_url(self.urls[name]).get_backend_name() == "postgresql"
            for gid in self._left(name):
                self.observers[name].execute(f"ROLLBACK PREPARED '{gid}'" if postgres else f"XA ROLLBACK {gid}")
        return found

    def passed(self, step: Step) -> list[str]:
        """Through whose proxy a step came."""
        return [name for name, proxy in self.proxies.items() if step in proxy.passed]

    async def post(self, target: str = "/do") -> httpx.Response:
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.post(target)

    async def resolved(self, **options: Any) -> list[transact.Resolved]:
        return await transact.resolve_prepared(*self.direct, **options)

    async def resolve_in_time(self) -> list[Outcome]:
        """Resolve until nothing is prepared any more: a server may learn of its client's end a little later."""
        found = []
        async with asyncio.timeout(PATIENCE):
            while self.prepared():
                found = [each.outcome for each in await self.resolved(older_than=0)]
        return found

    def route(self, path: str, body: Body) -> None:
        """Let ``body`` run with the sessions of the first two databases."""
        first, second = list(self.databases.values())[:2]
        if isinstance(first, SyncDatabase):

            @self.app.post(path)
            def plain(
                one: Annotated[Session, first.session()],
                other: Annotated[Session, second.session()],
                word: str = "a",
                after: str | None = None,
            ) -> None:
                body(one, other, word, after)

        else:

            @self.app.post(path)
            async def route(
                one: Annotated[AsyncSession, first.session()],
                other: Annotated[AsyncSession, second.session()],
                word: str = "a",
                after: str | None = None,
            ) -> None:
                await greenlet_spawn(body, one.sync_session, other.sync_session, word, after)


def url_of(url: str, kind: type[Any]) -> str:
    """``url`` with a driver for that kind of database."""
    parsed = make_url(url)
    if kind is SyncDatabase:
        drivers = {"postgresql": "postgresql+psycopg", "mysql": "mysql+pymysql"}
        parsed = parsed.set(drivername=drivers[parsed.get_backend_name()])
    return parsed.render_as_string(hide_password=False)


@contextmanager
def urls_of(config: pytest.Config, engines: Mapping[str, str], folder: Path) -> Iterator[dict[str, str]]:
    """A database on each of ``engines``, with a table of words."""
    with ExitStack() as stack:
        found = {name: lasting_database(config, each, folder, stack) for name, each in engines.items()}
        for url in found.values():
            asyncio.run(make_tables(url))
        yield found


async def make_tables(url: str) -> None:
    async with Database(url) as db, db.engine.begin() as connection:
        if db.engine.dialect.name == "postgresql":
            await connection.run_sync(Base.metadata.create_all)
        else:  # which knows no deferred constraints
            await connection.exec_driver_sql("CREATE TABLE words (word VARCHAR(50) PRIMARY KEY, after VARCHAR(50))")


@asynccontextmanager
async def placed(urls: dict[str, str], kind: type[Any] = Database) -> AsyncIterator[Place]:
    """The application, without routes. After the test nothing may be held, left open or left prepared in any database."""
    with ExitStack() as observers:
        found = Place(urls, {name: observers.enter_context(observe(url)) for name, url in urls.items()})
        found.clear_away()
        try:
            async with AsyncExitStack() as running:
                for name, url in urls.items():
                    found.observers[name].execute("DELETE FROM words")
                    found.proxies[name], behind = await running.enter_async_context(proxied(url_of(url, kind)))
                    found.behind[name] = behind
                    pool: Any = {"pool_size": 2, "max_overflow": 0, "pool_timeout": 5}
                    db = kind(behind, **pool, two_phase=True, name=found.known_as(name))
                    found.databases[name] = db
                    await running.enter_async_context(db.lifespan())
                    db.install(found.app)
                    found.direct.append(kind(url_of(url, kind), two_phase=True, name=found.known_as(name)))
                yield found
                for name, db in found.databases.items():
                    assert db.engine.pool.checkedout() == 0, name
                    assert not db._runtime.units, name
                    assert not db._runtime.asking, name
        finally:
            left = found.clear_away()
        assert left == []
