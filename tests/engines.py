"""The database engines that the tests run on: how each is found, and emptied between tests."""

import getpass
import os
import sqlite3
import uuid
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import psycopg
import pymysql
from sqlalchemy.engine import URL, make_url

from scripts._postgres import PostgresError, embedded_postgres
from tests.observers import Observer, observe, psycopg_connection, pymysql_connection

__all__ = ["BY_ID", "ENGINES", "Engine", "EngineMissingError", "Engines", "Observer", "chosen", "observe"]


class EngineMissingError(Exception):
    """An engine cannot be used on this machine; the message says why."""


class Server(Protocol):
    """Where tests get their databases from. What has to be undone goes on the stack."""

    def start(self, stack: ExitStack) -> str:
        """Make the database that the tests share; return the server's name and version."""
        ...

    def empty_database(self, folder: Path) -> URL:
        """Return the URL of the database that the tests share, without any table."""
        ...

    def another_database(self, folder: Path, stack: ExitStack) -> URL:
        """Return the URL of a new database, which no other test empties."""
        ...


class SqliteServer:
    def start(self, stack: ExitStack) -> str:
        return f"sqlite {sqlite3.sqlite_version}"

    def empty_database(self, folder: Path) -> URL:
        return URL.create("sqlite", database=str(folder / "test.db"))

    def another_database(self, folder: Path, stack: ExitStack) -> URL:
        return URL.create("sqlite", database=str(folder / f"{_random_name()}.db"))


class PostgresServer:
    """Databases on a PostgreSQL server, under random names."""

    def __init__(self, place: str, address: Callable[[ExitStack], str]) -> None:
        self._place = place
        self._address = address
        self._admin = self._url = URL.create("postgresql")

    def start(self, stack: ExitStack) -> str:
        self._admin = make_url(self._address(stack))
        try:
            connection = psycopg_connection(self._admin)
        except psycopg.OperationalError as error:
            raise EngineMissingError(_reached(self._admin, error)) from None
        with connection:
            version = connection.info.server_version
        self._url = self.another_database(Path(), stack)
        return f"PostgreSQL {version // 10000}.{version % 10000} {self._place}"

    def another_database(self, folder: Path, stack: ExitStack) -> URL:
        name = _random_name()
        with psycopg_connection(self._admin) as connection:
            connection.execute(f'CREATE DATABASE "{name}"')
        url = self._admin.set(database=name)
        stack.callback(self._drop, url)
        return url

    def empty_database(self, folder: Path) -> URL:
        self._empty(self._url)
        return self._url

    @staticmethod
    def _empty(url: URL) -> None:
        with psycopg_connection(url) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            prepared = connection.execute("SELECT gid FROM pg_prepared_xacts WHERE database = current_database()")
            for (gid,) in prepared.fetchall():
                connection.execute(psycopg.sql.SQL("ROLLBACK PREPARED {}").format(psycopg.sql.Literal(gid)))
            connection.execute("DROP SCHEMA IF EXISTS public CASCADE")
            connection.execute("CREATE SCHEMA public")

    def _drop(self, url: URL) -> None:
        self._empty(url)  # a prepared transaction would block the drop
        with psycopg_connection(self._admin) as connection:
            connection.execute(f'DROP DATABASE IF EXISTS "{url.database}" WITH (FORCE)')


class MariadbServer:
    """Databases on a MariaDB or MySQL server, under random names."""

    def __init__(self, address: str) -> None:
        self._admin = make_url(address)
        self._url = self._admin

    def start(self, stack: ExitStack) -> str:
        try:
            connection = pymysql_connection(self._admin)
        except pymysql.err.OperationalError as error:
            raise EngineMissingError(_reached(self._admin, error)) from None
        with connection:
            version = connection.get_server_info()  # type: ignore[no-untyped-call]  # its stubs say nothing
        self._url = self.another_database(Path(), stack)
        number, _, rest = version.removeprefix("5.5.5-").partition("-")
        return f"{'MariaDB' if 'MariaDB' in rest else 'MySQL'} {number}"

    def another_database(self, folder: Path, stack: ExitStack) -> URL:
        name = _random_name()
        with pymysql_connection(self._admin) as connection, connection.cursor() as cursor:
            cursor.execute(f"CREATE DATABASE `{name}` CHARACTER SET utf8mb4")
        stack.callback(self._drop, name)
        return self._admin.set(database=name)

    def empty_database(self, folder: Path) -> URL:
        with pymysql_connection(self._url) as connection, connection.cursor() as cursor:
            cursor.execute(
                "SELECT id FROM information_schema.processlist WHERE db = database() AND id <> connection_id()"
            )
            for (session,) in cursor.fetchall():
                self._kill(cursor, session)
            cursor.execute("SET foreign_key_checks = 0")
            cursor.execute(
                "SELECT table_name, table_type FROM information_schema.tables WHERE table_schema = database()"
            )
            for name, kind in cursor.fetchall():
                cursor.execute(f"DROP {'VIEW' if kind == 'VIEW' else 'TABLE'} `{name}`")
        return self._url

    @staticmethod
    def _kill(cursor: Any, session: int) -> None:
        try:
            cursor.execute(f"KILL {session}")
        except pymysql.err.OperationalError as error:
            if error.args[0] != pymysql.constants.ER.NO_SUCH_THREAD:  # it may have left meanwhile
                raise

    def _drop(self, name: str) -> None:
        with pymysql_connection(self._admin) as connection, connection.cursor() as cursor:
            # What an interrupted test has left open would keep the drop waiting.
            cursor.execute("SELECT id FROM information_schema.processlist WHERE db = %s", (name,))
            for (session,) in cursor.fetchall():
                self._kill(cursor, session)
            cursor.execute(f"DROP DATABASE IF EXISTS `{name}`")


@dataclass(frozen=True)
class Engine:
    """A server and the driver that the application reaches it with; `id` names it in a test's parameters."""

    id: str
    family: str
    server: str
    driver: str


ENGINES = (
    Engine("sqlite", "sqlite", "sqlite", "sqlite+aiosqlite"),
    Engine("pg18-asyncpg", "postgresql", "postgresql-embedded", "postgresql+asyncpg"),
    Engine("pg18-psycopg", "postgresql", "postgresql-embedded", "postgresql+psycopg"),
    Engine("pg15-asyncpg", "postgresql", "postgresql-machine", "postgresql+asyncpg"),
    Engine("mariadb", "mariadb", "mariadb-machine", "mysql+asyncmy"),
)
BY_ID = {engine.id: engine for engine in ENGINES}


def chosen(names: Sequence[str]) -> list[str]:
    """Return the ids of the engines named by id or family; of all if none is named."""
    unknown = set(names) - BY_ID.keys() - {engine.family for engine in ENGINES}
    if unknown:
        raise ValueError(
            f"no such engine: {', '.join(sorted(unknown))}; there are {', '.join(BY_ID)} and their families"
        )
    if not names:
        return list(BY_ID)
    return [engine.id for engine in ENGINES if engine.id in names or engine.family in names]


@dataclass
class Engines:
    """The servers of one test run: each is started when a test first asks for it, and cleared up at the end."""

    stack: ExitStack = field(default_factory=ExitStack)
    versions: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    drivers: dict[str, set[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.servers: dict[str, Server] = {
            "sqlite": SqliteServer(),
            "postgresql-embedded": PostgresServer("embedded", _start_embedded),
            "postgresql-machine": PostgresServer("machine", _machine_postgresql),
            "mariadb-machine": MariadbServer(_address("TRANSACT_TEST_MARIADB", "mysql", "root", 3306, "")),
        }

    def empty_database(self, engine: Engine, folder: Path) -> str:
        """Return the asynchronous SQLAlchemy URL of an empty database; raises EngineMissingError."""
        return self._async_url(engine, self._started(engine).empty_database(folder))

    def another_database(self, engine: Engine, folder: Path, stack: ExitStack) -> str:
        """Return the same of a database that no other test uses, dropped when the stack closes."""
        return self._async_url(engine, self._started(engine).another_database(folder, stack))

    def _started(self, engine: Engine) -> Server:
        name = engine.server
        if name in self.missing:
            raise EngineMissingError(self.missing[name])
        if name not in self.versions:
            try:
                self.versions[name] = self.servers[name].start(self.stack)
            except EngineMissingError as error:
                self.missing[name] = str(error)
                raise
        return self.servers[name]

    def _async_url(self, engine: Engine, url: URL) -> str:
        self.drivers.setdefault(engine.server, set()).add(engine.driver.partition("+")[2])
        return url.set(drivername=engine.driver).render_as_string(hide_password=False)

    def seen(self) -> dict[str, dict[str, Any]]:
        """What this process has found, in a form that travels to another one."""
        return {
            "versions": self.versions,
            "missing": self.missing,
            "drivers": {server: sorted(drivers) for server, drivers in self.drivers.items()},
        }

    def add(self, seen: dict[str, dict[str, Any]]) -> None:
        """Count what another process has found as well."""
        self.versions |= seen.get("versions", {})
        self.missing |= seen.get("missing", {})
        for server, drivers in seen.get("drivers", {}).items():
            self.drivers.setdefault(server, set()).update(drivers)

    def summary(self) -> str:
        """Return the line that says which engines the tests really ran on."""
        ran = [
            f"{self.versions[name]} ({', '.join(sorted(self.drivers[name]))})"
            for name in self.servers
            if name in self.drivers
        ]
        rest = [
            f"{name} ({self.missing.get(name, 'no test asked for it')})"
            for name in self.servers
            if name not in self.drivers
        ]
        return f"engines: {', '.join(ran) or 'none'}" + (f"; not run: {', '.join(rest)}" if rest else "")


def _start_embedded(stack: ExitStack) -> str:
    try:
        return stack.enter_context(embedded_postgres(fsync=False))
    except PostgresError as error:
        raise EngineMissingError(str(error)) from None


def _machine_postgresql(_: ExitStack) -> str:
    return _address("TRANSACT_TEST_POSTGRESQL", "postgresql", getpass.getuser(), 5432, "postgres")


def _address(variable: str, scheme: str, user: str, port: int, database: str) -> str:
    return os.environ.get(variable) or f"{scheme}://{user}@127.0.0.1:{port}/{database}"


def _random_name() -> str:
    return f"transact_test_{uuid.uuid4().hex[:12]}"


def _reached(url: URL, error: Exception) -> str:
    text = str(error.args[-1]).strip().splitlines()[0]
    return f"nothing usable at {url.host}:{url.port}: {text}"
