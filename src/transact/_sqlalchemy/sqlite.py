"""What SQLite needs: transactions that are real, and writers that take turns.

Python's sqlite3 opens transactions by itself, late and not before a SAVEPOINT, so that a savepoint released outside one
survives a ROLLBACK (https://docs.sqlalchemy.org/en/20/dialects/sqlite.html, "Serializable isolation / Savepoints /
Transactional DDL"). Its own transaction control is switched off and BEGIN is sent for real.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import sqlite3
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from sqlalchemy import event, exc
from sqlalchemy.engine import URL, Connection, ExceptionContext
from sqlalchemy.pool import PoolResetState
from sqlalchemy.util import await_only

from transact._core.limits import Told
from transact._sqlalchemy.asking import ask_less_often, begins_with
from transact._sqlalchemy.keys import AUTOCOMMIT, LIMITED, QUEUED, READ_ONLY, STATEMENTS, UNIT
from transact._sqlalchemy.limits import check_deadline
from transact._sqlalchemy.line import Line, Place
from transact._sqlalchemy.plain import AnyEngine, driver_connection, plain_engine
from transact.errors import DatabaseError, LockTimeout

if TYPE_CHECKING:
    from transact._sqlalchemy.runtime import Runtime
    from transact._sqlalchemy.unit import Unit

_TURN = "transact_turn"
_WATCHED = "transact_watched"
_STEPS = 10_000
"""Instructions of SQLite's machine between two looks at the clock: less than a millisecond."""


class TurnTimedOut(LockTimeout, exc.OperationalError):  # type: ignore[misc]  # orig is the driver's in both
    """``LockTimeout`` as SQLAlchemy's users know it."""


class RevocableConnection(sqlite3.Connection):
    """A connection whose ``rollback()`` works after ``interrupt()`` too.

    An interrupt holds as long as any statement has rows to give, and hits ROLLBACK like all others; the transaction would
    keep its lock until the last cursor has been collected (https://www.sqlite.org/c3ref/interrupt.html).
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._cursors: WeakSet[sqlite3.Cursor] = WeakSet()
        self._interrupted = False

    def cursor(self, *args: Any, **kwargs: Any) -> Any:
        """The same, and remembered."""
        cursor = super().cursor(*args, **kwargs)
        self._cursors.add(cursor)
        return cursor

    def interrupt(self) -> None:
        """The same. Whoever calls it has given up all that runs on this connection."""
        self._interrupted = True
        super().interrupt()

    def rollback(self) -> None:
        """The same; after an interrupt it ends what still has rows to give."""
        if self._interrupted:
            for cursor in list(self._cursors):
                cursor.close()
        super().rollback()


# Tracebacks and logs show the name that the program can import and catch.
TurnTimedOut.__name__ = TurnTimedOut.__qualname__ = "LockTimeout"
TurnTimedOut.__module__ = LockTimeout.__module__


class Turns:
    """The queue of the writers of one engine: first come, first served.

    SQLite lets writers poll for its one lock, in no order and with pauses of up to 100 ms. Worse, a connection that polls
    holds its own mutex: if Python frees a cursor of that connection meanwhile, the event loop waits for the mutex, and the
    writer whose COMMIT would end the waiting waits for the event loop.

    ``patience``: the longest wait, in seconds, where nothing shorter is asked for.
    """

    def __init__(self, runtime: Runtime, patience: float) -> None:
        self.patience = patience
        self._runtime = runtime
        self._line = Line(1)

    def take(self, seconds: float) -> Callable[[], None]:
        """Wait for the turn; return what ends it. Raises ``LockTimeout``."""
        place = Place(math.inf)
        if not (self._line.take(place) or self._runtime.stand_in_line(self._line, place, max(0.0, seconds))):
            error = TimeoutError()
            timed_out = TurnTimedOut("BEGIN IMMEDIATE", None, error)
            timed_out.errno = 5  # SQLITE_BUSY, which it would have been
            raise timed_out from error
        return partial(self._line.give_back, place)


def connect_arguments(url: URL, *, patience: float) -> dict[str, Any]:
    """What the driver is asked for, if the application does not say otherwise."""
    arguments: dict[str, Any] = {"factory": RevocableConnection}
    if url.get_driver_name() == "pysqlite":
        # Connections go from thread to thread, one after the other.
        arguments["check_same_thread"] = False
    if "timeout" not in url.query:
        # To wait for SQLite's one write lock is to wait for a turn, as for a connection. Its own 5 s, served in no order,
        # run out under a load that the pool still bears.
        arguments["timeout"] = patience
    return arguments


def prepare_sqlite(engine: AnyEngine, runtime: Runtime, *, memory: bool, patience: float) -> None:
    """Listen to the engine of a SQLite database; ``patience``: seconds that a writer waits for its turn."""
    turns = Turns(runtime, patience)

    @event.listens_for(plain_engine(engine), "connect")
    def connected(connection: Any, _record: object) -> None:
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute("PRAGMA foreign_keys = ON")
        if not memory:
            cursor.execute("PRAGMA journal_mode = WAL")
        cursor.close()

    @event.listens_for(plain_engine(engine), "begin")
    def begin(connection: Connection) -> None:
        _begin(connection, turns)

    @event.listens_for(plain_engine(engine), "reset")
    def reset(connection: Any, record: Any, state: PoolResetState) -> None:
        _leave_failed_commit(connection, record, state)
        if state.asyncio_safe:
            _forget_limits(connection, record)

    ask_less_often(engine)
    event.listen(plain_engine(engine), "checkin", _end_turn)
    event.listen(plain_engine(engine), "detach", _end_turn)
    event.listen(plain_engine(engine), "invalidate", _abandon)
    event.listen(plain_engine(engine), "invalidate", _end_turn)


def has_ended_transaction(context: ExceptionContext, _error: DatabaseError) -> bool:
    """Whether SQLite has rolled back by itself: a full disk, an I/O error, ``ON CONFLICT ROLLBACK``, ``RAISE(ROLLBACK)``.

    Without a transaction it would run, and keep, each later statement by itself.
    """
    driver: Any = context.connection.connection.driver_connection if context.connection is not None else None
    return driver is not None and not driver.in_transaction


def _begin(connection: Connection, turns: Turns) -> None:
    options = connection.get_execution_options()
    read_only = bool(options.get(READ_ONLY))
    if connection.info.get(READ_ONLY, False) is not read_only:  # as the last user of the connection left it
        connection.exec_driver_sql(f"PRAGMA query_only = {'ON' if read_only else 'OFF'}")
        connection.info[READ_ONLY] = read_only
    if options.get("isolation_level") == AUTOCOMMIT or options.get(STATEMENTS):
        begins_with(connection, None)
        return
    unit = options.get(UNIT)
    # Never early: the deadline must have passed when the wait for it is over.
    until = time.monotonic() + _longest_wait(unit, turns.patience) + 0.001
    # A session gives its connection back when its transaction ends, and its turn with it. Who uses the engine by hand may
    # keep a connection for long after COMMIT, and does not queue.
    if options.get(QUEUED) and not read_only:
        try:
            connection.info[_TURN] = turns.take(until - time.monotonic())
        except LockTimeout:
            check_deadline(unit)
            raise
        except asyncio.CancelledError as cancelled:
            # It would be reset in the cancelled task, and older versions of SQLAlchemy keep it when that is cancelled again.
            connection.invalidate(cancelled)
            raise
    if unit is not None:
        _wait_at_most(connection, until)
    # A deferred transaction that reads and then writes fails with BUSY_SNAPSHOT when another wrote in between, which no
    # waiting can cure; a writer takes the lock first and waits for it.
    statement = "BEGIN" if read_only else "BEGIN IMMEDIATE"
    if not begins_with(connection, statement):
        connection.exec_driver_sql(statement)


def _longest_wait(unit: Unit | None, usual: float) -> float:
    limits = unit.limits if unit is not None else None
    return usual if limits is None else limits.longest_wait(usual, time.monotonic())


def _wait_at_most(connection: Connection, until: float) -> None:
    """Let a connection wait for the write lock until then, if another program has it."""
    connection.info[LIMITED] = connection.exec_driver_sql("PRAGMA busy_timeout").scalar()
    milliseconds = max(0, math.ceil((until - time.monotonic()) * 1000))
    connection.exec_driver_sql(f"PRAGMA busy_timeout = {milliseconds}")


def tell_limits(unit: Unit, connection: Connection, _before: Told, told: Told) -> None:
    """Let SQLite look at the clock while it runs a statement."""

    def is_late() -> bool:  # called in the driver's thread
        limits = unit.limits
        return limits is not None and limits.is_over(time.monotonic())

    if told.statement is not None and _WATCHED not in connection.info:
        connection.info[_WATCHED] = True
        _watch(connection.connection, is_late)


def _forget_limits(connection: Any, record: Any) -> None:
    if record is None:  # it was detached, and nobody uses it next
        return
    own = record.info.pop(LIMITED, None)
    if own is not None:
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {own}")
        cursor.close()
    if record.info.pop(_WATCHED, False):
        _watch(connection, None)


def _watch(connection: Any, is_late: Callable[[], bool] | None) -> None:
    set_it = driver_connection(connection).set_progress_handler(is_late, _STEPS)
    if set_it is not None:  # aiosqlite does it in its thread
        await_only(set_it)


def _end_turn(_connection: object, record: Any, *_: object) -> None:
    end_turn = record.info.pop(_TURN, None)
    if end_turn is not None:
        end_turn()


def _leave_failed_commit(connection: Any, _record: object, state: PoolResetState) -> None:
    # A COMMIT that fails on a deferred foreign key leaves SQLite's transaction open, write lock and all, where SQLAlchemy
    # takes it for ended and sends nothing more (https://www.sqlite.org/foreignkeys.html, section 4.2).
    if state.transaction_was_reset and state.asyncio_safe and driver_connection(connection).in_transaction:
        connection.rollback()


def _abandon(connection: Any, *_: object) -> None:
    # sqlite3's close() takes effect when the last cursor has been collected; until then the transaction of a cancelled
    # statement would keep the write lock (https://www.sqlite.org/c3ref/close.html, "zombie"). Neither may be awaited
    # here, where a second cancellation could strike; both are in the driver's queue before its close().
    with contextlib.suppress(Exception):  # the connection may be closed already, or be garbage without a loop
        driver = driver_connection(connection)
        _start(driver.interrupt())
        _start(driver.rollback())


def _start(call: Coroutine[Any, Any, object] | None) -> None:
    """Run a call of the driver up to its first await: it is queued for the driver's thread, and nobody waits."""
    if call is None:  # sqlite3 itself has done it
        return
    try:
        waiting = call.send(None)
        if isinstance(waiting, asyncio.Future):
            waiting.add_done_callback(lambda done: done.cancelled() or done.exception())
    except StopIteration:
        pass
    finally:
        call.close()
