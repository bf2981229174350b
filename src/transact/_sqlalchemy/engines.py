"""Engines and pools: which drivers there are, and what each dialect needs at connect and at BEGIN."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from sqlalchemy import event, exc
from sqlalchemy.engine import URL, Connection, ExceptionContext
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool, PoolProxiedConnection
from sqlalchemy.schema import MetaData

from transact._core.events import WaitedForConnection
from transact._sqlalchemy.runtime import READ_ONLY, Runtime
from transact._sqlalchemy.sqlite import prepare_sqlite
from transact.errors import ConfigurationError, PoolTimeout
from transact.translation import translate


class Driver(NamedTuple):
    """One supported driver: the module that must be installed, and the extra of this package that installs it."""

    module: str
    extra: str


DRIVERS: Mapping[str, Driver] = {
    "postgresql+asyncpg": Driver("asyncpg", "postgresql"),
    "postgresql+psycopg": Driver("psycopg", "psycopg"),
    "mysql+asyncmy": Driver("asyncmy", "mysql"),
    "mariadb+asyncmy": Driver("asyncmy", "mysql"),
    "sqlite+aiosqlite": Driver("aiosqlite", "sqlite"),
}
_INSTEAD = {
    "postgres": "postgresql+asyncpg",
    "postgresql": "postgresql+asyncpg",
    "mysql": "mysql+asyncmy",
    "mariadb": "mariadb+asyncmy",
    "sqlite": "sqlite+aiosqlite",
}


class PoolTimedOut(PoolTimeout, exc.TimeoutError):
    """``PoolTimeout`` as SQLAlchemy's users know it."""


# Tracebacks and logs show the name that the program can import and catch.
PoolTimedOut.__name__ = PoolTimedOut.__qualname__ = "PoolTimeout"
PoolTimedOut.__module__ = PoolTimeout.__module__


def check_driver(url: URL) -> None:
    """Raise ``ConfigurationError``, saying what to write or install, unless the URL names a driver that is here."""
    driver = DRIVERS.get(url.drivername)
    if driver is None:
        instead = _INSTEAD.get(url.drivername.partition("+")[0])
        hint = f"write {instead}://… instead" if instead else f"the drivers are {', '.join(DRIVERS)}"
        raise ConfigurationError(f"{url.drivername}:// is not an async driver that transact knows; {hint}")
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
    options: Mapping[str, Any],
) -> AsyncEngine:
    """Create the engine of a database; no connection is made. Raises ``ConfigurationError`` for options it refuses."""
    arguments: dict[str, Any] = {"hide_parameters": True, **options}
    if "poolclass" not in arguments and "pool" not in arguments:
        arguments = {"poolclass": _pool_class(runtime), **pool, **arguments}
        if _in_memory(url):
            # Each connection to :memory: is a database of its own, so there must be exactly one.
            arguments.update(pool_size=1, max_overflow=0)
        if arguments["pool_size"] > 0 and arguments["max_overflow"] >= 0:
            runtime.capacity = arguments["pool_size"] + arguments["max_overflow"]
    if url.get_backend_name() == "sqlite" and "timeout" not in url.query:
        # To wait for SQLite's one write lock is to wait for a turn, as for a connection. Its own 5 s, served in no order,
        # run out under a load that the pool still bears.
        connect = {"timeout": pool["pool_timeout"], **arguments.get("connect_args", {})}
        arguments["connect_args"] = connect
    try:
        engine = create_async_engine(url, **arguments)
    except (TypeError, exc.ArgumentError) as error:
        raise ConfigurationError(f"engine_options: {error}") from error
    runtime.engine = engine
    _translate_errors(engine, runtime, metadata)
    if engine.dialect.name == "sqlite":
        patience = float(str(url.query.get("timeout") or arguments["connect_args"]["timeout"]))
        prepare_sqlite(engine, memory=_in_memory(url), patience=patience)
    elif engine.dialect.name in {"mysql", "mariadb"}:
        event.listen(engine.sync_engine, "begin", _begin_mysql)
    return engine


def _in_memory(url: URL) -> bool:
    return url.get_backend_name() == "sqlite" and (
        url.database in {None, "", ":memory:"} or ":memory:" in str(url.database) or url.query.get("mode") == "memory"
    )


def _translate_errors(engine: AsyncEngine, runtime: Runtime, metadata: MetaData | None) -> None:
    @event.listens_for(engine.sync_engine, "handle_error", retval=True)
    def translated(context: ExceptionContext) -> BaseException | None:
        error = translate(
            context.original_exception,
            context.dialect.name,
            wrapped=context.sqlalchemy_exception,
            connecting=context.connection is None,
            disconnected=context.is_disconnect,
            metadata=metadata,
        )
        unit = runtime.units.get(context.connection) if context.connection is not None else None
        if unit is not None and (error is not None or context.is_disconnect):
            unit.failed(context, error or context.original_exception)
        return error


def _pool_class(runtime: Runtime) -> type[AsyncAdaptedQueuePool]:
    class TransactPool(AsyncAdaptedQueuePool):
        """A queue pool whose failures to give a connection are errors of this library."""

        def connect(self) -> PoolProxiedConnection:
            # Like SQLAlchemy's own pool log: only a wait is worth a word.
            full = self.checkedin() == 0 and self.overflow() >= self._max_overflow
            started = time.perf_counter() if full else 0.0
            try:
                connection = super().connect()
            except exc.TimeoutError as error:
                _report_wait(runtime, started, served=False)
                raise PoolTimedOut(
                    f"no connection became free within {self.timeout():g} s (pool_size {self.size()}); the transactions "
                    "that hold them are too long or too many"
                ) from error
            except TypeError as error:
                # An argument of the URL or of connect_args that this driver does not have.
                raise ConfigurationError(
                    f"{runtime.engine.dialect.driver} cannot connect like this: {error}"
                ) from error
            except Exception as error:
                if isinstance(error, self._dialect_errors()):
                    raise  # SQLAlchemy wraps this one itself, and then asks for its translation
                failure = translate(error, runtime.engine.dialect.name, connecting=True)
                if failure is None:
                    raise
                raise failure from error
            if full:
                _report_wait(runtime, started, served=True)
            return connection

        @staticmethod
        def _dialect_errors() -> type[Exception]:
            errors: type[Exception] = runtime.engine.dialect.loaded_dbapi.Error
            return errors

    return TransactPool


def _report_wait(runtime: Runtime, started: float, *, served: bool) -> None:
    if runtime.listeners:
        seconds = time.perf_counter() - started if started else 0.0
        runtime.emit(WaitedForConnection(runtime.name, "pool", seconds, served))


def _begin_mysql(connection: Connection) -> None:
    if connection.get_execution_options().get(READ_ONLY):
        connection.exec_driver_sql("START TRANSACTION READ ONLY")
