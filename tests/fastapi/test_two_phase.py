"""`two_phase=True`: what a request writes to several databases is stored in all of them or in none, whatever crashes."""

import asyncio
import sys
import textwrap
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

import transact
from tests.conftest import lasting_database
from tests.engines import observe
from tests.fastapi.two_phases import Place, Word, make_tables, placed, urls_of
from tests.faults.proxy import Fault
from tests.faults.wire import Step
from transact import errors
from transact._core.hooks import Outcome
from transact._sqlalchemy import verifying
from transact.fastapi import Database
from transact.fastapi.threads import SyncDatabase

ENGINES = {"notes": "pg18-psycopg", "ledger": "pg18-asyncpg"}


@pytest.fixture(scope="module")
def urls(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with urls_of(request.config, ENGINES, tmp_path_factory.mktemp("two_phase")) as found:
        yield found


@pytest.fixture
async def place(urls: dict[str, str]) -> AsyncIterator[Place]:
    async with placed(urls) as found:
        _routes(found)
        yield found


def _routes(place: Place) -> None:
    notes_session = Annotated[AsyncSession, place.databases["notes"].session()]
    ledger_session = Annotated[AsyncSession, place.databases["ledger"].session()]

    @place.app.post("/do")
    async def do(notes: notes_session, ledger: ledger_session, after: str | None = None) -> str:
        transact.after_all_commits(lambda: place.told.append("all"))
        for name, db in place.databases.items():
            db.after_commit(lambda name=name: place.told.append((name, place.where())))
            db.after_rollback(lambda error, name=name: place.told.append((name, type(error).__name__)))
        notes.add(Word(word="a"))
        ledger.add(Word(word="a", after=after))
        return "done"

    @place.app.post("/read")
    async def read(notes: notes_session, ledger: ledger_session) -> str:
        await notes.scalar(text("SELECT 1"))
        ledger.add(Word(word="a"))
        return "done"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifying, "PATIENCE", 0.3)


@pytest.fixture
def unknown(place: Place) -> list[errors.CommitOutcomeUnknown]:
    """What an exception handler of the application gets."""
    caught: list[errors.CommitOutcomeUnknown] = []

    @place.app.exception_handler(errors.CommitOutcomeUnknown)
    def handle(request: Request, error: errors.CommitOutcomeUnknown) -> JSONResponse:
        caught.append(error)
        return JSONResponse("look later", 500)

    return caught


# What is stored.


async def test_what_a_request_writes_is_prepared_everywhere_and_then_stored_everywhere(place):
    for _ in range(2):  # the second finds connections that have prepared before
        assert (await place.post()).status_code == 200
        assert place.where() == ["notes", "ledger"]
        assert place.prepared() == []
        for observer in place.observers.values():
            observer.execute("DELETE FROM words")
    both = ["notes", "ledger"]
    assert place.passed(Step.PREPARE_SENT) == place.passed(Step.PREPARED_COMMIT_SENT) == both
    assert place.told == [("notes", both), "all", ("ledger", both)] * 2  # in the order of their registration


async def test_a_prepare_that_fails_leaves_nothing_anywhere_and_the_error_is_that_of_a_commit_that_stored_nothing(
    place,
):
    answer = await place.post("/do?after=missing")
    assert (answer.status_code, answer.json()["code"]) == (409, "foreign-key-violation")
    assert place.where() == place.prepared() == []
    assert place.told == [("notes", "ForeignKeyViolation"), ("ledger", "ForeignKeyViolation")]
    assert (await place.post()).status_code == 200


async def test_a_request_that_writes_to_one_database_prepares_nothing(place):
    assert (await place.post("/read")).status_code == 200
    assert place.where() == ["ledger"]
    assert place.passed(Step.PREPARE_SENT) == []


async def test_plain_sessions_take_part(place, urls):
    plain = SyncDatabase(
        make_url(urls["ledger"]).set(drivername="postgresql+psycopg"), two_phase=True, name="plain", pool_size=1
    )
    plain.install(place.app)

    @place.app.post("/plain")
    def store(session: Annotated[Session, plain.session()], after: str | None = None) -> str:
        session.add(Word(word="plain", after=after))
        return "done"

    @place.app.post("/both")
    async def both(
        notes: Annotated[AsyncSession, place.databases["notes"].session()],
        session: Annotated[Session, plain.session()],
        after: str | None = None,
    ) -> None:
        notes.add(Word(word="a"))
        store(session, after)

    async with plain.lifespan():
        assert (await place.post("/both?after=missing")).status_code == 409
        assert place.where() == []
        assert (await place.post("/both")).status_code == 200
        assert place.stored() == {"notes": ["a"], "ledger": ["plain"]}
        assert plain.prepared() == []


async def test_in_a_test_of_the_application_nothing_is_prepared(place, transact_database):
    tested = Place(place.urls, place.observers)
    for db in place.direct:
        db.install(tested.app)
        tested.databases[db.name.partition("-")[0]] = db
        transact_database(db)
    _routes(tested)
    assert (await tested.post()).status_code == 200
    assert ("ledger", []) in tested.told
    assert tested.where() == []


# Answers that are lost.


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("step", [Step.PREPARED_COMMIT_SENT, Step.PREPARED_COMMIT_ANSWERED])
async def test_a_commit_whose_answer_is_lost_after_all_are_prepared_is_done_on_another_connection(place, name, step):
    place.proxies[name].set_trap(step, Fault.RESET)
    assert (await place.post()).status_code == 200
    assert place.proxies[name].struck.is_set()
    assert place.where() == ["notes", "ledger"]


@pytest.mark.parametrize("name", ENGINES)
async def test_a_commit_that_is_refused_after_all_are_prepared_is_done_on_another_connection(place, name):
    place.proxies[name].garble(Step.PREPARED_COMMIT_SENT)
    assert (await place.post()).status_code == 200
    assert place.proxies[name].struck.is_set()
    assert place.where() == ["notes", "ledger"]


@pytest.mark.parametrize("name", ENGINES)
async def test_a_prepare_that_is_refused_leaves_nothing(place, name):
    place.proxies[name].garble(Step.PREPARE_SENT)
    assert (await place.post()).status_code == 500
    assert place.proxies[name].struck.is_set()
    assert place.where() == place.prepared() == []


@pytest.mark.parametrize(("step", "status"), [(Step.PREPARE_SENT, 503), (Step.PREPARE_ANSWERED, 200)])
async def test_a_last_prepare_whose_answer_is_lost_is_asked_after_and_decides(place, step, status):
    place.proxies["ledger"].set_trap(step, Fault.RESET)
    assert (await place.post()).status_code == status
    assert place.where() == (["notes", "ledger"] if status == 200 else [])


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("name", ENGINES)
async def test_a_server_that_is_away_after_all_are_prepared_leaves_the_last_prepared_and_resolving_stores_all(
    place, unknown, name
):
    place.proxies[name].set_trap(Step.PREPARED_COMMIT_SENT, Fault.DOWN)
    assert (await place.post()).status_code == 500
    left = list(ENGINES)[list(ENGINES).index(name) :]
    assert place.prepared() == left
    assert "all" not in place.told
    listed = [each for db in place.direct for each in await db.prepared()]
    assert [each.database for each in listed] == [place.known_as(each) for each in left]
    assert unknown[0].prepared == tuple(each.name for each in listed)
    assert {(each.global_id, each.of) for each in listed} == {(listed[0].global_id, 2)}
    [young] = await place.resolved()
    assert (young.outcome, young.why) == (Outcome.UNKNOWN, "it was prepared less than 60 s ago")
    [done] = await place.resolved(older_than=0)
    assert (done.outcome, done.names) == (Outcome.COMMITTED, tuple(sorted(unknown[0].prepared)))
    assert place.where() == ["notes", "ledger"]
    assert await place.resolved(older_than=0) == []
    await place.proxies[name].heal()


@pytest.mark.usefixtures("impatient")
async def test_a_last_prepare_that_nobody_can_ask_after_leaves_all_as_it_is_until_somebody_can(place, unknown):
    place.proxies["ledger"].set_trap(Step.PREPARE_ANSWERED, Fault.DOWN)
    assert (await place.post()).status_code == 500
    assert len(unknown[0].prepared) == 2
    assert place.prepared() == ["notes", "ledger"]
    assert await place.resolve_in_time() == [Outcome.COMMITTED]
    assert place.where() == ["notes", "ledger"]
    await place.proxies["ledger"].heal()


async def test_nobody_decides_while_the_last_prepare_may_still_be_on_its_way(place):
    place.proxies["ledger"].set_trap(Step.PREPARE_SENT, Fault.BLACKHOLE)
    request = asyncio.create_task(place.post())
    await place.proxies["ledger"].struck.wait()
    [left] = await place.resolved(older_than=0)
    assert left.outcome is Outcome.UNKNOWN
    assert place.prepared() == ["notes"]
    await place.proxies["ledger"].heal()
    assert (await request).status_code == 503
    assert place.where() == []


async def test_a_client_that_leaves_between_two_phases_leaves_no_half(place):
    place.proxies["notes"].set_trap(Step.PREPARED_COMMIT_SENT, Fault.LATENCY)
    request = asyncio.create_task(place.post())
    await place.proxies["notes"].struck.wait()
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    assert place.where() == ["notes", "ledger"]


async def test_a_client_that_leaves_while_it_is_prepared_leaves_nothing(place):
    place.proxies["notes"].set_trap(Step.PREPARE_SENT, Fault.LATENCY)
    waiting = asyncio.create_task(place.proxies["notes"].struck.wait())
    request = asyncio.create_task(place.post())
    await waiting
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    assert place.where() == place.prepared() == []


async def test_what_comes_after_it_was_asked_whether_it_has_written_is_not_stored(place):
    sessions = []

    @place.app.post("/late")
    async def late(
        notes: Annotated[AsyncSession, place.databases["notes"].session()],
        ledger: Annotated[AsyncSession, place.databases["ledger"].session()],
    ) -> None:
        await notes.scalar(text("SELECT 1"))
        ledger.add(Word(word="a"))
        sessions.append(notes)

    place.proxies["ledger"].set_trap(Step.RECEIPT, Fault.LATENCY)
    waiting = asyncio.create_task(place.proxies["ledger"].struck.wait())
    request = asyncio.create_task(place.post("/late"))
    await waiting
    with pytest.raises(errors.TransactionEnded):
        await sessions[0].execute(text("INSERT INTO words VALUES ('late')"))
    assert (await request).status_code == 200
    assert place.stored() == {"notes": [], "ledger": ["a"]}


async def test_what_comes_after_prepare_is_not_stored(place):
    sessions = []

    @place.app.post("/late")
    async def late(
        notes: Annotated[AsyncSession, place.databases["notes"].session()],
        ledger: Annotated[AsyncSession, place.databases["ledger"].session()],
    ) -> None:
        notes.add(Word(word="a"))
        ledger.add(Word(word="a"))
        sessions.append(ledger)

    place.proxies["notes"].set_trap(Step.PREPARED_COMMIT_SENT, Fault.LATENCY)
    request = asyncio.create_task(place.post("/late"))
    await place.proxies["notes"].struck.wait()
    sessions[0].add(Word(word="late"))
    with pytest.raises(errors.TransactionEnded):
        await sessions[0].flush()
    assert (await request).status_code == 200
    assert place.stored() == {"notes": ["a"], "ledger": ["a"]}


# Crashes.


CHILD = textwrap.dedent(
    """
    import asyncio, sys
    import httpx
    from fastapi import FastAPI
    from tests.fastapi.test_two_phase import _routes
    from tests.fastapi.two_phases import Place
    from transact.fastapi import Database

    async def main(notes, ledger):
        place = Place({}, {})
        for name, url in (("notes", notes), ("ledger", ledger)):
            place.databases[name] = Database(url, two_phase=True, name=name)
            place.databases[name].install(place.app)
        _routes(place)
        await place.post()

    asyncio.run(main(*sys.argv[1:]))
    """
)


@pytest.mark.parametrize(
    ("name", "step", "stored"),
    [
        ("ledger", Step.PREPARE_SENT, False),
        ("ledger", Step.PREPARE_ANSWERED, True),
        ("notes", Step.PREPARED_COMMIT_SENT, True),
        ("ledger", Step.PREPARED_COMMIT_SENT, True),
    ],
)
async def test_a_process_that_is_killed_leaves_all_or_nothing_once_it_is_resolved(place, name, step, stored):
    proxy = place.proxies[name]
    proxy.set_trap(step, Fault.BLACKHOLE)
    root = Path(__file__).parents[2]
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", CHILD, *place.behind.values(), cwd=root)
    try:
        async with asyncio.timeout(60):
            await proxy.struck.wait()
    finally:
        child.kill()
        await child.wait()
    for each in place.proxies.values():
        await each.heal()
    assert place.prepared() != []
    assert await place.resolve_in_time() == [Outcome.COMMITTED if stored else Outcome.ROLLED_BACK]
    assert place.where() == (["notes", "ledger"] if stored else [])


@pytest.mark.usefixtures("impatient")
async def test_resolving_that_fails_midway_leaves_the_last_prepared_for_the_next_time(place):
    proxy = place.proxies["notes"]
    proxy.set_trap(Step.PREPARED_COMMIT_SENT, Fault.DOWN)
    await place.post()
    await proxy.heal()
    proxy.set_trap(Step.PREPARED_COMMIT_SENT, Fault.RESET)
    [left] = await transact.resolve_prepared(*place.databases.values(), older_than=0)
    assert left.outcome is Outcome.UNKNOWN
    assert left.why.startswith("ConnectionLost")
    assert place.prepared() == ["notes", "ledger"]
    assert await place.resolve_in_time() == [Outcome.COMMITTED]
    assert place.where() == ["notes", "ledger"]


@pytest.mark.usefixtures("impatient")
async def test_it_is_not_resolved_without_all_of_its_databases(place):
    place.proxies["notes"].set_trap(Step.PREPARED_COMMIT_SENT, Fault.DOWN)
    await place.post()
    for db in place.direct:
        [left] = await transact.resolve_prepared(db, older_than=0)
        assert (left.outcome, left.why) == (Outcome.UNKNOWN, "not all of its 2 databases were passed")
    assert await place.resolve_in_time() == [Outcome.COMMITTED]
    await place.proxies["notes"].heal()


# What cannot work.


def test_an_engine_that_cannot_prepare_is_refused_when_the_database_is_made():
    for url in ("sqlite+aiosqlite:///x.db",):
        with pytest.raises(errors.ConfigurationError, match="two_phase=True is for PostgreSQL and MariaDB"):
            Database(url, two_phase=True)


@pytest.mark.parametrize("first", [True, False])
def test_databases_with_and_without_it_are_not_installed_in_one_application(urls, first):
    app = FastAPI()
    Database(urls["notes"], two_phase=first, name="notes").install(app)
    with pytest.raises(errors.ConfigurationError, match="either all databases have it or none"):
        Database(urls["ledger"], two_phase=not first, name="ledger").install(app)


async def test_only_a_database_that_prepares_can_be_asked_what_is_prepared(urls):
    async with Database(urls["notes"]) as db:
        with pytest.raises(errors.UsageError, match="two_phase=True"):
            await db.prepared()


async def test_an_application_starts_while_its_server_is_away(place):
    proxy = place.proxies["ledger"]
    proxy.refuse()
    with pytest.raises(errors.DatabaseUnavailable):
        await place.databases["ledger"].prepared()
    async with place.databases["ledger"].lifespan():
        await proxy.heal()
        assert (await place.post()).status_code == 200
    await place.databases["ledger"].open()


async def test_a_server_that_prepares_nothing_is_told_at_start_up_and_stores_nothing(request, tmp_path):
    with ExitStack() as stack:
        found = Place({}, {})
        for name in ENGINES:
            url = lasting_database(request.config, "pg15-asyncpg", tmp_path, stack)
            found.observers[name] = stack.enter_context(observe(url))
            if found.observers[name].rows("SHOW max_prepared_transactions") != [("0",)]:
                pytest.skip("this server prepares transactions")
            await make_tables(url)
            found.databases[name] = Database(url, two_phase=True, name=name)
            found.databases[name].install(found.app)
        with pytest.raises(errors.ConfigurationError, match="max_prepared_transactions = 0"):
            async with found.databases["notes"].lifespan():
                pass
        _routes(found)
        async with found.databases["notes"], found.databases["ledger"]:
            assert (await found.post("/read")).status_code == 200
            assert found.where() == ["ledger"]
            found.observers["ledger"].execute("DELETE FROM words")
            assert (await found.post("/do")).status_code == 500
        assert found.where() == []
