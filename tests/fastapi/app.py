"""The application that the tests of the FastAPI face talk to, in a uvicorn process of its own.

`python app.py` serves it on a port that the operating system chose, and prints that port. Environment: APP_URL, the database.
Everything under /_ is for the tests: it looks at the server, and uses no database.
"""
# ruff: noqa: FBT001, FBT002, PLR0917  # a route's parameters are its query parameters

import asyncio
import os
import socket
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import uvicorn
from fastapi import BackgroundTasks, Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel
from sqlalchemy import DDL, ForeignKey, ForeignKeyConstraint, String, UniqueConstraint, event, func, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from transact import errors
from transact.fastapi import Database, Problem


class Base(DeclarativeBase):
    pass


class Person(Base):
    __tablename__ = "person"
    __table_args__ = (UniqueConstraint("name", name="uq_person_name"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(50))
    nick: Mapped[str | None] = mapped_column(String(50))
    # Deferred, so that COMMIT is what fails; MySQL and MariaDB know no such thing, and their statements fail instead.
    boss_id: Mapped[int | None] = mapped_column(
        ForeignKey("person.id", name="fk_person_boss", deferrable=True, initially="DEFERRED")
    )


class Slow(Base):
    """A row of it makes COMMIT take 0.3 s on PostgreSQL."""

    __tablename__ = "slow"
    id: Mapped[int] = mapped_column(primary_key=True)


@compiles(ForeignKeyConstraint, "mysql", "mariadb")
def foreign_key_at_once(constraint: ForeignKeyConstraint, compiler: Any, **options: Any) -> str:
    return compiler.visit_foreign_key_constraint(constraint, **options).partition(" DEFERRABLE")[0]


for statement in (
    "ALTER TABLE person ADD CONSTRAINT uq_person_nick UNIQUE (nick) DEFERRABLE INITIALLY DEFERRED",
    "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.3); RETURN NULL; END $$",
    "CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON slow DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION slow()",
):
    event.listen(Base.metadata, "after_create", DDL(statement).execute_if(dialect="postgresql"))

db = Database(os.environ.get("APP_URL", "sqlite+aiosqlite://"), pool_size=5, max_overflow=0, metadata=Base.metadata)
# A pool of two, in the same application.
small = Database(db.engine.url, pool_size=2, max_overflow=0, pool_timeout=3, name="small")


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with db.lifespan(app), small.lifespan(app):
        yield


app = FastAPI(lifespan=lifespan)
db.install(app, problems={"uq_person_name": Problem(400, detail="Name taken", fields=("name",))})
small.install(app)

Session = Annotated[AsyncSession, db.session()]
Manual = Annotated[AsyncSession, db.manual_session()]
SmallSession = Annotated[AsyncSession, small.session()]

counts: Counter[str] = Counter()
outcomes: dict[str, asyncio.Future[str]] = {}
kept: set[asyncio.Task[Any]] = set()

for engine in (db.engine, small.engine):
    event.listen(engine.sync_engine, "before_cursor_execute", lambda *_: counts.update(["statements"]))
    event.listen(engine.sync_engine.pool, "checkout", lambda *_: counts.update(["checkouts"]))


def outcome(key: str) -> asyncio.Future[str]:
    return outcomes.setdefault(key, asyncio.get_running_loop().create_future())


async def attempt(key: str, session: AsyncSession) -> None:
    """Use a session that has ended, then a transaction of one's own; tell both."""
    told = []
    try:
        await session.scalar(select(func.count(Person.id)))
        told.append("worked")
    except Exception as error:
        told.append(type(error).__name__)
        told.append("said what to do" if "async with db.transaction()" in str(error) else str(error))
    try:
        session.add(Person(name="lost"))
        told.append("add worked")
    except Exception as error:
        told.append(type(error).__name__)
    async with db.transaction() as own:
        own.add(Person(name=f"own {key}"))
    outcome(key).set_result(" | ".join(told))


# What the client may hear, and when.


@app.post("/people", status_code=201)
async def add(
    session: Session,
    tasks: BackgroundTasks,
    name: str,
    boss: int | None = None,
    nick: str | None = None,
    slow: bool = False,
    raised: int | None = None,
    returned: int | None = None,
    task: str | None = None,
    started: str | None = None,
) -> Any:
    person = Person(name=name, boss_id=boss, nick=nick)
    session.add(person)
    await session.flush()
    if slow:
        session.add(Slow())
    if task:
        tasks.add_task(outcome(task).set_result, "ran")
    if started:
        outcome(started).set_result("flushed")
        await outcome(f"go {started}")
    if raised:
        raise HTTPException(raised, "refused")
    if returned:
        return Response(status_code=returned, headers={"Location": "/elsewhere"})
    return {"id": person.id}


@app.post("/people/unflushed", status_code=201)
async def add_unflushed(session: Session, name: str) -> dict[str, str]:
    session.add(Person(name=name))
    return {"name": name}


class Shown(BaseModel):
    id: int
    name: str


@app.post("/people/invalid")
async def add_and_answer_nonsense(session: Session, name: str) -> Shown:
    session.add(Person(name=name))
    await session.flush()
    return {"id": "no number"}  # type: ignore[return-value]


@app.post("/people/orm", response_model=Shown)
async def answer_an_object_without_id(session: Session, name: str) -> Any:
    person = Person(name=name)
    session.add(person)
    return person


@app.get("/people/count")
async def count(session: Session) -> int:
    return await session.scalar(select(func.count(Person.id))) or 0


@app.get("/unused")
async def declares_and_never_uses(session: Session, manual: Manual) -> str:
    return "nothing"


# The hand-written dependency that most applications have.

maker = async_sessionmaker(db.engine, expire_on_commit=False)


async def get_db(name: str) -> AsyncIterator[AsyncSession]:
    try:
        async with maker() as session:
            yield session
            await session.commit()
    except IntegrityError:
        outcome(f"get_db {name}").set_result("failed")
        raise
    outcome(f"get_db {name}").set_result("committed")


@app.post("/handwritten", status_code=201)
async def handwritten(session: Annotated[AsyncSession, Depends(get_db)], name: str, boss: int | None = None) -> Any:
    session.add(Person(name=name, boss_id=boss))
    if db.engine.dialect.name == "postgresql":
        session.add(Slow())
    await session.flush()
    return {"name": name}


# After the response has begun.


@app.post("/after/task")
async def in_a_background_task(session: Session, tasks: BackgroundTasks, key: str, name: str) -> str:
    session.add(Person(name=name))
    tasks.add_task(attempt, key, session)
    return "ok"


@app.post("/after/stream")
async def in_a_stream(session: Session, key: str, name: str) -> StreamingResponse:
    session.add(Person(name=name))

    async def body() -> AsyncIterator[bytes]:
        yield b"first"
        await attempt(key, session)
        yield b"last"

    return StreamingResponse(body())


@app.post("/after/late")
async def in_a_late_task(session: Session, key: str, name: str) -> str:
    session.add(Person(name=name))

    async def late() -> None:
        await outcome(f"go {key}")
        await attempt(key, session)

    kept.add(asyncio.create_task(late()))
    return "ok"


@app.get("/big")
async def big(session: SmallSession) -> StreamingResponse:
    assert await session.scalar(text("SELECT 1")) == 1

    async def body() -> AsyncIterator[bytes]:
        counts.update(["streaming"])
        try:
            for _ in range(320):  # 20 MB
                yield b"x" * 65536
        finally:
            counts.subtract(["streaming"])

    return StreamingResponse(body())


@app.get("/small")
async def from_the_small_pool(session: SmallSession) -> int:
    return await session.scalar(text("SELECT 1")) or 0


# One session, two tasks.


@app.post("/gather")
async def gather(session: Session, write: bool = False, warm: bool = False, wait: bool = False) -> str:
    if warm:
        await session.execute(select(1))

    async def one(name: str) -> None:
        if write:
            session.add(Person(name=name))
            await session.flush()
        else:
            await session.execute(select(Person))

    if wait:
        found = await asyncio.gather(one("g1"), one("g2"), return_exceptions=True)
        raise next(error for error in found if error is not None)
    await asyncio.gather(one("g1"), one("g2"))
    return "never"


# What goes wrong.


@app.post("/swallow")
async def swallow(session: Session, name: str) -> str:
    session.add(Person(name="before"))
    await session.flush()
    try:
        session.add(Person(name=name))
        await session.flush()
    except IntegrityError:
        return "all is well"
    return "new"


@app.post("/quiet", status_code=202)
async def quiet(session: Session, name: str) -> str:
    session.add(Person(name=name))
    await session.flush()
    db.current.set_rollback_only("a rehearsal")
    return "only looking"


class RenderedAsOkError(Exception):
    pass


@app.exception_handler(errors.NotNullViolation)
def render_as_ok(request: Request, error: Exception) -> Response:
    return JSONResponse("all is well")


@app.post("/rendered/statement")
async def rendered_as_ok(session: Session, name: str) -> None:
    session.add(Person(name=name))
    await session.flush()
    await session.execute(text("INSERT INTO person (name) VALUES (NULL)"))


@app.post("/rendered/commit")
async def rendered_as_ok_at_commit(session: Session, name: str) -> str:
    session.add(Person(name=name))
    session.add(Person())  # flushed before COMMIT
    return "ok"


class GoneError(BaseException):
    pass


@app.post("/raises")
async def raises(session: Session, name: str, base: bool = False) -> None:
    session.add(Person(name=name))
    await session.flush()
    raise GoneError if base else ValueError(name)


@app.post("/manual")
async def manual(session: Manual, name: str, commit: bool = False, write: bool = True, status: int = 200) -> Response:
    if write:
        session.add(Person(name=name))
        await session.flush()
    else:
        await session.execute(select(Person))
    if commit:
        await session.commit()
    return Response(status_code=status)


# For the tests.


@app.get("/_pool")
async def pool() -> int:
    return db.engine.pool.checkedout() + small.engine.pool.checkedout()


@app.get("/_cold")
async def cold() -> None:
    await db.engine.dispose()


@app.get("/_counts")
async def look() -> dict[str, int]:
    return dict(counts)


@app.get("/_outcome")
async def wait_for(key: str) -> str:
    async with asyncio.timeout(10):
        return await outcome(key)


@app.get("/_go")
async def go(key: str) -> None:
    outcome(f"go {key}").set_result("go")


@app.get("/_done")
async def done() -> list[str]:
    return [key for key, future in outcomes.items() if future.done()]


class CancelWhenTheClientLeaves:
    """What some servers and middlewares do: nobody reads the answer, so the request's task is cancelled."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or b"cancel=1" not in scope["query_string"]:
            await self.app(scope, receive, send)
            return
        await receive()
        task = asyncio.create_task(self.app(scope, receive, send))

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            task.cancel()

        watcher = asyncio.create_task(watch())
        key = scope["query_string"].decode().partition("key=")[2]
        try:
            await task
            outcome(key).set_result("finished")
        except asyncio.CancelledError:
            outcome(key).set_result("cancelled")
        finally:
            watcher.cancel()


app.add_middleware(CancelWhenTheClientLeaves)


async def main() -> None:
    async with db.engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    listening = socket.create_server(("127.0.0.1", 0))
    # The parent reads the port here; the socket listens already.
    print(listening.getsockname()[1], flush=True)  # noqa: T201
    await uvicorn.Server(uvicorn.Config(app, log_level="warning", ws="none")).serve([listening])


if __name__ == "__main__":
    asyncio.run(main())
