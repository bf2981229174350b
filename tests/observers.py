"""A second pair of eyes: synchronous connections that look at a test's database from outside."""

import re
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import psycopg
import pymysql
from sqlalchemy.engine import URL, make_url

CONNECT_SECONDS = 5


class Observer(Protocol):
    """A second, synchronous connection to a test's database: it sees what is committed, and nothing else."""

    def rows(self, sql: str, *params: object) -> list[tuple[Any, ...]]:
        """Run a query whose placeholders are `?` on every engine."""
        ...

    def scalar(self, sql: str, *params: object) -> Any:
        """Return the first value of the first row."""
        ...

    def execute(self, sql: str, *params: object) -> None:
        """Run a statement; it is committed at once."""
        ...

    def idle_in_transaction(self) -> int:
        """Count the other sessions of this database that are inside a transaction and run no statement."""
        ...


class _Looker:
    """What the observers share: a DB-API connection that commits by itself."""

    idle_query = ""

    def __init__(self, connection: Any, *, placeholder: str) -> None:
        self.connection = connection
        self._placeholder = placeholder

    def rows(self, sql: str, *params: object) -> list[tuple[Any, ...]]:
        cursor = self.connection.cursor()
        try:
            self._run(cursor, sql, params)
            return [tuple(row) for row in cursor.fetchall()]
        finally:
            cursor.close()

    def scalar(self, sql: str, *params: object) -> Any:
        return self.rows(sql, *params)[0][0]

    def execute(self, sql: str, *params: object) -> None:
        cursor = self.connection.cursor()
        try:
            self._run(cursor, sql, params)
        finally:
            cursor.close()

    def idle_in_transaction(self) -> int:
        return int(self.scalar(self.idle_query))

    def close(self) -> None:
        self.connection.close()

    def _run(self, cursor: Any, sql: str, params: Sequence[object]) -> None:
        if not params:
            cursor.execute(sql)
            return
        if self._placeholder != "?":
            sql = sql.replace("%", "%%").replace("?", self._placeholder)
        cursor.execute(sql, params)


class PostgresObserver(_Looker):
    idle_query = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        " AND pid <> pg_backend_pid() AND state LIKE 'idle in transaction%'"
    )

    def __init__(self, url: URL) -> None:
        super().__init__(psycopg_connection(url), placeholder="%s")


class MariadbObserver(_Looker):
    def __init__(self, url: URL) -> None:
        super().__init__(pymysql_connection(url), placeholder="%s")

    def idle_in_transaction(self) -> int:
        """Leaves out transactions that have touched no table yet: InnoDB does not know them.

        INNODB_TRX would be easier to read, but is a copy that is up to 0.1 s old.
        """
        [(_, _, status)] = self.rows("SHOW ENGINE INNODB STATUS")
        active = re.findall(r"---TRANSACTION \d+, ACTIVE(?:(?!---TRANSACTION)[\s\S])*? thread id (\d+)", status)
        idle = self.rows("SELECT id FROM information_schema.processlist WHERE db = database() AND command = 'Sleep'")
        return len({int(session) for session in active} & {session for (session,) in idle})


class SqliteObserver(_Looker):
    def __init__(self, url: URL) -> None:
        super().__init__(sqlite3.connect(str(url.database), isolation_level=None, timeout=5), placeholder="?")

    def idle_in_transaction(self) -> int:
        """Return 1 if somebody holds the write lock (SQLite lists no sessions), else 0."""
        usual = self.scalar("PRAGMA busy_timeout")
        self.execute("PRAGMA busy_timeout = 0")
        try:
            self.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise
            return 1
        else:
            self.execute("ROLLBACK")
            return 0
        finally:
            self.execute(f"PRAGMA busy_timeout = {usual}")


_OBSERVERS: dict[str, Callable[[URL], PostgresObserver | MariadbObserver | SqliteObserver]] = {
    "postgresql": PostgresObserver,
    "mysql": MariadbObserver,
    "mariadb": MariadbObserver,
    "sqlite": SqliteObserver,
}


@contextmanager
def observe(url: str) -> Iterator[Observer]:
    """Open an observer of the database of a SQLAlchemy URL, for the length of the block."""
    parsed = make_url(url)
    observer = _OBSERVERS[parsed.get_backend_name()](parsed)
    try:
        yield observer
    finally:
        observer.close()


def psycopg_connection(url: URL) -> psycopg.Connection:
    """Connect to PostgreSQL, committing by itself."""
    plain = url.set(drivername="postgresql").render_as_string(hide_password=False)
    return psycopg.connect(plain, autocommit=True, connect_timeout=CONNECT_SECONDS)


def pymysql_connection(url: URL) -> "pymysql.Connection[pymysql.cursors.Cursor]":
    return pymysql.connect(
        host=url.host or "127.0.0.1",
        port=url.port or 3306,
        user=url.username or "root",
        password=url.password or "",
        database=url.database or None,
        autocommit=True,
        connect_timeout=CONNECT_SECONDS,
    )
