"""Whether the server has hung up: asked of the operating system, without a round trip."""

from __future__ import annotations

import contextlib
import os
import select
import socket
from collections.abc import Callable, MutableMapping
from typing import Any

from sqlalchemy.engine import Connection, Dialect, Engine

from transact._sqlalchemy.plain import driver_connection
from transact.errors import ConnectionLost, DatabaseError
from transact.translation import translate

_WATCH = "transact_watch"
_HUNG_UP = getattr(select, "POLLRDHUP", 0) | getattr(select, "POLLHUP", 0) | getattr(select, "POLLERR", 0)


def has_hung_up(connection: Any, info: MutableMapping[Any, Any] | None = None) -> bool:
    """Whether the other side has closed ``connection``, as a server does that stops or ends a session.

    ``info`` is the pool's, of that connection and of no other: with it a second look is cheaper. ``False`` also where it
    cannot be known: no socket is found, or the system has no POLLRDHUP. What then is sent on the connection fails as it
    would have done.
    """
    try:
        if info is None:
            return _watch(driver_connection(connection))()
        watch = info.get(_WATCH)
        if watch is None:
            watch = info[_WATCH] = _watch(driver_connection(connection))
        return bool(watch())
    except Exception:  # noqa: BLE001  # whatever another version of a driver has there: it is not known
        return False


def notice_hang_ups(dialect: Any) -> None:
    """Take an error for that of a lost connection where the operating system alone knows that it is one.

    psycopg says "connection socket closed", without a SQLSTATE, when its wait is told so before libpq has seen anything;
    SQLAlchemy asks only what libpq has seen.
    """
    if dialect.driver != "psycopg":
        return
    usual = dialect.is_disconnect

    def is_disconnect(error: Any, connection: Any, cursor: Any) -> bool:
        if usual(error, connection, cursor):
            return True
        is_clients = isinstance(error, dialect.loaded_dbapi.OperationalError) and error.sqlstate is None
        return is_clients and connection is not None and has_hung_up(connection)

    dialect.is_disconnect = is_disconnect


def _watch(driver: Any) -> Callable[[], bool]:
    """What tells, in a microsecond, whether ``driver`` has lost its server: each transaction asks that twice."""
    is_closed = _closed(driver)
    if is_closed() or not hasattr(select, "POLLRDHUP"):
        return is_closed
    poll = select.poll()
    poll.register(_descriptor(driver), select.POLLRDHUP)

    def has_hung_up() -> bool:
        if is_closed():  # then the descriptor may be another's by now
            return True
        found = poll.poll(0)
        return bool(found and found[0][1] & _HUNG_UP)

    return has_hung_up


def _closed(driver: Any) -> Callable[[], bool]:
    if hasattr(driver, "pgconn"):  # psycopg
        return lambda: driver.closed
    if hasattr(driver, "open"):  # PyMySQL; asyncmy has a _sock too, without a socket in it
        return lambda: not driver.open
    if not hasattr(driver, "connected"):
        is_closing: Callable[[], bool] = _transport(driver).is_closing
        return is_closing
    # asyncmy, which has no transport any more when it is not connected
    return lambda: not driver.connected or _transport(driver).is_closing()


def hang_up(driver: Any) -> None:
    """Close the socket under the driver: whoever waits for an answer on it learns that the connection is lost."""
    # What has no socket, or none any more, has nobody who waits.
    with contextlib.suppress(Exception), socket.socket(fileno=os.dup(_descriptor(driver))) as other:
        other.shutdown(socket.SHUT_RDWR)


def _descriptor(driver: Any) -> int:
    if hasattr(driver, "pgconn"):
        return int(driver.pgconn.socket)
    if hasattr(driver, "open"):
        return int(driver._sock.fileno())
    return int(_transport(driver).get_extra_info("socket").fileno())


def _transport(driver: Any) -> Any:
    # asyncpg and asyncmy keep a transport, older versions of asyncmy a stream; none has a public way to it.
    return getattr(driver, "_transport", None) or driver._writer.transport


def connection_lost(dialect: str, why: str) -> ConnectionLost:
    """The error of a connection that is known to be gone; like a driver's it is SQLAlchemy's ``OperationalError`` too."""
    error = translate(ConnectionError(why), dialect, disconnected=True)
    assert isinstance(error, ConnectionLost)  # noqa: S101  # that is what a ConnectionError is
    return error


def connected(engine: Engine) -> Connection:
    """A connection of an engine without a pool of ours. Raises what stands in the way as an error of this library."""
    try:
        return engine.connect()
    except (OSError, TimeoutError) as error:  # of asyncpg, where SQLAlchemy asks nobody what to raise
        failure = translate(error, engine.dialect.name, connecting=True)
        if failure is None:
            raise
        raise failure from error


def lost_between_statements(dialect: Dialect, failed: BaseException) -> DatabaseError | None:
    """What to raise for a driver's error where SQLAlchemy talks to the server by itself, and asks nobody what to raise."""
    if not isinstance(failed, dialect.loaded_dbapi.Error):
        return None
    return translate(failed, dialect.name, disconnected=True)
