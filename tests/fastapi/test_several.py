"""Several databases in one application: a request's transactions end together, as far as several databases can."""

import asyncio
import inspect
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, field
from typing import Annotated, Any

import httpx
import pytest
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse
from sqlalchemy import ForeignKey, String, event, select, text
from sqlalchemy.dialects import mysql
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

import transact
from tests.conftest import lasting_database
from tests.engines import Observer, observe
from tests.faults.proxy import Fault, Proxy, proxied
from tests.faults.wire import Step
from transact import Retry, errors
from transact.events import Committed, Event, Retried, RolledBack
from transact.fastapi import Database
from transact.fastapi.threads import SyncDatabase

PATIENCE = 15
#: The databases of the application in the order in which they are installed, and what each runs on.
ENGINES = {"notes": "sqlite", "stock": "mariadb", "orders": "pg18-asyncpg", "ledger": "pg18-psycopg"}


class Base(DeclarativeBase):
    pass


class Word(Base):
    __tablename__ = "words"

    word: Mapped[str] = mapped_column(String(50), primary_key=True)


class Wish(Base):
    """A row whose `word` does not exist makes COMMIT fail, where the engine has deferred constraints."""

    __tablename__ = "wishes"

    id: Mapped[int] = mapped_column(primary_key=True)
    word: Mapped[str] = mapped_column(
        String(50).with_variant(mysql.VARCHAR(50), "mysql"),
        ForeignKey("words.word", deferrable=True, initially="DEFERRED"),
    )


@dataclass
class Several:
    """An application with several databases; what their listeners heard, and who looks at each from outside."""

    app: FastAPI
    databases: dict[str, Database]
    observers: dict[str, Observer]
    proxies: dict[str, Proxy]
    heard: list[Event] = field(default_factory=list)
    told: list[Any] = field(default_factory=list)

    def __getattr__(self, name: str) -> Database:
        return self.databases[name]

    def stored(self) -> dict[str, list[str]]:
        """What each database holds."""
        return {
            name: [word for (word,) in observer.rows("SELECT word FROM words ORDER BY word")]
            for name, observer in self.observers.items()
        }

    def where(self) -> list[str]:
        """The databases in which something is stored."""
        return [name for name, words in self.stored().items() if words]

    def committed(self) -> list[str]:
        return [event.database for event in self.heard if isinstance(event, Committed)]

    def rolled_back(self) -> list[str]:
        return [event.database for event in self.heard if isinstance(event, RolledBack)]

    async def post(self, target: str = "/do", *, raising: bool = False) -> httpx.Response:
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=raising)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.post(target)

    def note_hooks(self) -> None:
        """In a route: register hooks on every database that is open."""
        for name, db in self.databases.items():
            if db.in_transaction:
                db.after_commit(lambda name=name: self.told.append(("committed", name)))
                db.after_rollback(
                    lambda error, name=name: self.told.append(("rolled back", name, type(error).__name__))
                )
                db.after_completion(lambda outcome, name=name: self.told.append((outcome.value, name)))

    def route(self, do: Callable[[dict[str, AsyncSession]], Any], *names: str, **options: Any) -> None:
        """`POST /do` uses these databases, asked for in the reverse of the order they were installed in."""
        dependencies = {name: self.databases[name].session(**options) for name in reversed(names or tuple(ENGINES))}

        async def sessions(**given: AsyncSession) -> dict[str, AsyncSession]:
            return given

        _sign(sessions, dependencies)

        @self.app.post("/do")
        async def do_it(sessions: Annotated[dict[str, Any], Depends(sessions)]) -> Any:
            return await do(sessions)


def _sign(f: Any, dependencies: dict[str, Any]) -> None:
    parameters = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[AsyncSession, dependency])
        for name, dependency in dependencies.items()
    ]
    f.__signature__ = inspect.Signature(parameters)


async def store(sessions: dict[str, AsyncSession], word: str = "a") -> str:
    for session in sessions.values():
        session.add(Word(word=word))
        await session.flush()
    return "done"


@dataclass
class Place:
    url: str
    observer: Observer


@pytest.fixture(scope="module")
def places(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Place]]:
    """The four databases, with tables."""
    with ExitStack() as stack:
        found = {}
        for name, engine_id in ENGINES.items():
            url = lasting_database(request.config, engine_id, tmp_path_factory.mktemp("several"), stack)
            found[name] = Place(url, stack.enter_context(observe(url)))
            asyncio.run(_make_tables(url))
        yield found


async def _make_tables(url: str) -> None:
    async with Database(url) as db, db.engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)


@pytest.fixture
async def several(places: dict[str, Place]) -> AsyncIterator[Several]:
    """An application with all four. After the test nothing may be held or left open in any of them."""
    async with AsyncExitStack() as running:
        made = Several(FastAPI(), {}, {name: place.observer for name, place in places.items()}, {})
        for name, place in places.items():
            for table in ("wishes", "words"):
                place.observer.execute(f"DELETE FROM {table}")
            url = place.url
            if not url.startswith("sqlite"):
                made.proxies[name], url = await running.enter_async_context(proxied(url))
            db = made.databases[name] = Database(url, pool_size=2, max_overflow=0, pool_timeout=5, name=name)
            await running.enter_async_context(db)
            db.listen(made.heard.append)
            db.install(made.app)
        yield made
        for name, db in made.databases.items():
            assert db.engine.pool.checkedout() == 0, name
            assert not db._runtime.units, name
            if name in made.proxies:
                await made.proxies[name].heal()
            for _ in range(100):  # a server takes its time to see that a client has gone
                if not made.observers[name].idle_in_transaction():
                    break
                await asyncio.sleep(0.02)
            assert made.observers[name].idle_in_transaction() == 0, name


def fails_at_commit(several: Several, name: str) -> Callable[[dict[str, AsyncSession]], Any]:
    """A route that stores something everywhere, and whose COMMIT fails on `name`."""

    async def do(sessions: dict[str, AsyncSession]) -> str:
        several.note_hooks()
        await store(sessions)
        await sessions[name].execute(text("INSERT INTO wishes (id, word) VALUES (1, 'missing')"))
        return "done"

    return do


# The order, and what belongs to one response.


async def test_the_databases_commit_in_the_order_in_which_they_were_installed_whoever_asked_first(several):
    several.route(store)
    assert (await several.post()).status_code == 200
    assert several.committed() == list(ENGINES)
    assert several.stored() == {name: ["a"] for name in ENGINES}


async def test_hooks_run_after_the_last_commit_in_the_same_order(several):
    async def do(sessions):
        several.note_hooks()
        for name in sessions:
            several.databases[name].after_commit(lambda: several.told.append(several.where()))
        return await store(sessions)

    several.route(do, "notes", "orders")
    assert (await several.post()).status_code == 200
    # Each found both stored.
    assert [told for told in several.told if isinstance(told, list)] == [["notes", "orders"]] * 2
    named = [told for told in several.told if isinstance(told, tuple)]
    assert named == [("committed", name) for name in ("notes", "notes", "orders", "orders")]


async def test_a_database_that_is_not_used_costs_no_connection(several):
    taken = []
    for name, db in several.databases.items():
        event.listen(db.engine.sync_engine.pool, "checkout", lambda *_, name=name: taken.append(name))
    several.route(store, "stock")
    assert (await several.post()).status_code == 200
    assert taken == ["stock"]


@pytest.mark.parametrize("how", ["raised", "returned", "unhandled"])
async def test_a_response_that_tells_of_a_failure_rolls_back_everywhere(several, how):
    async def do(sessions):
        several.note_hooks()
        await store(sessions)
        if how == "returned":
            return JSONResponse("no", 409)
        raise HTTPException(409) if how == "raised" else LookupError

    several.route(do)
    assert (await several.post()).status_code == (500 if how == "unhandled" else 409)
    assert several.where() == []
    assert sorted(several.rolled_back()) == sorted(ENGINES)
    assert {told[0] for told in several.told} == {"rolled back"}


async def test_the_veto_of_one_database_rolls_back_everywhere(tmp_path):
    app = FastAPI()
    one, two = (Database(f"sqlite+aiosqlite:///{tmp_path / name}.db", name=name) for name in ("one", "two"))
    one.install(app, veto=lambda status, _headers: status == 202)
    two.install(app)

    @app.post("/do", status_code=202)
    async def do(a: Annotated[AsyncSession, one.session()], b: Annotated[AsyncSession, two.session()]) -> str:
        a.add(Word(word="a"))
        b.add(Word(word="b"))
        return "done"

    async with one, two:
        for db in (one, two):
            async with db.engine.begin() as connection:
                await connection.run_sync(Base.metadata.create_all)
        made = Several(app, {}, {}, {})
        assert (await made.post()).status_code == 202
        for db in (one, two):
            async with db.transaction(read_only=True) as session:
                assert (await session.scalars(select(Word))).all() == []


# What may still fail without harm fails before anything is stored.


@pytest.mark.parametrize("name", list(ENGINES))
@pytest.mark.parametrize("where", ["flush", "hook"])
async def test_a_flush_or_a_before_commit_hook_that_fails_leaves_nothing_anywhere(several, name, where):
    async def refuse() -> None:
        raise LookupError

    async def do(sessions):
        several.note_hooks()
        for session in sessions.values():
            session.add(Word(word="a"))
        if where == "hook":
            several.databases[name].before_commit(refuse)
        else:
            sessions[name].add(Wish(id=1))
        return "done"

    several.route(do)
    assert (await several.post()).status_code == (500 if where == "hook" else 422)
    assert several.where() == several.committed() == []
    assert {told[0] for told in several.told} == {"rolled back"}


async def test_what_a_before_commit_hook_writes_to_another_database_is_flushed_before_the_first_commit(several):
    statements = []
    for name, db in several.databases.items():
        event.listen(
            db.engine.sync_engine,
            "before_cursor_execute",
            lambda *a, name=name: statements.append((name, a[2].split()[0])),
        )
        event.listen(db.engine.sync_engine, "commit", lambda *_, name=name: statements.append((name, "COMMIT")))

    async def do(sessions):
        several.ledger.before_commit(lambda: sessions["notes"].add(Word(word="late")))
        several.notes.before_commit(lambda: sessions["ledger"].add(Word(word="early")))
        return "done"

    several.route(do, "notes", "ledger")
    assert (await several.post()).status_code == 200
    assert several.stored() == {"notes": ["late"], "stock": [], "orders": [], "ledger": ["early"]}
    inserts = [i for i, (_, said) in enumerate(statements) if said == "INSERT"]
    commits = [i for i, (_, said) in enumerate(statements) if said == "COMMIT"]
    assert max(inserts) < min(commits)


@pytest.mark.parametrize("name", list(ENGINES))
async def test_a_statement_whose_error_was_swallowed_leaves_nothing_anywhere(several, name):
    async def do(sessions):
        await store(sessions)
        with pytest.raises(errors.UniqueViolation):
            await sessions[name].execute(text("INSERT INTO words VALUES ('a')"))
        return "all is well"

    several.route(do)
    answer = await several.post()
    assert (answer.status_code, answer.json()["code"]) == (500, "unexpected-rollback")
    assert several.where() == several.committed() == []


async def test_a_transaction_whose_time_is_over_leaves_nothing_anywhere(several):
    async def do(sessions):
        await store(sessions)
        several.ledger.before_commit(lambda: asyncio.sleep(0.3))
        return "done"

    several.route(do, "notes", "ledger", timeout=0.2)

    answer = await several.post()
    assert (answer.status_code, answer.json()["code"]) == (504, "transaction-timeout")
    assert several.where() == several.committed() == []


@pytest.mark.parametrize("name", ["stock", "orders", "ledger"])
async def test_a_server_that_hung_up_before_the_first_commit_leaves_nothing_anywhere(several, name):
    async def do(sessions):
        await store(sessions)
        await several.proxies[name].strike(Fault.RESET)
        return "done"

    several.route(do)
    answer = await several.post()
    assert (answer.status_code, answer.json()["code"]) == (503, "connection-lost")
    assert several.where() == several.committed() == []


async def test_a_first_commit_that_fails_leaves_nothing_anywhere_and_is_told_as_it_is(several):
    several.route(fails_at_commit(several, "notes"))
    answer = await several.post()
    assert (answer.status_code, answer.json()["code"]) == (409, "foreign-key-violation")
    assert several.where() == several.committed() == []
    assert [told[1] for told in several.told if told[0] == "rolled back" and len(told) == 3] == list(ENGINES)


async def test_set_rollback_only_on_one_database_is_that_ones_alone(several):
    async def do(sessions):
        several.note_hooks()
        transact.after_all_commits(lambda: several.told.append("all"))
        await store(sessions)
        several.stock.current.set_rollback_only("a rehearsal")
        return "done"

    several.route(do)
    assert (await several.post()).status_code == 200
    assert several.where() == ["notes", "orders", "ledger"]
    assert "all" not in several.told
    assert ("rolled back", "stock", "NoneType") in several.told


# A later COMMIT fails.


@pytest.fixture
def caught(several) -> list[errors.PartialCommit]:
    """What an exception handler of the application gets."""
    found: list[errors.PartialCommit] = []

    @several.app.exception_handler(errors.PartialCommit)
    def handle(request: Request, error: errors.PartialCommit) -> JSONResponse:
        found.append(error)
        return JSONResponse("a part of it", 500)

    return found


@pytest.mark.parametrize("name", ["orders", "ledger"])
async def test_a_later_commit_that_fails_is_told_as_partial_and_names_what_is_stored(several, caught, name):
    several.route(fails_at_commit(several, name))
    before, after = list(ENGINES)[: list(ENGINES).index(name)], list(ENGINES)[list(ENGINES).index(name) :]
    assert (await several.post()).status_code == 500
    [error] = caught
    assert several.where() == several.committed() == before
    assert (error.committed, error.unknown, error.rolled_back) == (tuple(before), (), tuple(after))
    assert isinstance(error.__cause__, errors.ForeignKeyViolation)
    assert [told[1] for told in several.told if told[0] == "committed" and len(told) == 2] == [
        each
        for each in before
        for _ in range(2)  # its after_commit and its after_completion
    ]
    assert [told[1:] for told in several.told if len(told) == 3] == [(each, "ForeignKeyViolation") for each in after]


async def test_a_partial_commit_is_a_500_and_the_log_names_the_databases(several, caplog):
    several.route(fails_at_commit(several, "orders"))
    with caplog.at_level(logging.ERROR, "transact"):
        answer = await several.post()
    assert (answer.status_code, answer.json()["code"], answer.json()["retryable"]) == (500, "partial-commit", False)
    assert "notes" not in answer.text
    [line] = [r.getMessage() for r in caplog.records if "is committed on" in r.getMessage()]
    assert line == (
        "'POST /do' is committed on 'notes', 'stock', but COMMIT on 'orders' raised ForeignKeyViolation; "
        "rolled back: 'orders', 'ledger'"
    )


async def test_no_handler_can_call_a_partial_commit_a_success(several):
    @several.app.exception_handler(errors.PartialCommit)
    def handle(request: Request, error: errors.PartialCommit) -> JSONResponse:
        return JSONResponse("all is well")

    several.route(fails_at_commit(several, "ledger"))
    answer = await several.post()
    assert (answer.status_code, answer.json()["code"]) == (500, "unexpected-rollback")


@pytest.mark.parametrize("step", [Step.COMMIT_SENT, Step.COMMIT_ANSWERED])
async def test_a_lost_answer_in_the_middle_rolls_back_what_comes_after_and_the_error_tells(several, caught, step):
    async def do(sessions):
        several.note_hooks()
        await store(sessions)
        several.proxies["orders"].set_trap(step, Fault.RESET)
        return "done"

    several.route(do)
    assert (await several.post()).status_code == 500
    [error] = caught
    assert (error.committed, error.unknown, error.rolled_back) == (("notes", "stock"), ("orders",), ("ledger",))
    assert isinstance(error.__cause__, errors.CommitOutcomeUnknown)
    stored = ["notes", "stock", *(["orders"] if step is Step.COMMIT_ANSWERED else [])]
    async with asyncio.timeout(PATIENCE):
        while several.where() != stored:  # the server may learn of its client's end a little later
            await asyncio.sleep(0.02)
    assert ("unknown", "orders") in several.told
    assert ("committed", "orders") not in several.told


async def test_a_lost_answer_of_the_first_commit_rolls_back_the_others_and_says_so(several):
    caught = []

    @several.app.exception_handler(errors.CommitOutcomeUnknown)
    def handle(request: Request, error: errors.CommitOutcomeUnknown) -> JSONResponse:
        caught.append(error)
        return JSONResponse("nobody knows", 500)

    async def do(sessions):
        await store(sessions)
        several.proxies["stock"].set_trap(Step.COMMIT_ANSWERED, Fault.RESET)
        return "done"

    several.route(do, "stock", "orders", "ledger")
    assert (await several.post()).status_code == 500
    assert several.where() == ["stock"]
    assert caught[0].__notes__ == ["That was on 'stock'; rolled back: 'orders', 'ledger'."]


async def test_a_database_that_was_only_read_or_not_used_never_counts(several, caught):
    @several.app.post("/do")
    async def do(
        notes: Annotated[AsyncSession, several.notes.session(read_only=True)],
        stock: Annotated[AsyncSession, several.stock.session()],
        ledger: Annotated[AsyncSession, several.ledger.session()],
    ) -> None:
        several.note_hooks()
        await notes.scalar(text("SELECT 1"))
        await store({"ledger": ledger})
        await ledger.execute(text("INSERT INTO wishes (id, word) VALUES (1, 'missing')"))

    answer = await several.post()
    assert (answer.status_code, answer.json()["code"]) == (409, "foreign-key-violation")
    assert caught == []


async def test_a_reading_session_that_fails_leaves_nothing_anywhere(several):
    @several.app.post("/do")
    async def do(
        notes: Annotated[AsyncSession, several.notes.session()],
        ledger: Annotated[AsyncSession, several.ledger.session(read_only=True)],
    ) -> str:
        await store({"notes": notes})
        with pytest.raises(errors.InvalidStatement):
            await ledger.execute(text("SELECT missing FROM nowhere"))
        return "all is well"

    answer = await several.post()
    assert (answer.status_code, answer.json()["code"]) == (500, "unexpected-rollback")
    assert several.where() == []


async def test_a_client_that_leaves_between_two_commits_leaves_no_half(several):
    task: list[asyncio.Task[Any]] = []
    several.notes.listen(lambda event: task[0].cancel() if isinstance(event, Committed) else None)

    async def do(sessions):
        transact.after_all_commits(lambda: several.told.append("all"))
        return await store(sessions)

    several.route(do)
    task.append(asyncio.create_task(several.post()))
    with pytest.raises(asyncio.CancelledError):
        await task[0]
    assert several.where() == several.committed() == list(ENGINES)
    assert several.told == ["all"]


async def test_a_client_that_leaves_before_the_first_commit_leaves_nothing(several):
    task: list[asyncio.Task[Any]] = []

    async def leave() -> None:
        task[0].cancel()
        await asyncio.sleep(0)

    async def do(sessions):
        several.ledger.before_commit(leave)
        return await store(sessions)

    several.route(do)
    task.append(asyncio.create_task(several.post()))
    with pytest.raises(asyncio.CancelledError):
        await task[0]
    assert several.where() == several.committed() == []


async def test_critical_hooks_of_all_databases_are_told_together(several):
    caught = []

    @several.app.exception_handler(errors.AfterCommitError)
    def handle(request: Request, error: errors.AfterCommitError) -> JSONResponse:
        caught.extend(error.exceptions)
        return JSONResponse("stored", 500)

    async def do(sessions):
        for number, db in enumerate(several.databases.values()):
            db.after_commit(lambda number=number: [][number], critical=True)
        return await store(sessions)

    several.route(do)
    assert (await several.post()).status_code == 500
    assert [type(error) for error in caught] == [IndexError] * 4
    assert several.where() == list(ENGINES)


# Retry.


RETRY = Retry(attempts=3, base=0, on=(errors.ForeignKeyViolation,))


@pytest.mark.parametrize("name", ["notes", "orders", "ledger"])
async def test_a_request_is_tried_again_unless_a_database_has_committed(several, name):
    calls = []

    async def do(sessions):
        calls.append(1)
        await store(sessions, f"call {len(calls)}")
        if len(calls) == 1:
            await sessions[name].execute(text("INSERT INTO wishes (id, word) VALUES (1, 'missing')"))
        return "done"

    several.route(do, retry=RETRY)
    answer = await several.post()
    if name == "notes":  # which commits first
        assert (answer.status_code, len(calls)) == (200, 2)
        assert several.stored() == {name: ["call 2"] for name in ENGINES}
        assert len([event for event in several.heard if isinstance(event, Retried)]) == 1
    else:
        assert (answer.status_code, len(calls)) == (500, 1)
        assert answer.json()["code"] == "partial-commit"


async def test_a_statement_that_fails_on_one_database_lets_the_whole_request_be_tried_again(several):
    calls = []

    @several.app.post("/do")
    async def do(
        ledger: Annotated[AsyncSession, several.ledger.session(retry=Retry(base=0, on=(errors.UniqueViolation,)))],
        notes: Annotated[AsyncSession, several.notes.session()],
    ) -> str:
        calls.append(1)
        await store({"ledger": ledger, "notes": notes}, f"call {len(calls)}")
        if len(calls) == 1:
            await notes.execute(text("INSERT INTO words VALUES ('call 1')"))
        return "done"

    assert (await several.post()).status_code == 200
    assert len(calls) == 2
    assert several.stored() == {"notes": ["call 2"], "stock": [], "orders": [], "ledger": ["call 2"]}


async def test_a_request_with_a_manual_session_of_any_database_is_not_tried_again(several):
    calls = []

    @several.app.post("/do")
    async def do(
        ledger: Annotated[AsyncSession, several.ledger.session(retry=Retry(base=0, on=(errors.UniqueViolation,)))],
        notes: Annotated[AsyncSession, several.notes.manual_session()],
    ) -> str:
        calls.append(1)
        await store({"notes": notes})
        await notes.commit()
        await store({"ledger": ledger})
        await ledger.execute(text("INSERT INTO words VALUES ('a')"))
        return "done"

    assert (await several.post()).status_code == 409
    assert len(calls) == 1
    assert several.where() == ["notes"]


# Work that needs all.


async def test_what_waits_for_all_commits_runs_once_when_all_have_committed(several):
    async def do(sessions):
        transact.after_all_commits(lambda: several.told.append(several.where()))
        return await store(sessions)

    several.route(do)
    assert (await several.post()).status_code == 200
    assert several.told == [list(ENGINES)]


async def test_what_waits_for_all_commits_never_runs_if_one_of_them_fails(several):
    @several.app.post("/do")
    async def do(request: Request, notes: Annotated[AsyncSession, several.notes.session()]) -> str:
        # Registered while only the first is in use: it waits for those that come later too.
        transact.after_all_commits(lambda: several.told.append("all"))
        await store({"notes": notes})
        ledger = (await several.ledger._units(request).unit(transact.options.Options())).handle
        await store({"ledger": ledger})
        await ledger.execute(text("INSERT INTO wishes (id, word) VALUES (1, 'missing')"))
        return "done"

    assert (await several.post()).json()["code"] == "partial-commit"
    assert several.where() == ["notes"]
    assert several.told == []


@pytest.mark.parametrize("inner_fails", [False, True])
async def test_outside_of_requests_it_waits_for_every_transaction_that_is_open(several, inner_fails):
    async def work() -> None:
        async with several.notes.transaction() as notes:
            async with several.ledger.transaction() as ledger:
                transact.after_all_commits(lambda: several.told.append(several.where()))
                await store({"notes": notes, "ledger": ledger})
                if inner_fails:
                    several.ledger.current.set_rollback_only("no")
            assert several.told == []

    await work()
    assert several.told == ([] if inner_fails else [["notes", "ledger"]])


async def test_it_belongs_to_the_savepoint_it_was_registered_in(several):
    async with several.notes.transaction() as session:
        with pytest.raises(LookupError):
            async with several.notes.savepoint():
                transact.after_all_commits(lambda: several.told.append("never"))
                raise LookupError
        await store({"notes": session})
    assert several.told == []


async def test_with_no_transaction_open_it_is_refused():
    with pytest.raises(errors.NoTransaction):
        transact.after_all_commits(print)


# Composition.


async def test_a_mounted_application_that_shares_them_shares_the_request(several):
    inner = FastAPI()
    for name in ("notes", "ledger"):
        several.databases[name].install(inner)
    several.app.mount("/inner", inner)

    @inner.post("/do")
    async def do(
        notes: Annotated[AsyncSession, several.notes.session()],
        ledger: Annotated[AsyncSession, several.ledger.session()],
    ) -> str:
        await store({"notes": notes, "ledger": ledger})
        return "done"

    assert (await several.post("/inner/do")).status_code == 200
    assert several.committed() == ["notes", "ledger"]


@pytest.mark.parametrize("name", ["notes", "ledger"])
async def test_plain_and_async_databases_commit_together_and_a_plain_one_lets_the_next_request_in(
    several, places, name
):
    url = make_url(places[name].url).set(drivername={"notes": "sqlite", "ledger": "postgresql+psycopg"}[name])
    plain = SyncDatabase(url, pool_size=1, max_overflow=0, pool_timeout=PATIENCE, name="plain")
    plain.listen(several.heard.append)
    plain.install(several.app)

    def store_plainly(session: Annotated[Session, plain.session()], word: str, wish: str | None = None) -> None:
        session.add(Word(word=f"plain {word}"))
        if wish is not None:
            session.execute(text("INSERT INTO wishes (id, word) VALUES (1, :word)"), {"word": wish})

    @several.app.post("/do", dependencies=[Depends(store_plainly)])
    async def do(orders: Annotated[AsyncSession, several.orders.session()], word: str) -> str:
        return await store({"orders": orders}, word)

    async with plain.lifespan():
        for word in ("a", "b"):  # the pool holds one connection
            assert (await several.post(f"/do?word={word}")).status_code == 200
        assert several.committed() == ["orders", "plain"] * 2
        assert (await several.post("/do?word=c&wish=missing")).json()["code"] == "partial-commit"
        assert plain.engine.pool.checkedout() == 0
    assert several.stored()["orders"] == ["a", "b", "c"]
    assert several.stored()[name] == ["plain a", "plain b"]
