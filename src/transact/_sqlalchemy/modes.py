"""What a connection of the pool is told about the transactions to come, for whoever takes it.

A note, since it shapes all of this: **read-only for good.** A connection that a reader has used once is told, for all of its
life, that its transactions are read-only, and stands in autocommit: a read is then one round trip, with nothing before it
and nothing after it. Whoever writes on it in a transaction says so in BEGIN, which has to be sent anyway. Only who writes
without a transaction, or uses the driver's connection directly, has it put back first, at the cost of a round trip.
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Coroutine, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from sqlalchemy.engine import URL, Connection

from transact._sqlalchemy.keys import READ_ONLY
from transact._sqlalchemy.plain import AnyEngine

if TYPE_CHECKING:
    from sqlalchemy.pool import PoolProxiedConnection

TOLD = "transact_told"
"""Set in the ``info`` of a connection that reads for good: what it came with."""


class Mode(enum.Enum):
    """Who takes a connection from the pool."""

    PLAIN = enum.auto()
    """Somebody who may do anything: the connection is as it was made."""
    BEGINS = enum.auto()
    """Somebody who writes in transactions alone, begun by SQLAlchemy."""
    READS = enum.auto()
    """A reader, whose statements run in autocommit."""


class Modes(Protocol):
    """How one engine's connections are told."""

    def prepare(self, connection: PoolProxiedConnection, mode: Mode) -> None:
        """Make ``connection``, which was just taken, fit for ``mode``."""
        ...

    def begin(self, connection: Connection) -> None:
        """Begin a read-only transaction on a connection in ``Mode.READS``."""
        ...


class PostgresModes:
    """For PostgreSQL: BEGIN READ WRITE on a session whose default is READ ONLY."""

    def prepare(self, connection: PoolProxiedConnection, mode: Mode) -> None:
        """See ``Modes``."""
        info = connection.info
        told = info.get(TOLD)
        driver: Any = connection.dbapi_connection
        if mode is Mode.READS:
            self._stand_in_autocommit(driver)
            if told is None:
                # A standby refuses READ WRITE, and needs to be told nothing.
                own = (
                    "CASE WHEN pg_is_in_recovery() THEN 'on' ELSE current_setting('default_transaction_read_only') END"
                )
                info[TOLD] = _ask(driver, f"SELECT {own}, set_config('default_transaction_read_only', 'on', false)")[0]
        elif told is not None and not (mode is Mode.BEGINS and self._will_begin(driver, writing=told == "off")):
            self._stand_in_autocommit(driver)
            _ask(driver, f"SELECT set_config('default_transaction_read_only', '{told}', false)")
            del info[TOLD]
            self._will_begin(driver, writing=False)

    def begin(self, connection: Connection) -> None:
        """See ``Modes``."""
        self._will_begin(connection.connection.dbapi_connection, writing=False)

    def _stand_in_autocommit(self, driver: Any) -> None:
        if not driver.autocommit:
            driver.autocommit = True

    def _will_begin(self, driver: Any, *, writing: bool) -> bool:
        """Let the next statement begin a transaction; return whether it can say that it is ``writing``."""
        raise NotImplementedError


class AsyncpgModes(PostgresModes):
    """asyncpg has no word for READ WRITE; our class of connections adds it."""

    def _will_begin(self, driver: Any, *, writing: bool) -> bool:
        connection = driver.driver_connection
        if not hasattr(connection, "writes"):  # the application makes its connections itself
            return not writing and _leave_autocommit(driver)
        connection.writes = writing
        return _leave_autocommit(driver)


@functools.cache
def writing_connection(base: type[Any]) -> type[Any]:
    """A subclass of ``base``, asyncpg's class of connections or the application's, for ``asyncpg.connect()``.

    While its ``writes`` is set, its transactions that do not ask to be READ ONLY are begun READ WRITE: asyncpg itself leaves
    that to the session's default, which is READ ONLY on a connection that readers have used. While ``ends_as`` is set, its
    COMMIT and ROLLBACK are those of what is prepared under this name.
    """

    class WritingConnection(base):  # type: ignore[misc]  # whatever class the application uses
        writes = False
        ends_as: str | None = None

        def execute(self, query: str, *args: Any, **kwargs: Any) -> Coroutine[Any, Any, str]:
            if self.ends_as is not None and (end := query.rstrip("; ")) in {"COMMIT", "ROLLBACK"}:
                query = f"{end} PREPARED '{self.ends_as}'"
                self.ends_as = None
            elif self.writes and query.startswith("BEGIN") and "READ ONLY" not in query:
                query = query.replace("BEGIN", "BEGIN READ WRITE", 1)
            found: Coroutine[Any, Any, str] = super().execute(query, *args, **kwargs)
            return found

    return WritingConnection


class PsycopgModes(PostgresModes):
    """psycopg adds READ WRITE to BEGIN where it is told so."""

    def _will_begin(self, driver: Any, *, writing: bool) -> bool:
        _leave_autocommit(driver)
        wanted = False if writing else None
        if driver.read_only is not wanted:
            driver.set_read_only(wanted)
        return True


def _leave_autocommit(driver: Any) -> bool:
    if driver.autocommit:
        driver.autocommit = False
    return True


class MysqlModes:
    """For MySQL and MariaDB: the server's own autocommit, and START TRANSACTION READ WRITE."""

    # MySQL has renamed the variable in 8.0, MariaDB adds the new name in 11.1 and means to remove the old one
    # (https://dev.mysql.com/worklog/task/?id=9636, https://mariadb.com/docs/reference/mdb/system-variables/tx_read_only/).
    # This statement is known to all of them, and so is the one that sets it.
    _read_only = "SHOW SESSION VARIABLES WHERE Variable_name IN ('transaction_read_only', 'tx_read_only')"

    def prepare(self, connection: PoolProxiedConnection, mode: Mode) -> None:
        """See ``Modes``."""
        info = connection.info
        driver: Any = connection.dbapi_connection
        if mode is Mode.READS:
            if TOLD not in info:
                _, read_only = _ask(driver, self._read_only)
                self._set(driver, read_only=True)
                info[TOLD] = read_only == "ON", driver.get_autocommit()
            driver.autocommit(True)  # sends nothing if it is so
        elif mode is Mode.PLAIN and TOLD in info:
            read_only, autocommit = info[TOLD]
            self._set(driver, read_only=read_only)
            # asyncmy believes what the server says of autocommit, except after a statement that switches it off.
            driver.autocommit(autocommit)
            del info[TOLD]

    def _set(self, driver: Any, *, read_only: bool) -> None:
        _ask(driver, f"SET SESSION TRANSACTION READ {'ONLY' if read_only else 'WRITE'}")

    def begin(self, connection: Connection) -> None:
        """See ``Modes``."""
        connection.exec_driver_sql("START TRANSACTION READ ONLY")


class SqliteModes:
    """For SQLite: ``PRAGMA query_only``, which BEGIN changes as it needs it."""

    def prepare(self, connection: PoolProxiedConnection, mode: Mode) -> None:
        """See ``Modes``."""
        read_only = mode is Mode.READS
        if mode is not Mode.BEGINS and connection.info.get(READ_ONLY, False) is not read_only:
            _ask(connection.dbapi_connection, f"PRAGMA query_only = {'ON' if read_only else 'OFF'}")
            connection.info[READ_ONLY] = read_only

    def begin(self, connection: Connection) -> None:
        """See ``Modes``."""
        connection.exec_driver_sql("BEGIN")


def modes_of(engine: AnyEngine, url: URL, connect_args: Mapping[str, Any]) -> Modes | None:
    """How the connections of ``engine`` are told; ``None`` where the next statement may run in another session."""
    match engine.dialect.driver:
        case "asyncpg" if not _is_behind_pooler({**url.query, **connect_args}):
            return AsyncpgModes()
        case "psycopg" if connect_args.get("prepare_threshold", 5) is not None:
            return PsycopgModes()
        case "asyncmy" | "pymysql":
            return MysqlModes()
        case "aiosqlite" | "pysqlite":
            return SqliteModes()
    return None


def _is_behind_pooler(arguments: Mapping[str, Any]) -> bool:
    """Whether the driver is told not to keep statements: as it has to be where a pooler stands before the server."""
    sizes = (arguments.get("statement_cache_size"), arguments.get("prepared_statement_cache_size"))
    return any(size is not None and str(size) == "0" for size in sizes)


def _ask(driver: Any, statement: str) -> Any:
    """Send ``statement`` on the driver's connection; return its row, if it has one."""
    cursor = driver.cursor()
    try:
        cursor.execute(statement)
        return cursor.fetchone() if cursor.description else None
    finally:
        cursor.close()
