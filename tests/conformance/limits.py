"""What the tests of time limits share: what takes long on each server, and what each says of its limits."""

import asyncio
from typing import Any

from sqlalchemy import TextClause, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from tests.engines import Observer

SHORT = 0.4
"""A timeout that runs out, in seconds; long enough for the statements before that on a machine with much to do."""
HURRY = 0.2
"""A timeout that a wait in Python outlasts."""
BEYOND = 0.25
"""Such a wait."""
AMPLE = 60.0
"""A timeout that does not run out."""

_COUNT = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000000000) "
READS = {
    "postgresql": text("SELECT pg_sleep(20)"),
    "mysql": text("SELECT sleep(20)"),
    "sqlite": text(f"{_COUNT} SELECT count(*) FROM n"),
}
WRITES = {
    "postgresql": text("INSERT INTO words (text) SELECT 'slow' FROM pg_sleep(20)"),
    "mysql": text("INSERT INTO words (text) SELECT 'slow' FROM (SELECT sleep(20)) AS slept"),
    "sqlite": text(f"INSERT INTO words (text) {_COUNT} SELECT 'slow ' || count(*) FROM n"),
}
ENDED = {"57014", 1969, 9}
"""How a server says that it has ended a statement: query_canceled, ER_STATEMENT_TIMEOUT, SQLITE_INTERRUPT."""

_RUNNING = {
    "postgresql": "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
    " AND pid <> pg_backend_pid() AND state = 'active' AND backend_type = 'client backend'",
    "mysql": "SELECT count(*) FROM information_schema.processlist WHERE db = database()"
    " AND id <> connection_id() AND command <> 'Sleep'",
}
_ASK = {
    "postgresql": "SELECT name, setting FROM pg_settings WHERE name IN ('statement_timeout', 'lock_timeout',"
    " 'transaction_timeout', 'idle_in_transaction_session_timeout')",
    "mysql": "SELECT variable_name, variable_value FROM information_schema.session_variables WHERE variable_name IN"
    " ('max_statement_time', 'innodb_lock_wait_timeout', 'lock_wait_timeout')",
    "sqlite": "SELECT 'busy_timeout', timeout FROM pragma_busy_timeout",
}


def slow(runs: AsyncConnection | AsyncSession, statements: dict[str, TextClause] = READS) -> TextClause:
    """A statement that takes longer than any timeout here."""
    return statements[_dialect(runs)]


def still_running(observer: Observer, url: str) -> int:
    """How many statements run on the server; SQLite's would hold its connection, and with it the one that asks."""
    query = _RUNNING.get(make_url(url).get_backend_name())
    return observer.scalar(query) if query else 0


async def nothing_runs(observer: Observer, url: str) -> None:
    """Wait until the server runs no statement: it takes a moment to say so after it has told the client."""
    async with asyncio.timeout(5):  # far less than the statement would take
        while still_running(observer, url):
            await asyncio.sleep(0.01)


async def limits_told(runs: AsyncConnection | AsyncSession) -> dict[str, float]:
    """What the server enforces on this connection now: milliseconds, on MariaDB seconds."""
    rows = await runs.execute(text(_ASK[_dialect(runs)]))
    return {name.lower(): float(value) for name, value in rows}


def own_limits(url: str) -> dict[str, Any]:
    """Arguments of a database whose connections come with limits of their own."""
    own = {"statement_timeout": "41000", "lock_timeout": "42000", "idle_in_transaction_session_timeout": "43000"}
    arguments = {
        "sqlite+aiosqlite": {"timeout": 44.0},
        "postgresql+asyncpg": {"server_settings": own},
        "postgresql+psycopg": {"options": " ".join(f"-c {name}={value}" for name, value in own.items())},
        "mysql+asyncmy": {
            "init_command": "SET max_statement_time = 45, innodb_lock_wait_timeout = 46, lock_wait_timeout = 47"
        },
    }
    return {"engine_options": {"connect_args": arguments[make_url(url).drivername]}}


def count_statements(engine: Any) -> list[str]:
    """The statements that are sent from now on."""
    sent: list[str] = []

    @event.listens_for(engine.sync_engine, "before_cursor_execute")
    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        sent.append(statement)

    return sent


def _dialect(runs: AsyncConnection | AsyncSession) -> str:
    return runs.get_bind().dialect.name if isinstance(runs, AsyncSession) else runs.dialect.name
