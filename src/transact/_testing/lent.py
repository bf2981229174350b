"""What the application's pool holds in a test: connections that look like the driver's, and share the one of the test."""

from __future__ import annotations

import asyncio
import inspect
import re
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from typing import TYPE_CHECKING, Any

from sqlalchemy.util import await_only

from transact._sqlalchemy.modes import Mode
from transact._testing.faults import is_control
from transact._testing.shared import Call, Level, SharedConnection, renamed

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection
    from sqlalchemy.pool import PoolProxiedConnection

    from transact._sqlalchemy.runtime import Runtime
    from transact._testing.portal import Portal

_BEGIN = re.compile(r"\s*(?:BEGIN\b(?!\s+NOT\b)|START\s+TRANSACTION\b)(?P<how>.*)", re.IGNORECASE | re.DOTALL)
_END = re.compile(r"\s*(?P<how>COMMIT|END|ROLLBACK)(?:\s+(?:WORK|TRANSACTION))?\s*;?\s*$", re.IGNORECASE)
#: The level of the outer transaction is what it is.
_LEVEL = re.compile(r"\s*SET\s+(?:SESSION\s+|LOCAL\s+)?TRANSACTION\s+ISOLATION\b", re.IGNORECASE)
#: How each engine is told that a connection only reads.
_READ_ONLY = re.compile(
    r"\s*(?:PRAGMA\s+query_only\s*=\s*(?P<a>\w+)"
    r"|SET\s+SESSION\s+(?:CHARACTERISTICS\s+AS\s+)?TRANSACTION\s+READ\s+(?P<b>ONLY|WRITE)"
    r"|SET\s+(?:SESSION\s+)?default_transaction_read_only\s*(?:=|TO)\s*'?(?P<c>\w+))",
    re.IGNORECASE,
)
_STATUS = re.compile(r"pg_xact_status\((.*)\)", re.DOTALL)


class LentConnection:
    """A DBAPI connection in the eyes of SQLAlchemy; its transactions are savepoints of ``shared``.

    ``level``: its open transaction; ``autocommit``: its statements are transactions of their own; ``usual``: whether they are
    if nobody asks, and whether it only reads.
    """

    def __init__(
        self, shared: SharedConnection, portal: Portal, runtime: Runtime, *, autocommit: bool, read_only: bool = False
    ) -> None:
        self._shared = shared
        self._portal = portal
        self._runtime = runtime
        self._connection = LentDriver(self)  # where SQLAlchemy looks for the driver's own
        self.usual = autocommit, read_only
        self.autocommit, self.read_only = self.usual
        self.isolation: str | None = None
        self.level: Level | None = None
        self.closed = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._shared.physical, name)

    @property
    def driver_connection(self) -> Any:
        """The driver's connection, whose methods run in the portal."""
        return self._connection

    # What SQLAlchemy calls.

    def cursor(self, *args: Any, **kwargs: Any) -> LentCursor:
        """A cursor, which is opened with its first statement."""
        return LentCursor(self, args, kwargs)

    def commit(self) -> None:
        """End the transaction as if it were one."""
        if self.level is not None:
            call = self._call()
            await_only(self._ask(call, lambda: self._shared.commit(self, call)))

    def rollback(self) -> None:
        """The same."""
        if self.level is not None:
            await_only(self._portal.ask(lambda: self._shared.rollback(self)))

    def close(self) -> None:
        """Give up the connection. What it has not committed is rolled back."""
        if not self.closed:
            self.closed = True
            self._portal.post(lambda: self._shared.rollback(self))

    terminate = close

    # What the dialect calls, once it is told to: see ``install``.

    def set_isolation(self, level: str | None) -> None:
        """Take note of an isolation level. The outer transaction keeps its own."""
        autocommit, self.read_only = self.usual
        self.autocommit = level == "AUTOCOMMIT" if level is not None else autocommit
        self.isolation = level

    # What the cursors call.

    def run(self, statement: str, work: Callable[[Any], Any]) -> Any:
        """Run ``work(physical)``, which sends ``statement``, in the portal."""
        call = self._call()
        return await_only(self._ask(call, lambda: self._shared.execute(self, call, statement, work)))

    def intercept(self, statement: str) -> bool:
        """Do what ``statement`` says of transactions; whether it did."""
        if found := _BEGIN.match(statement):
            read_only = "READ ONLY" in found["how"].upper()
            call = self._call()
            await_only(self._ask(call, lambda: self._shared.start(self, call, read_only=read_only)))
        elif found := _END.match(statement):
            (self.rollback if found["how"].upper() == "ROLLBACK" else self.commit)()
        elif found := _READ_ONLY.match(statement):
            self.read_only = next(filter(None, found.groups())).upper() in {"ON", "TRUE", "1", "YES", "ONLY"}
        else:
            return _LEVEL.match(statement) is not None
        return True

    def rewritten(self, statement: str) -> str:
        """What has to be sent in place of ``statement``."""
        if statement.startswith(("SAVEPOINT", "RELEASE", "ROLLBACK TO")):
            return renamed(statement, id(self))
        if (
            "pg_xact_status" in statement
        ):  # the outer transaction is in progress; what became of the COMMIT is known here
            said = "committed" if self._shared.commit_was_kept else "aborted"
            return _STATUS.sub(rf"CASE WHEN (\1) IS NULL THEN NULL ELSE '{said}' END", statement)
        return statement

    async def drive(self, awaitable: Any) -> Any:
        """Await what a method of the driver returned where the driver lives."""
        call = self._call()
        return await self._ask(call, lambda: self._shared.drive(self, call, awaitable))

    def _call(self) -> Call:
        runtime = self._runtime
        around: set[object] = set()
        block = runtime.enclosing()
        unit = block._unit if block is not None else None
        label = unit.label if unit is not None else "(db.engine or db.session_factory)"
        while unit is not None:
            connection = unit.connection
            if connection is not None and not connection.closed and not connection.invalidated:
                around.add(connection.connection.dbapi_connection)
            unit = unit.suspended
        try:
            task: object = asyncio.current_task()
        except RuntimeError:
            task = threading.current_thread()
        return Call(task, frozenset(around), label)

    async def _ask(self, call: Call, work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        try:
            return await self._portal.ask(work)
        except asyncio.CancelledError:
            call.abandoned = True
            self._portal.post(self._shared.poke)
            raise


class LentModes:
    """How a lent connection is told who takes it, where the test's own must not be: see ``_sqlalchemy.modes``."""

    def prepare(self, connection: PoolProxiedConnection, mode: Mode) -> None:
        """Let it refuse writes, and stand in autocommit, for a reader."""
        lent: Any = connection.dbapi_connection
        lent.autocommit, lent.read_only = (True, True) if mode is Mode.READS else lent.usual

    def begin(self, connection: Connection) -> None:
        """Let the next statement begin a transaction."""
        lent: Any = connection.connection.dbapi_connection
        lent.autocommit = False


class LentCursor:
    """A DBAPI cursor. Rows are fetched where the driver lives, unless the cursor is the server's."""

    def __init__(self, lent: LentConnection, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._lent = lent
        self._args, self._kwargs = args, kwargs
        self._real: Any = None
        self._rows: deque[Any] = deque()
        self.server_side = bool(args or kwargs.get("server_side") or kwargs.get("name"))
        self.description: Any = None
        self.rowcount = -1
        self.lastrowid: Any = None
        self.arraysize = 1

    def __getattr__(self, name: str) -> Any:
        if self._real is None:
            raise AttributeError(name)
        return getattr(self._real, name)

    def execute(self, operation: Any, parameters: Any = None) -> Any:
        """Send one statement."""
        self._send("execute", operation, parameters)

    def executemany(self, operation: Any, parameters: Any) -> Any:
        """Send one statement for each of several parameters."""
        self._send("executemany", operation, parameters)

    def _send(self, method: str, operation: Any, parameters: Any) -> None:
        text = str(operation)
        if is_control(text) and self._lent.intercept(text):
            return
        sent = self._lent.rewritten(text)

        def work(physical: Any) -> None:
            self._real = cursor = physical.cursor(*self._args, **self._kwargs)
            for name in _TOLD & vars(self).keys():  # what SQLAlchemy has told this cursor of its statement
                setattr(cursor, name, vars(self)[name])
            getattr(cursor, method)(*((sent,) if parameters is None else (sent, parameters)))
            self.description, self.rowcount = cursor.description, cursor.rowcount
            if not self.server_side:
                self._rows = deque(cursor.fetchall()) if cursor.description else deque()
                self.lastrowid = getattr(cursor, "lastrowid", None)
                cursor.close()

        self._lent.run(text, work)

    def close(self) -> None:
        """Close what is open."""
        self._rows.clear()
        real = self._real
        if self.server_side and real is not None:
            self._real = None
            self._lent.run("SET", lambda _: real.close())

    async def _async_soft_close(self) -> None:
        """Nothing: the driver's cursor is closed already."""

    def fetchone(self) -> Any:
        """The next row."""
        if self.server_side:
            return self._fetch("fetchone")
        return self._rows.popleft() if self._rows else None

    def fetchmany(self, size: int | None = None) -> Any:
        """The next rows."""
        size = self.arraysize if size is None else size
        if self.server_side:
            return self._fetch("fetchmany", size)
        return [self._rows.popleft() for _ in range(min(size, len(self._rows)))]

    def fetchall(self) -> Any:
        """All that are left."""
        if self.server_side:
            return self._fetch("fetchall")
        rows = list(self._rows)
        self._rows.clear()
        return rows

    def __iter__(self) -> Iterator[Any]:
        while (row := self.fetchone()) is not None:
            yield row

    def _fetch(self, method: str, *args: Any) -> Any:
        return self._lent.run("FETCH", lambda _: getattr(self._real, method)(*args))


_TOLD = frozenset({"_invalidate_schema_cache_asof"})


class LentDriver:
    """The driver's connection, whose coroutines run in the portal's loop, where it lives."""

    def __init__(self, lent: LentConnection) -> None:
        self._lent = lent

    def __getattr__(self, name: str) -> Any:
        if name in _NOT_SHARED and self._lent._shared.engine.dialect.name == "sqlite":
            return _nothing
        value = getattr(self._lent._shared.physical._connection, name)
        if not callable(value):
            return value

        def call(*args: Any, **kwargs: Any) -> Any:
            result = value(*args, **kwargs)
            return self._lent.drive(result) if inspect.isawaitable(result) else result

        return call


#: What tidies up after a connection that is thrown away, and would end the test's.
_NOT_SHARED = frozenset({"interrupt", "rollback", "commit", "close"})


async def _nothing(*_: object, **__: object) -> None:
    """What is done for the one lent connection at a time by ``LentConnection.close``."""
