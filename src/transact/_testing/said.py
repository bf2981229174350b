"""What servers and drivers say when something fails: said again, so that it takes the same way through the drivers."""

from __future__ import annotations

import sqlite3
from typing import Any, NamedTuple

from transact import errors
from transact.errors import UsageError


class Said(NamedTuple):
    """One kind of failure: PostgreSQL's SQLSTATE, MariaDB's number and SQLSTATE, SQLite's extended code, and the words.

    ``{name}`` in the words is the constraint's. ``sqlite`` holds the name of sqlite3's class, too.
    """

    postgresql: str | None
    mysql: tuple[int, str] | None
    sqlite: tuple[str, int] | None
    words: str
    mysql_words: str | None = None
    sqlite_words: str | None = None


SAID: dict[type[errors.DatabaseError], Said] = {
    errors.UniqueViolation: Said(
        "23505", (1062, "23000"), ("IntegrityError", 2067),
        'duplicate key value violates unique constraint "{name}"',
        "Duplicate entry '…' for key '{name}'", "UNIQUE constraint failed: index '{name}'",
    ),
    errors.ForeignKeyViolation: Said(
        "23503", (1452, "23000"), ("IntegrityError", 787),
        'insert or update on table violates foreign key constraint "{name}"',
        "Cannot add or update a child row: a foreign key constraint fails "
        "(`t`.`t`, CONSTRAINT `{name}` FOREIGN KEY (`c`) REFERENCES `t` (`c`))",
        "FOREIGN KEY constraint failed",
    ),
    errors.NotNullViolation: Said(
        "23502", (1048, "23000"), ("IntegrityError", 1299),
        "null value violates not-null constraint", "Column cannot be null", "NOT NULL constraint failed",
    ),
    errors.CheckViolation: Said(
        "23514", (4025, "23000"), ("IntegrityError", 275),
        'new row violates check constraint "{name}"', "CONSTRAINT `{name}` failed", "CHECK constraint failed: {name}",
    ),
    errors.ExclusionViolation: Said(
        "23P01", None, None, 'conflicting key value violates exclusion constraint "{name}"'
    ),
    errors.InvalidData: Said("22001", (1406, "22001"), ("IntegrityError", 20), "value too long"),
    errors.SerializationFailure: Said(
        "40001", (1020, "HY000"), ("OperationalError", 517),
        "could not serialize access due to concurrent update", "Record has changed since last read", "database is locked",
    ),
    errors.DeadlockDetected: Said(
        "40P01", (1213, "40001"), None,
        "deadlock detected", "Deadlock found when trying to get lock; try restarting transaction",
    ),
    errors.LockTimeout: Said(
        "55P03", (1205, "HY000"), ("OperationalError", 5),
        "canceling statement due to lock timeout", "Lock wait timeout exceeded; try restarting transaction",
        "database is locked",
    ),
    errors.StatementTimeout: Said(
        "57014", (1969, "70100"), ("OperationalError", 9),
        "canceling statement due to statement timeout", "Query execution was interrupted (max_statement_time exceeded)",
        "interrupted",
    ),
    errors.ServerShutdown: Said(
        "57P01", (1053, "08S01"), None,
        "terminating connection due to administrator command", "Server shutdown in progress",
    ),
    errors.ReadOnlyViolation: Said(
        "25006", (1792, "25006"), ("OperationalError", 8),
        "cannot execute in a read-only transaction", "Cannot execute statement in a READ ONLY transaction",
        "attempt to write a readonly database",
    ),
    errors.PermissionDenied: Said(
        "42501", (1142, "42000"), ("OperationalError", 23), "permission denied", "command denied to user", "not authorized"
    ),
}  # fmt: skip
#: Kinds after which no server keeps the connection.
HANGS_UP = frozenset({errors.ServerShutdown, errors.ConnectionLost})
LOST = "_transact_lost"
"""The attribute of an error that SQLAlchemy has to take for a lost connection."""


def check_sayable(kind: type[errors.DatabaseError], dialect: Any) -> None:
    """Raise ``UsageError`` unless the engine of ``dialect`` has such an error."""
    if kind is errors.ConnectionLost and dialect.name != "sqlite":
        return
    said = SAID.get(kind)
    if said is None:
        names = sorted(each.__name__ for each in (*SAID, errors.ConnectionLost))
        raise UsageError(f"no fault is known for {kind!r}; take one of transact.errors: {', '.join(names)}")
    if getattr(said, "mysql" if dialect.name == "mariadb" else dialect.name) is None:
        raise UsageError(f"{dialect.name} never says {kind.__name__}; choose what your database can say")


def say(kind: type[errors.DatabaseError], constraint: str | None, dialect: Any, shared: Any) -> None:
    """Raise what the driver raises for ``kind``: the server itself is made to say it, where one is there."""
    if kind is errors.ConnectionLost:
        raise connection_lost(dialect, shared.physical)
    said = SAID[kind]
    try:
        if dialect.name == "postgresql":
            _say_postgresql(said, constraint, shared)
        elif dialect.name == "sqlite":
            _say_sqlite(said, constraint)
        else:
            assert said.mysql is not None  # noqa: S101  # checked before
            number, sqlstate = said.mysql
            words = (said.mysql_words or said.words).format(name=constraint or "a_rule").replace("'", "''")
            shared.send(f"SIGNAL SQLSTATE '{sqlstate}' SET MYSQL_ERRNO = {number}, MESSAGE_TEXT = '{words[:128]}'")
    except Exception as error:
        if kind in HANGS_UP:
            setattr(error, LOST, True)
        raise


def _say_postgresql(said: Said, constraint: str | None, shared: Any) -> None:
    words = said.words.format(name=constraint or "a_rule").replace("'", "''").replace("%", "%%")
    name = "" if constraint is None else ", CONSTRAINT = '" + constraint.replace("'", "''") + "'"
    shared.send(f"DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '{said.postgresql}', MESSAGE = '{words}'{name}; END $$")


def _say_sqlite(said: Said, constraint: str | None) -> None:
    assert said.sqlite is not None  # noqa: S101  # checked before
    raise _sqlite_error(*said.sqlite, (said.sqlite_words or said.words).format(name=constraint or "a_rule"))


def _sqlite_error(name: str, code: int, words: str) -> sqlite3.Error:
    error: sqlite3.Error = getattr(sqlite3, name)(words)
    error.sqlite_errorcode = code
    return error


def broken_foreign_key() -> sqlite3.Error:
    """What SQLite's COMMIT says of a deferred foreign key."""
    return _sqlite_error("IntegrityError", 787, "FOREIGN KEY constraint failed")


def connection_lost(dialect: Any, physical: Any) -> BaseException:
    """What the driver raises when the connection is cut while it waits for an answer."""
    error: BaseException
    if dialect.driver == "asyncpg":
        # The words and the class are those of asyncpg's protocol when the transport is lost; SQLAlchemy makes them its own.
        error = dialect.dbapi.asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation")
        try:
            physical._handle_exception(error)
        except Exception as adapted:  # noqa: BLE001  # that is how it hands it over
            error = adapted
    elif dialect.driver == "psycopg":
        error = dialect.dbapi.OperationalError("consuming input failed: server closed the connection unexpectedly")
    else:
        error = dialect.dbapi.OperationalError(2013, "Lost connection to MySQL server during query")
    setattr(error, LOST, True)
    return error


def in_words_of(dialect: Any, error: Exception) -> Exception:
    """``error`` as the driver of ``dialect`` would have raised it, if another driver of the same server has."""
    own = dialect.loaded_dbapi
    kind = getattr(own, type(error).__name__, None)
    if isinstance(error, own.Error) or not (isinstance(kind, type) and issubclass(kind, own.Error)):
        return error
    said: Exception = kind(*error.args)
    setattr(said, LOST, getattr(error, LOST, False))
    return said
