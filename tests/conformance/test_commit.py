"""COMMIT: one that fails, one that is slow, one that is cancelled."""

import asyncio
import threading

import pytest
from sqlalchemy import exc, text

from tests.conformance.tables import Stored, store
from tests.engines import Observer
from transact import Database, errors
from transact.events import Began, Committed, Event, RolledBack

# The same on both: a row that refers to another one, which is looked for at COMMIT; MySQL and MariaDB look at once.
AT_COMMIT = pytest.mark.engines("sqlite", "postgresql")
LATE = "CREATE TABLE late (id integer PRIMARY KEY, other integer REFERENCES late (id) DEFERRABLE INITIALLY DEFERRED)"
BROKEN = text("INSERT INTO late (id, other) VALUES (1, 2)")


@pytest.fixture
def late(observer: Observer, tables: None) -> None:
    observer.execute(LATE)


@AT_COMMIT
async def test_a_constraint_that_fails_at_commit_raises_its_own_error_and_stores_nothing(
    db: Database, observer: Observer, stored: Stored, late: None, events: list[Event]
) -> None:
    ran = []
    with pytest.raises(errors.ForeignKeyViolation) as caught:
        async with db.transaction() as session:
            await store(session, "word")
            await session.execute(BROKEN)
            db.after_commit(lambda: ran.append("commit"))
            db.after_rollback(ran.append)
            db.after_completion(ran.append)
    assert isinstance(caught.value, exc.IntegrityError)
    assert stored() == set()
    assert observer.rows("SELECT * FROM late") == []
    assert ran[0] is caught.value
    assert [outcome.value for outcome in ran[1:]] == ["rolled back"]
    assert [type(event) for event in events] == [Began, RolledBack]
    assert db.engine.pool.checkedout() == 0
    async with db.transaction() as session:
        await store(session, "next")
    assert stored() == {"next"}


@pytest.mark.engines("postgresql")
async def test_a_unique_constraint_that_fails_at_commit_is_a_unique_violation(
    db: Database, observer: Observer, stored: Stored
) -> None:
    observer.execute("CREATE TABLE names (n text CONSTRAINT uq_names UNIQUE DEFERRABLE INITIALLY DEFERRED)")
    with pytest.raises(errors.UniqueViolation) as caught:
        async with db.transaction() as session:
            await store(session, "word")
            await session.execute(text("INSERT INTO names VALUES ('a'), ('a')"))
    assert caught.value.constraint == "uq_names"
    assert stored() == set()
    assert observer.rows("SELECT * FROM names") == []


@AT_COMMIT
async def test_a_constraint_that_fails_at_commit_is_seen_by_the_outermost_block_only(
    db: Database, stored: Stored, late: None
) -> None:
    async with db.transaction() as session:
        async with db.savepoint():
            await session.execute(BROKEN)
        async with db.transaction():
            await session.execute(text("INSERT INTO late (id, other) VALUES (2, 1)"))
        await store(session, "word")
    assert stored() == {"word"}


SLOW = (
    (
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$"
        " BEGIN PERFORM pg_advisory_xact_lock(7); RETURN NULL; END $$"
    ),
    (
        "CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON words DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW EXECUTE FUNCTION slow()"
    ),
)


class SlowCommit:
    """COMMIT waits for a lock that the observer holds."""

    def __init__(self, observer: Observer) -> None:
        self.observer = observer
        for statement in SLOW:
            observer.execute(statement)
        observer.scalar("SELECT pg_advisory_lock(7)")

    async def under_way(self) -> None:
        async with asyncio.timeout(5):
            while not self.observer.scalar("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"):
                await asyncio.sleep(0.005)  # the server tells nobody that a session waits

    def go_on(self) -> None:
        self.observer.scalar("SELECT pg_advisory_unlock(7)")


@pytest.mark.engines("postgresql")
@pytest.mark.parametrize("times", [1, 3])
async def test_a_cancellation_while_commit_is_under_way_lets_it_finish_and_then_goes_on(
    db: Database, observer: Observer, stored: Stored, times: int, events: list[Event]
) -> None:
    commit = SlowCommit(observer)
    ran = []

    async def work() -> None:
        async with db.transaction() as session:
            await store(session, "word")
            db.after_commit(lambda: ran.append("commit"))
            db.after_completion(ran.append)

    task = asyncio.create_task(work())
    await commit.under_way()
    for _ in range(times):
        task.cancel()
        await asyncio.sleep(0)
    assert not task.done()
    commit.go_on()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()
    assert stored() == {"word"}
    assert db.engine.pool.checkedout() == 0
    assert observer.idle_in_transaction() == 0
    assert ran[0] == "commit"
    assert ran[1].value == "committed"
    assert [type(event) for event in events] == [Began, Committed]


@pytest.mark.engines("postgresql")
async def test_a_timeout_around_a_block_whose_commit_is_under_way_does_not_undo_it(
    db: Database, observer: Observer, stored: Stored
) -> None:
    commit = SlowCommit(observer)

    async def work() -> None:
        async with asyncio.timeout(None) as deadline:
            deadlines.append(deadline)
            async with db.transaction() as session:
                await store(session, "word")

    deadlines: list[asyncio.Timeout] = []
    task = asyncio.create_task(work())
    await commit.under_way()
    deadlines[0].reschedule(0)
    await asyncio.sleep(0.01)
    commit.go_on()
    with pytest.raises(TimeoutError):
        await task
    assert stored() == {"word"}


async def test_a_cancellation_between_statements_rolls_back(db: Database, stored: Stored) -> None:
    waiting = asyncio.Event()
    ran = []

    async def work() -> None:
        async with db.transaction() as session:
            await store(session, "word")
            db.after_rollback(ran.append)
            waiting.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert stored() == set()
    assert [type(error) for error in ran] == [asyncio.CancelledError]
    assert db.engine.pool.checkedout() == 0


async def test_a_cancellation_inside_a_savepoint_rolls_back_the_whole(db: Database, stored: Stored) -> None:
    waiting = asyncio.Event()

    async def work() -> None:
        async with db.transaction() as session:
            await store(session, "word")
            async with db.savepoint():
                await store(session, "inner")
                waiting.set()
                await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert stored() == set()


async def test_a_cancellation_while_a_connection_is_made_leaves_nothing_behind(db: Database, stored: Stored) -> None:
    async def work() -> None:
        async with db.transaction() as session:
            await store(session, "word")

    for turns in range(6):
        task = asyncio.create_task(work())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert db.engine.pool.checkedout() == 0
    assert stored() == set()
    await db.close()
    async with asyncio.timeout(5):  # aiosqlite's thread of a connection that nobody waits for ends by itself
        while any("_connection_worker_thread" in thread.name for thread in threading.enumerate()):
            await asyncio.sleep(0.005)


@pytest.mark.engines("postgresql")
async def test_a_connection_that_is_lost_in_the_middle_rolls_back_and_the_next_transaction_has_a_new_one(
    db: Database, observer: Observer, stored: Stored
) -> None:
    with pytest.raises(errors.TransientError):
        async with db.transaction() as session:
            await store(session, "word")
            backend = await session.scalar(text("SELECT pg_backend_pid()"))
            observer.scalar("SELECT pg_terminate_backend(?, 2000)", backend)
            await store(session, "after")
    async with db.transaction() as session:
        await store(session, "next")
    assert stored() == {"next"}


@pytest.mark.engines("postgresql")
async def test_a_lost_connection_that_is_swallowed_is_not_a_commit(
    db: Database, observer: Observer, stored: Stored
) -> None:
    with pytest.raises(errors.UnexpectedRollback):
        async with db.transaction() as session:
            await store(session, "word")
            backend = await session.scalar(text("SELECT pg_backend_pid()"))
            with pytest.raises(errors.TransientError):
                async with db.savepoint():
                    observer.scalar("SELECT pg_terminate_backend(?, 2000)", backend)
                    await store(session, "inside")
            with pytest.raises(errors.UnexpectedRollback):
                await store(session, "after")
    assert stored() == set()


@pytest.mark.engines("postgresql")
async def test_a_connection_that_is_lost_during_commit_leaves_an_outcome_that_is_said_to_be_unknown(
    db: Database, observer: Observer, stored: Stored
) -> None:
    commit = SlowCommit(observer)
    ran = []

    async def work() -> None:
        async with db.transaction() as session:
            await store(session, "word")
            db.after_commit(lambda: ran.append("commit"))
            db.after_rollback(lambda _: ran.append("rollback"))
            db.after_completion(lambda outcome: ran.append(outcome.value))

    task = asyncio.create_task(work())
    await commit.under_way()
    observer.rows("SELECT pg_terminate_backend(pid, 2000) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
    with pytest.raises(errors.CommitOutcomeUnknown) as caught:
        await task
    assert isinstance(caught.value.__cause__, exc.SQLAlchemyError)
    assert ran == ["unknown"]
    assert db.engine.pool.checkedout() == 0
    commit.go_on()
    async with db.transaction() as session:
        await store(session, "next")
    assert "next" in stored()
