"""What the application's lent connections hand out: cursors, and the driver's connection."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from transact._sqlalchemy.plain import driver_connection
from transact._testing.faults import is_control

if TYPE_CHECKING:
    from transact._testing.lent import LentConnection


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
    """The driver's connection, whose methods run in the portal, where it lives."""

    def __init__(self, lent: LentConnection) -> None:
        self._lent = lent

    def __getattr__(self, name: str) -> Any:
        if not self._lent.is_async and name in {"commit", "rollback", "close"}:
            return getattr(self._lent, name)
        if name in _NOT_SHARED and self._lent._shared.engine.dialect.name == "sqlite":
            return _nothing if self._lent.is_async else _nothing_now
        value = getattr(driver_connection(self._lent._shared.physical), name)
        return functools.partial(self._lent.drive, value) if callable(value) else value


#: What tidies up after a connection that is thrown away, and would end the test's.
_NOT_SHARED = frozenset({"interrupt", "rollback", "commit", "close"})


async def _nothing(*_: object, **__: object) -> None:
    """What is done for the one lent connection at a time by ``LentConnection.close``."""


def _nothing_now(*_: object, **__: object) -> None:
    """The same for a driver that is not awaited."""
