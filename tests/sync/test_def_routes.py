"""What the request promises, for plain `def` routes: commit before the response, one unit, and no standstill."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import httpx
import pytest
from fastapi import BackgroundTasks, Depends, FastAPI, Response
from sqlalchemy import ForeignKeyConstraint, String, event, insert, select, text
from sqlalchemy.engine import Connection
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from tests.engines import Observer
from tests.fastapi.serving import serving
from tests.sync.in_place import sync_url
from transact import Retry, errors
from transact.fastapi import Database
from transact.fastapi.threads import SyncDatabase

pytestmark = pytest.mark.engines("sqlite", "pg18-psycopg", "mariadb")


class Base(DeclarativeBase):
    pass


class Person(Base):
    __tablename__ = "people"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(50), unique=True)
    boss: Mapped[int | None]
    # MySQL and MariaDB have no such constraints.
    __table_args__ = (
        ForeignKeyConstraint(["boss"], ["people.id"], deferrable=True, initially="DEFERRED").ddl_if(
            callable_=lambda *_, dialect, **__: dialect.name != "mysql"
        ),
    )


class Site:
    """An application of `def` routes over one database."""

    def __init__(self, url: str, **arguments: Any) -> None:
        self.db = SyncDatabase(sync_url(url), metadata=Base.metadata, **arguments)
        self.app = FastAPI(lifespan=self.db.lifespan)
        self.db.install(self.app)
        with self.db.engine.begin() as connection:
            Base.metadata.create_all(connection)

    @asynccontextmanager
    async def client(self) -> AsyncIterator[httpx.AsyncClient]:
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=60) as client:
            yield client
        assert self.db.engine.pool.checkedout() == 0
        assert not list(self.db._door._line.taken)
        self.db.close()


def names(observer: Observer) -> list[str]:
    return sorted(name for (name,) in observer.rows("SELECT name FROM people"))


async def test_two_hundred_requests_at_once_on_a_pool_of_five_are_all_answered(
    database_url: str, observer: Observer
) -> None:
    site = Site(database_url, pool_size=5, max_overflow=0, pool_timeout=30)

    def current_user(session: Annotated[Session, site.db.session()]) -> None:
        session.execute(select(1))  # and holds a connection now, while it waits for a thread for its route

    @site.app.post("/{name}", status_code=201, dependencies=[Depends(current_user)])
    def add(name: str, session: Annotated[Session, site.db.session()]) -> str:
        session.execute(insert(Person).values(name=name))
        time.sleep(0.01)
        return name

    async with serving(site.app) as client:
        answers = await asyncio.gather(*(client.post(f"/p{number}", timeout=60) for number in range(200)))
    assert [answer.status_code for answer in answers] == [201] * 200
    assert len(names(observer)) == 200
    site.db.close()


async def test_the_row_is_visible_to_another_connection_when_the_response_begins(
    database_url: str, observer: Observer
) -> None:
    site = Site(database_url)
    seen: list[list[str]] = []

    @site.app.post("/")
    def add(session: Annotated[Session, site.db.session()]) -> None:
        session.add(Person(name="ann"))

    async def watched(scope: Any, receive: Any, send: Any) -> None:
        async def watching(message: Any) -> None:
            seen.append(names(observer))
            await send(message)

        await site.app(scope, receive, watching)

    async with httpx.AsyncClient(transport=httpx.ASGITransport(watched), base_url="http://test") as client:
        assert (await client.post("/")).status_code == 200
    assert seen[0] == ["ann"]
    site.db.close()


@pytest.mark.engines("sqlite", "pg18-psycopg")  # MariaDB checks nothing at COMMIT
async def test_a_commit_that_fails_is_a_problem_document_and_nothing_is_stored(
    database_url: str, observer: Observer
) -> None:
    site = Site(database_url)

    @site.app.post("/", status_code=201)
    def add(session: Annotated[Session, site.db.session()]) -> None:
        session.execute(insert(Person).values(name="bob", boss=99))

    async with site.client() as client:
        answer = await client.post("/")
    assert (answer.status_code, answer.json()["code"]) == (409, "foreign-key-violation")
    assert names(observer) == []


async def test_a_status_that_tells_of_failure_and_an_exception_roll_back(database_url: str, observer: Observer) -> None:
    site = Site(database_url)
    rolled_back: list[BaseException | None] = []

    @site.app.post("/vetoed")
    def vetoed(response: Response, session: Annotated[Session, site.db.session()]) -> None:
        session.execute(insert(Person).values(name="vetoed"))
        site.db.after_rollback(rolled_back.append)
        response.status_code = 422

    @site.app.post("/raises")
    def raises(session: Annotated[Session, site.db.session()]) -> None:
        session.execute(insert(Person).values(name="raises"))
        site.db.after_rollback(rolled_back.append)
        raise LookupError

    async with site.client() as client:
        assert (await client.post("/vetoed")).status_code == 422
        assert (await client.post("/raises")).status_code == 500
    assert names(observer) == []
    assert [type(error) for error in rolled_back][1] is LookupError


async def test_a_route_its_dependencies_and_services_share_one_session_in_whatever_threads_they_run(
    database_url: str, observer: Observer
) -> None:
    site = Site(database_url)
    db = site.db
    ran: list[str] = []

    def current_user(session: Annotated[Session, db.session()]) -> Session:
        return session

    @db.transactional
    def service(session: Session, name: str) -> None:
        session.execute(insert(Person).values(name=name))
        assert db.current.depth >= 1

    @site.app.post("/")
    def route(
        user: Annotated[Session, Depends(current_user)],
        session: Annotated[Session, db.session()],
        connection: Annotated[Connection, db.connection()],
    ) -> int:
        assert user is session
        assert db.current.session is session
        service("ann")
        with db.savepoint():
            service("bob")
        db.before_commit(lambda: ran.append("before"))
        db.after_commit(lambda: ran.append(f"after {db.in_transaction}"))
        return len(connection.execute(select(Person.name)).all())

    async with site.client() as client:
        assert (await client.post("/")).json() == 2
    assert ran == ["before", "after False"]
    assert names(observer) == ["ann", "bob"]


async def test_the_connection_of_a_request_cannot_be_ended_by_hand(database_url: str, observer: Observer) -> None:
    site = Site(database_url)

    @site.app.post("/{how}")
    def route(how: str, connection: Annotated[Connection, site.db.connection()]) -> None:
        connection.execute(insert(Person).values(name=how))
        getattr(connection, how)()

    async with site.client() as client:
        for how in ("begin", "begin_nested", "commit", "rollback", "close", "invalidate", "detach"):
            assert (await client.post(f"/{how}")).json()["code"] == "usage-error"
    assert names(observer) == []


async def test_a_background_task_finds_the_session_ended(database_url: str, observer: Observer) -> None:
    site = Site(database_url)
    found: list[BaseException] = []

    @site.app.post("/")
    def add(tasks: BackgroundTasks, session: Annotated[Session, site.db.session()]) -> None:
        session.add(Person(name="ann"))

        def later() -> None:
            try:
                session.execute(select(1))
            except errors.TransactError as error:
                found.append(error)
            with site.db.transaction() as own:
                own.add(Person(name="bob"))

        tasks.add_task(later)

    async with site.client() as client:
        assert (await client.post("/")).status_code == 200
    assert [type(error) for error in found] == [errors.TransactionEnded]
    assert "`with db.transaction() as session`" in str(found[0])
    assert names(observer) == ["ann", "bob"]


async def test_who_gets_no_connection_in_time_is_told_503_with_retry_after(database_url: str) -> None:
    site = Site(database_url, pool_size=1, max_overflow=0, pool_timeout=0.05)
    release, holds = threading.Event(), threading.Event()

    @site.app.get("/holds")
    def holds_it(session: Annotated[Session, site.db.session()]) -> None:
        session.execute(select(1))
        holds.set()
        release.wait(30)

    @site.app.get("/")
    def route(session: Annotated[Session, site.db.session()]) -> None:
        session.execute(select(1))

    async with site.client() as client:
        first = asyncio.create_task(client.get("/holds"))
        await asyncio.to_thread(holds.wait, 30)
        refused = await client.get("/")
        release.set()
        assert (await first).status_code == 200
    assert (refused.status_code, refused.json()["code"]) == (503, "pool-timeout")
    assert "retry-after" in refused.headers


async def test_a_request_is_tried_again_in_a_new_session(database_url: str, observer: Observer) -> None:
    site = Site(database_url)
    sessions: list[Session] = []

    @site.app.post("/")
    def add(session: Annotated[Session, site.db.session(retry=Retry(5, base=0, on=(LookupError,)))]) -> int:
        sessions.append(session)
        session.execute(insert(Person).values(name="ann"))
        if len(sessions) < 3:
            raise LookupError
        return len(sessions)

    async with site.client() as client:
        assert (await client.post("/")).json() == 3
    assert len(set(map(id, sessions))) == 3
    assert names(observer) == ["ann"]


async def test_a_manual_session_is_its_routes_own(database_url: str, observer: Observer) -> None:
    site = Site(database_url)

    @site.app.post("/")
    def add(session: Annotated[Session, site.db.manual_session()]) -> None:
        with session.begin():
            session.add(Person(name="kept"))
        session.add(Person(name="left"))
        session.flush()

    async with site.client() as client:
        assert (await client.post("/")).status_code == 200
    assert names(observer) == ["kept"]


async def test_a_request_that_is_cancelled_while_its_thread_commits_gives_everything_back(
    database_url: str, observer: Observer
) -> None:
    site = Site(database_url, pool_size=1, max_overflow=0)
    committing, go_on = threading.Event(), threading.Event()

    @site.app.post("/")
    def add(session: Annotated[Session, site.db.session()]) -> None:
        session.execute(insert(Person).values(name="ann"))
        event.listen(session, "before_commit", lambda _: (committing.set(), go_on.wait(30)))

    async with site.client() as client:
        request = asyncio.create_task(client.post("/"))
        await asyncio.to_thread(committing.wait, 30)
        request.cancel()
        await asyncio.sleep(0)
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await request
    assert names(observer) == ["ann"]


async def test_sync_and_async_routes_stand_side_by_side_over_one_database(
    database_url: str, observer: Observer
) -> None:
    site = Site(database_url)
    other = Database(database_url, name="async")
    other.install(site.app)

    @site.app.post("/sync")
    def sync(session: Annotated[Session, site.db.session()]) -> None:
        session.execute(insert(Person).values(name="sync"))

    @site.app.post("/async")
    async def asynchronous(session: Annotated[Any, other.session()]) -> None:
        await session.execute(insert(Person).values(name="async"))

    async with site.client() as client:
        assert [(await client.post(f"/{way}")).status_code for way in ("sync", "async")] == [200, 200]
    await other.close()
    assert names(observer) == ["async", "sync"]


async def test_the_text_of_a_statement_that_ends_a_request_twice_is_refused(database_url: str) -> None:
    site = Site(database_url)

    @site.app.post("/")
    def ends(session: Annotated[Session, site.db.session()]) -> None:
        session.execute(text("SELECT 1"))
        session.commit()

    async with site.client() as client:
        assert (await client.post("/")).json()["code"] == "usage-error"
