"""What MariaDB and MySQL do behind a driver's back, shown on the bare driver first: errors that end the whole transaction."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, suppress
from typing import Any

import pytest
from sqlalchemy import Column, Integer, MetaData, Table, event, exc, text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from tests.conformance.tables import Meaning, Stored, Word, store
from tests.engines import Observer
from tests.observers import pymysql_connection
from transact import Database, Propagation, Retry, errors
from transact.events import Event, RollbackFailed

pytestmark = pytest.mark.engines("mariadb")

ROWS = {"one", "two"}
LOCK = "UPDATE words SET text = text WHERE text = '{}' LIMIT 1"
Deadlock = Callable[[AsyncSession], Awaitable[None]]


class Rival:
    """Another client with a transaction of many changes: of two in a deadlock, InnoDB rolls back the one with fewer."""

    def __init__(self, url: str) -> None:
        self.connection = pymysql_connection(make_url(url))
        self.execute("BEGIN")
        self.execute("INSERT INTO words (text) VALUES " + ", ".join(f"('rival {n}')" for n in range(50)))

    def execute(self, sql: str) -> None:
        with self.connection.cursor() as cursor:
            cursor.execute(sql)

    async def deadlock(self, session: AsyncSession) -> None:
        """Let `session` fail with 1213. Whoever asks second closes the circle; which one that is does not matter."""
        self.execute(LOCK.format("two"))
        await session.execute(text(LOCK.format("one")))
        waiting = asyncio.create_task(asyncio.to_thread(self.execute, LOCK.format("one")))
        try:
            await session.execute(text(LOCK.format("two")))
        finally:
            await waiting
            self.connection.rollback()  # its locks on gaps would keep others from writing

    def close(self) -> None:
        self.connection.rollback()
        self.connection.close()


@pytest.fixture
def rival(database_url: str, observer: Observer, tables: None) -> Iterator[Rival]:
    observer.execute("INSERT INTO words (text) VALUES ('one'), ('two')")
    rival = Rival(database_url)
    yield rival
    rival.close()


@pytest.fixture
def sent(db: Database) -> list[str]:
    """What `db` sends, statement by statement."""
    sent: list[str] = []
    engine = db.engine.sync_engine
    event.listen(engine, "before_cursor_execute", lambda _c, _u, sql, *_: sent.append(sql))
    event.listen(engine, "rollback", lambda _c: sent.append("ROLLBACK"))
    event.listen(engine, "commit", lambda _c: sent.append("COMMIT"))
    return sent


Block = Callable[[Database, AsyncSession], AbstractAsyncContextManager[Any]]
BLOCKS: dict[str, Block] = {
    "savepoint": lambda db, _s: db.savepoint(),
    "nested": lambda db, _s: db.transaction(propagation=Propagation.NESTED),
    "begin_nested": lambda _db, session: session.begin_nested(),
}
EVERY_SAVEPOINT = pytest.mark.parametrize("how", list(BLOCKS))
EVERY_BLOCK = pytest.mark.parametrize("how", [*BLOCKS, "joined"])
BLOCKS["joined"] = lambda db, _s: db.transaction()


async def test_after_a_deadlock_in_a_savepoint_the_bare_driver_shows_1305_and_stores_the_half_that_came_after(
    database_url: str, rival: Rival, stored: Stored
) -> None:
    engine = create_async_engine(database_url)
    async with AsyncSession(engine) as session:
        await store(session, "before")
        with pytest.raises(exc.OperationalError) as caught:
            async with session.begin_nested():
                await rival.deadlock(session)
        # A program that takes the savepoint's word goes on.
        await session.execute(text("INSERT INTO words (text) VALUES ('after')"))
        await session.commit()
    await engine.dispose()
    assert caught.value.orig is not None
    assert caught.value.orig.args[0] == 1305
    assert stored() == ROWS | {"after"}, "the server does the right thing by itself: are these laws still needed?"


@EVERY_SAVEPOINT
async def test_a_deadlock_inside_a_savepoint_makes_every_enclosing_block_raise_that_all_is_lost(
    db: Database, rival: Rival, stored: Stored, *, sent: list[str], events: list[Event], how: str
) -> None:
    with pytest.raises(errors.TransactionLost) as lost:
        async with db.transaction() as session:
            await store(session, "before")
            with pytest.raises(errors.TransactionLost) as inner:
                async with BLOCKS[how](db, session):
                    await rival.deadlock(session)
    first = lost.value.__cause__
    assert isinstance(first, errors.DeadlockDetected)
    assert first.errno == 1213
    assert inner.value.__cause__ is first
    assert lost.value.retryable
    assert stored() == ROWS
    assert [sql for sql in sent if "ROLLBACK" in sql or "RELEASE" in sql or "COMMIT" in sql] == ["ROLLBACK"]
    assert not [event for event in events if isinstance(event, RollbackFailed)]


@EVERY_BLOCK
async def test_a_deadlock_swallowed_inside_a_block_makes_the_end_of_every_enclosing_block_raise_that_it_is_lost(
    db: Database, rival: Rival, stored: Stored, sent: list[str], how: str
) -> None:
    with pytest.raises(errors.TransactionLost) as outermost:
        async with db.transaction() as session:
            with pytest.raises(errors.TransactionLost) as outer:
                async with BLOCKS[how](db, session):
                    with pytest.raises(errors.TransactionLost) as inner:
                        async with BLOCKS[how](db, session):
                            await store(session, "before")
                            with pytest.raises(errors.DeadlockDetected) as first:
                                await rival.deadlock(session)
    assert inner.value.__cause__ is outer.value.__cause__ is outermost.value.__cause__ is first.value
    assert stored() == ROWS
    assert not [sql for sql in sent if "ROLLBACK TO" in sql or "RELEASE" in sql or "COMMIT" in sql]


async def test_a_deadlock_outside_of_savepoints_leaves_all_blocks_as_itself(
    db: Database, rival: Rival, stored: Stored
) -> None:
    with pytest.raises(errors.DeadlockDetected) as caught:
        async with db.transaction() as session, db.transaction():
            await store(session, "before")
            await rival.deadlock(session)
    assert caught.value.errno == 1213
    assert stored() == ROWS


async def test_an_error_of_the_programs_own_leaves_a_savepoint_as_itself_also_when_all_is_lost(
    db: Database, rival: Rival, stored: Stored
) -> None:
    with pytest.raises(ZeroDivisionError):
        async with db.transaction() as session, db.savepoint():
            with suppress(errors.DeadlockDetected):
                await rival.deadlock(session)
            raise ZeroDivisionError
    assert stored() == ROWS


LATER: dict[str, Callable[[Database, AsyncSession], Awaitable[object]]] = {
    "execute": lambda _db, session: store(session, "later"),
    "flush": lambda _db, session: session.flush(),
    "connection": lambda _db, session: session.connection(),
    "begin_nested": lambda _db, session: BLOCKS["begin_nested"](_db, session).__aenter__(),
    "savepoint": lambda db, session: BLOCKS["savepoint"](db, session).__aenter__(),
}


@pytest.mark.parametrize("later", LATER)
@pytest.mark.parametrize("how", [*BLOCKS, None])
async def test_later_sql_in_a_lost_transaction_raises_that_it_is_lost_and_never_reaches_the_server(
    db: Database, rival: Rival, stored: Stored, *, sent: list[str], how: str | None, later: str
) -> None:
    with pytest.raises(errors.TransactionLost):
        async with db.transaction() as session:
            with pytest.raises(errors.DeadlockDetected) as first:
                if how is None:
                    await rival.deadlock(session)
                else:
                    async with BLOCKS[how](db, session):
                        await rival.deadlock(session)
            before = len(sent)
            with pytest.raises(errors.TransactionLost) as refused:
                await LATER[later](db, session)
            assert refused.value.__cause__ is first.value
            assert sent[before:] == []
    assert stored() == ROWS


async def test_sql_on_a_connection_taken_before_the_deadlock_does_not_reach_the_server_either(
    db: Database, rival: Rival, stored: Stored, sent: list[str]
) -> None:
    with pytest.raises(errors.TransactionLost):
        async with db.transaction() as session:
            connection = await session.connection()
            async with db.savepoint():
                with suppress(errors.DeadlockDetected):
                    await rival.deadlock(session)
                before = len(sent)
                with pytest.raises(exc.InvalidRequestError):
                    await connection.execute(text("INSERT INTO words (text) VALUES ('later')"))
                assert sent[before:] == []
    assert stored() == ROWS


async def test_a_deadlock_in_a_flush_inside_a_savepoint_is_lost_like_any_other(
    db: Database, rival: Rival, stored: Stored, sent: list[str]
) -> None:
    with pytest.raises(errors.TransactionLost) as lost:
        async with db.transaction() as session:
            rival.execute("UPDATE words SET text = 'two!' WHERE text = 'two'")
            await session.execute(text(LOCK.format("one")))
            with pytest.raises(errors.TransactionLost):
                async with session.begin_nested():
                    waiting = asyncio.create_task(asyncio.to_thread(rival.execute, LOCK.format("one")))
                    session.add(Word(text="two"))
                    with pytest.raises(errors.DeadlockDetected) as first:
                        await session.flush()
                    await waiting
    assert lost.value.__cause__ is first.value
    assert stored() == ROWS
    assert not [sql for sql in sent if "ROLLBACK TO" in sql or "RELEASE" in sql]


async def test_the_hooks_of_a_lost_transaction_learn_that_it_was_rolled_back(db: Database, rival: Rival) -> None:
    called: list[str] = []
    with pytest.raises(errors.TransactionLost):
        async with db.transaction() as session:
            db.after_commit(lambda: called.append("outer committed"))
            db.after_rollback(lambda error: called.append(f"outer {type(error).__name__}"))
            with suppress(errors.TransactionLost):
                async with db.savepoint():
                    db.after_rollback(lambda error: called.append(f"inner {type(error).__name__}"))
                    await rival.deadlock(session)
    assert called == ["inner DeadlockDetected", "outer DeadlockDetected"]


async def test_the_connection_of_a_lost_transaction_serves_the_next_one(
    database_url: str, rival: Rival, stored: Stored, make_db: Callable[..., Database]
) -> None:
    db = make_db(database_url, pool_size=1, max_overflow=0)
    with pytest.raises(errors.TransactionLost):
        async with db.transaction() as session, db.savepoint():
            number = await session.scalar(text("SELECT connection_id()"))
            await rival.deadlock(session)
    async with db.transaction() as session:
        assert await session.scalar(text("SELECT connection_id()")) == number
        async with db.savepoint():
            await store(session, "next")
    assert stored() == ROWS | {"next"}


async def test_a_lost_transaction_is_run_again_as_a_whole_where_retry_was_asked_for(
    db: Database, rival: Rival, stored: Stored
) -> None:
    attempts: list[int] = []

    async def work(session: AsyncSession) -> None:
        attempts.append(len(attempts) + 1)
        await store(session, f"attempt {attempts[-1]}")
        with suppress(errors.TransactionLost):
            async with db.savepoint():
                if attempts == [1]:
                    await rival.deadlock(session)

    await db.run(work, retry=Retry(2))
    assert stored() == ROWS | {"attempt 2"}


@EVERY_SAVEPOINT
async def test_a_changed_record_under_innodb_snapshot_isolation_loses_the_transaction_too(
    db: Database, observer: Observer, rival: Rival, stored: Stored, how: str
) -> None:
    with pytest.raises(errors.TransactionLost) as lost:
        async with db.transaction() as session:
            await session.execute(text("SET SESSION innodb_snapshot_isolation = ON"))
            await session.execute(text("SELECT * FROM words"))  # the snapshot
            observer.execute("UPDATE words SET text = 'three' WHERE text = 'two'")
            with pytest.raises(errors.TransactionLost):
                async with BLOCKS[how](db, session):
                    await store(session, "before")
                    await session.execute(text("UPDATE words SET text = 'four' WHERE text <> 'one'"))
    first = lost.value.__cause__
    assert isinstance(first, errors.SerializationFailure)
    assert first.errno == 1020
    assert stored() == {"one", "three"}


async def wait_for_a_lock(session: AsyncSession) -> None:
    await session.execute(text("SET SESSION innodb_lock_wait_timeout = 1"))
    await session.execute(text(LOCK.format("two")))


async def test_after_a_lock_wait_timeout_the_bare_driver_commits_the_transaction_without_the_statement(
    database_url: str, rival: Rival, stored: Stored
) -> None:
    rival.execute(LOCK.format("two"))
    engine = create_async_engine(database_url)
    async with AsyncSession(engine) as session:
        await store(session, "before")
        with suppress(exc.OperationalError):
            await wait_for_a_lock(session)
        await session.commit()
    await engine.dispose()
    assert stored() == ROWS | {"before"}


async def test_a_lock_wait_timeout_that_is_swallowed_makes_the_transaction_rollback_only(
    db: Database, rival: Rival, stored: Stored
) -> None:
    rival.execute(LOCK.format("two"))
    with pytest.raises(errors.UnexpectedRollback) as caught:
        async with db.transaction() as session:
            await store(session, "before")
            with pytest.raises(errors.LockTimeout) as first:
                await wait_for_a_lock(session)
            with pytest.raises(errors.UnexpectedRollback):
                await store(session, "later")
    assert first.value.errno == 1205
    assert caught.value.__cause__ is first.value
    assert stored() == ROWS


@EVERY_SAVEPOINT
async def test_a_lock_wait_timeout_in_a_savepoint_undoes_the_savepoint_and_the_transaction_goes_on(
    db: Database, rival: Rival, stored: Stored, how: str
) -> None:
    rival.execute(LOCK.format("two"))
    async with db.transaction() as session:
        await store(session, "before")
        with pytest.raises(errors.LockTimeout):
            async with BLOCKS[how](db, session):
                await store(session, "inside")
                await wait_for_a_lock(session)
        await store(session, "after")
    assert stored() == ROWS | {"before", "after"}


async def test_ddl_commits_what_came_before_on_the_bare_driver(
    database_url: str, observer: Observer, tables: None, stored: Stored
) -> None:
    engine = create_async_engine(database_url)
    with pytest.raises(ZeroDivisionError):
        async with AsyncSession(engine) as session, session.begin():
            await store(session, "before")
            await session.execute(text("CREATE TABLE other (id integer)"))
            raise ZeroDivisionError
    await engine.dispose()
    assert stored() == {"before"}


ENDS = [
    "CREATE TABLE other (id integer)",
    "create or replace view v as select 1",
    "  -- why\n /* what */ DROP TABLE IF EXISTS other",
    "/*!50000 ALTER TABLE words ADD COLUMN other integer */",
    "RENAME TABLE words TO other",
    "TRUNCATE words",
    "ANALYZE TABLE words",
    "LOCK TABLES words WRITE",
    "GRANT SELECT ON words TO nobody",
    "FLUSH TABLES",
    "SET autocommit = 1",
    "SET @@session.autocommit = 1",
    "BEGIN",
    "START TRANSACTION",
    "COMMIT",
    "ROLLBACK",
]


@pytest.mark.parametrize("statement", ENDS)
async def test_a_statement_that_would_commit_by_itself_is_refused_and_changes_nothing(
    db: Database, observer: Observer, stored: Stored, *, sent: list[str], statement: str
) -> None:
    with pytest.raises(ZeroDivisionError):
        async with db.transaction() as session:
            await store(session, "before")
            with pytest.raises(errors.UsageError, match="no error could undo it"):
                await session.execute(text(statement))
            await store(session, "after")
            raise ZeroDivisionError
    assert {name for (name,) in observer.rows("SHOW TABLES")} == {"words", "meanings"}
    assert stored() == set()


STAYS = [
    "CREATE TEMPORARY TABLE other (id integer)",
    "CREATE OR REPLACE TEMPORARY TABLE other (id integer)",
    "ANALYZE SELECT * FROM words",
    "SELECT 'DROP TABLE words'",
    "SELECT * FROM words -- COMMIT",
    "SET @starts = 1",
    "ROLLBACK TO begun",
    "ROLLBACK WORK TO SAVEPOINT begun",
]


@pytest.mark.parametrize("statement", STAYS)
async def test_a_statement_that_leaves_the_transaction_open_is_sent(
    db: Database, stored: Stored, statement: str
) -> None:
    with pytest.raises(ZeroDivisionError):
        async with db.transaction() as session:
            await session.execute(text("SAVEPOINT begun"))
            await store(session, "before")
            await session.execute(text(statement))
            raise ZeroDivisionError
    assert stored() == set()


async def test_ddl_runs_where_no_transaction_is_open_and_is_refused_in_one(db: Database, observer: Observer) -> None:
    other = MetaData()
    Table("other", other, Column("id", Integer, primary_key=True))
    async with db.transaction():
        with pytest.raises(errors.UsageError, match=r"CREATE would end .* on the spot"):
            await db.current.session.run_sync(lambda session: other.create_all(session.connection()))
        async with db.transaction(propagation=Propagation.NOT_SUPPORTED) as session:
            await session.execute(text("CREATE TABLE another (id integer)"))
    async with db.transaction(propagation=Propagation.NOT_SUPPORTED) as session:
        await session.run_sync(lambda sync: Meaning.metadata.create_all(sync.connection()))
    async with db.engine.begin() as connection:
        await connection.run_sync(other.create_all)
    assert {name for (name,) in observer.rows("SHOW TABLES")} == {"words", "meanings", "other", "another"}


LENIENT = "'ANSI_QUOTES'"


async def test_a_value_that_does_not_fit_is_an_error_whatever_the_server_is_set_to_unless_the_url_says_otherwise(
    database_url: str, stored: Stored, make_db: Callable[..., Database]
) -> None:
    long = "x" * 101
    lenient = make_db(database_url, engine_options={"connect_args": {"sql_mode": LENIENT}})
    async with lenient.transaction() as session:
        await store(session, long)
    assert stored() == {long[:100]}
    strict = make_db(database_url, engine_options={"connect_args": {"init_command": "SET @ignored = 1"}})
    with pytest.raises(errors.InvalidData):
        async with strict.transaction() as session:
            await store(session, long + "y")
    async with strict.transaction() as session:
        modes = str(await session.scalar(text("SELECT @@sql_mode"))).split(",")
    assert "STRICT_TRANS_TABLES" in modes
    assert len(modes) > 1, "the server's own modes are kept"
