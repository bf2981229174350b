"""Retry: where it may be asked for, and how long it goes on."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from tests.conformance.tables import Stored, store
from tests.conformance.trying import DUPLICATE, EACH_VERB, QUICK, OutOfStockError, Verb, counted
from tests.engines import Observer
from transact import Database, Isolation, Propagation, Retry, errors
from transact.events import Event, Retried

pytestmark = pytest.mark.engines("sqlite", "pg18-asyncpg")


@EACH_VERB
async def test_an_explicit_retry_inside_an_open_transaction_raises_before_anything_has_happened(
    db: Database, stored: Stored, verb: Verb
) -> None:
    sessions, call = counted(lambda session: store(session, "inner"))
    async with db.transaction() as session:
        await store(session, "outer")
        for propagation in (Propagation.REQUIRED, Propagation.REQUIRES_NEW, Propagation.NESTED, Propagation.MANDATORY):
            with pytest.raises(errors.UsageError, match="retry="):
                await verb(db, call, retry=QUICK, propagation=propagation)
        await store(session, "still usable")
    assert sessions == []
    assert stored() == {"outer", "still usable"}


def test_retry_on_a_plain_block_raises_because_a_block_cannot_be_run_twice(db: Database) -> None:
    with pytest.raises(errors.UsageError, match="attempts"):
        db.transaction(retry=QUICK)


@EACH_VERB
@pytest.mark.parametrize("propagation", [Propagation.SUPPORTS, Propagation.NOT_SUPPORTED, Propagation.NEVER])
async def test_what_runs_without_a_transaction_cannot_be_tried_again(
    db: Database, verb: Verb, propagation: Propagation
) -> None:
    sessions, call = counted(lambda session: store(session, "word"))
    with pytest.raises(errors.OptionsConflict, match="retry="):
        await verb(db, call, retry=QUICK, propagation=propagation)
    assert sessions == []


@EACH_VERB
@pytest.mark.parametrize("propagation", [Propagation.REQUIRED, Propagation.REQUIRES_NEW, Propagation.NESTED])
async def test_the_unit_is_the_outermost_transaction_whatever_began_it(
    db: Database, verb: Verb, propagation: Propagation
) -> None:
    sessions, call = counted(lambda session: session.execute(DUPLICATE))
    with pytest.raises(errors.RetriesExhausted):
        await verb(db, call, retry=Retry(base=0, on=(errors.UniqueViolation,)), propagation=propagation)
    assert len(sessions) == 3


@EACH_VERB
async def test_the_databases_own_retry_is_used_where_none_is_named_and_by_outermost_transactions_only(
    database_url: str, tables: None, make_db: Callable[..., Database], stored: Stored, verb: Verb
) -> None:
    db = make_db(database_url, retry=Retry(attempts=2, base=0, on=(errors.UniqueViolation,)))
    sessions, call = counted(lambda session: session.execute(DUPLICATE))
    with pytest.raises(errors.RetriesExhausted) as caught:
        await verb(db, call)
    assert (caught.value.attempts, len(sessions)) == (2, 2)
    with pytest.raises(errors.UniqueViolation):
        await verb(db, call, retry=Retry(base=0))
    assert len(sessions) == 3
    async with db.transaction() as session:
        await store(session, "outer")
        with pytest.raises(errors.UniqueViolation):
            await verb(db, call, propagation=Propagation.NESTED)
    assert len(sessions) == 4
    with pytest.raises(errors.UniqueViolation):
        await verb(db, call, propagation=Propagation.SUPPORTS)
    assert len(sessions) == 5
    assert stored() == {"outer"}


async def test_attempts_has_a_retry_by_itself_and_joins_an_open_transaction_with_one_attempt(
    db: Database, observer: Observer, stored: Stored
) -> None:
    tried = 0
    with pytest.raises(errors.RetriesExhausted):
        async for attempt in db.attempts(retry=None):
            async with attempt as session:
                tried += 1
                raise errors.SerializationFailure
    assert tried == Retry().attempts
    async with db.transaction() as outer:
        async for attempt in db.attempts():
            async with attempt as session:
                assert session is outer
                await store(session, "joined")
                tried += 1
    assert tried == Retry().attempts + 1
    assert stored() == {"joined"}


WRONG = (
    {"attempts": 0}, {"attempts": -1}, {"attempts": 1.5}, {"attempts": True}, {"attempts": None}, {"attempts": "3"},
    {"base": -1}, {"base": "1"}, {"base": float("inf")}, {"base": float("nan")}, {"base": True}, {"base": None},
    {"max_delay": -1}, {"max_delay": float("inf")}, {"max_delay": None},
    {"deadline": 0}, {"deadline": -1}, {"deadline": float("inf")}, {"deadline": "1"},
    {"on": ValueError}, {"on": [ValueError]}, {"on": (ValueError(),)}, {"on": (asyncio.CancelledError,)}, {"on": None},
)  # fmt: skip


@pytest.mark.engines("sqlite")
@pytest.mark.parametrize("arguments", WRONG, ids=str)
def test_a_retry_that_would_never_run_or_never_end_is_refused(database_url: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(errors.UsageError, match=next(iter(arguments))):
        Retry(**arguments)


# How long it goes on.


@EACH_VERB
@pytest.mark.parametrize("number", [1, 2, 5])
async def test_the_last_attempts_error_is_the_cause_of_what_is_raised_with_the_number_of_attempts(
    db: Database, events: list[Event], verb: Verb, number: int
) -> None:
    raised: list[Exception] = []

    async def work(session: AsyncSession) -> None:
        raised.append(OutOfStockError())
        raise raised[-1]

    with pytest.raises(errors.RetriesExhausted, match=f"'job' failed {number} times.*OutOfStockError") as caught:
        await verb(db, work, retry=Retry(number, base=0, on=(OutOfStockError,)), label="job")
    assert len(raised) == number
    assert caught.value.attempts == number
    assert caught.value.__cause__ is raised[-1]
    assert caught.value.retryable
    retried = [event for event in events if isinstance(event, Retried)]
    assert [event.cause for event in retried] == raised[:-1]
    assert [event.attempt for event in retried] == list(range(1, number))


@pytest.mark.engines("sqlite")
async def test_pauses_are_random_between_zero_and_a_bound_that_doubles_up_to_max_delay(
    db: Database, events: list[Event]
) -> None:
    async def fail(session: AsyncSession) -> None:
        raise OutOfStockError

    retry = Retry(attempts=8, base=0.0001, max_delay=0.0016, on=(OutOfStockError,))
    for _ in range(30):
        with pytest.raises(errors.RetriesExhausted):
            await db.run(fail, retry=retry)
    delays = {n: [e.delay for e in events if isinstance(e, Retried) and e.attempt == n] for n in range(1, 8)}
    for number, seen in delays.items():
        bound = min(0.0016, 0.0001 * 2 ** (number - 1))
        assert len(seen) == 30
        assert 0 <= min(seen) < bound / 2 < max(seen) <= bound


@EACH_VERB
async def test_no_attempt_begins_after_the_deadline(db: Database, events: list[Event], verb: Verb) -> None:
    async def fail(session: AsyncSession) -> None:
        await asyncio.sleep(0.02)
        raise OutOfStockError

    sessions, call = counted(fail)
    async with asyncio.timeout(30):
        with pytest.raises(errors.RetriesExhausted) as caught:
            await verb(
                db, call, retry=Retry(attempts=10**6, base=0.01, max_delay=0.01, deadline=0.1, on=(OutOfStockError,))
            )
    assert caught.value.attempts == len(sessions)
    assert 1 <= len(sessions) <= 6


@EACH_VERB
async def test_a_pause_that_would_end_after_the_deadline_is_not_begun(db: Database, verb: Verb) -> None:
    async def fail(session: AsyncSession) -> None:
        await asyncio.sleep(0.002)
        raise OutOfStockError

    sessions, call = counted(fail)
    with pytest.raises(errors.RetriesExhausted):
        await verb(db, call, retry=Retry(base=1, deadline=0.001, on=(OutOfStockError,)))
    assert len(sessions) == 1


@EACH_VERB
async def test_no_connection_is_held_during_a_pause(db: Database, verb: Verb) -> None:
    held: list[int] = []
    db.listen(lambda event: held.append(db.engine.pool.checkedout()) if isinstance(event, Retried) else None)
    with pytest.raises(errors.RetriesExhausted):
        await verb(db, lambda session: session.execute(DUPLICATE), retry=Retry(base=0, on=(errors.UniqueViolation,)))
    assert held == [0, 0]


@EACH_VERB
async def test_options_hold_for_each_attempt(db: Database, stored: Stored, verb: Verb) -> None:
    levels: list[Any] = []

    async def work(session: AsyncSession) -> None:
        levels.append((db.current.options.isolation, db.current.label, db.current.options.read_only))
        raise OutOfStockError

    options = {"isolation": Isolation.SERIALIZABLE, "label": "job", "read_only": True}
    with pytest.raises(errors.RetriesExhausted):
        await verb(db, work, retry=Retry(base=0, on=(OutOfStockError,)), **options)
    assert levels == [(Isolation.SERIALIZABLE, "job", True)] * 3
