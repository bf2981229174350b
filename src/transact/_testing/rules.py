"""What the engines do differently inside one outer transaction: its begin, reading only, and what a COMMIT would refuse."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from transact._sqlalchemy.mysql import ENDS_BY_ITSELF
from transact._sqlalchemy.plain import driver_connection
from transact.errors import UsageError
from transact.translation.mysql import ENDS_TRANSACTION

if TYPE_CHECKING:
    from transact._testing.levels import Level

Send = Callable[[str], list[Any]]
"""Sends one statement on the wire and returns its rows."""

_COMMENTS = r"^(?:\s|\(|--[^\n]*\n|/\*.*?\*/)*"
_WRITES = re.compile(
    rf"{_COMMENTS}(?!select\b|show\b|explain\b|values\b|pragma\b|set\b|table\b)", re.IGNORECASE | re.DOTALL
)
_CHANGES = re.compile(
    rf"{_COMMENTS}(?:insert|update|delete|replace|load|call|with\b.*\b(?:insert|update|delete)\b)",
    re.IGNORECASE | re.DOTALL,
)
_CHANGES_SCHEMA = re.compile(
    rf"{_COMMENTS}(?!select\b|insert\b|update\b|delete\b|with\b|set\b|show\b)", re.IGNORECASE | re.DOTALL
)
_LOCAL = re.compile(r"\bset\s+local\s+(?!time\b)([\w.]+)|set_config\(\s*'([\w.]+)'", re.IGNORECASE)


class Rules:
    """The rules of SQLite, and of what the others share."""

    _query_only = False

    guards_autocommit = False
    """Whether a statement that fails outside of a savepoint would spoil the outer transaction."""
    begin = "BEGIN IMMEDIATE"
    """Begins the outer transaction. IMMEDIATE, so that another process that writes is waited for now and not later."""

    def began(self, rows: list[Any]) -> None:
        """Take note of what ``begin`` has answered."""

    def end(self, send: Send) -> None:
        """Before the outer transaction is rolled back."""
        if self._query_only:
            send("PRAGMA query_only = OFF")
            self._query_only = False

    def bound_lock_waits(self, seconds: float, send: Send) -> None:
        """Let no statement wait longer for a lock, where it would wait for ever."""

    def has_ended(self, error: BaseException, physical: Any) -> bool:  # noqa: ARG002
        """Whether the server has rolled back everything with this error."""
        return not driver_connection(physical).in_transaction

    def begins(self, statement: str) -> bool:  # noqa: ARG002
        """Whether a driver begins a transaction for this statement if none is open."""
        return False  # this library says BEGIN for real

    def enter(self, level: Level, send: Send) -> None:
        """After the savepoint of an application's transaction was set."""

    def before(self, statement: str, *, read_only: bool, level: Level | None, send: Send) -> None:
        """Before one statement of the application. Raises what the server would say of it, and this kit cannot."""
        if read_only is not self._query_only:
            send(f"PRAGMA query_only = {'ON' if read_only else 'OFF'}")
            self._query_only = read_only
        if level is not None:
            level.defers |= "defer_foreign_keys" in statement.lower()

    def check(self, level: Level, send: Send) -> None:
        """Raise what COMMIT would raise, while the savepoint is still there."""
        if not level.wrote:
            return
        defers = level.defers or send("SELECT 1 FROM sqlite_master WHERE sql LIKE '%DEFERRED%' LIMIT 1")
        if defers and send("PRAGMA foreign_key_check"):
            raise ForeignKeysBroken

    def released(self, level: Level, send: Send) -> None:
        """After the savepoint was released: what ends with a transaction has to end now."""

    @staticmethod
    def writes(statement: str) -> bool:
        """Whether ``statement`` may write."""
        return _WRITES.match(statement) is not None


class ForeignKeysBroken(Exception):  # it becomes the driver's error
    """SQLite's COMMIT would find a row whose deferred foreign key leads nowhere."""


class PostgresqlRules(Rules):
    """PostgreSQL."""

    guards_autocommit = True
    # The drivers send BEGIN themselves.
    begin = "SELECT EXISTS (SELECT FROM pg_constraint WHERE condeferrable)"
    _defers: bool | None = None

    def began(self, rows: list[Any]) -> None:
        """Take note of what ``begin`` has answered."""
        self._defers = bool(rows[0][0])

    def _may_defer(self, send: Send) -> bool:
        """Whether any constraint may be deferred: most schemas have none, and to look at them costs round trips."""
        if self._defers is None:
            self.began(send(self.begin))
        return bool(self._defers)

    def end(self, send: Send) -> None:
        """Before the outer transaction is rolled back."""

    def bound_lock_waits(self, seconds: float, send: Send) -> None:
        """Let no statement wait longer for a lock, where it would wait for ever."""
        send(f"SET LOCAL lock_timeout = {math.ceil(seconds * 1000)}")

    def has_ended(self, error: BaseException, physical: Any) -> bool:  # noqa: ARG002
        """Whether the server has rolled back everything with this error."""
        return False

    def begins(self, statement: str) -> bool:  # noqa: ARG002
        """Whether a driver begins a transaction for this statement if none is open."""
        return True

    def enter(self, level: Level, send: Send) -> None:
        """After the savepoint of an application's transaction was set."""
        if level.read_only:
            send("SET TRANSACTION READ ONLY")  # ends with the savepoint, released or not

    def before(self, statement: str, *, read_only: bool, level: Level | None, send: Send) -> None:  # noqa: ARG002
        """Before one statement of the application."""
        if _CHANGES_SCHEMA.match(statement):
            self._defers = None
        if level is None or ("local" not in (lowered := statement.lower()) and "set_config" not in lowered):
            return
        for found in _LOCAL.finditer(statement):
            name = (found[1] or found[2]).lower()
            if name not in level.settings:
                level.settings[name] = send(f"SELECT current_setting('{name}', true)")[0][0]

    def check(self, level: Level, send: Send) -> None:
        """Raise what COMMIT would raise, while the savepoint is still there."""
        if level.wrote and not level.read_only and self._may_defer(send):
            send("SET CONSTRAINTS ALL IMMEDIATE")

    def released(self, level: Level, send: Send) -> None:
        """After the savepoint was released: what ends with a transaction has to end now."""
        for name, value in level.settings.items():
            if value is not None or "." in name:
                text = str(value or "").replace("'", "''")
                send(f"SELECT set_config('{name}', '{text}', true)")
        if level.wrote and not level.read_only and self._defers:
            send(_DEFER_AGAIN)


#: SET CONSTRAINTS holds to the end of the transaction, and has no word for what each constraint was declared to be.
_DEFER_AGAIN = """DO $$ DECLARE names text; BEGIN
SELECT string_agg(format('%I.%I', n.nspname, c.conname), ', ') INTO names
FROM pg_constraint c JOIN pg_namespace n ON n.oid = c.connamespace WHERE c.condeferred;
IF names IS NOT NULL THEN EXECUTE 'SET CONSTRAINTS ' || names || ' DEFERRED'; END IF;
END $$"""


class MysqlRules(Rules):
    """MySQL and MariaDB."""

    begin = "START TRANSACTION"

    def end(self, send: Send) -> None:
        """Before the outer transaction is rolled back."""

    def has_ended(self, error: BaseException, physical: Any) -> bool:  # noqa: ARG002
        """Whether the server has rolled back everything with this error."""
        return bool(error.args) and error.args[0] in ENDS_TRANSACTION

    def begins(self, statement: str) -> bool:
        """Whether a driver begins a transaction for this statement if none is open."""
        return not re.match(r"\s*set\b", statement, re.IGNORECASE)

    def before(self, statement: str, *, read_only: bool, level: Level | None, send: Send) -> None:  # noqa: ARG002
        """Before one statement of the application."""
        if ends := ENDS_BY_ITSELF.match(statement):
            raise UsageError(
                f"{ends[0].split()[-1]} inside a test would commit what the test has stored so far: MySQL and MariaDB do so "
                "with each such statement, and nothing could be rolled back at the end. Make tables once, before the tests"
            )
        if read_only and _CHANGES.match(statement):
            # A savepoint cannot be read-only.
            send(
                "SIGNAL SQLSTATE '25006' SET MYSQL_ERRNO = 1792, "
                "MESSAGE_TEXT = 'Cannot execute statement in a READ ONLY transaction'"
            )

    def check(self, level: Level, send: Send) -> None:
        """Nothing: these engines defer no constraint."""


RULES: dict[str, type[Rules]] = {
    "postgresql": PostgresqlRules,
    "mysql": MysqlRules,
    "mariadb": MysqlRules,
    "sqlite": Rules,
}
