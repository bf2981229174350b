"""One request's units of work: what its routes and dependencies get, and how it ends when the response begins."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sqlalchemy.ext.asyncio import AsyncSession

from transact._core.events import ChangesDiscarded
from transact._core.propagation import check_compatible
from transact._core.states import State
from transact._sqlalchemy.connection import GuardedConnection
from transact._sqlalchemy.faces import end, pause
from transact._sqlalchemy.runtime import Runtime
from transact._sqlalchemy.unit import Unit
from transact.errors import TransactionEnded, UsageError
from transact.options import Isolation, Options

if TYPE_CHECKING:
    from starlette.requests import HTTPConnection

    from transact.fastapi.database import Database

SCOPE_KEY = "transact.requests"
# At the higher levels a transaction is one snapshot, and to end it would be to read another one.
_READS_MAY_PAUSE = frozenset({None, Isolation.READ_UNCOMMITTED, Isolation.READ_COMMITTED})


def request_label(scope: Mapping[str, Any]) -> str:
    """The request's method and its route's path, with parameters by name: few different labels, and no values."""
    # Newer FastAPI leaves an included route without its prefixes in "route", and the whole path there; it is not documented,
    # and a label without prefixes is all that is lost if it goes.
    included = (scope.get("fastapi") or {}).get("effective_route_context")
    path = getattr(included, "path", None) or getattr(scope.get("route"), "path", None) or "(no route)"
    return f"{scope.get('method', '')} {scope.get('root_path', '')}{path}".strip()


class RequestUnits:
    """What one request holds of one database: an automatic unit of work and, if asked for, a reading and a manual one.

    The reading one is that of ``read_only=True``, asked for before anything that may write; after that, it is the automatic
    one. Nothing is opened before it is asked for. ``ended`` is set when the response begins.
    """

    __slots__ = ("_connections", "_manual", "_reading", "_runtime", "_scope", "automatic", "ended")

    def __init__(self, runtime: Runtime, scope: Mapping[str, Any]) -> None:
        self._runtime = runtime
        self._scope = scope
        self._manual: Unit | None = None
        self._reading: Unit | None = None
        self._connections: dict[Unit, GuardedConnection] = {}
        self.automatic = Unit(runtime, Options(), self.label, state=State.READY)
        self.ended = False

    def label(self) -> str:
        """What logs and events call this request."""
        return request_label(self._scope)

    async def session(self, options: Options) -> AsyncSession:
        """The session of the automatic unit of work. Raises ``OptionsConflict`` if it was asked for otherwise before."""
        return (await self._unit(options)).handle

    async def connection(self, options: Options) -> GuardedConnection:
        """The same transaction's connection."""
        unit = await self._unit(options)
        found = self._connections.get(unit)
        if found is None:
            found = self._connections[unit] = GuardedConnection(unit)
        return found

    async def _unit(self, options: Options) -> Unit:
        self._check_not_ended()
        root = self.automatic.root
        if root.state is not State.READY:
            check_compatible(options, root.options)
            return self.automatic
        if options.read_only:
            return self._reading_unit(options)
        root.options = options
        if options.label is not None:
            root.rename(options.label)
        root.move_to(State.ACTIVE)
        if self._reading is not None and self._reading.root.options.isolation in _READS_MAY_PAUSE:
            # Requests that hold one connection and wait for another could wait for each other.
            await pause(self._reading)
        return self.automatic

    def _reading_unit(self, options: Options) -> Unit:
        # Apart from the writing one, or a dependency that only reads would make its route's writes fail.
        if self._reading is None:
            self._reading = Unit(self._runtime, options, options.label or self.label)
        else:
            check_compatible(options, self._reading.root.options)
        return self._reading

    def manual_session(self, options: Options) -> AsyncSession:
        """A session that the route itself begins, commits and rolls back."""
        self._check_not_ended()
        if self._manual is None:
            self._manual = Unit(self._runtime, options, self.label, managed=False)
        return self._manual.handle

    async def end(self, error: BaseException | None, *, success: bool) -> None:
        """End everything: ``error`` or no ``success`` roll back. Raises what makes the response untrue."""
        self.ended = True
        cause = error or (None if success else _ROLLED_BACK)
        failed: BaseException | None = None
        for unit in (self._manual, self._reading, self.automatic):
            if unit is not None:
                try:
                    await self._end(unit, failed or cause)
                except BaseException as first:  # noqa: BLE001  # what comes after must give its connection back all the same
                    failed = failed or first
        if failed is not None:
            raise failed

    async def _end(self, unit: Unit, cause: BaseException | None) -> None:
        if unit.root.state is State.READY:
            unit.root.move_to(State.ROLLED_BACK)
        elif unit is not self._manual:
            await end(unit, cause)
        else:
            if cause is None and unit.has_changes:
                unit.emit(ChangesDiscarded)
            await end(unit, cause or _ROLLED_BACK)

    def hint(self, error: BaseException) -> str | None:
        """What to add to the log line of a response that could not be built from an object not yet flushed."""
        session = self.automatic.session
        if type(error).__name__ == "ResponseValidationError" and session is not None and session.new:
            return (
                f"{self.label()}: the route returned while its session held objects that were not flushed, so they had no "
                "id and no defaults yet; `await session.flush()` before returning them"
            )
        return None

    def _check_not_ended(self) -> None:
        if self.ended:
            raise TransactionEnded(
                f"a session was asked for after the response of {self.label()!r} had begun; use `async with db.transaction()`"
            )


class ResponseVetoed(Exception):  # not an error: the reason of a rollback, never raised
    """Why a transaction was rolled back although no exception left the route: its response says that it failed."""


_ROLLED_BACK = ResponseVetoed("the response's status rolls back")


def units_of(connection: HTTPConnection, database: Database) -> RequestUnits:
    """Find the running request's units. Raises ``UsageError`` for a websocket or where ``install`` was forgotten."""
    if connection.scope["type"] == "websocket":
        raise UsageError(
            "a websocket has no request whose end could commit: open a transaction per message with "
            "`async with db.transaction() as session`"
        )
    units: RequestUnits | None = connection.scope.get(SCOPE_KEY, {}).get(database)
    if units is None:
        raise UsageError(
            f"the session of database {database.name!r} was asked for in an application that it is not installed in, so nobody "
            "would commit it; call db.install(app) once, after making the application"
        )
    return units
