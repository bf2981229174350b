"""The guarded connection: SQL without the ORM, in the same transaction as the session beside it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, NoReturn

from sqlalchemy.engine import Connection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncResult, AsyncScalarResult
from sqlalchemy.util import greenlet_spawn

from transact._sqlalchemy.plain import plain_engine
from transact._sqlalchemy.reading import Reader, run_alone, streams
from transact._sqlalchemy.unit import Unit
from transact.errors import UsageError


class _Guard:
    """What lets each call through to the connection of a unit of work, or not."""

    __slots__ = ()

    if TYPE_CHECKING:
        _unit: Unit

    def _show(self, connection: Connection) -> None:
        """``connection`` is the one that will be used."""

    def _call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        # A session's connection() sends the BEGIN that is due, and refuses what must be refused.
        unit = self._unit
        if unit.reads_alone:
            return self._read(function, *args, **kwargs)
        connection = unit.plain.connection()
        outermost = unit.enter("connection", args[0] if args else None)
        self._show(connection)
        try:
            return function(connection, *args, **kwargs)
        finally:
            if outermost:
                unit.leave()

    def _read(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        # No session is needed, nor anything in place of a connection, for a statement that stands for itself.
        unit = self._unit
        outermost = unit.enter("connection", args[0] if args else None)
        try:
            if function in _ALONE and unit.reader is None and unit.limits is None and not streams(*args, **kwargs):
                return run_alone(unit, function, *args, **kwargs)
            if unit.reader is None:
                unit.reader = Reader(unit)
            self._show(unit.reader)
            return function(unit.reader, *args, **kwargs)
        finally:
            if outermost:
                unit.leave()

    def _refuse(self, *_args: object, **_kwargs: object) -> NoReturn:
        raise UsageError(
            f"the connection belongs to the managed transaction {self._unit.label!r}, which its block or request ends: it "
            "cannot be begun, committed, rolled back or closed here. Use db.savepoint() for a part"
        )


class GuardedConnection(_Guard, AsyncConnection):
    """An ``AsyncConnection`` that is taken from the pool with its first statement and belongs to a unit of work.

    Each call goes through the unit's session, so it is guarded like the session's own uses: ``TransactionEnded``,
    ``ConcurrentUse``, ``UnexpectedRollback``. ``begin``, ``commit``, ``rollback``, ``close`` and their like raise
    ``UsageError``: the block or the request ends the transaction.
    """

    __slots__ = ("_unit",)

    def __init__(self, unit: Unit) -> None:
        super().__init__(unit.runtime.engine_for(unit.root.options))
        self._unit = unit

    def _show(self, connection: Connection) -> None:
        self.sync_connection = connection

    async def _run(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return await greenlet_spawn(self._call, function, *args, **kwargs)

    async def execute(self, *args: Any, **kwargs: Any) -> Any:
        """Execute a statement and return its buffered result."""
        return await self._run(_buffered, *args, **kwargs)

    async def exec_driver_sql(self, *args: Any, **kwargs: Any) -> Any:
        """Execute a string in the driver's own style of parameters."""
        return await self._run(_exec_driver_sql, *args, **kwargs)

    async def scalar(self, *args: Any, **kwargs: Any) -> Any:
        """Execute a statement and return the first column of its first row."""
        return await self._run(_scalar, *args, **kwargs)

    async def scalars(self, *args: Any, **kwargs: Any) -> Any:
        """Execute a statement and return the first column of each row."""
        return (await self.execute(*args, **kwargs)).scalars()

    def stream(self, *args: Any, **kwargs: Any) -> Any:
        """Execute with a server-side cursor: ``await`` it or ``async with`` it for an ``AsyncResult``."""
        return _Stream(self, args, kwargs, scalars=False)

    def stream_scalars(self, *args: Any, **kwargs: Any) -> Any:
        """The same for the first column of each row."""
        return _Stream(self, args, kwargs, scalars=True)

    async def run_sync(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call ``fn(connection, …)`` with the plain connection, as ``MetaData.create_all`` wants it."""
        return await self._run(fn, *args, **kwargs)

    async def execution_options(self, **options: Any) -> Any:
        """Set options for the statements that follow in this transaction."""
        await self._run(_execution_options, **options)
        return self

    async def get_raw_connection(self) -> Any:
        """The pool's own connection object."""
        return await self._run(lambda connection: connection.connection)

    _refuse: Any = _Guard._refuse
    start = begin = begin_nested = commit = rollback = close = aclose = invalidate = _refuse


class SyncGuardedConnection(_Guard, Connection):
    """The same for threads: a ``Connection`` that is taken from the pool with its first statement.

    It is in truth another one's: what ``Connection`` has is asked of the unit's connection, by way of the unit's guard.
    """

    def __init__(self, unit: Unit) -> None:  # and nothing of Connection's own, which would take a connection
        self._unit = unit
        self.engine = plain_engine(unit.runtime.engine_for(unit.root.options))
        self.dialect = self.engine.dialect

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._call(getattr, name)

    def execute(self, *args: Any, **kwargs: Any) -> Any:
        """Execute a statement and return its result."""
        return self._call(_execute, *args, **kwargs)

    def exec_driver_sql(self, *args: Any, **kwargs: Any) -> Any:
        """Execute a string in the driver's own style of parameters."""
        return self._call(_exec_driver_sql, *args, **kwargs)

    def scalar(self, *args: Any, **kwargs: Any) -> Any:
        """Execute a statement and return the first column of its first row."""
        return self._call(_scalar, *args, **kwargs)

    def scalars(self, *args: Any, **kwargs: Any) -> Any:
        """Execute a statement and return the first column of each row."""
        return self.execute(*args, **kwargs).scalars()

    def execution_options(self, **options: Any) -> Any:
        """Set options for the statements that follow in this transaction."""
        self._call(_execution_options, **options)
        return self


_REFUSED = (
    "__enter__", "__exit__", "begin", "begin_nested", "begin_twophase", "close", "commit", "detach", "invalidate", "rollback",
)  # fmt: skip


def _let_through(cls: type[Connection]) -> None:
    def property_of(name: str) -> property:
        return property(lambda self: self._call(getattr, name))

    def method(name: str) -> Callable[..., Any]:
        return lambda self, *args, **kwargs: self._call(lambda connection: getattr(connection, name)(*args, **kwargs))

    for name in _REFUSED:
        setattr(cls, name, _Guard._refuse)
    for name, value in vars(Connection).items():
        if name in vars(cls) or name.startswith("__"):
            continue
        if isinstance(value, property):
            setattr(cls, name, property_of(name))
        elif inspect.isfunction(value):
            setattr(cls, name, method(name))


_let_through(SyncGuardedConnection)


class _Stream:
    """What ``stream()`` returns: to be awaited, or entered so that the cursor is closed at the end of the block."""

    def __init__(self, connection: GuardedConnection, args: Any, kwargs: dict[str, Any], *, scalars: bool) -> None:
        self._connection = connection
        self._args = args
        options = {**(kwargs.pop("execution_options", None) or {}), "stream_results": True}
        self._kwargs = {**kwargs, "execution_options": options}
        self._scalars = scalars
        self._result: AsyncResult[Any] | AsyncScalarResult[Any] | None = None

    async def _start(self) -> AsyncResult[Any] | AsyncScalarResult[Any]:
        result: AsyncResult[Any] = AsyncResult(await self._connection._run(_execute, *self._args, **self._kwargs))
        self._result = result.scalars() if self._scalars else result
        return self._result

    def __await__(self) -> Generator[Any, None, Any]:
        return self._start().__await__()

    async def __aenter__(self) -> Any:
        return await self._start()

    async def __aexit__(self, *_exc: object) -> None:
        if self._result is not None:
            await self._result.close()


def _buffered(connection: Connection, *args: Any, **kwargs: Any) -> Any:
    # A result with a server-side cursor would have to be fetched outside the greenlet, where nothing can be awaited.
    result = connection.execute(*args, **kwargs)
    if result.context._is_server_side:
        result.close()
        raise UsageError("execute() returns buffered rows; for a server-side cursor use stream()")
    return result


def _execute(connection: Connection, *args: Any, **kwargs: Any) -> Any:
    return connection.execute(*args, **kwargs)


def _scalar(connection: Connection, *args: Any, **kwargs: Any) -> Any:
    return connection.scalar(*args, **kwargs)


def _exec_driver_sql(connection: Connection, *args: Any, **kwargs: Any) -> Any:
    return connection.exec_driver_sql(*args, **kwargs)


def _execution_options(connection: Connection, **options: Any) -> Any:
    return connection.execution_options(**options)


_ALONE = frozenset({_buffered, _execute, _scalar, _exec_driver_sql})
