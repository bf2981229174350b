"""What the application's pool holds in a test: connections that look like the driver's, and share the one of the test."""

from __future__ import annotations

import asyncio
import functools
import inspect
import re
import threading
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from sqlalchemy.util import await_only

from transact._sqlalchemy.modes import Mode
from transact._testing.cursors import LentCursor, LentDriver
from transact._testing.levels import Call, Level, renamed
from transact._testing.said import in_words_of
from transact._testing.shared import SharedConnection

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection
    from sqlalchemy.pool import PoolProxiedConnection

    from transact._sqlalchemy.runtime import Runtime

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
        self, shared: SharedConnection, runtime: Runtime, *, autocommit: bool, read_only: bool = False
    ) -> None:
        self._shared = shared
        self._portal = shared.portal
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
    def is_async(self) -> bool:
        """Whether it looks like a driver's that is awaited."""
        return self._runtime.is_async

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
            self._wait(call, lambda: self._shared.commit(self, call))

    def rollback(self) -> None:
        """The same."""
        if self.level is not None:
            self._wait(None, lambda: self._shared.rollback(self))

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
        return self._wait(call, lambda: self._shared.execute(self, call, statement, work))

    def intercept(self, statement: str) -> bool:
        """Do what ``statement`` says of transactions; whether it did."""
        if found := _BEGIN.match(statement):
            read_only = "READ ONLY" in found["how"].upper()
            call = self._call()
            self._wait(call, lambda: self._shared.start(self, call, read_only=read_only))
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

    def drive(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a method of the driver: where the driver lives, but for what an async driver answers at once."""
        call = self._call()
        if not self.is_async:
            work = functools.partial(method, *args, **kwargs)
            return self._portal.run(lambda: self._shared.drive(self, call, work))
        result = method(*args, **kwargs)
        if not inspect.isawaitable(result):
            return result
        return self._ask(call, lambda: self._shared.drive(self, call, lambda: result))

    # Who asks, and how it waits.

    def known_by(self, call: Call) -> object:
        """Whose later calls are inside of a transaction that begins here: those of the same task, or thread.

        A worker thread serves one request after the other, and each of them in parts: there, the blocks around tell.
        """
        in_turn = call.around and not self.is_async and call.task is not threading.main_thread()
        return self if in_turn else call.task

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
            task = runtime.whoami()
        except RuntimeError:  # no loop runs here
            task = threading.current_thread()
        return Call(task, frozenset(around), label)

    def _wait(self, call: Call | None, work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        try:
            return await_only(self._ask(call, work)) if self.is_async else self._portal.run(work)
        except Exception as error:
            own = in_words_of(self._runtime.engine.dialect, error)
            if own is error:
                raise
            raise own from error

    async def _ask(self, call: Call | None, work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        try:
            return await self._portal.ask(work)
        except asyncio.CancelledError:
            if call is not None:
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
