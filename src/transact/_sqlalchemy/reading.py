"""Reads without BEGIN: each statement in autocommit, on a connection that is taken for it and given back after it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from sqlalchemy.engine import Connection, CursorResult, Engine, NestedTransaction, RootTransaction

from transact._sqlalchemy.keys import READ_ONLY, STATEMENTS
from transact._sqlalchemy.modes import Mode
from transact._sqlalchemy.plain import AnyEngine, plain_engine
from transact.errors import ReadOnlyViolation
from transact.options import Isolation, Options

if TYPE_CHECKING:
    from transact._sqlalchemy.pool import TransactPool
    from transact._sqlalchemy.runtime import Runtime
    from transact._sqlalchemy.unit import Unit

# At the higher levels a transaction is one snapshot, and two statements without one would be two.
_LEVELS = frozenset({None, Isolation.READ_UNCOMMITTED, Isolation.READ_COMMITTED})


def reads_by_statement(runtime: Runtime, options: Options) -> bool:
    """Whether a unit of work with ``options`` needs no transaction.

    Limits need one: they are told to the server for one transaction, so that nothing of them is left for the next.
    """
    return (
        bool(options.read_only)
        and options.isolation in _LEVELS
        and options.timeout is None
        and options.lock_timeout is None
        and runtime.modes is not None
    )


def reading_engine(engine: AnyEngine) -> Any:
    """The engine whose connections stand in autocommit and are held read-only by the server."""
    made = engine.execution_options(**{READ_ONLY: True, STATEMENTS: True})
    sync_engine = plain_engine(made)

    def raw_connection() -> Any:
        # dispose() gives the engine another pool.
        return cast("TransactPool", sync_engine.pool).take(Mode.READS)

    sync_engine.raw_connection = raw_connection  # type: ignore[method-assign]  # an engine of our own
    return made


def has_events(engine: Engine) -> bool | None:
    """For ``Connection``: ``False`` where nobody listens to ``engine``, so that it need not get ready for that."""
    return None if engine._has_events or Connection._has_events else False


def runs_alone(unit: Unit) -> bool:
    """Whether the statement that runs now, if one does, is a transaction of its own."""
    return unit.reads_alone and (unit.reader is None or not unit.reader.holds)


def _give_back(unit: Unit, connection: Connection) -> None:
    unit.connection = None
    unit.runtime.units.pop(connection, None)


def run_alone(unit: Unit, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call ``function`` with a connection that is taken for this one statement.

    What it returns can be read when the connection is gone: the drivers have fetched the rows by then.
    """
    writer = unit.beside
    if writer is not None and writer.connection is not None and writer.root.is_open:
        return _run_beside(writer, unit, function, *args, **kwargs)
    runtime = unit.runtime
    # Without the transaction that SQLAlchemy would keep in its own books, and of which the server hears nothing.
    engine = plain_engine(runtime.reading_engine)
    connection = Connection(engine, _has_events=has_events(engine), _allow_autobegin=False)
    unit.began(connection)
    try:
        return function(connection, *args, **kwargs)
    finally:
        _give_back(unit, connection)
        connection.close()


def _run_beside(writer: Unit, unit: Unit, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The same in the transaction of the request's other unit of work, which has begun.

    Requests that hold a connection and wait for another could all wait for each other.
    """
    if writer.writes("execute", args[0]):  # the server would let it
        raise ReadOnlyViolation(f"{unit.label!r} asked for this session with read_only=True, and wrote with it")
    outermost = writer.enter("execute", args[0])
    try:
        return function(writer.connection, *args, **kwargs)
    finally:
        if outermost:
            writer.leave()


def streams(statement: Any, _parameters: Any = None, execution_options: Any = None) -> bool:
    """Whether the rows are to be fetched as they are asked for, by a cursor that needs its connection."""
    options = {**getattr(statement, "get_execution_options", dict)(), **(execution_options or {})}
    return bool(options.get("stream_results") or options.get("yield_per"))


_ABSENT = object()  # in place of a connection, or ``Connection`` would take one from the pool


class Reader(Connection):
    """The connection that a session of a reading unit is bound to: in truth one of its own for each statement.

    What needs more than a statement, such as a server-side cursor, a savepoint or the driver's connection, makes it
    **hold** one connection, in a real read-only transaction, until that is over.
    """

    def __init__(self, unit: Unit) -> None:
        self._unit = unit
        self._open_results: list[CursorResult[Any]] = []
        self._kept = False
        engine = plain_engine(unit.runtime.reading_engine)
        super().__init__(engine, cast("Any", _ABSENT), _has_events=has_events(engine))
        self._dbapi_connection = None  # as of a connection that was invalidated: SQLAlchemy may get another

    @property
    def holds(self) -> bool:
        """Whether it has a connection now."""
        return self._dbapi_connection is not None

    def hold(self) -> None:
        """Take a connection, keep it, and begin a read-only transaction on it."""
        if self.holds:
            return
        _ = super().connection
        try:
            super().begin()
            modes = self._unit.runtime.modes
            assert modes is not None  # noqa: S101  # or there were no such unit
            modes.begin(self)
            self._unit.began(self)
            self._kept = self._unit.limits is not None
        except BaseException:
            self.let_go()
            raise

    def let_go(self) -> None:
        """End the transaction and give the connection back."""
        results, self._open_results, self._kept = self._open_results, [], False
        if not self.holds:
            return
        try:
            for result in results:  # or the rows that nobody has read would stand before the answer to ROLLBACK
                result.close()
            self.rollback()
            if not self.invalidated:
                super().connection.close()
                self.invalidate()
        finally:
            _give_back(self._unit, self)

    def let_go_if_idle(self) -> None:
        """Give the connection back unless something still needs it."""
        if not self.holds:
            return
        self._open_results = [result for result in self._open_results if not result.closed and not result._soft_closed]
        if not (self._open_results or self._kept or self.in_nested_transaction()):
            self.let_go()

    # What runs statements.

    def execute(self, statement: Any, parameters: Any = None, *, execution_options: Any = None) -> Any:
        """Execute a statement on a connection of its own, or on the one that is held."""
        if streams(statement, execution_options=execution_options):
            self.hold()
        result = self._run(Connection.execute, statement, parameters, execution_options=execution_options)
        if self.holds and result.context._is_server_side:
            self._open_results.append(result)
        return result

    def scalar(self, statement: Any, parameters: Any = None, *, execution_options: Any = None) -> Any:
        """The same; return the first column of the first row."""
        return self._run(Connection.scalar, statement, parameters, execution_options=execution_options)

    def scalars(self, statement: Any, parameters: Any = None, *, execution_options: Any = None) -> Any:
        """The same; return the first column of each row."""
        return self.execute(statement, parameters, execution_options=execution_options).scalars()

    def exec_driver_sql(self, statement: str, parameters: Any = None, execution_options: Any = None) -> Any:
        """Execute a string in the driver's own style of parameters."""
        return self._run(Connection.exec_driver_sql, statement, parameters, execution_options)

    def _run(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._unit.limits is not None:
            self.hold()
        if self.holds or self.closed:
            return function(self, *args, **kwargs)
        return run_alone(self._unit, self._with_options(function), *args, **kwargs)

    def _with_options(self, function: Callable[..., Any]) -> Callable[..., Any]:
        options = self.get_execution_options()
        if options is self.engine.get_execution_options():
            return function
        return lambda connection, *args, **kwargs: function(connection.execution_options(**options), *args, **kwargs)

    # What asks for more than a statement.

    @property
    def connection(self) -> Any:
        """The pool's own connection object; it is kept from now on."""
        if not self.holds:  # SQLAlchemy itself asks for it only then
            self.hold()
            self._kept = True
        return super().connection

    def begin(self) -> RootTransaction:
        """Return what a session ends in place of a transaction; nothing is begun unless a connection is held."""
        if self.holds or self.closed:
            return super().begin()
        return cast("RootTransaction", _NoTransaction(self))

    def begin_nested(self) -> NestedTransaction:
        """Set a savepoint, for which a transaction is needed."""
        self.hold()
        return super().begin_nested()


class _NoTransaction:
    """What a session takes for the transaction that it has begun."""

    is_active = is_valid = True

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    def end(self) -> None:
        """Give back what is held, if anything is."""
        self._reader.let_go()

    commit = rollback = close = end
