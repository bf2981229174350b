"""What SQLite needs: transactions that are real, and writers that take turns.

Python's sqlite3 opens transactions by itself, late and not before a SAVEPOINT, so that a savepoint released outside one
survives a ROLLBACK (https://docs.sqlalchemy.org/en/20/dialects/sqlite.html, "Serializable isolation / Savepoints /
Transactional DDL"). Its own transaction control is switched off and BEGIN is sent for real.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy import event, exc
from sqlalchemy.engine import Connection
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import PoolResetState
from sqlalchemy.util import await_only

from transact._sqlalchemy.runtime import AUTOCOMMIT, QUEUED, READ_ONLY
from transact.errors import LockTimeout

_TURN = "transact_turn"


class TurnTimedOut(LockTimeout, exc.OperationalError):  # type: ignore[misc]  # orig is the driver's in both
    """``LockTimeout`` as SQLAlchemy's users know it."""


# Tracebacks and logs show the name that the program can import and catch.
TurnTimedOut.__name__ = TurnTimedOut.__qualname__ = "LockTimeout"
TurnTimedOut.__module__ = LockTimeout.__module__


class Turns:
    """The queue of the writers of one engine: first come, first served.

    SQLite lets writers poll for its one lock, in no order and with pauses of up to 100 ms. Worse, a connection that polls
    holds its own mutex: if Python frees a cursor of that connection meanwhile, the event loop waits for the mutex, and the
    writer whose COMMIT would end the waiting waits for the event loop.

    ``patience``: the longest wait, in seconds.
    """

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._locks: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = WeakKeyDictionary()

    async def take(self) -> Callable[[], None]:
        """Wait for the turn; return what ends it. Raises ``LockTimeout``."""
        lock = self._locks.setdefault(asyncio.get_running_loop(), asyncio.Lock())
        try:
            async with asyncio.timeout(self._patience):
                await lock.acquire()
        except TimeoutError as error:
            timed_out = TurnTimedOut("BEGIN IMMEDIATE", None, error)
            timed_out.errno = 5  # SQLITE_BUSY, which it would have been
            raise timed_out from error
        return lock.release


def prepare_sqlite(engine: AsyncEngine, *, memory: bool, patience: float) -> None:
    """Listen to the engine of a SQLite database; ``patience``: seconds that a writer waits for its turn."""
    turns = Turns(patience)

    @event.listens_for(engine.sync_engine, "connect")
    def connected(connection: Any, _record: object) -> None:
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute("PRAGMA foreign_keys = ON")
        if not memory:
            cursor.execute("PRAGMA journal_mode = WAL")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def begin(connection: Connection) -> None:
        _begin(connection, turns)

    event.listen(engine.sync_engine, "reset", _leave_failed_commit)
    event.listen(engine.sync_engine, "checkin", _end_turn)
    event.listen(engine.sync_engine, "invalidate", _abandon)
    event.listen(engine.sync_engine, "invalidate", _end_turn)


def _begin(connection: Connection, turns: Turns) -> None:
    options = connection.get_execution_options()
    if options.get("isolation_level") == AUTOCOMMIT:
        return
    read_only = bool(options.get(READ_ONLY))
    if connection.info.get(READ_ONLY, False) is not read_only:
        connection.exec_driver_sql(f"PRAGMA query_only = {'ON' if read_only else 'OFF'}")
        connection.info[READ_ONLY] = read_only
    if read_only:
        connection.exec_driver_sql("BEGIN")
        return
    # A session gives its connection back when its transaction ends, and its turn with it. Who uses the engine by hand may
    # keep a connection for long after COMMIT, and does not queue.
    if options.get(QUEUED):
        connection.info[_TURN] = await_only(turns.take())
    # A deferred transaction that reads and then writes fails with BUSY_SNAPSHOT when another wrote in between, which no
    # waiting can cure; a writer takes the lock first and waits for it.
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _end_turn(_connection: object, record: Any, *_: object) -> None:
    end_turn = record.info.pop(_TURN, None)
    if end_turn is not None:
        end_turn()


def _leave_failed_commit(connection: Any, _record: object, state: PoolResetState) -> None:
    # A COMMIT that fails on a deferred foreign key leaves SQLite's transaction open, write lock and all, where SQLAlchemy
    # takes it for ended and sends nothing more (https://www.sqlite.org/foreignkeys.html, section 4.2).
    if state.transaction_was_reset and state.asyncio_safe and connection.driver_connection.in_transaction:
        connection.rollback()


def _abandon(connection: Any, *_: object) -> None:
    # sqlite3's close() takes effect when the last cursor has been collected; until then the transaction of a cancelled
    # statement would keep the write lock (https://www.sqlite.org/c3ref/close.html, "zombie"). Neither may be awaited
    # here, where a second cancellation could strike; both are in the driver's queue before its close().
    with contextlib.suppress(Exception):  # the connection may be closed already, or be garbage without a loop
        _start(connection.driver_connection.interrupt())
        _start(connection.driver_connection.rollback())


def _start(call: Coroutine[Any, Any, object]) -> None:
    """Run a call of the driver up to its first await: it is queued for the driver's thread, and nobody waits."""
    try:
        waiting = call.send(None)
        if isinstance(waiting, asyncio.Future):
            waiting.add_done_callback(lambda done: done.cancelled() or done.exception())
    except StopIteration:
        pass
    finally:
        call.close()
