"""Engines and pools: which drivers there are, and what each dialect needs at connect and at BEGIN."""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from sqlalchemy import create_engine, event, exc
from sqlalchemy.engine import URL, Connection, ExceptionContext
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry, NullPool
from sqlalchemy.schema import MetaData

from transact._core.limits import Told
from transact._sqlalchemy import mysql, postgresql, sqlite
from transact._sqlalchemy.branching import Branching
from transact._sqlalchemy.holding import note_statements
from transact._sqlalchemy.keys import AUTOCOMMIT, UNIT
from transact._sqlalchemy.limits import is_over
from transact._sqlalchemy.liveness import has_hung_up, notice_hang_ups
from transact._sqlalchemy.modes import modes_of, writing_connection
from transact._sqlalchemy.plain import AnyEngine, plain_engine
from transact._sqlalchemy.pool import TransactPool, drop_if_read_only, pool_class
from transact._sqlalchemy.preparing import PostgresBranching
from transact._sqlalchemy.reading import reading_engine, runs_alone
from transact._sqlalchemy.runtime import Runtime
from transact._sqlalchemy.unit import Unit
from transact._sqlalchemy.verifying import PATIENCE
from transact._sqlalchemy.xa import XaBranching
from transact.errors import ConfigurationError, DatabaseError
from transact.translation import translate


class Driver(NamedTuple):
    """One supported driver: the module that must be installed, and the extra of this package that installs it.

    ``futures``: whether it waits for its server by futures alone. Others have timeouts, which cancel the running task.
    """

    module: str
    extra: str
    futures: bool = False


DRIVERS: Mapping[str, Driver] = {
    "postgresql+asyncpg": Driver("asyncpg", "postgresql", futures=True),
    "postgresql+psycopg": Driver("psycopg", "psycopg"),
    "mysql+asyncmy": Driver("asyncmy", "mysql"),
    "mariadb+asyncmy": Driver("asyncmy", "mysql"),
    "sqlite+aiosqlite": Driver("aiosqlite", "sqlite", futures=True),
}
SYNC_DRIVERS: Mapping[str, Driver] = {
    "postgresql+psycopg": Driver("psycopg", "psycopg"),
    "mysql+pymysql": Driver("pymysql", "mysql-sync"),
    "mariadb+pymysql": Driver("pymysql", "mysql-sync"),
    "sqlite+pysqlite": Driver("sqlite3", "sqlite"),
    "sqlite": Driver("sqlite3", "sqlite"),  # as SQLAlchemy's users write it
}
_INSTEAD = {
    "postgres": "postgresql+asyncpg",
    "postgresql": "postgresql+asyncpg",
    "mysql": "mysql+asyncmy",
    "mariadb": "mariadb+asyncmy",
    "sqlite": "sqlite+aiosqlite",
}
_SYNC_INSTEAD = {
    "postgres": "postgresql+psycopg",
    "postgresql": "postgresql+psycopg",
    "mysql": "mysql+pymysql",
    "mariadb": "mariadb+pymysql",
    "sqlite": "sqlite+pysqlite",
}
#: How each server is told of limits.
_TELL: Mapping[str, Callable[[Unit, Connection, Told, Told], None]] = {
    "postgresql": postgresql.tell_limits,
    "mysql": mysql.tell_limits,
    "mariadb": mysql.tell_limits,
    "sqlite": sqlite.tell_limits,
}
#: Which errors have ended the transaction on the server, where any can.
_HAS_ENDED: Mapping[str, Callable[[ExceptionContext, DatabaseError], bool]] = {
    "mysql": mysql.has_ended_transaction,
    "mariadb": mysql.has_ended_transaction,
    "sqlite": sqlite.has_ended_transaction,
}

#: How each prepares what is to be committed with others.
_BRANCHING: Mapping[str, Callable[[], Branching]] = {
    "postgresql": PostgresBranching,
    "mysql": XaBranching,
    "mariadb": XaBranching,
}


def check_driver(url: URL, *, is_async: bool = True) -> None:
    """Raise ``ConfigurationError``, saying what to write or install, unless the URL names a driver that is here."""
    known, other = (DRIVERS, SYNC_DRIVERS) if is_async else (SYNC_DRIVERS, DRIVERS)
    driver = known.get(url.drivername)
    if driver is None:
        kind, face = ("an async driver", "SyncDatabase") if is_async else ("a sync driver", "Database")
        instead = (_INSTEAD if is_async else _SYNC_INSTEAD).get(url.drivername.partition("+")[0])
        hint = f"write {instead}://… instead" if instead else f"the drivers are {', '.join(known)}"
        if url.drivername in other:
            hint += f", or make it a {face}"
        raise ConfigurationError(f"{url.drivername}:// is not {kind} that transact knows; {hint}")
    if importlib.util.find_spec(driver.module) is None:
        raise ConfigurationError(
            f"{url.drivername}:// needs the package {driver.module}, which is not installed; "
            f"run: pip install 'transact[{driver.extra}]'"
        )


def make_engine(
    url: URL,
    runtime: Runtime,
    *,
    pool: Mapping[str, Any],
    metadata: MetaData | None,
    verify_commit: bool,
    options: Mapping[str, Any],
) -> None:
    """Create the engine of a database; no connection is made. Raises ``ConfigurationError`` for options it refuses."""
    arguments: dict[str, Any] = {"hide_parameters": True, **options}
    arguments = _with_pool(url, runtime, pool, arguments)
    if url.get_backend_name() == "sqlite":
        connect = sqlite.connect_arguments(url, patience=pool["pool_timeout"])
        arguments["connect_args"] = {**connect, **arguments.get("connect_args", {})}
    elif url.get_backend_name() in {"mysql", "mariadb"} and "sql_mode" not in url.query:
        arguments["connect_args"] = mysql.connect_arguments(url, arguments.get("connect_args", {}))
    elif url.drivername == "postgresql+asyncpg":
        arguments["connect_args"] = _able_to_write(arguments.get("connect_args", {}))
    try:
        engine = _create(runtime, url, **arguments)
    except (TypeError, exc.ArgumentError) as error:
        raise ConfigurationError(f"engine_options: {error}") from error
    runtime.engine = engine
    runtime.waits_for_futures = runtime.is_async and DRIVERS[url.drivername].futures
    runtime.tell_limits = _TELL[engine.dialect.name]
    if verify_commit and engine.dialect.name == "postgresql":
        runtime.verifier = _verifier(runtime, url, options)
    notice_hang_ups(engine.dialect)
    _translate_errors(engine, runtime, metadata)
    note_statements(engine)
    if isinstance(engine.pool, TransactPool):
        runtime.modes = modes_of(engine, url, arguments.get("connect_args", {}))
    else:
        event.listen(plain_engine(engine), "checkin", _closing_after_close(runtime))
    if runtime.modes is not None:
        runtime.reading_engine = reading_engine(engine)
    if engine.dialect.name == "sqlite":
        patience = float(str(url.query.get("timeout") or arguments["connect_args"]["timeout"]))
        sqlite.prepare_sqlite(engine, runtime, memory=in_memory(url), patience=patience)
        return
    event.listen(plain_engine(engine), "checkout", _replace_if_hung_up)
    if engine.dialect.name in {"mysql", "mariadb"}:
        mysql.prepare_mysql(engine, runtime)
        mysql.keep_strict(engine, options.get("connect_args", {}))


def commit_in_two_phases(url: URL, runtime: Runtime, *, metadata: MetaData | None, options: Mapping[str, Any]) -> None:
    """Let the engine of ``runtime`` end what is prepared. Raises ``ConfigurationError`` if the server is of another kind."""
    branching = _BRANCHING.get(url.get_backend_name())
    if branching is None:
        raise ConfigurationError(
            f"two_phase=True is for PostgreSQL and MariaDB, and the URL says {url.get_backend_name()}: that could not be asked "
            "after a crash whether all databases were prepared"
        )
    runtime.resolver = resolver = _verifier(runtime, url, options)
    _translate_errors(resolver, runtime, metadata)
    runtime.branching = branching()
    runtime.branching.teach(runtime)


def _create(runtime: Runtime, url: URL, **arguments: Any) -> Any:
    return create_async_engine(url, **arguments) if runtime.is_async else create_engine(url, **arguments)


def _able_to_write(connect_args: Mapping[str, Any]) -> dict[str, Any]:
    base = connect_args.get("connection_class") or importlib.import_module("asyncpg").Connection
    return {**connect_args, "connection_class": writing_connection(base)}


def _with_pool(url: URL, runtime: Runtime, pool: Mapping[str, Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """``arguments`` with our pool in it, unless they bring one."""
    if "poolclass" in arguments or "pool" in arguments:
        if runtime.max_waiting is not None:
            raise ConfigurationError("max_waiting= is of transact's pool, and engine_options bring another one")
        return dict(arguments)
    made = {"poolclass": pool_class(runtime), **pool, **arguments}
    if in_memory(url):
        # Each connection to :memory: is a database of its own, so there must be exactly one.
        made.update(pool_size=1, max_overflow=0)
    if made["pool_size"] > 0 and made["max_overflow"] >= 0:
        runtime.capacity = made["pool_size"] + made["max_overflow"]
    return made


def _verifier(runtime: Runtime, url: URL, options: Mapping[str, Any]) -> Any:
    """Makes a new connection for each question; the pool's may be as lost as the one whose COMMIT is in doubt."""
    kept = {name: value for name, value in options.items() if not name.startswith("pool")}
    kept |= {"poolclass": NullPool, "isolation_level": AUTOCOMMIT}
    if not runtime.is_async and "connect_timeout" not in url.query:
        # Nothing else ends the wait of a thread for a server that is not there.
        patience = {"connect_timeout": math.ceil(PATIENCE)}
        kept["connect_args"] = {**patience, **kept.get("connect_args", {})}
    return _create(runtime, url, **{"hide_parameters": True, **kept})


def _closing_after_close(runtime: Runtime) -> Callable[[object, ConnectionPoolEntry], None]:
    """For the application's own pool, what ours does by itself: leave no connection open that nobody would close."""

    def close(_connection: object, record: ConnectionPoolEntry) -> None:
        if runtime.closed:
            record.close()

    return close


def _replace_if_hung_up(connection: Any, record: Any, _fairy: object) -> None:
    # A pre-ping would cost every transaction a round trip.
    if has_hung_up(connection, record.info):
        raise exc.DisconnectionError("the server has closed this connection; the pool makes a new one")


def in_memory(url: URL) -> bool:
    """Whether a SQLite database lives in its one connection."""
    return url.get_backend_name() == "sqlite" and (
        url.database in {None, "", ":memory:"} or ":memory:" in str(url.database) or url.query.get("mode") == "memory"
    )


def _translate_errors(engine: AnyEngine, runtime: Runtime, metadata: MetaData | None) -> None:
    has_ended = _HAS_ENDED.get(engine.dialect.name, _never)

    @event.listens_for(plain_engine(engine), "handle_error", retval=True)
    def translated(context: ExceptionContext) -> BaseException | None:
        if _is_expected(context):
            return None
        connection = context.connection
        unit = None
        if connection is not None:
            # While BEGIN itself is under way, SQLite's connection knows its unit already.
            unit = runtime.units.get(connection) or connection.get_execution_options().get(UNIT)
        error = translate(
            context.original_exception,
            context.dialect.name,
            wrapped=context.sqlalchemy_exception,
            connecting=connection is None,
            disconnected=context.is_disconnect,
            late=is_over(unit) and not (context.is_disconnect and unit is not None and unit.closing),
            metadata=metadata,
        )
        drop_if_read_only(context, error)
        if unit is not None and (error is not None or context.is_disconnect):
            in_one = unit.managed and not runs_alone(unit)
            lost = in_one and error is not None and not context.is_disconnect and has_ended(context, error)
            unit.failed(context, error or context.original_exception, lost=lost)
        return error


def _is_expected(context: ExceptionContext) -> bool:
    """Whether SQLAlchemy asks by a statement that may fail: on MySQL and MariaDB, whether a table is there."""
    execution = context.execution_context
    return execution is not None and bool(execution.execution_options.get("skip_user_error_events"))


def _never(_context: ExceptionContext, _error: DatabaseError) -> bool:
    """PostgreSQL ends a transaction only with its connection."""
    return False
