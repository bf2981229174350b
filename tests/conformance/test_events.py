"""Events: what is told, in which order, and that telling hurts nobody."""

import asyncio
import dataclasses
import logging

import pytest
from sqlalchemy import exc, text

from tests.conformance.tables import Stored, store
from transact import Database, errors
from transact.events import (
    Began,
    Committed,
    Event,
    LoggingListener,
    MarkedRollbackOnly,
    RolledBack,
    SavepointRolledBack,
    WaitedForConnection,
)

pytestmark = pytest.mark.engines("sqlite", "pg18-asyncpg", "mariadb")


async def test_a_transaction_tells_that_it_began_and_how_it_ended(db: Database, events: list[Event]) -> None:
    async with db.transaction(label="one") as session:
        assert events == []
        await store(session, "word")
        assert [type(event) for event in events] == [Began]
    with pytest.raises(ZeroDivisionError) as error:
        async with db.transaction(label="two") as session:
            await store(session, "other")
            raise ZeroDivisionError
    assert [(type(event), event.label, event.database) for event in events] == [
        (Began, "one", "default"),
        (Committed, "one", "default"),
        (Began, "two", "default"),
        (RolledBack, "two", "default"),
    ]
    assert 0 < events[1].seconds < 5
    assert events[3].cause is error.value


async def test_a_swallowed_error_and_a_savepoint_tell_what_happened(db: Database, events: list[Event]) -> None:
    with pytest.raises(errors.UnexpectedRollback):
        async with db.transaction(label="outer") as session:
            await store(session, "word")
            with pytest.raises(errors.UniqueViolation) as error:
                async with db.savepoint():
                    await store(session, "word")
            async with db.transaction(label="inner"):
                db.current.set_rollback_only("no stock")
    assert [type(event) for event in events] == [
        Began,
        MarkedRollbackOnly,
        SavepointRolledBack,
        MarkedRollbackOnly,
        RolledBack,
    ]
    assert events[2].cause is error.value
    assert "no stock" in events[3].note


def test_events_are_frozen_and_say_what_they_are() -> None:
    event = Committed(database="default", label="register", seconds=0.5)
    with pytest.raises(dataclasses.FrozenInstanceError):
        event.seconds = 1.0  # type: ignore[misc]
    assert repr(event) == "Committed(database='default', label='register', seconds=0.5)"


async def test_a_listener_that_fails_hurts_nobody(
    db: Database, stored: Stored, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[Event] = []

    @db.listen
    def broken(event: Event) -> None:
        raise ZeroDivisionError

    db.listen(seen.append)
    async with db.transaction() as session:
        await store(session, "word")
    assert stored() == {"word"}
    assert [type(event) for event in seen] == [Began, Committed]
    logged = [record for record in caplog.records if record.exc_info and record.exc_info[0] is ZeroDivisionError]
    assert len(logged) == 2


async def test_the_log_tells_everything_at_debug_and_nothing_in_normal_work(
    db: Database, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="transact"):
        async with db.transaction(label="register") as session:
            await store(session, "s3cret")
    assert [record for record in caplog.records if record.name == "transact"] == []
    with caplog.at_level(logging.DEBUG, logger="transact"):
        async with db.transaction(label="register") as session:
            await store(session, "s3cret too")
    lines = [record.getMessage() for record in caplog.records if record.name == "transact"]
    assert lines == ["[default] 'register': Began", "[default] 'register': Committed"]


async def test_the_listener_that_logs_takes_a_logger_of_ones_own(
    db: Database, caplog: pytest.LogCaptureFixture
) -> None:
    db.listen(LoggingListener(logging.getLogger("mine")))
    with caplog.at_level(logging.DEBUG, logger="mine"):
        async with db.transaction() as session:
            await store(session, "word")
    assert {record.name for record in caplog.records} >= {"mine"}


async def test_an_exhausted_pool_raises_pool_timeout_which_is_sqlalchemys_too_and_tells_that_it_waited(
    database_url: str, tables: None, make_db, caplog: pytest.LogCaptureFixture
) -> None:
    db = make_db(database_url, pool_size=1, max_overflow=0, pool_timeout=0.05)
    seen: list[Event] = []
    db.listen(seen.append)
    holding, done = asyncio.Event(), asyncio.Event()

    async def holder() -> None:
        async with db.transaction() as session:
            await session.execute(text("SELECT 1"))
            holding.set()
            await done.wait()

    task = asyncio.create_task(holder())
    await holding.wait()
    with pytest.raises(errors.PoolTimeout) as caught:
        async with db.transaction() as session:
            await session.execute(text("SELECT 1"))
    assert isinstance(caught.value, exc.TimeoutError)
    assert type(caught.value).__name__ == "PoolTimeout"
    assert caught.value.retryable
    done.set()
    await task
    waits = [event for event in seen if isinstance(event, WaitedForConnection)]
    assert [event.served for event in waits] == [False]
    assert waits[0].seconds >= 0.05
    assert any("no connection became free" in record.getMessage() for record in caplog.records)
    async with db.transaction() as session:
        await session.execute(text("SELECT 1"))


async def test_a_wait_that_was_served_is_told_too(database_url: str, tables: None, make_db) -> None:
    db = make_db(database_url, pool_size=1, max_overflow=0)
    seen: list[Event] = []
    holding, done = asyncio.Event(), asyncio.Event()

    async def holder() -> None:
        async with db.transaction() as session:
            await session.execute(text("SELECT 1"))
            holding.set()
            await done.wait()

    async def waiter() -> None:
        async with db.transaction() as session:
            await session.execute(text("SELECT 1"))

    task = asyncio.create_task(holder())
    await holding.wait()
    db.listen(seen.append)
    waiting = asyncio.create_task(waiter())
    await asyncio.sleep(0)
    done.set()
    await asyncio.gather(task, waiting)
    assert [event.served for event in seen if isinstance(event, WaitedForConnection)] == [True]


async def test_swallowing_a_pool_timeout_is_not_a_commit_of_nothing_but_of_what_follows(
    database_url: str, tables: None, make_db, stored: Stored
) -> None:
    """No transaction had begun, so none is broken: the block may try again."""
    db = make_db(database_url, pool_size=1, max_overflow=0, pool_timeout=0.05)
    holding, done = asyncio.Event(), asyncio.Event()

    async def holder() -> None:
        async with db.transaction() as session:
            await session.execute(text("SELECT 1"))
            holding.set()
            await done.wait()

    task = asyncio.create_task(holder())
    await holding.wait()
    async with db.transaction() as session:
        with pytest.raises(errors.PoolTimeout):
            await store(session, "first try")
        done.set()
        await task
        await store(session, "second try")
    assert stored() == {"second try"}
