"""Failures that chance brings, brought about on purpose: what a session has to do, and what others do meanwhile."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from tests.engines import Observer
from transact import Isolation, errors

READ = "SELECT text FROM words"
#: Each connection of the pool has run it before.
PREPARED = text("SELECT * FROM changing")
LOCK = "UPDATE words SET text = text WHERE text = '{}'"


@dataclass
class Stage:
    """Two clients beside the session: one has a transaction of its own, the other looks, and kills."""

    url: str
    observer: Observer
    rival: Observer

    @asynccontextmanager
    async def meanwhile(self, statement: str, waiting: str | None = None) -> AsyncIterator[None]:
        """Let the rival run a statement that has to wait; it is over, and rolled back, at the end."""
        with ThreadPoolExecutor(1) as other:
            running = other.submit(self.rival.execute, statement)
            try:
                while waiting is not None and not running.done() and not self.observer.scalar(waiting):
                    await asyncio.sleep(0.005)  # the server tells nobody that a session waits
                yield
            finally:
                running.result()
                self.rival.execute("ROLLBACK")


Provoke = Callable[[Stage, AsyncSession], Awaitable[None]]


@dataclass(frozen=True)
class Failure:
    """`provoke` makes the session's transaction fail with `kind`, in a statement or, if it returns, at COMMIT."""

    provoke: Provoke
    kind: type[Exception]
    codes: frozenset[str | int | None]
    isolation: Isolation | None = None
    drivers: tuple[str, ...] = ("asyncpg", "psycopg", "asyncmy", "pymysql", "aiosqlite", "pysqlite")


# PostgreSQL.


async def _changed_since_read(stage: Stage, session: AsyncSession) -> None:
    await session.execute(text(READ))
    stage.observer.execute("UPDATE words SET text = 'one' WHERE text = 'one'")
    await session.execute(text(LOCK.format("one")))


async def _write_skew(stage: Stage, session: AsyncSession) -> None:
    """Each reads what the other writes; the second COMMIT fails, and no statement before it."""
    stage.rival.execute("BEGIN ISOLATION LEVEL SERIALIZABLE")
    stage.rival.rows(READ)
    await session.execute(text(READ))
    await session.execute(text("INSERT INTO words (text) VALUES ('skewed')"))
    stage.rival.execute("UPDATE words SET text = 'two' WHERE text = 'two'")
    stage.rival.execute("COMMIT")


async def _deadlock_of_postgresql(stage: Stage, session: AsyncSession) -> None:
    # Whose timeout ends first is the one that fails.
    await session.execute(text("SET LOCAL deadlock_timeout = '20ms'"))
    stage.rival.execute("BEGIN")
    stage.rival.execute("SET LOCAL deadlock_timeout = '60s'")
    stage.rival.execute(LOCK.format("two"))
    await session.execute(text(LOCK.format("one")))
    waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
    async with stage.meanwhile(LOCK.format("one"), waiting):
        await session.execute(text(LOCK.format("two")))


async def _lock_timeout_of_postgresql(stage: Stage, session: AsyncSession) -> None:
    stage.rival.execute("BEGIN")
    stage.rival.execute(LOCK.format("one"))
    await session.execute(text("SET LOCAL lock_timeout = '20ms'"))
    try:
        await session.execute(text(LOCK.format("one")))
    finally:
        stage.rival.execute("ROLLBACK")


async def _terminated(stage: Stage, session: AsyncSession) -> None:
    backend = await session.scalar(text("SELECT pg_backend_pid()"))
    stage.observer.scalar("SELECT pg_terminate_backend(?, 5000)", backend)
    await session.execute(text(READ))


async def _stale_plan(stage: Stage, session: AsyncSession) -> None:
    """The pool's connection has prepared this, and the table has changed since."""
    stage.observer.execute("ALTER TABLE changing ADD COLUMN b integer")
    await session.execute(PREPARED)


def _said(sqlstate: str) -> Provoke:
    async def provoke(stage: Stage, session: AsyncSession) -> None:
        await session.execute(text(f"DO $$ BEGIN RAISE EXCEPTION 'said' USING ERRCODE = '{sqlstate}'; END $$"))

    return provoke


POSTGRESQL = {
    "a serialization failure in a statement": Failure(
        _changed_since_read, errors.SerializationFailure, frozenset({"40001"}), Isolation.REPEATABLE_READ
    ),
    "a serialization failure at COMMIT": Failure(
        _write_skew, errors.SerializationFailure, frozenset({"40001"}), Isolation.SERIALIZABLE
    ),
    "a deadlock": Failure(_deadlock_of_postgresql, errors.DeadlockDetected, frozenset({"40P01"})),
    "a lock timeout": Failure(_lock_timeout_of_postgresql, errors.LockTimeout, frozenset({"55P03"})),
    "a connection failure before COMMIT": Failure(
        _terminated, errors.TransientError, frozenset({"57P01", "08003", "08006", None})
    ),
    "a server shutdown": Failure(_said("57P01"), errors.ServerShutdown, frozenset({"57P01"})),
    "a server crash": Failure(_said("57P02"), errors.ServerShutdown, frozenset({"57P02"})),
    "a stale cached plan": Failure(_stale_plan, errors.TransientError, frozenset({"0A000"}), drivers=("asyncpg",)),
}


# MariaDB.


async def _changed_since_snapshot(stage: Stage, session: AsyncSession) -> None:
    await session.execute(text("SET innodb_snapshot_isolation = ON"))
    await session.execute(PREPARED)
    stage.observer.execute("UPDATE changing SET a = a + 1")
    await session.execute(text("SELECT * FROM changing FOR UPDATE"))


async def _deadlock_of_mariadb(stage: Stage, session: AsyncSession) -> None:
    # Of two in a deadlock, InnoDB rolls back the one with fewer changes.
    stage.rival.execute("BEGIN")
    stage.rival.execute("INSERT INTO words (text) VALUES " + ", ".join(f"('rival {n}')" for n in range(50)))
    stage.rival.execute(LOCK.format("two"))
    await session.execute(text(LOCK.format("one")))
    async with stage.meanwhile(LOCK.format("one")):
        await session.execute(text(LOCK.format("two")))


async def _hidden_deadlock(stage: Stage, session: AsyncSession) -> None:
    """What SQLAlchemy makes of a deadlock in a savepoint where nobody translates: a program may raise that, too."""
    engine = create_async_engine(stage.url)
    try:
        async with AsyncSession(engine) as plain, plain.begin(), plain.begin_nested():
            await _deadlock_of_mariadb(stage, plain)
    finally:
        await engine.dispose()


async def _lock_timeout_of_mariadb(stage: Stage, session: AsyncSession) -> None:
    stage.rival.execute("BEGIN")
    stage.rival.execute(LOCK.format("one"))
    await session.execute(text("SET innodb_lock_wait_timeout = 1"))
    try:
        await session.execute(text(LOCK.format("one")))
    finally:
        stage.rival.execute("ROLLBACK")


async def _locked_without_waiting(stage: Stage, session: AsyncSession) -> None:
    stage.rival.execute("BEGIN")
    stage.rival.execute(LOCK.format("one"))
    try:
        await session.execute(text("SELECT text FROM words WHERE text = 'one' FOR UPDATE NOWAIT"))
    finally:
        stage.rival.execute("ROLLBACK")


async def _killed(stage: Stage, session: AsyncSession) -> None:
    stage.observer.execute(f"KILL {await session.scalar(text('SELECT connection_id()'))}")
    await session.execute(text(READ))


MARIADB = {
    "a serialization failure": Failure(_changed_since_snapshot, errors.SerializationFailure, frozenset({1020})),
    "a deadlock": Failure(_deadlock_of_mariadb, errors.DeadlockDetected, frozenset({1213})),
    "a deadlock that 1305 hides": Failure(_hidden_deadlock, Exception, frozenset({1305})),
    "a lock timeout": Failure(_lock_timeout_of_mariadb, errors.LockTimeout, frozenset({1205})),
    "a lock timeout without waiting": Failure(_locked_without_waiting, errors.LockTimeout, frozenset({1205, 3572})),
    "a connection failure before COMMIT": Failure(
        _killed, errors.TransientError, frozenset({1927, 2006, 2013, 2055, None})
    ),
}


# SQLite, whose locks are the file's; its second client is a connection of Python's own.


async def _busy(stage: Stage, session: AsyncSession) -> None:
    stage.rival.execute("BEGIN IMMEDIATE")
    try:
        await session.execute(text(READ))
    finally:
        stage.rival.execute("ROLLBACK")


def _plain(stage: Stage) -> sqlite3.Connection:
    return sqlite3.connect(str(make_url(stage.url).database), isolation_level=None, timeout=0)


async def _busy_snapshot(stage: Stage, session: AsyncSession) -> None:
    """The library's own writers never meet it: they take the lock first. A program's own connection does."""
    plain = _plain(stage)
    try:
        plain.execute("BEGIN")
        plain.execute(READ).fetchall()
        stage.observer.execute("UPDATE words SET text = text")
        plain.execute("UPDATE words SET text = text")
    finally:
        plain.close()


async def _locked(stage: Stage, session: AsyncSession) -> None:
    one, other = (
        sqlite3.connect("file:shared?mode=memory&cache=shared", uri=True, isolation_level=None) for _ in range(2)
    )
    try:
        one.execute("CREATE TABLE t (a)")
        one.execute("BEGIN IMMEDIATE")
        one.execute("INSERT INTO t VALUES (1)")
        other.execute("SELECT * FROM t")
    finally:
        one.close()
        other.close()


SQLITE = {
    "SQLite BUSY": Failure(_busy, errors.LockTimeout, frozenset({5})),
    "SQLite BUSY_SNAPSHOT": Failure(_busy_snapshot, sqlite3.OperationalError, frozenset({517})),
    "SQLite LOCKED": Failure(_locked, sqlite3.OperationalError, frozenset({6, 262})),
}
