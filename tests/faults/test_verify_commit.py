"""``verify_commit=True``: a COMMIT whose answer was lost is asked for, on PostgreSQL, until it is known or patience ends."""

import asyncio
from collections.abc import Callable

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from tests.engines import Observer
from tests.faults.proxy import Fault
from tests.faults.scene import WORDS, Answer, Scene, scene
from tests.faults.wire import Step
from transact import Isolation, Retry
from transact._sqlalchemy import verifying

pytestmark = [pytest.mark.usefixtures("impatient"), pytest.mark.engines("pg18-asyncpg", "pg18-psycopg")]
CUTS = [Fault.RESET, Fault.CLOSE]
RETRY = Retry(3, base=0.001)


@pytest.mark.parametrize("fault", CUTS)
@pytest.mark.parametrize("face", ["block", "request"])
async def test_a_commit_whose_answer_was_cut_off_is_a_success_once_the_server_says_so(
    database_url: str, observer: Observer, fault: Fault, face: str
) -> None:
    async with scene(database_url, observer, verify_commit=True) as place:
        await place.warm()
        place.proxy.set_trap(Step.COMMIT_ANSWERED, fault)
        answer = await place.transact(face)
        assert answer == Answer("", 201 if face == "request" else None)
        assert place.proxy.struck.is_set()
        assert place.stored() == WORDS
        assert place.told == ["after_commit", "committed"]
        await place.next_works()


@pytest.mark.parametrize("fault", CUTS)
@pytest.mark.parametrize("face", ["block", "request"])
async def test_a_commit_that_never_reached_the_server_is_a_failure_that_may_be_tried_again(
    database_url: str, observer: Observer, fault: Fault, face: str
) -> None:
    async with scene(database_url, observer, verify_commit=True) as place:
        await place.warm()
        place.proxy.set_trap(Step.COMMIT_SENT, fault)
        answer = await place.transact(face)
        assert answer == Answer("ConnectionLost", 503 if face == "request" else None)
        assert place.stored() == ()
        assert place.told == ["after_rollback", "rolled back"]
        await place.next_works()


async def run_with_retry(place: Scene) -> None:
    await place.db.run(place.work, retry=RETRY)


async def request_with_retry(place: Scene) -> None:
    assert await place.request() == Answer("", 201)


@pytest.mark.parametrize("step", [Step.COMMIT_SENT, Step.COMMIT_ANSWERED])
@pytest.mark.parametrize("call", [run_with_retry, request_with_retry])
async def test_with_retry_a_lost_commit_is_stored_exactly_once(
    database_url: str, observer: Observer, step: Step, call: Callable
) -> None:
    async with scene(database_url, observer, verify_commit=True, retry=RETRY) as place:
        observer.execute("ALTER TABLE words DROP CONSTRAINT words_pkey")  # a second time would go unnoticed
        await place.warm()
        place.proxy.set_trap(step, Fault.RESET)
        await call(place)
        assert place.proxy.struck.is_set()
        assert place.stored() == WORDS
        assert place.told.count("after_commit") == 1
        assert place.told[-2:] == ["after_commit", "committed"]


@pytest.mark.parametrize(
    ("step", "answer", "stored"),
    [(Step.COMMIT_SENT, Answer("ConnectionLost"), ()), (Step.COMMIT_ANSWERED, Answer(), WORDS)],
)
async def test_a_server_that_is_away_for_a_while_is_asked_again(
    database_url: str, observer: Observer, step: Step, answer: Answer, stored: tuple[str, ...]
) -> None:
    async with scene(database_url, observer, verify_commit=True) as place:
        await place.warm()
        place.proxy.set_trap(step, Fault.DOWN)
        task = asyncio.create_task(place.block())
        await place.proxy.struck.wait()
        done, _ = await asyncio.wait([task], timeout=0.1)
        assert not done
        await place.proxy.heal()
        assert await task == answer
        assert place.stored() == stored


@pytest.mark.parametrize("fault", [Fault.DOWN, Fault.RESET])
async def test_a_server_that_never_comes_back_leaves_an_outcome_that_is_said_to_be_unknown(
    database_url: str, observer: Observer, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verifying, "PATIENCE", 0.2)
    async with scene(database_url, observer, verify_commit=True, retry=RETRY) as place:
        await place.warm()
        place.proxy.set_trap(Step.COMMIT_ANSWERED, fault, swallows_new=True)
        assert await place.block() == Answer("CommitOutcomeUnknown")
        assert place.told == ["unknown"]
        await place.proxy.heal()
        assert place.stored() == WORDS
        await place.next_works()


async def test_a_commit_that_the_server_still_has_before_it_is_waited_for(
    database_url: str, observer: Observer
) -> None:
    async with scene(database_url, observer, verify_commit=True) as place:
        await place.warm()
        # The server has not heard that its client is gone: the transaction is in progress.
        place.proxy.set_trap(Step.COMMIT_SENT, Fault.RESET, server_notices=False)
        task = asyncio.create_task(place.block())
        await place.proxy.struck.wait()
        done, _ = await asyncio.wait([task], timeout=0.1)
        assert not done
        await place.proxy.heal()  # now it hears of it
        assert await task == Answer("ConnectionLost")
        assert place.stored() == ()
        assert place.told == ["after_rollback", "rolled back"]


async def test_a_connection_lost_while_the_transaction_s_id_is_read_is_known_to_have_stored_nothing(
    database_url: str, observer: Observer
) -> None:
    async with scene(database_url, observer, verify_commit=True) as place:
        await place.warm()
        place.proxy.set_trap(Step.RECEIPT, Fault.RESET)
        assert await place.block() == Answer("ConnectionLost")
        assert place.proxy.struck.is_set()
        assert place.stored() == ()


@pytest.mark.engines("pg18-asyncpg")
async def test_a_commit_that_the_driver_gave_up_waiting_for_is_asked_for_too(
    database_url: str, observer: Observer
) -> None:
    options = {"connect_args": {"command_timeout": 0.1}}
    async with scene(database_url, observer, verify_commit=True, engine_options=options) as place:
        await place.warm()
        place.proxy.set_trap(Step.COMMIT_ANSWERED, Fault.BLACKHOLE)
        task = asyncio.create_task(place.block())
        await place.proxy.struck.wait()
        await asyncio.wait([task], timeout=0.2)
        await place.proxy.heal()
        assert await task == Answer()
        assert place.told == ["after_commit", "committed"]


async def test_without_a_lost_answer_nobody_asks(database_url: str, observer: Observer) -> None:
    async with scene(database_url, observer, verify_commit=True) as place:
        await place.warm()
        assert await place.block() == Answer()
        assert Step.CONNECT not in place.proxy.passed


@pytest.mark.parametrize(
    ("isolation", "answer", "told"),
    [
        (Isolation.REPEATABLE_READ, Answer(), ["committed"]),
        (Isolation.SERIALIZABLE, Answer("ConnectionLost"), ["rolled back"]),
    ],
)
async def test_a_lost_commit_of_what_wrote_nothing_is_a_success_unless_it_had_to_say_that_what_was_read_is_true(
    database_url: str, observer: Observer, isolation: Isolation, answer: Answer, told: list[str]
) -> None:
    async with scene(database_url, observer, verify_commit=True, isolation=isolation) as place:
        await place.warm()
        place.proxy.set_trap(Step.COMMIT_ANSWERED, Fault.RESET)

        async def read(session: AsyncSession) -> int | None:
            place.db.after_completion(lambda outcome: place.told.append(outcome.value))
            return await session.scalar(text("SELECT count(*) FROM words"))

        place.work = read
        assert await place.block() == answer
        assert place.proxy.struck.is_set()
        assert place.told == told
