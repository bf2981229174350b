"""A cancelled task in a network that swallows everything: each end of a transaction is waited for only so long."""

import asyncio
from collections.abc import Callable

import pytest
from sqlalchemy import text

from tests.engines import Observer
from tests.faults.proxy import Fault
from tests.faults.scene import Answer, Scene, cancelled, scene
from tests.faults.wire import Step
from transact import errors
from transact._sqlalchemy import shielding

pytestmark = [pytest.mark.usefixtures("impatient"), pytest.mark.engines("pg18-asyncpg", "pg18-psycopg", "mariadb")]


async def leave_a_savepoint(place: Scene) -> None:
    async with place.db.transaction(), place.db.savepoint() as session:
        await session.execute(text("INSERT INTO words VALUES ('inner')"))


async def roll_back_to_a_savepoint(place: Scene) -> None:
    async with place.db.transaction(), place.db.savepoint() as session:
        await session.execute(text("INSERT INTO words VALUES ('inner')"))
        raise LookupError


async def roll_back(place: Scene) -> None:
    async with place.db.transaction() as session:
        await session.execute(text("INSERT INTO words VALUES ('word')"))
        raise LookupError


ENDS = [(leave_a_savepoint, Step.RELEASE), (roll_back_to_a_savepoint, Step.ROLLBACK_TO), (roll_back, Step.ROLLBACK)]


@pytest.mark.parametrize(("work", "step"), ENDS)
async def test_a_cancelled_end_of_a_block_that_gets_no_answer_is_given_up_after_the_grace_period(
    database_url: str, observer: Observer, work: Callable, step: Step
) -> None:
    async with scene(database_url, observer) as place:
        await place.warm()
        place.proxy.set_trap(step, Fault.BLACKHOLE)
        task = asyncio.create_task(work(place))
        await place.proxy.struck.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert place.held() == 0
        await place.proxy.heal()
        assert place.stored() == ()
        await place.next_works()


@pytest.mark.parametrize(("work", "step"), ENDS[1:])
async def test_a_rollback_that_gets_no_answer_delays_the_error_only_by_the_grace_period(
    database_url: str, observer: Observer, work: Callable, step: Step
) -> None:
    async with scene(database_url, observer) as place:
        await place.warm()
        place.proxy.set_trap(step, Fault.BLACKHOLE)
        with pytest.raises(LookupError):
            await work(place)
        assert place.proxy.struck.is_set()
        assert place.held() == 0
        await place.proxy.heal()
        assert place.stored() == ()
        await place.next_works()


@pytest.mark.engines("pg18-asyncpg", "pg18-psycopg")
async def test_reading_the_transaction_s_id_is_given_up_like_a_commit(database_url: str, observer: Observer) -> None:
    async with scene(database_url, observer, verify_commit=True) as place:
        await place.warm()
        place.proxy.set_trap(Step.RECEIPT, Fault.BLACKHOLE)
        assert await cancelled(place.block(), place.proxy.struck) == Answer("CancelledError")
        assert place.told == ["after_rollback", "rolled back"]


async def test_a_cancelled_commit_that_is_answered_within_the_grace_period_is_committed(
    database_url: str, observer: Observer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shielding, "GRACE", 5.0)
    async with scene(database_url, observer) as place:
        await place.warm()
        place.proxy.set_trap(Step.COMMIT_ANSWERED, Fault.LATENCY)
        task = asyncio.create_task(place.block())
        while Step.COMMIT_SENT not in place.proxy.passed:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert place.told == ["after_commit", "committed"]


@pytest.mark.engines("pg18-asyncpg")
async def test_a_driver_that_gives_up_waiting_for_the_answer_to_commit_leaves_the_outcome_unknown(
    database_url: str, observer: Observer
) -> None:
    options = {"connect_args": {"command_timeout": 0.1}}
    async with scene(database_url, observer, engine_options=options) as place:
        await place.warm()
        place.proxy.set_trap(Step.COMMIT_ANSWERED, Fault.BLACKHOLE)
        assert await place.block() == Answer("CommitOutcomeUnknown")
        assert place.told == ["unknown"]


@pytest.mark.engines("pg18-asyncpg")
async def test_a_driver_that_gives_up_waiting_for_a_statement_is_a_statement_timeout(
    database_url: str, observer: Observer
) -> None:
    options = {"connect_args": {"command_timeout": 0.1}}
    async with scene(database_url, observer, engine_options=options) as place:
        await place.warm()
        place.proxy.set_trap(Step.LAST, Fault.BLACKHOLE)
        with pytest.raises(errors.StatementTimeout):
            async with place.db.transaction() as session:
                await place.work(session)
        assert place.held() == 0


@pytest.mark.engines("mariadb")
@pytest.mark.parametrize(("step", "error"), [(Step.LAST, "ConnectionLost"), (Step.COMMIT_SENT, "CommitOutcomeUnknown")])
async def test_a_read_timeout_of_the_driver_bounds_the_wait_for_a_network_that_swallows_everything(
    database_url: str, observer: Observer, step: Step, error: str
) -> None:
    options = {"connect_args": {"read_timeout": 0.2}}
    async with scene(database_url, observer, engine_options=options) as place:
        await place.warm()
        place.proxy.set_trap(step, Fault.BLACKHOLE)
        assert await place.block() == Answer(error)
        assert place.held() == 0


SILENCES = [
    (Step.FIRST, "TransactionTimeout", ["after_rollback", "rolled back"]),
    (Step.LAST, "TransactionTimeout", ["after_rollback", "rolled back"]),
    (Step.COMMIT_SENT, "CommitOutcomeUnknown", ["unknown"]),
]


@pytest.mark.parametrize(("step", "error", "told"), SILENCES)
async def test_a_transaction_with_a_deadline_does_not_wait_for_ever_for_a_network_that_swallows_everything(
    database_url: str, observer: Observer, step: Step, error: str, told: list[str]
) -> None:
    async with scene(database_url, observer, timeout=0.4) as place:
        await place.warm()
        place.proxy.set_trap(step, Fault.BLACKHOLE)
        async with asyncio.timeout(10):
            assert await place.block() == Answer(error)
        assert place.told == told
        assert place.held() == 0
        await place.proxy.heal()
        await place.next_works()
