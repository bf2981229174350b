"""Retry: what is found behind an error, and what is never tried again."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from tests.conformance.tables import Stored, store
from tests.conformance.test_commit import SlowCommit
from tests.conformance.trying import DUPLICATE, EACH_VERB, QUICK, OutOfStockError, Verb, counted
from tests.engines import Observer
from transact import Database, Propagation, Retry, errors
from transact.events import Event, Retried

pytestmark = pytest.mark.engines("sqlite", "pg18-asyncpg")
POSTGRES_ONLY = pytest.mark.engines("pg18-asyncpg", "pg18-psycopg")
BY_CHANCE = text("DO $$ BEGIN RAISE EXCEPTION 'by chance' USING ERRCODE = '40001'; END $$")


# What is found, and where.


async def _raised_from(session: AsyncSession) -> None:
    try:
        await session.execute(BY_CHANCE)
    except errors.SerializationFailure as error:
        raise OutOfStockError from error


async def _raised_while_handling(session: AsyncSession) -> None:
    try:
        await session.execute(BY_CHANCE)
    except errors.SerializationFailure:
        raise OutOfStockError  # noqa: B904  # that is the matter


async def _raised_from_none(session: AsyncSession) -> None:
    try:
        await session.execute(BY_CHANCE)
    except errors.SerializationFailure:
        raise OutOfStockError from None


async def _raised_later(session: AsyncSession) -> None:
    with suppress(errors.SerializationFailure):
        await session.execute(BY_CHANCE)
    raise OutOfStockError


async def _swallowed(session: AsyncSession) -> None:
    with suppress(errors.SerializationFailure):
        await session.execute(BY_CHANCE)


async def _wrapped_twice(session: AsyncSession) -> None:
    try:
        await _raised_while_handling(session)
    except OutOfStockError as error:
        raise KeyError from error


async def _in_a_task_group(session: AsyncSession) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(session.execute(BY_CHANCE))


FOUND = (_raised_from, _raised_while_handling, _raised_from_none, _raised_later, _swallowed, _wrapped_twice, _in_a_task_group)  # fmt: skip


@POSTGRES_ONLY
@EACH_VERB
@pytest.mark.parametrize("how", FOUND, ids=lambda how: how.__name__.strip("_"))
async def test_a_transient_error_that_doomed_the_transaction_is_tried_again_whatever_the_program_made_of_it(
    db: Database, stored: Stored, how: Callable[[AsyncSession], Awaitable[None]], verb: Verb
) -> None:
    async def work(session: AsyncSession) -> None:
        await store(session, "word")
        if len(sessions) == 1:
            await how(session)

    sessions, call = counted(work)
    await verb(db, call, retry=QUICK)
    assert len(sessions) == 2
    assert stored() == {"word"}


@POSTGRES_ONLY
@EACH_VERB
@pytest.mark.parametrize("hidden", [False, True])
async def test_a_transient_error_in_a_savepoint_counts_as_context_and_not_if_the_program_says_from_none(
    db: Database, stored: Stored, verb: Verb, *, hidden: bool
) -> None:
    async def work(session: AsyncSession) -> None:
        try:
            async with db.savepoint():
                await session.execute(BY_CHANCE)
        except errors.SerializationFailure:
            if hidden:
                raise OutOfStockError from None
            raise OutOfStockError  # noqa: B904  # that is the matter

    sessions, call = counted(work)
    with pytest.raises(OutOfStockError if hidden else errors.RetriesExhausted):
        await verb(db, call, retry=QUICK)
    assert len(sessions) == (1 if hidden else 3)


@POSTGRES_ONLY
@EACH_VERB
async def test_a_joined_block_that_fails_by_chance_in_a_savepoint_and_is_swallowed_is_tried_again(
    db: Database, stored: Stored, verb: Verb
) -> None:
    async def work(session: AsyncSession) -> None:
        await store(session, "word")
        if len(sessions) == 1:
            with suppress(OutOfStockError):
                async with db.transaction():
                    try:
                        async with db.savepoint():
                            await session.execute(BY_CHANCE)
                    except errors.SerializationFailure:
                        raise OutOfStockError  # noqa: B904  # that is the matter

    sessions, call = counted(work)
    await verb(db, call, retry=QUICK)
    assert len(sessions) == 2
    assert stored() == {"word"}


@POSTGRES_ONLY
@EACH_VERB
async def test_a_transient_error_from_before_the_first_attempt_says_nothing_about_what_is_raised_in_one(
    db: Database, verb: Verb
) -> None:
    async def work(session: AsyncSession) -> None:
        raise OutOfStockError

    sessions, call = counted(work)
    with pytest.raises(OutOfStockError):
        try:
            await db.run(lambda session: session.execute(BY_CHANCE))
        except errors.SerializationFailure:
            await verb(db, call, retry=QUICK)
    assert len(sessions) == 1


# Never.


@POSTGRES_ONLY
@EACH_VERB
@pytest.mark.parametrize("on", [(), (Exception,), (errors.CommitOutcomeUnknown,)])
async def test_a_commit_whose_outcome_is_unknown_is_never_tried_again(
    db: Database, observer: Observer, stored: Stored, verb: Verb, on: tuple[type[Exception], ...]
) -> None:
    commit = SlowCommit(observer)
    sessions, call = counted(lambda session: store(session, "word"))
    task = asyncio.create_task(verb(db, call, retry=Retry(base=0, on=on)))
    await commit.under_way()
    observer.rows("SELECT pg_terminate_backend(pid, 2000) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
    with pytest.raises(errors.CommitOutcomeUnknown):
        await task
    assert len(sessions) == 1
    commit.go_on()


@POSTGRES_ONLY
@EACH_VERB
async def test_an_unknown_outcome_of_a_transaction_inside_is_not_tried_again_with_the_outer_one(
    db: Database, observer: Observer, verb: Verb
) -> None:
    commit = SlowCommit(observer)

    async def work(session: AsyncSession) -> None:
        with suppress(errors.SerializationFailure):
            await session.execute(BY_CHANCE)
        try:
            await db.run(store, "inner", propagation=Propagation.REQUIRES_NEW)
        except errors.CommitOutcomeUnknown:
            raise OutOfStockError  # noqa: B904  # that is the matter

    sessions, call = counted(work)
    task = asyncio.create_task(verb(db, call, retry=Retry(base=0, on=(OutOfStockError,))))
    await commit.under_way()
    observer.rows("SELECT pg_terminate_backend(pid, 2000) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
    with pytest.raises(OutOfStockError):
        await task
    assert len(sessions) == 1
    commit.go_on()


@POSTGRES_ONLY
@EACH_VERB
async def test_a_cancelled_statement_is_not_tried_again(db: Database, verb: Verb) -> None:
    async def work(session: AsyncSession) -> None:
        await session.execute(text("SET LOCAL statement_timeout = '20ms'"))
        await session.execute(text("SELECT pg_sleep(5)"))

    sessions, call = counted(work)
    with pytest.raises(errors.StatementTimeout):
        await verb(db, call, retry=QUICK)
    assert len(sessions) == 1


@EACH_VERB
async def test_a_cancelled_task_is_not_tried_again(db: Database, stored: Stored, verb: Verb) -> None:
    waiting = asyncio.Event()

    async def work(session: AsyncSession) -> None:
        await store(session, "word")
        waiting.set()
        await asyncio.Event().wait()

    sessions, call = counted(work)
    task = asyncio.create_task(verb(db, call, retry=Retry(on=(Exception,))))
    await waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(sessions) == 1
    assert stored() == set()


@EACH_VERB
async def test_a_task_that_is_cancelled_during_a_pause_begins_no_other_attempt(
    db: Database, events: list[Event], verb: Verb
) -> None:
    sessions, call = counted(lambda session: session.execute(DUPLICATE))
    pausing = asyncio.Event()
    db.listen(lambda event: pausing.set() if isinstance(event, Retried) else None)
    task = asyncio.create_task(verb(db, call, retry=Retry(base=100, max_delay=100, on=(errors.UniqueViolation,))))
    async with asyncio.timeout(10):
        await pausing.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert len(sessions) == 1


@EACH_VERB
@pytest.mark.parametrize("on", [(), (ValueError,), (errors.IntegrityViolation,), (Exception,)])
async def test_an_integrity_error_is_tried_again_only_if_on_names_it(
    db: Database, stored: Stored, verb: Verb, on: tuple[type[Exception], ...]
) -> None:
    sessions, call = counted(lambda session: session.execute(DUPLICATE))
    named = issubclass(errors.UniqueViolation, on)
    with pytest.raises(errors.RetriesExhausted if named else errors.UniqueViolation):
        await verb(db, call, retry=Retry(base=0, on=on))
    assert len(sessions) == (3 if named else 1)
    assert stored() == set()


@EACH_VERB
async def test_a_failing_critical_hook_is_never_taken_for_a_failed_transaction(
    db: Database, stored: Stored, verb: Verb
) -> None:
    def fail() -> None:
        raise ValueError

    async def work(session: AsyncSession) -> None:
        await store(session, "word")
        db.after_commit(fail, critical=True)

    sessions, call = counted(work)
    with pytest.raises(errors.AfterCommitError) as caught:
        await verb(db, call, retry=Retry(on=(Exception,)))
    assert caught.value.committed
    assert len(sessions) == 1
    assert stored() == {"word"}


@EACH_VERB
async def test_a_mistake_in_the_program_is_not_tried_again(db: Database, verb: Verb) -> None:
    sessions, call = counted(lambda session: session.commit())
    with pytest.raises(errors.UsageError):
        await verb(db, call, retry=Retry(on=(Exception,)))
    assert len(sessions) == 1


@POSTGRES_ONLY
@EACH_VERB
async def test_whoever_waited_for_a_connection_in_vain_does_not_join_the_queue_again(
    database_url: str, tables: None, make_db: Callable[..., Database], verb: Verb
) -> None:
    small = make_db(database_url, pool_size=1, max_overflow=0, pool_timeout=0.02)
    sessions, call = counted(lambda session: store(session, "word"))
    async with small.engine.connect():
        with pytest.raises(errors.PoolTimeout):
            await verb(small, call, retry=QUICK)
    assert len(sessions) == 1


@EACH_VERB
async def test_retries_that_were_exhausted_inside_are_not_multiplied(db: Database, verb: Verb) -> None:
    async def work(session: AsyncSession) -> None:
        async with db.transaction(propagation=Propagation.NOT_SUPPORTED):
            await verb(db, inner, retry=Retry(base=0, on=(OutOfStockError,)))

    async def fail(session: AsyncSession) -> None:
        raise OutOfStockError

    inners, inner = counted(fail)
    sessions, call = counted(work)
    with pytest.raises(errors.RetriesExhausted):
        await verb(db, call, retry=Retry(base=0, on=(OutOfStockError,)))
    assert (len(sessions), len(inners)) == (1, 3)


@pytest.mark.engines("sqlite")
@EACH_VERB
async def test_a_transaction_that_sqlite_ended_is_tried_again_if_what_ended_it_would_be(
    db: Database, stored: Stored, verb: Verb
) -> None:
    async def work(session: AsyncSession) -> None:
        await store(session, "word")
        with suppress(errors.UniqueViolation):
            await session.execute(text("INSERT OR ROLLBACK INTO words (text) VALUES ('word')"))

    sessions, call = counted(work)
    with pytest.raises(errors.TransactionLost):
        await verb(db, call, retry=QUICK)
    assert len(sessions) == 1
    with pytest.raises(errors.RetriesExhausted):
        await verb(db, call, retry=Retry(attempts=2, base=0, on=(errors.UniqueViolation,)))
    assert len(sessions) == 3
    assert stored() == set()
