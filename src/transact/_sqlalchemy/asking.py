"""aiosqlite does everything in a thread of its own; to ask that thread takes longer than what it is asked for.

A cursor that is made, used and closed asks it three times, and the pool once more for a ROLLBACK where nothing is open.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import event
from sqlalchemy.dialects.sqlite.aiosqlite import AsyncAdapt_aiosqlite_connection
from sqlalchemy.engine import Connection, ExceptionContext
from sqlalchemy.util import await_only

from transact._sqlalchemy.plain import AnyEngine, plain_engine

_BEGINS = "transact_begins"
"""Set in the ``info`` of a connection whose transaction is being begun: the statement that does it."""


def ask_less_often(engine: AnyEngine) -> None:
    """Let the dialect of ``engine`` send BEGIN and ROLLBACK itself."""
    dialect: Any = plain_engine(engine).dialect  # which no other engine has
    dialect.do_begin, dialect.do_rollback = _do_begin, _do_rollback
    event.listen(plain_engine(engine), "handle_error", _tell_begin)


def begins_with(connection: Connection, statement: str | None) -> bool:
    """Let SQLAlchemy begin the transaction with ``statement``; return whether the driver is one where that is better.

    ``None``: with nothing, also if another listener has kept an earlier one from being sent.
    """
    if not isinstance(connection.connection.dbapi_connection, AsyncAdapt_aiosqlite_connection):
        return False
    connection.info[_BEGINS] = statement
    return True


def _do_begin(connection: Any) -> None:
    # As a method of the dialect, so that SQLAlchemy takes care of its errors.
    statement = connection.info.get(_BEGINS)
    if statement is not None:
        await_only(connection.driver_connection.execute_fetchall(statement))
        del connection.info[_BEGINS]


def _tell_begin(context: ExceptionContext) -> None:
    # SQLAlchemy knows of no statement; whoever reads the error should.
    error = getattr(context, "chained_exception", None)  # it is there once another listener has made one
    if error is not None and context.statement is None and context.connection is not None:
        statement = context.connection.info.pop(_BEGINS, None)
        if statement is not None:
            error.statement = statement


def _do_rollback(connection: Any) -> None:
    # sqlite3 asks this too, in its thread. Nothing else runs on the connection now, or it would have been thrown away.
    held = getattr(connection, "dbapi_connection", connection)
    if not isinstance(held, AsyncAdapt_aiosqlite_connection) or _in_transaction(held.driver_connection):
        connection.rollback()


def _in_transaction(driver: Any) -> bool:
    try:
        return bool(driver.in_transaction)
    except ValueError:  # it is closed
        return True
