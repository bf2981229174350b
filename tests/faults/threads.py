"""The scene over the sync face: its transaction runs in a thread, beside the event loop of the proxy."""

import asyncio
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from fastapi import FastAPI
from sqlalchemy import text
from sqlalchemy.orm import Session

from tests.faults.scene import Answer, Scene
from tests.faults.wire import Step
from tests.sync.in_place import sync_url
from transact.fastapi.threads import SyncDatabase


def _database(url: str, **arguments: Any) -> SyncDatabase:
    return SyncDatabase(sync_url(url), **arguments)


@dataclass
class SyncScene(Scene):
    """`Scene` of a `SyncDatabase`."""

    database: ClassVar[Any] = staticmethod(_database)

    def __post_init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.app = FastAPI()
        self.db.install(self.app)

        @self.app.post("/words", status_code=201)
        def write(session: Annotated[Session, self.db.session()]) -> str:
            self.work(session)
            return "stored"

    def work(self, session: Session) -> None:  # type: ignore[override]  # nothing is awaited
        """See `Scene`."""
        db = self.db
        db.after_commit(lambda: self.told.append("after_commit"))
        db.after_rollback(lambda _: self.told.append("after_rollback"))
        db.after_completion(lambda outcome: self.told.append(outcome.value))
        session.execute(text("INSERT /* first */ INTO words VALUES ('first')"))
        with db.savepoint():
            session.execute(text("INSERT INTO words VALUES ('inner')"))
        session.execute(text("INSERT /* last */ INTO words VALUES ('last')"))
        asyncio.run_coroutine_threadsafe(self.proxy.reach(Step.IDLE), self.loop).result()

    async def block(self) -> Answer:
        """See `Scene`."""
        return await asyncio.to_thread(self._block)

    def _block(self) -> Answer:
        try:
            with self.db.transaction() as session:
                self.work(session)
        except Exception as error:
            return Answer(type(error).__name__)
        return Answer()

    async def run(self, **options: Any) -> None:
        """Run it as a function."""
        await asyncio.to_thread(self.db.run, self.work, **options)

    async def warm(self) -> None:
        """See `Scene`."""
        await asyncio.to_thread(self._warm)
        self.proxy.passed.clear()

    def _warm(self) -> None:
        with self.db.engine.connect() as one, self.db.engine.connect() as other:
            for connection in (one, other):
                connection.execute(text("SELECT 1"))

    async def next_works(self) -> None:
        """See `Scene`."""
        await asyncio.to_thread(self._next_works)

    def _next_works(self) -> None:
        with self.db.transaction() as session:
            session.execute(text("INSERT INTO words VALUES ('next')"))
        assert "next" in self.stored()
