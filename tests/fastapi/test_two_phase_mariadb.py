"""`two_phase=True` with MariaDB, by both kinds of database: its part is named at its beginning, and is always the last."""

import asyncio
import random
import sys
import textwrap
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import pytest
from fastapi import Request
from fastapi.responses import JSONResponse
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session
from sqlalchemy.util import greenlet_spawn

import transact
from tests.engines import observe
from tests.fastapi.two_phases import PATIENCE, Place, Word, placed, url_of, urls_of
from tests.faults.proxy import Fault
from tests.faults.wire import Step
from transact import Retry, errors
from transact._core.hooks import Outcome
from transact._sqlalchemy import verifying, xa
from transact.fastapi import Database
from transact.fastapi.threads import SyncDatabase

ENGINES = {"notes": "pg18-psycopg", "ledger": "mariadb"}
KINDS = {"async": Database, "sync": SyncDatabase}
BOTH = ["notes", "ledger"]


@pytest.fixture(scope="module")
def urls(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with urls_of(request.config, ENGINES, tmp_path_factory.mktemp("two_phase")) as found:
        yield found


@pytest.fixture(params=KINDS)
async def place(request: pytest.FixtureRequest, urls: dict[str, str]) -> AsyncIterator[Place]:
    async with placed(urls, KINDS[request.param]) as found:
        _routes(found)
        yield found


def _routes(place: Place) -> None:
    def do(notes: Session, ledger: Session, word: str, after: str | None) -> None:
        transact.after_all_commits(lambda: place.told.append("all"))
        for name, db in place.databases.items():
            db.after_rollback(lambda error, name=name: place.told.append((name, type(error).__name__)))
        notes.add(Word(word=word, after=after))
        ledger.add(Word(word=word))

    def only(notes: Session, ledger: Session, word: str, after: str | None) -> None:
        for name, session in (("notes", notes), ("ledger", ledger)):
            session.scalar(text("SELECT count(*) FROM words"))
            if name == word:
                session.add(Word(word="a"))

    place.route("/do", do)
    place.route("/only", only)


@pytest.fixture
def another(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database of another application, called the same."""
    with urls_of(request.config, {"notes": ENGINES["notes"]}, tmp_path) as found:
        yield found["notes"]


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
    for word in "ab":  # the second finds connections that have prepared before
        assert (await place.post(f"/do?word={word}")).status_code == 200
    assert place.stored() == {"notes": ["a", "b"], "ledger": ["a", "b"]}
    assert place.prepared() == []
    assert place.told == ["all", "all"]
    for step in (Step.PREPARE_SENT, Step.PREPARED_COMMIT_SENT):
        assert [proxy.passed.count(step) for proxy in place.proxies.values()] == [2, 2]


@pytest.mark.parametrize("kind", KINDS)
async def test_mariadb_is_the_last_part_wherever_it_is_installed(urls, kind):
    async with placed(dict(reversed(urls.items())), KINDS[kind]) as place:
        _routes(place)
        place.proxies["notes"].set_trap(Step.PREPARE_SENT, Fault.RESET)
        assert (await place.post()).status_code == 503
        assert Step.PREPARE_SENT not in place.proxies["ledger"].passed
        assert (await place.post()).status_code == 200
        assert sorted(place.where()) == ["ledger", "notes"]


@pytest.mark.parametrize(
    ("word", "after", "code"), [("b", "missing", "foreign-key-violation"), ("a", None, "unique-violation")]
)
async def test_a_part_that_fails_leaves_nothing_anywhere_and_the_error_is_as_ever(place, word, after, code):
    place.observers["ledger"].execute("INSERT INTO words (word) VALUES ('a')")
    answer = await place.post(f"/do?word={word}" + (f"&after={after}" if after else ""))
    assert (answer.status_code, answer.json()["code"]) == (409, code)
    assert place.stored() == {"notes": [], "ledger": ["a"]}
    assert place.prepared() == []
    assert (await place.post("/do?word=c")).status_code == 200
    assert place.stored() == {"notes": ["c"], "ledger": ["a", "c"]}


@pytest.mark.parametrize("name", BOTH)
async def test_a_request_that_writes_to_one_database_prepares_nothing(place, name):
    assert (await place.post(f"/only?word={name}")).status_code == 200
    assert place.where() == [name]
    assert place.passed(Step.PREPARE_SENT) == []


async def test_a_request_that_fails_leaves_a_connection_that_others_can_use(place):
    def fail(notes: Session, ledger: Session, word: str, after: str | None) -> None:
        ledger.add(Word(word="lost"))
        ledger.flush()
        raise RuntimeError

    place.route("/fail", fail)
    ledger = place.databases["ledger"]
    for _ in range(3):
        assert (await place.post("/fail")).status_code == 500
        await _store_one(ledger, "kept")
        assert place.stored()["ledger"] == ["kept"]
        place.observers["ledger"].execute("DELETE FROM words")


async def _store_one(db: Any, word: str) -> None:
    """One transaction of another kind, then one that only reads."""
    if isinstance(db, Database):
        async with db.transaction() as session:
            session.add(Word(word=word))
        async with db.transaction(read_only=True) as session:
            await session.scalar(text("SELECT 1"))
    else:
        await asyncio.to_thread(_store_one_in_thread, db, word)


def _store_one_in_thread(db: SyncDatabase, word: str) -> None:
    with db.transaction() as session:
        session.add(Word(word=word))
    with db.transaction(read_only=True) as session:
        session.scalar(text("SELECT 1"))


async def test_a_connection_that_has_read_for_good_writes_in_two_phases(place):
    for _ in range(2):
        await _store_one(place.databases["ledger"], "own")
        place.observers["ledger"].execute("DELETE FROM words")
    assert (await place.post()).status_code == 200
    assert place.where() == BOTH


async def test_savepoints_and_blocks_of_a_request_do_what_they_do_without_it(place):
    ledger = place.databases["ledger"]

    def nested(notes: Session, session: Session, word: str, after: str | None) -> None:
        notes.add(Word(word="a"))
        session.add(Word(word="a"))
        with session.begin_nested():
            session.add(Word(word="b"))
        with pytest.raises(errors.UniqueViolation), session.begin_nested():
            session.execute(text("INSERT INTO words (word) VALUES ('lost'), ('a')"))
        session.add(Word(word="c"))

    place.route("/nested", nested)
    assert (await place.post("/nested")).status_code == 200
    assert place.stored() == {"notes": ["a"], "ledger": ["a", "b", "c"]}
    assert place.passed(Step.PREPARE_SENT) == BOTH
    await _store_one(ledger, "d")
    assert place.stored()["ledger"] == ["a", "b", "c", "d"]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_block_of_its_own_inside_a_request_commits_by_itself(urls, kind):
    async with placed(urls, KINDS[kind]) as place:
        notes, ledger = place.databases.values()
        apart = {"propagation": transact.Propagation.REQUIRES_NEW}
        if kind == "sync":

            @place.app.post("/block")
            def plain(one: Annotated[Session, notes.session()], other: Annotated[Session, ledger.session()]) -> None:
                for session in (one, other):
                    session.add(Word(word="a"))
                    session.flush()
                with ledger.transaction(**apart) as own:
                    own.add(Word(word="own"))
                raise RuntimeError

        else:

            @place.app.post("/block")
            async def route(
                one: Annotated[AsyncSession, notes.session()], other: Annotated[AsyncSession, ledger.session()]
            ) -> None:
                for session in (one, other):
                    session.add(Word(word="a"))
                    await session.flush()
                async with ledger.transaction(**apart) as own:
                    own.add(Word(word="own"))
                raise RuntimeError

        assert (await place.post("/block")).status_code == 500
        assert place.stored() == {"notes": [], "ledger": ["own"]}
        assert Step.COMMIT_SENT in place.proxies["ledger"].passed
        assert Step.PREPARE_SENT not in place.proxies["ledger"].passed


async def test_a_statement_that_ends_transactions_is_refused(place):
    def end(notes: Session, session: Session, word: str, after: str | None) -> None:
        notes.add(Word(word="a"))
        session.add(Word(word="a"))
        session.flush()
        session.execute(text("XA RECOVER" if word == "xa" else "TRUNCATE words"))

    place.route("/end", end)
    for word in ("xa", "truncate"):
        assert (await place.post(f"/end?word={word}")).status_code == 500
        assert place.where() == []


@pytest.mark.parametrize("kind", KINDS)
async def test_a_request_that_loses_a_deadlock_is_run_again_and_stored_in_both(urls, kind):
    """MariaDB ends the whole transaction; the other one is heavier, so it is the request's."""
    async with placed(urls, KINDS[kind]) as place:
        place.observers["ledger"].execute("INSERT INTO words (word, after) VALUES ('x', ''), ('y', '')")
        attempts, ready, blocked = [], threading.Event(), threading.Event()

        def lock(notes: Session, session: Session, word: str, after: str | None) -> None:
            attempts.append(word)
            notes.add(Word(word="a"))
            session.execute(text("UPDATE words SET after = 'request' WHERE word = 'x'"))
            if len(attempts) == 1:
                ready.set()
                assert blocked.wait(PATIENCE)
            session.execute(text("UPDATE words SET after = 'request' WHERE word = 'y'"))

        options = {"retry": Retry(attempts=3)}
        first, second = place.databases["notes"], place.databases["ledger"]
        if kind == "sync":

            @place.app.post("/lock")
            def plain(
                one: Annotated[Session, first.session(**options)], other: Annotated[Session, second.session()]
            ) -> None:
                lock(one, other, "", None)

        else:

            @place.app.post("/lock")
            async def route(
                one: Annotated[AsyncSession, first.session(**options)], other: Annotated[AsyncSession, second.session()]
            ) -> None:
                await one.run_sync(lambda plain: plain.add(Word(word="a")))
                await other.execute(text("UPDATE words SET after = 'request' WHERE word = 'x'"))
                attempts.append("")
                if len(attempts) == 1:
                    ready.set()
                    await asyncio.to_thread(blocked.wait, PATIENCE)
                await other.execute(text("UPDATE words SET after = 'request' WHERE word = 'y'"))

        rival = threading.Thread(target=_deadlock, args=(urls["ledger"], ready, blocked))
        rival.start()
        answer = await place.post("/lock")
        await asyncio.to_thread(rival.join, PATIENCE)
        assert (answer.status_code, len(attempts)) == (200, 2)
        assert place.observers["notes"].rows("SELECT word FROM words") == [("a",)]
        assert place.observers["ledger"].rows("SELECT DISTINCT after FROM words WHERE word IN ('x', 'y')") == [
            ("request",)
        ]


def _deadlock(url: str, ready: threading.Event, blocked: threading.Event) -> None:
    """Lock ``y``, then ``x``, which the request holds."""
    with observe(url) as rival, observe(url) as watch:
        assert ready.wait(PATIENCE)
        rival.execute("START TRANSACTION")
        rival.execute("INSERT INTO words (word) VALUES ('1'), ('2'), ('3'), ('4')")
        rival.execute("UPDATE words SET after = 'rival' WHERE word = 'y'")
        number = rival.scalar("SELECT CONNECTION_ID()")
        waits = threading.Thread(target=rival.execute, args=("UPDATE words SET after = 'rival' WHERE word = 'x'",))
        waits.start()
        waiting = f"SELECT count(*) FROM information_schema.innodb_trx WHERE trx_mysql_thread_id = {number}"
        for _ in range(PATIENCE * 10):
            if watch.scalar(waiting + " AND trx_state = 'LOCK WAIT'"):
                break
            threading.Event().wait(0.15)  # which the server looks at only every 0.1 s
        blocked.set()
        waits.join(PATIENCE)
        rival.execute("COMMIT")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("options", "statement", "expected"),
    [
        ({"lock_timeout": 1}, "UPDATE words SET after = '' WHERE word = 'x'", (503, "lock-timeout")),
        ({"timeout": 1}, "SELECT SLEEP(5)", (504, "transaction-timeout")),
        ({"isolation": transact.Isolation.READ_COMMITTED, "timeout": 20}, "SELECT 1", (200, None)),
    ],
)
async def test_limits_and_levels_hold_in_two_phases_and_leave_nothing_to_the_next(
    urls, kind, options, statement, expected
):
    async with placed(urls, KINDS[kind]) as place:
        own = "SELECT @@tx_isolation, @@max_statement_time, @@innodb_lock_wait_timeout, @@in_transaction"
        held = place.observers["ledger"]
        status, code = expected
        settings = held.rows(own)
        held.execute("INSERT INTO words (word) VALUES ('x')")
        notes, ledger = place.databases.values()
        seen: list[str] = []

        def body(one: Session, other: Session) -> None:
            one.add(Word(word="a"))
            other.add(Word(word="a"))
            other.flush()
            seen.append(other.scalar(text("SELECT @@tx_isolation")))
            other.execute(text(statement))

        if kind == "sync":

            @place.app.post("/limited")
            def plain(
                one: Annotated[Session, notes.session()], other: Annotated[Session, ledger.session(**options)]
            ) -> None:
                body(one, other)

        else:

            @place.app.post("/limited")
            async def route(
                one: Annotated[AsyncSession, notes.session()], other: Annotated[AsyncSession, ledger.session(**options)]
            ) -> None:
                await greenlet_spawn(body, one.sync_session, other.sync_session)

        held.execute("START TRANSACTION")
        held.execute("UPDATE words SET after = 'held' WHERE word = 'x'")
        answer = await place.post("/limited")
        held.execute("ROLLBACK")
        assert answer.status_code == status
        assert code is None or answer.json()["code"] == code
        assert seen == ["READ-COMMITTED" if "isolation" in options else "REPEATABLE-READ"]
        stored = {"notes": [], "ledger": ["x"]} if code else {"notes": ["a"], "ledger": ["a", "x"]}
        assert place.stored() == stored
        if kind == "sync":
            assert await asyncio.to_thread(_asked, ledger, own) == settings
        else:
            async with ledger.engine.connect() as connection:
                assert [tuple((await connection.exec_driver_sql(own)).one())] == settings


def _asked(db: SyncDatabase, sql: str) -> list[Any]:
    with db.engine.connect() as connection:
        return [tuple(connection.exec_driver_sql(sql).one())]


async def test_in_a_test_of_the_application_nothing_is_prepared(place, transact_database):
    tested = Place(place.urls, place.observers)
    for db in place.direct:
        db.install(tested.app)
        tested.databases[db.name.partition("-")[0]] = db
        transact_database(db)
    _routes(tested)
    assert (await tested.post()).status_code == 200
    assert tested.told == ["all"]
    assert tested.where() == tested.prepared() == []


# Answers that are lost.


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("step", [Step.PREPARED_COMMIT_SENT, Step.PREPARED_COMMIT_ANSWERED])
async def test_a_commit_whose_answer_is_lost_after_all_are_prepared_is_done_on_another_connection(place, name, step):
    place.proxies[name].set_trap(step, Fault.RESET)
    assert (await place.post()).status_code == 200
    assert place.proxies[name].struck.is_set()
    assert place.where() == BOTH


@pytest.mark.parametrize("name", BOTH)
async def test_a_commit_that_is_refused_after_all_are_prepared_is_done_on_another_connection(place, name):
    """While the first is open, only that could end what it has prepared on MariaDB."""
    place.proxies[name].garble(Step.PREPARED_COMMIT_SENT)
    assert (await place.post()).status_code == 200
    assert place.proxies[name].struck.is_set()
    assert place.where() == ["notes", "ledger"]


@pytest.mark.parametrize("name", BOTH)
async def test_a_prepare_that_is_refused_leaves_nothing(place, name):
    place.proxies[name].garble(Step.PREPARE_SENT)
    assert (await place.post()).status_code == 500
    assert place.proxies[name].struck.is_set()
    assert place.where() == place.prepared() == []


async def test_an_interruption_that_comes_too_late_for_prepare_does_not_tear_the_parts_asunder(place):
    """A server that is told to stop a statement may say that it did when all of it was done."""
    place.proxies["ledger"].deny(Step.PREPARE_ANSWERED)
    assert (await place.post()).status_code == 200
    assert place.proxies["ledger"].struck.is_set()
    assert place.where() == BOTH


@pytest.mark.parametrize(("step", "status"), [(Step.PREPARE_SENT, 503), (Step.PREPARE_ANSWERED, 200)])
async def test_a_last_prepare_whose_answer_is_lost_is_asked_after_and_decides(place, step, status):
    place.proxies["ledger"].set_trap(step, Fault.RESET)
    assert (await place.post()).status_code == status
    assert place.where() == (BOTH if status == 200 else [])


@pytest.mark.parametrize("step", [Step.COMMIT_SENT, Step.COMMIT_ANSWERED])
async def test_a_single_commit_whose_answer_is_lost_leaves_an_outcome_that_is_said_to_be_unknown(place, unknown, step):
    place.proxies["ledger"].set_trap(step, Fault.RESET)
    assert (await place.post("/only?word=ledger")).status_code == 500
    assert unknown[0].prepared == ()
    assert place.where() == (["ledger"] if step is Step.COMMIT_ANSWERED else [])


@pytest.mark.parametrize("step", [Step.BEGIN, Step.FIRST])
async def test_a_connection_that_is_lost_before_the_end_leaves_nothing(place, step):
    def first(notes: Session, ledger: Session, word: str, after: str | None) -> None:
        notes.add(Word(word="a"))
        notes.flush()
        ledger.execute(text("INSERT /* first */ INTO words (word) VALUES ('a')"))

    place.route("/first", first)
    place.proxies["ledger"].set_trap(step, Fault.RESET)
    assert (await place.post("/first")).status_code == 503
    assert place.where() == place.prepared() == []
    assert (await place.post("/first")).status_code == 200


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("name", BOTH)
async def test_a_server_that_is_away_after_all_are_prepared_leaves_the_last_prepared_and_resolving_stores_all(
    place, unknown, name
):
    place.proxies[name].set_trap(Step.PREPARED_COMMIT_SENT, Fault.DOWN)
    assert (await place.post()).status_code == 500
    left = BOTH[BOTH.index(name) :]
    assert place.prepared() == left
    assert "all" not in place.told
    listed = [each for db in place.direct for each in await _prepared(db)]
    assert [each.database for each in listed] == [place.known_as(each) for each in left]
    assert unknown[0].prepared == tuple(each.name for each in listed)
    assert {each.global_id for each in listed} == {listed[0].global_id}
    assert (listed[-1].branch, listed[-1].of) == (2, 2)
    assert all(0 <= each.seconds < PATIENCE for each in listed)
    [young] = await place.resolved()
    assert (young.outcome, young.why) == (Outcome.UNKNOWN, "it was prepared less than 60 s ago")
    assert await place.resolve_in_time() == [Outcome.COMMITTED]
    assert place.where() == BOTH
    assert await place.resolved(older_than=0) == []
    await place.proxies[name].heal()


async def _prepared(db: Any) -> list[transact.Prepared]:
    found: list[transact.Prepared] = (await db.prepared()) if isinstance(db, Database) else db.prepared()
    return found


@pytest.mark.usefixtures("impatient")
async def test_what_only_mariadb_still_holds_is_not_resolved_without_all_databases_of_the_application(place, another):
    """Committed alone, it would leave a part that it forgot without the one that decides."""
    place.proxies["ledger"].set_trap(Step.PREPARED_COMMIT_SENT, Fault.DOWN)
    await place.post()
    assert place.prepared() == ["ledger"]
    notes, ledger = place.direct
    stranger = type(notes)(url_of(another, type(notes)), two_phase=True, name=notes.name)
    for passed in ((ledger,), (ledger, ledger), (stranger, ledger)):
        [left] = await transact.resolve_prepared(*passed, older_than=0)
        assert (left.outcome, left.why) == (Outcome.UNKNOWN, "not all of its 2 databases were passed")
    assert await place.resolve_in_time() == [Outcome.COMMITTED]
    await place.proxies["ledger"].heal()


@pytest.mark.usefixtures("impatient")
async def test_it_is_not_resolved_without_the_database_that_decides(place):
    place.proxies["notes"].set_trap(Step.PREPARED_COMMIT_SENT, Fault.DOWN)
    await place.post()
    for db in place.direct:
        [left] = await transact.resolve_prepared(db, older_than=0)
        assert (left.outcome, left.why) == (Outcome.UNKNOWN, "not all of its 2 databases were passed")
    assert place.prepared() == BOTH
    assert await place.resolve_in_time() == [Outcome.COMMITTED]
    await place.proxies["notes"].heal()


@pytest.mark.usefixtures("impatient")
async def test_a_last_prepare_that_nobody_can_ask_after_leaves_all_as_it_is_until_somebody_can(place, unknown):
    place.proxies["ledger"].set_trap(Step.PREPARE_ANSWERED, Fault.DOWN)
    assert (await place.post()).status_code == 500
    assert len(unknown[0].prepared) == 2
    assert place.prepared() == BOTH
    assert await place.resolve_in_time() == [Outcome.COMMITTED]
    assert place.where() == BOTH
    await place.proxies["ledger"].heal()


@pytest.mark.usefixtures("impatient")
async def test_a_part_that_could_not_be_rolled_back_is_by_whoever_resolves(place, monkeypatch):
    """So the connection by which the others know the last part may not go back to the pool, where it would stay open."""
    place.proxies["notes"].set_trap(Step.PREPARE_ANSWERED, Fault.DOWN)
    assert (await place.post()).status_code == 503
    assert place.prepared() == ["notes"]
    assert await place.resolve_in_time() == [Outcome.ROLLED_BACK]
    assert place.where() == []
    await place.proxies["notes"].heal()


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


async def test_resolving_beside_a_request_that_has_prepared_all_takes_nothing_from_it(place):
    place.proxies["notes"].set_trap(Step.PREPARED_COMMIT_SENT, Fault.BLACKHOLE)
    request = asyncio.create_task(place.post())
    await place.proxies["notes"].struck.wait()
    [left] = await place.resolved(older_than=0)
    assert (left.outcome, left.why) == (
        Outcome.UNKNOWN,
        f"the connection that prepared it on {place.known_as('ledger')!r} is still open",
    )
    assert place.stored() == {"notes": ["a"], "ledger": []}
    await place.proxies["notes"].heal()
    assert (await request).status_code == 200
    assert place.where() == BOTH
    assert place.told == ["all"]


async def test_a_client_that_leaves_between_two_phases_leaves_no_half(place):
    place.proxies["notes"].set_trap(Step.PREPARED_COMMIT_SENT, Fault.LATENCY)
    request = asyncio.create_task(place.post())
    await place.proxies["notes"].struck.wait()
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    assert place.where() == BOTH


@pytest.mark.parametrize(("name", "where"), [("notes", []), ("ledger", BOTH)])
async def test_a_client_that_leaves_while_it_is_prepared_leaves_all_or_nothing(place, name, where):
    place.proxies[name].set_trap(Step.PREPARE_SENT, Fault.LATENCY)
    waiting = asyncio.create_task(place.proxies[name].struck.wait())
    request = asyncio.create_task(place.post())
    await waiting
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    assert place.where() == where
    assert place.prepared() == []


@pytest.mark.parametrize("seed", range(3))
async def test_clients_that_leave_at_any_moment_leave_the_same_in_all_databases(place, seed):
    chance = random.Random(seed)  # noqa: S311  # a plan, not a secret
    requests = []
    for number in range(40):
        request = asyncio.create_task(place.post(f"/do?word={number}"))
        asyncio.get_running_loop().call_later(chance.random() / 2, request.cancel)
        requests.append(request)
        await asyncio.sleep(chance.random() / 50)
    answers = await asyncio.gather(*requests, return_exceptions=True)
    async with asyncio.timeout(PATIENCE):
        while any(db._runtime.units or db.engine.pool.checkedout() for db in place.databases.values()):
            await asyncio.sleep(0.02)  # a thread cannot be cancelled, and goes on to its end
    answered = {str(n) for n, a in enumerate(answers) if not isinstance(a, BaseException) and a.status_code == 200}
    stored = place.stored()
    assert stored["notes"] == stored["ledger"]
    assert answered <= set(stored["notes"])
    assert place.prepared() == []


# Crashes.


CHILD = textwrap.dedent(
    """
    import asyncio, sys
    from tests.fastapi.test_two_phase_mariadb import KINDS, _routes
    from tests.fastapi.two_phases import Place

    async def main(kind, *urls):
        place = Place({}, {})
        for name, known_as, url in zip(("notes", "ledger"), urls[:2], urls[2:]):
            place.databases[name] = KINDS[kind](url, two_phase=True, name=known_as)
            place.databases[name].install(place.app)
        _routes(place)
        await place.post()
        print("done", flush=True)
        await asyncio.Event().wait()

    asyncio.run(main(*sys.argv[1:]))
    """
)


async def _start(place: Place) -> asyncio.subprocess.Process:
    kind = "sync" if isinstance(place.databases["notes"], SyncDatabase) else "async"
    names = [place.known_as(name) for name in BOTH]
    arguments = (sys.executable, "-c", CHILD, kind, *names, *place.behind.values())
    return await asyncio.create_subprocess_exec(*arguments, cwd=Path(__file__).parents[2])


@pytest.mark.parametrize(
    ("name", "step", "stored"),
    [
        ("notes", Step.PREPARE_ANSWERED, False),
        ("ledger", Step.PREPARE_SENT, False),
        ("ledger", Step.PREPARE_ANSWERED, True),
        ("notes", Step.PREPARED_COMMIT_SENT, True),
        ("notes", Step.PREPARED_COMMIT_ANSWERED, True),
        ("ledger", Step.PREPARED_COMMIT_SENT, True),
    ],
)
async def test_a_process_that_is_killed_leaves_all_or_nothing_once_it_is_resolved(place, name, step, stored):
    proxy = place.proxies[name]
    proxy.set_trap(step, Fault.BLACKHOLE)
    child = await _start(place)
    try:
        async with asyncio.timeout(60):
            await proxy.struck.wait()
        [left] = await place.resolved(older_than=0)  # it is still alive
        assert left.outcome is Outcome.UNKNOWN
    finally:
        child.kill()
        await child.wait()
    for each in place.proxies.values():
        await each.heal()
    assert place.prepared() != []
    assert await place.resolve_in_time() == [Outcome.COMMITTED if stored else Outcome.ROLLED_BACK]
    assert place.where() == (BOTH if stored else [])


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
    assert place.prepared() == BOTH
    assert await place.resolve_in_time() == [Outcome.COMMITTED]
    assert place.where() == BOTH


# Who takes part.


@pytest.mark.parametrize("kind", KINDS)
async def test_databases_of_both_kinds_take_part_together(urls, kind):
    """Without a start at which they could have been asked who they are."""
    async with placed(urls, KINDS[kind]) as place:
        other = KINDS["sync" if kind == "async" else "async"]
        notes = other(url_of(urls["notes"], other), two_phase=True, name="other kind")
        place.databases["ledger"]._runtime.fingerprint = None
        notes.install(place.app)

        @place.app.post("/both")
        async def both(
            one: Annotated[Any, notes.session()],
            two: Annotated[Any, place.databases["ledger"].session()],
            after: str | None = None,
        ) -> None:
            one.add(Word(word="a", after=after))
            two.add(Word(word="a"))

        try:
            assert (await place.post("/both?after=missing")).status_code == 409
            assert place.where() == place.prepared() == []
            assert (await place.post("/both")).status_code == 200
            assert place.where() == BOTH
            assert place.proxies["ledger"].passed.count(Step.PREPARED_COMMIT_SENT) == 1
        finally:
            closed = notes.close()
            if closed is not None:
                await closed


async def test_databases_that_were_away_when_the_application_started_are_asked_later(place):
    for db in place.databases.values():
        db._runtime.fingerprint = None
    assert (await place.post()).status_code == 200
    assert place.where() == BOTH
    assert place.databases["notes"]._runtime.fingerprint is not None


async def test_while_a_database_has_never_been_there_mariadb_alone_is_stored(place):
    notes = place.databases["notes"]

    def alone(one: Session, other: Session, word: str, after: str | None) -> None:
        other.add(Word(word="alone"))

    notes._runtime.fingerprint = None
    place.proxies["notes"].refuse()
    place.route("/alone", alone)
    assert (await place.post("/alone")).status_code == 200
    assert place.stored() == {"notes": [], "ledger": ["alone"]}
    assert notes._runtime.fingerprint is None
    place.observers["ledger"].execute("DELETE FROM words")
    await place.proxies["notes"].heal()
    assert (await place.post()).status_code == 500  # asked a moment ago, in vain
    assert place.where() == []
    notes._runtime.introduces_itself_after = 0.0
    assert (await place.post()).status_code == 200
    assert place.where() == BOTH


async def test_a_database_that_has_become_another_is_noticed_before_anything_is_prepared(place):
    place.databases["notes"]._runtime.fingerprint = "0" * 16
    assert (await place.post()).status_code == 500
    assert place.where() == place.passed(Step.PREPARE_SENT) == []
    assert (await place.post()).status_code == 200
    assert place.where() == BOTH


# What cannot work.


@pytest.fixture
def two_mariadbs(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[dict[str, str]]:
    with urls_of(request.config, {"notes": "mariadb", "ledger": "mariadb"}, tmp_path) as found:
        yield found


@pytest.mark.parametrize("kind", KINDS)
async def test_two_mariadb_databases_that_have_both_written_store_nothing(two_mariadbs, kind):
    async with placed(two_mariadbs, KINDS[kind]) as place:
        _routes(place)
        caught: list[Exception] = []

        @place.app.exception_handler(errors.ConfigurationError)
        def handle(request: Request, error: Exception) -> JSONResponse:
            caught.append(error)
            return JSONResponse("no", 500)

        assert (await place.post()).status_code == 500
        assert "all on MariaDB" in str(caught[0])
        assert place.where() == place.passed(Step.PREPARE_SENT) == []
        for name in BOTH:
            assert (await place.post(f"/only?word={name}")).status_code == 200
            assert place.where() == [name]
            place.observers[name].execute("DELETE FROM words")


@pytest.mark.parametrize(
    ("is_mariadb", "version", "durable", "hidden", "match"),
    [
        (False, (8, 0, 36), 1, False, "this server is MySQL 8.0"),
        (True, (10, 4, 20), 1, False, "this server is MariaDB 10.4"),
        (True, (10, 11, 6), 2, False, "innodb_flush_log_at_trx_commit = 2"),
        (True, (10, 11, 6), 1, True, "anonymous user"),
    ],
)
def test_a_server_that_would_lose_what_it_has_prepared_is_refused(is_mariadb, version, durable, hidden, match):
    dialect: Any = SimpleNamespace(is_mariadb=is_mariadb, server_version_info=version)
    assert match in str(xa._refusal(dialect, durable, hidden=hidden))
    assert xa._refusal(SimpleNamespace(is_mariadb=True, server_version_info=(10, 5, 1)), 3, hidden=False) is None  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_server_that_is_refused_is_told_at_start_up_and_stores_nothing_half(urls, monkeypatch, kind):
    monkeypatch.setattr(xa, "_SINCE", (99,))
    with pytest.raises(errors.ConfigurationError, match="MariaDB from 10"):
        async with placed(urls, KINDS[kind]):
            pass
    monkeypatch.undo()
    async with placed(urls, KINDS[kind]) as place:
        monkeypatch.setattr(xa, "_SINCE", (99,))
        _routes(place)
        await place.databases["ledger"].engine.dispose() if kind == "async" else place.databases[
            "ledger"
        ].engine.dispose()
        caught: list[Exception] = []

        @place.app.exception_handler(errors.ConfigurationError)
        def handle(request: Request, error: Exception) -> JSONResponse:
            caught.append(error)
            return JSONResponse("no", 500)

        assert (await place.post()).status_code == 500
        assert "MariaDB from 10.5 on" in str(caught[0])
        assert place.where() == []
        assert (await place.post("/only?word=ledger")).status_code == 200
        assert place.where() == ["ledger"]
