"""What MySQL and MariaDB need: strictness, BEGIN for readers, time limits, and no statement that commits by itself.

Some errors have ended the whole transaction on the server before the driver hears of them: those are known here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sqlalchemy import event
from sqlalchemy.engine import URL, Connection, Dialect, ExceptionContext
from sqlalchemy.pool import PoolResetState

from transact._core.limits import Told
from transact._core.states import State
from transact._sqlalchemy.keys import LIMITED, READ_ONLY, STATEMENTS
from transact._sqlalchemy.modes import TOLD
from transact._sqlalchemy.plain import AnyEngine, plain_engine
from transact.errors import UsageError
from transact.translation.mysql import ENDS_TRANSACTION, MAY_END_TRANSACTION

if TYPE_CHECKING:
    from transact._sqlalchemy.runtime import Runtime
    from transact._sqlalchemy.unit import Unit
    from transact.errors import DatabaseError


#: The ``sql_mode`` that connections ask for: the server's own, and a value that does not fit is an error. Without it the
#: server stores a part of the value, with a warning that no driver shows.
STRICT = "CONCAT_WS(',', NULLIF(@@sql_mode, ''), 'STRICT_TRANS_TABLES')"


def connect_arguments(url: URL, given: Mapping[str, Any]) -> dict[str, Any]:
    """What the driver is asked for, if the application does not say otherwise."""
    if url.get_driver_name() != "pymysql":
        return {"sql_mode": STRICT, **given}
    # It takes sql_mode for a string, not for an expression.
    if "sql_mode" in given or "init_command" in {**given, **url.query}:
        return dict(given)
    return {"init_command": f"SET SESSION sql_mode = {STRICT}", **given}


def keep_strict(engine: AnyEngine, given: Mapping[str, Any]) -> None:
    """Let PyMySQL be strict where the application's own ``init_command`` took the place of ours, and says nothing of it."""
    told = {**engine.url.query, **given}
    command = str(told.get("init_command", "")).lower()
    if engine.dialect.driver != "pymysql" or not command or "sql_mode" in {*told, *re.findall("sql_mode", command)}:
        return

    @event.listens_for(plain_engine(engine), "connect")
    def make_strict(connection: Any, _record: object) -> None:
        cursor = connection.cursor()
        cursor.execute(f"SET SESSION sql_mode = {STRICT}")
        cursor.close()


#: The flag of a server's answers while a transaction is open (MySQL internals manual, "Status Flags").
_IN_TRANSACTION = 1

#: How a statement begins that commits the open transaction (MySQL manual, "Statements That Cause an Implicit Commit";
#: MariaDB, "SQL statements That Cause an Implicit Commit"), or that ends it behind the back of whoever manages it.
ENDS_BY_ITSELF = re.compile(
    r"""(?: \s | ;
        | /\* (?!M?!) .*? \*/ | --\s [^\n]* \n | \# [^\n]* \n  # comments
        | /\* M?! \d*  # a comment for others, a statement here
    )*
    (?: (?: (?:CREATE|DROP) (?! \s+ (?:OR\s+REPLACE\s+)? TEMPORARY\b ) | ALTER | RENAME | TRUNCATE )
      | GRANT | REVOKE | SET\s+PASSWORD | FLUSH | RESET | INSTALL | UNINSTALL
      | (?:ANALYZE|CHECK|OPTIMIZE|REPAIR) \s+ (?:(?:LOCAL|NO_WRITE_TO_BINLOG) \s+)? TABLES?
      | (?:CACHE|LOAD) \s+ INDEX | (?:LOCK|UNLOCK) \s+ TABLES?
      | BEGIN (?! \s+ NOT ) | START | STOP | CHANGE | COMMIT | ROLLBACK (?! \s+ (?:WORK\s+)? TO\b ) | XA
      | SET \s+ (?:SESSION\s+ | LOCAL\s+ | @@(?:SESSION\.|LOCAL\.)?)? AUTOCOMMIT
    ) \b""",
    re.VERBOSE | re.IGNORECASE | re.DOTALL,
)


def prepare_mysql(engine: AnyEngine, runtime: Runtime) -> None:
    """Listen to the engine of a MySQL or MariaDB database."""
    event.listen(plain_engine(engine), "begin", begin)
    event.listen(plain_engine(engine), "reset", _forget_limits)
    _end_what_keeps_its_level(engine.dialect)

    @event.listens_for(plain_engine(engine), "before_cursor_execute")
    def refuse_ends(connection: Connection, _cursor: object, statement: str, *_: Any) -> None:
        if not (ends := ENDS_BY_ITSELF.match(statement)):
            return
        unit = runtime.units.get(connection)
        if unit is not None and unit.managed and not (unit.together and unit.root.state is State.ENDING):
            raise UsageError(
                f"{ends[0].split()[-1]} would end {unit.label!r} on the spot: MySQL and MariaDB commit what was written so "
                "far, and no error could undo it. It was not sent. Run it where no transaction is open: in "
                "`async with db.engine.begin()`, in Propagation.NOT_SUPPORTED, or in a migration"
            )


def _end_what_keeps_its_level(dialect: Dialect) -> None:
    """End a connection that is lost while SQLAlchemy puts its isolation level back, which asks the server.

    SQLAlchemy does so when the connection is all but back in the pool; an error would take its place there for good.
    """
    put_back = dialect.reset_isolation_level

    def put_back_or_end(dbapi_connection: Any) -> None:
        try:
            put_back(dbapi_connection)
        except Exception:  # noqa: BLE001  # whatever it is, the next user must not find the level of this one
            dialect.do_terminate(dbapi_connection)  # the pool then finds it closed, and makes a new one

    roll_back = dialect.do_rollback

    def roll_back_what_is_open(dbapi_connection: Any) -> None:
        try:
            told = TOLD in dbapi_connection.info
        except (AttributeError, NotImplementedError):  # it is not of a pool
            told = False
        # In autocommit the driver knows whether a transaction is open, and the ROLLBACK would be a round trip.
        if not told or _in_transaction(dbapi_connection.driver_connection):
            roll_back(dbapi_connection)

    dialect.do_rollback = roll_back_what_is_open  # type: ignore[method-assign]  # as below
    dialect.reset_isolation_level = put_back_or_end  # type: ignore[method-assign]  # this engine's own dialect


def _in_transaction(driver: Any) -> bool:
    if hasattr(driver, "get_transaction_status"):
        return bool(driver.get_transaction_status())
    return bool(driver.server_status & _IN_TRANSACTION)  # PyMySQL


def tell_limits(_unit: Unit, connection: Connection, _before: Told, told: Told) -> None:
    """Tell the server how long a statement may run and wait for locks.

    These settings are the session's, not the transaction's: the pool puts them back when it gets the connection back.
    """
    settings = _settings(told, mariadb=bool(getattr(connection.dialect, "is_mariadb", False)))
    kept: set[str] = connection.info.setdefault(LIMITED, set())
    keep = [name for name, value in settings.items() if value is not None and name not in kept]
    parts = [f"{_kept(name)} = @@SESSION.{name}" for name in keep]
    for name, value in settings.items():
        # A variable gets its new value when all of SET has been read.
        own = f"@@SESSION.{name}" if name in keep else _kept(name)
        if value is None:
            parts += [f"SESSION {name} = {own}"] if name in kept else []
        elif name.startswith("max_"):  # a tighter limit that the session came with stays in force; 0 is none
            parts.append(f"SESSION {name} = IF({own} > 0, LEAST({own}, {value}), {value})")
        else:
            parts.append(f"SESSION {name} = {value}")
    kept.update(keep)
    connection.exec_driver_sql("SET " + ", ".join(parts))


def _settings(told: Told, *, mariadb: bool) -> dict[str, str | None]:
    """The session's variables; ``None`` for the session's own value."""
    if mariadb:
        # It also ends the wait for a lock.
        statement = None if told.statement is None else f"{max(told.statement, 0.001):.6f}"
        return {"max_statement_time": statement, **_locks(told.lock)}
    # It ends SELECT only; what else may take long is to wait for a lock.
    statement = None if told.statement is None else _whole(told.statement * 1000)
    lock = min((s for s in (told.lock, told.statement) if s is not None), default=None)
    return {"max_execution_time": statement, **_locks(lock)}


def _locks(seconds: float | None) -> dict[str, str | None]:
    value = None if seconds is None else _whole(seconds)
    return {"innodb_lock_wait_timeout": value, "lock_wait_timeout": value}


def _whole(number: float) -> str:
    return str(max(1, math.ceil(number)))  # 0 would be no limit, or no wait at all


def _kept(name: str) -> str:
    """The variable of the session that holds the value to be put back."""
    return f"@transact_{name}"


def _forget_limits(connection: Any, record: Any, state: PoolResetState) -> None:
    names = record.info.pop(LIMITED, ()) if record is not None else ()  # none: it was detached
    if names and state.asyncio_safe and not state.terminate_only:
        cursor = connection.cursor()
        cursor.execute("SET " + ", ".join(f"SESSION {name} = {_kept(name)}" for name in names))
        cursor.close()


def has_ended_transaction(context: ExceptionContext, error: DatabaseError) -> bool:
    """Whether the server has rolled back the whole transaction with this error, savepoints and all."""
    if error.errno == MAY_END_TRANSACTION:
        # A statement has just waited for a minute; one round trip more is nothing, and a failover may change the answer.
        return _setting(context, "innodb_rollback_on_timeout")
    return error.errno in ENDS_TRANSACTION


def _setting(context: ExceptionContext, name: str) -> bool:
    assert context.connection is not None  # noqa: S101  # a statement failed on it
    cursor = context.connection.connection.cursor()
    try:
        cursor.execute(f"SELECT @@{name}")
        row = cursor.fetchone()
        return row is None or bool(row[0])
    except Exception:  # noqa: BLE001  # the first error is the one to tell, and who knows nothing keeps nothing
        return True
    finally:
        cursor.close()


def begin(connection: Connection) -> None:
    """Send the BEGIN that is needed, if one is: of itself, the server begins with the first statement."""
    options = connection.get_execution_options()
    if options.get(STATEMENTS):
        return
    if options.get(READ_ONLY):
        connection.exec_driver_sql("START TRANSACTION READ ONLY")
    elif (told := connection.info.get(TOLD)) is not None:
        # It stands in autocommit, and reads unless it is told otherwise.
        connection.exec_driver_sql(f"START TRANSACTION {'READ ONLY' if told[0] else 'READ WRITE'}")
