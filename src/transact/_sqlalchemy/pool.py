"""The pool: who waits for a connection is served in turn, and who holds one can be named."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar

from sqlalchemy import exc
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection, QueuePool
from sqlalchemy.util.queue import Empty

from transact._core.events import Holder, WaitedForConnection
from transact._sqlalchemy.closing import ClosingPool
from transact._sqlalchemy.holding import PLACE, LoopWatch, Watch, place_of
from transact._sqlalchemy.idle import IdleConnections, IdleConnectionsOfThreads
from transact._sqlalchemy.keys import READ_ONLY
from transact._sqlalchemy.limits import check_deadline, time_left
from transact._sqlalchemy.line import Line, Place
from transact._sqlalchemy.liveness import lost_between_statements
from transact._sqlalchemy.modes import Mode
from transact._sqlalchemy.waiting import nobody_can_proceed
from transact.errors import ConfigurationError, DatabaseError, PoolTimeout
from transact.translation import translate

if TYPE_CHECKING:
    from sqlalchemy.engine import ExceptionContext

    from transact._sqlalchemy.runtime import Runtime

_LOOKS = 100

#: What a server says that can no longer be written to: PostgreSQL's SQLSTATE, MySQL's and MariaDB's error numbers. The same
#: is said of a transaction that asked to be read-only, but for 1290 and 1836.
_BECAME_READ_ONLY = {"25006", 1290, 1836}


class PoolTimedOut(PoolTimeout, exc.TimeoutError):
    """``PoolTimeout`` as SQLAlchemy's users know it."""


# Tracebacks and logs show the name that the program can import and catch.
PoolTimedOut.__name__ = PoolTimedOut.__qualname__ = "PoolTimeout"
PoolTimedOut.__module__ = PoolTimeout.__module__


class TransactPool(QueuePool):
    """A queue pool with a line before it, whose failures to give a connection are errors of this library."""

    runtime: ClassVar[Runtime]
    _watch_class: ClassVar[type[Watch]] = Watch

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        unbounded = self._max_overflow < 0
        self._line = Line(None if unbounded else self.size() + self._max_overflow)
        self._disposed = False
        self._watch = self._watch_class(self.runtime, self._line)

    def connect(self) -> PoolProxiedConnection:
        """``take`` for a unit of work, or for somebody who may do anything."""
        return self.take(self.runtime.mode_asked())

    def take(self, mode: Mode) -> PoolProxiedConnection:
        """Give a connection, or raise what stands in the way as an error of this library."""
        connection = self._connect()
        try:
            if self.runtime.modes is not None:
                self.runtime.modes.prepare(connection, mode)
        except BaseException as failed:
            connection.invalidate(failed)
            if error := lost_between_statements(self.runtime.engine.dialect, failed):
                raise error from failed
            raise
        return connection

    def _connect(self) -> PoolProxiedConnection:
        runtime = self.runtime
        try:
            connection = super().connect()
        except PoolTimedOut:
            raise
        except exc.InvalidRequestError as error:
            # SQLAlchemy's last word when a new connection, too, was found closed when it was to be handed out.
            closed = ConnectionError("the server closes each new connection at once")
            raise translate(closed, runtime.engine.dialect.name, connecting=True) or closed from error
        except TypeError as error:
            # An argument of the URL or of connect_args that this driver does not have.
            raise ConfigurationError(f"{runtime.engine.dialect.driver} cannot connect like this: {error}") from error
        except Exception as error:
            if isinstance(error, runtime.engine.dialect.loaded_dbapi.Error):
                raise  # SQLAlchemy wraps this one itself, and then asks for its translation
            # asyncmy says RuntimeError of a connection that is closed while it is being made.
            why = ConnectionError(str(error)) if isinstance(error, RuntimeError) and _is_drivers(error) else error
            failure = translate(why, runtime.engine.dialect.name, connecting=True)
            if failure is None:
                raise
            raise failure from error
        place = place_of(connection)
        if place is not None:
            place.statement = None
        return connection

    # Every way to a connection leads through these two, and back.

    def _do_get(self) -> ConnectionPoolEntry:
        place = self._watch.new_place()
        if not self._line.take(place):
            self._wait(place)
        try:
            self._watch.start()
            record = self._take_record()
            record.record_info[PLACE] = place  # type: ignore[index]  # a record that exists has one
        except BaseException:
            self._line.give_back(place)
            raise
        return record

    def _take_record(self) -> ConnectionPoolEntry:
        for _ in range(_LOOKS):
            # Who has a place is served; but between two looks of SQLAlchemy's, other threads may give back and take.
            try:
                return super()._do_get()
            except exc.TimeoutError:
                continue
        return super()._do_get()

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        place = record.record_info.pop(PLACE, None)  # type: ignore[union-attr]  # as above
        try:
            super()._do_return_conn(record)
            # Asked only now: a thread that closes the database has emptied the queue before this came to it, or is seen here.
            if self._disposed or self.runtime.closed:
                self._watch.stop()
                self._close_idle()
        finally:
            if place is not None:
                self._line.give_back(place)

    def _close_idle(self) -> None:
        # In the queue of a pool that nobody uses they would stay open until the garbage collector comes.
        with suppress(Empty):
            while True:
                record = self._pool.get(block=False)
                self._dec_overflow()
                record.close()

    def _wait(self, place: Place) -> None:
        runtime = self.runtime
        started = time.perf_counter()
        if nobody_can_proceed(runtime):
            # To wait would end for all of them in the same instant; one that fails now lets the others go on.
            raise self._refusal(
                started,
                f"each of the {runtime.capacity} connections of the pool is held by a transaction that waits for a second "
                "one, so none would become free; make the pool larger, or end the outer transactions before",
            )
        self.refuse_if_too_many(started, self._line.waiting)
        asking = runtime.asking.get(runtime.whoami())
        left = time_left(asking)
        # With a deadline, no longer than to it; but it must have passed when the wait is over.
        seconds = self._timeout if left is None else min(left + 0.001, self._timeout)
        if seconds <= 0 or not runtime.stand_in_line(self._line, place, seconds):
            refusal = self.refusal_after_wait(started)
            check_deadline(asking)
            raise refusal
        self.tell_wait(started)

    # Also for those who wait before they come here.

    def refuse_if_too_many(self, started: float, waiting: int) -> None:
        """Raise ``PoolTimeout`` if as many wait as may."""
        most = self.runtime.max_waiting
        if most is not None and waiting >= most:
            raise self._refusal(
                started, f"no connection is free, and as many as may wait for one do already ({waiting})"
            )

    def refusal_after_wait(self, started: float) -> PoolTimedOut:
        """The error of whoever has waited since ``started``, in vain."""
        return self._refusal(
            started,
            f"no connection became free within {self.timeout():g} s (pool_size {self.size()}); the transactions "
            "that hold them are too long or too many",
        )

    def tell_wait(self, started: float) -> None:
        """Tell the listeners of a wait since ``started`` that was worth it."""
        if self.runtime.listeners:
            waited = time.perf_counter() - started
            self.runtime.emit(WaitedForConnection(self.runtime.name, "pool", waited, served=True))

    def _refusal(self, started: float, message: str) -> PoolTimedOut:
        error = PoolTimedOut(message)
        error.holders = self.holders()
        seconds = time.perf_counter() - started
        self.runtime.emit(WaitedForConnection(self.runtime.name, "pool", seconds, served=False, holders=error.holders))
        return error

    def holders(self) -> tuple[Holder, ...]:
        """Who holds connections now, the longest first."""
        return self._watch.holders()

    def dispose(self) -> None:
        """Close the connections that nobody holds, later the others too, and leave nothing in the event loop."""
        self._watch.stop()
        self._disposed = True
        super().dispose()

    def make_anew(self) -> None:
        """Let no connection be used again that exists now; those that are held are held to their end."""
        self._invalidate_time = time.time()


class AsyncTransactPool(TransactPool, ClosingPool):
    """The pool of an async engine."""

    _queue_class = IdleConnections
    _watch_class = LoopWatch


class ThreadTransactPool(TransactPool):
    """The pool of a plain engine."""

    _queue_class = IdleConnectionsOfThreads


def pool_class(runtime: Runtime) -> type[TransactPool]:
    """The class of the pools of one database."""
    base: Any = AsyncTransactPool if runtime.is_async else ThreadTransactPool
    made: type[TransactPool] = type("TransactPool", (base,), {"runtime": runtime})
    return made


def drop_if_read_only(context: ExceptionContext, error: DatabaseError | None) -> None:
    """After a primary has become read-only: make new connections, which lead to the new one or to the one that recovered.

    A transaction that asked to be read-only says nothing of the server.
    """
    if error is None or not {error.sqlstate, error.errno} & _BECAME_READ_ONLY or context.connection is None:
        return
    options = context.connection.get_execution_options()
    if options.get("postgresql_readonly") or options.get(READ_ONLY):
        return
    pool = context.connection.engine.pool
    if isinstance(pool, TransactPool):
        pool.make_anew()


def _is_drivers(error: BaseException) -> bool:
    """Whether it is in a driver's own code that ``error`` was raised."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    return traceback is not None and "asyncmy" in traceback.tb_frame.f_code.co_filename
