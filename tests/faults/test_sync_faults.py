"""The same faults over the sync face: psycopg and PyMySQL in threads. Whoever calls is told the truth there too."""

import asyncio
from collections.abc import Callable

import pytest
from sqlalchemy import text

from tests.engines import Observer
from tests.faults.outcomes import ROWS, Row, observed
from tests.faults.proxy import Fault
from tests.faults.scene import WORDS, Answer, scene
from tests.faults.test_connections import kill_all
from tests.faults.threads import SyncScene
from tests.faults.wire import Step
from transact import Isolation, Retry
from transact._sqlalchemy import shielding, verifying

pytestmark = [pytest.mark.usefixtures("impatient"), pytest.mark.engines("pg18-psycopg", "mariadb")]
POSTGRESQL = pytest.mark.engines("pg18-psycopg")
CUTS = [Fault.RESET, Fault.CLOSE, Fault.DOWN]
#: Where a network swallows everything, a row ends by the caller's patience, and nobody can cancel a thread.
ENDS_BY_ITSELF = {Step.ROLLBACK, Step.RETURNED}
CASES = [
    pytest.param(engine, row, face, id=f"{engine}-{face}-{row.fault.value}-at-{row.step.value}".replace(" ", "-"))
    for row in ROWS
    for engine in ("pg18-psycopg", "mariadb")
    for face in ("block", "request")
    if {engine, "postgresql" if engine == "pg18-psycopg" else ""} & set(row.engines)
    and (row.fault in CUTS or (row.fault is Fault.BLACKHOLE and row.step in ENDS_BY_ITSELF))
    and (face == "block" or row.fault is Fault.RESET)
]


@pytest.mark.parametrize(("url", "row", "face"), CASES, indirect=["url"])
async def test_whatever_breaks_the_caller_is_told_the_truth_and_the_pool_is_whole(
    url: str, observing: Callable[[str], Observer], row: Row, face: str
) -> None:
    async with scene(url, observing(url), SyncScene) as place:
        seen = await observed(place, row.step, row.fault, face)
    assert seen == (row.outcome if face == "request" else row.outcome._replace(status=None))


# A network that swallows everything.

SILENCES = [
    (Step.FIRST, "TransactionTimeout", ["after_rollback", "rolled back"], ()),
    (Step.LAST, "TransactionTimeout", ["after_rollback", "rolled back"], ()),
    (Step.COMMIT_SENT, "CommitOutcomeUnknown", ["unknown"], ()),
    (Step.COMMIT_ANSWERED, "CommitOutcomeUnknown", ["unknown"], WORDS),
]


@pytest.mark.parametrize(("step", "error", "told", "stored"), SILENCES)
async def test_a_transaction_with_a_deadline_does_not_wait_for_ever_for_a_network_that_swallows_everything(
    database_url: str, observer: Observer, *, step: Step, error: str, told: list[str], stored: tuple[str, ...]
) -> None:
    async with scene(database_url, observer, SyncScene, timeout=0.5) as place:
        await place.warm()
        place.proxy.set_trap(step, Fault.BLACKHOLE)
        assert await place.block() == Answer(error)
        assert place.proxy.struck.is_set()
        assert place.told == told
        assert place.held() == 0
        await place.proxy.heal()
        assert place.stored() == stored
        await place.next_works()


@pytest.mark.parametrize("step", [Step.ROLLBACK_TO, Step.ROLLBACK])
async def test_a_rollback_that_gets_no_answer_delays_the_error_only_by_the_grace_period(
    database_url: str, observer: Observer, step: Step
) -> None:
    def fail(place: SyncScene) -> None:
        with place.db.transaction() as session:
            session.execute(text("INSERT INTO words VALUES ('word')"))
            with place.db.savepoint():
                session.execute(text("INSERT INTO words VALUES ('inner')"))
                if step is Step.ROLLBACK_TO:
                    raise LookupError
            raise LookupError

    async with scene(database_url, observer, SyncScene) as place:
        await place.warm()
        place.proxy.set_trap(step, Fault.BLACKHOLE)
        with pytest.raises(LookupError):
            await asyncio.to_thread(fail, place)
        assert place.proxy.struck.is_set()
        assert place.held() == 0
        await place.proxy.heal()
        assert place.stored() == ()
        await place.next_works()


@pytest.mark.engines("mariadb")
@pytest.mark.parametrize(("step", "error"), [(Step.LAST, "ConnectionLost"), (Step.COMMIT_SENT, "CommitOutcomeUnknown")])
async def test_a_read_timeout_of_pymysql_bounds_the_wait_for_a_network_that_swallows_everything(
    database_url: str, observer: Observer, step: Step, error: str
) -> None:
    options = {"connect_args": {"read_timeout": 1}}
    async with scene(database_url, observer, SyncScene, engine_options=options) as place:
        await place.warm()
        place.proxy.set_trap(step, Fault.BLACKHOLE)
        assert await place.block() == Answer(error)
        assert place.held() == 0


# Connections that the server has ended.


@pytest.mark.parametrize("face", ["block", "request"])
async def test_pooled_connections_that_the_server_ended_cost_no_failed_transaction(
    database_url: str, observer: Observer, face: str
) -> None:
    async with scene(database_url, observer, SyncScene) as near:
        direct = SyncScene.database(database_url, pool_size=3)
        place = SyncScene(near.proxy, direct, observer)
        async with direct.lifespan():
            await place.warm()
            assert kill_all(database_url, observer) == 2
            assert (await place.transact(face)).error == ""
            assert place.stored() == WORDS
            assert place.held() == 0


async def test_a_session_that_the_server_ended_before_commit_has_stored_nothing_and_may_be_tried_again(
    database_url: str, observer: Observer
) -> None:
    async with scene(database_url, observer, SyncScene) as place:
        attempts = []
        usual = place.proxy.reach

        async def reach(step: Step) -> None:
            attempts.append(step)
            if len(attempts) == 1:
                kill_all(database_url, observer)
                while place.proxy.connections:
                    await asyncio.sleep(0)
            await usual(step)

        place.proxy.reach = reach
        await place.run(retry=Retry(2, base=0.001))
        assert len(attempts) == 2
        assert place.stored() == WORDS
        assert place.told == ["after_rollback", "rolled back", "after_commit", "committed"]


# `verify_commit`.


@POSTGRESQL
@pytest.mark.parametrize("face", ["block", "request"])
@pytest.mark.parametrize(
    ("step", "answer", "status", "stored", "told"),
    [
        (Step.COMMIT_ANSWERED, "", 201, WORDS, ["after_commit", "committed"]),
        (Step.COMMIT_SENT, "ConnectionLost", 503, (), ["after_rollback", "rolled back"]),
        (Step.RECEIPT, "ConnectionLost", 503, (), ["after_rollback", "rolled back"]),
    ],
)
async def test_what_became_of_a_commit_whose_answer_was_cut_off_is_asked_of_the_server(
    database_url: str,
    observer: Observer,
    *,
    face: str,
    step: Step,
    answer: str,
    status: int,
    stored: tuple[str, ...],
    told: list[str],
) -> None:
    async with scene(database_url, observer, SyncScene, verify_commit=True) as place:
        await place.warm()
        place.proxy.set_trap(step, Fault.RESET)
        assert await place.transact(face) == Answer(answer, status if face == "request" else None)
        assert place.proxy.struck.is_set()
        assert place.stored() == stored
        assert place.told == told
        await place.next_works()


@POSTGRESQL
@pytest.mark.parametrize("step", [Step.COMMIT_SENT, Step.COMMIT_ANSWERED])
async def test_with_retry_a_lost_commit_is_stored_exactly_once(
    database_url: str, observer: Observer, step: Step
) -> None:
    async with scene(database_url, observer, SyncScene, verify_commit=True) as place:
        observer.execute("ALTER TABLE words DROP CONSTRAINT words_pkey")  # a second time would go unnoticed
        await place.warm()
        place.proxy.set_trap(step, Fault.RESET)
        await place.run(retry=Retry(3, base=0.001))
        assert place.proxy.struck.is_set()
        assert place.stored() == WORDS
        assert place.told[-2:] == ["after_commit", "committed"]
        assert place.told.count("after_commit") == 1


@POSTGRESQL
@pytest.mark.parametrize(
    ("step", "cut", "answer", "stored"),
    [
        (Step.COMMIT_SENT, {}, Answer("ConnectionLost"), ()),
        (Step.COMMIT_ANSWERED, {}, Answer(), WORDS),
        # The server has not heard that its client is gone: the transaction is in progress until the network heals.
        (Step.COMMIT_SENT, {"server_notices": False}, Answer("ConnectionLost"), ()),
    ],
    ids=["away before", "away after", "in progress"],
)
async def test_a_server_that_cannot_say_it_yet_is_asked_again(
    database_url: str, observer: Observer, *, step: Step, cut: dict[str, bool], answer: Answer, stored: tuple[str, ...]
) -> None:
    async with scene(database_url, observer, SyncScene, verify_commit=True) as place:
        await place.warm()
        place.proxy.set_trap(step, Fault.RESET if cut else Fault.DOWN, **cut)
        task = asyncio.create_task(place.block())
        await place.proxy.struck.wait()
        done, _ = await asyncio.wait([task], timeout=0.1)
        assert not done
        await place.proxy.heal()
        assert await task == answer
        assert place.stored() == stored


@POSTGRESQL
@pytest.mark.parametrize("fault", [Fault.DOWN, Fault.RESET], ids=["refuses", "swallows"])
async def test_a_server_that_never_comes_back_leaves_an_outcome_that_is_said_to_be_unknown(
    database_url: str, observer: Observer, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verifying, "PATIENCE", 0.2)
    async with scene(database_url, observer, SyncScene, verify_commit=True) as place:
        await place.warm()
        place.proxy.set_trap(Step.COMMIT_ANSWERED, fault, swallows_new=True)
        assert await asyncio.wait_for(place.block(), 5) == Answer("CommitOutcomeUnknown")
        assert place.told == ["unknown"]
        await place.proxy.heal()
        assert place.stored() == WORDS
        await place.next_works()


@POSTGRESQL
@pytest.mark.parametrize(
    ("isolation", "answer"),
    [(Isolation.REPEATABLE_READ, Answer()), (Isolation.SERIALIZABLE, Answer("ConnectionLost"))],
)
async def test_a_lost_commit_of_what_wrote_nothing_is_a_success_unless_it_had_to_say_that_what_was_read_is_true(
    database_url: str, observer: Observer, isolation: Isolation, answer: Answer
) -> None:
    async with scene(database_url, observer, SyncScene, verify_commit=True, isolation=isolation) as place:
        await place.warm()
        place.proxy.set_trap(Step.COMMIT_ANSWERED, Fault.RESET)
        place.work = lambda session: session.execute(text("SELECT count(*) FROM words"))
        assert await place.block() == answer
        assert place.proxy.struck.is_set()


# Closing the database.


async def test_closing_waits_for_the_answer_to_a_commit_that_is_under_way(
    database_url: str, observer: Observer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shielding, "GRACE", 5.0)
    async with scene(database_url, observer, SyncScene) as place:
        await place.warm()
        place.proxy.set_trap(Step.COMMIT_ANSWERED, Fault.LATENCY)
        task = asyncio.create_task(place.block())
        while Step.COMMIT_SENT not in place.proxy.passed:
            await asyncio.sleep(0)
        await asyncio.to_thread(place.db.close)
        assert place.told == ["after_commit", "committed"]
        assert place.stored() == WORDS
        assert await task == Answer()
        place.db.open()
        await place.next_works()


async def test_closing_waits_for_a_commit_that_gets_no_answer_only_for_the_grace_period(
    database_url: str, observer: Observer
) -> None:
    async with scene(database_url, observer, SyncScene) as place:
        await place.warm()
        place.proxy.set_trap(Step.COMMIT_SENT, Fault.BLACKHOLE)
        task = asyncio.create_task(place.block())
        await place.proxy.struck.wait()
        await asyncio.to_thread(place.db.close)
        assert not task.done()
        await place.proxy.heal()
        assert await task == Answer("CommitOutcomeUnknown")


async def test_a_hook_that_closes_the_database_does_not_wait_for_itself(
    database_url: str, observer: Observer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shielding, "GRACE", 3600.0)

    def closes(place: SyncScene) -> None:
        with place.db.transaction() as session:
            session.execute(text("INSERT INTO words VALUES ('word')"))
            place.db.after_commit(place.db.close)

    async with scene(database_url, observer, SyncScene) as place:
        await asyncio.wait_for(asyncio.to_thread(closes, place), 5)
        assert place.stored() == ("word",)
