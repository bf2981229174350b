"""One request's units of work: what its routes and dependencies get, and how it ends when the response begins."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.util import greenlet_spawn

from transact._core.events import ChangesDiscarded
from transact._core.propagation import check_compatible
from transact._core.states import State, first_cause
from transact._sqlalchemy.connection import GuardedConnection
from transact._sqlalchemy.faces import Spawn, end, pause
from transact._sqlalchemy.limits import limits_of, shorten
from transact._sqlalchemy.manual import shield_commits
from transact._sqlalchemy.runtime import Runtime
from transact._sqlalchemy.unit import Unit
from transact.errors import TransactionEnded, UsageError
from transact.options import Isolation, Options, Retry

if TYPE_CHECKING:
    from starlette.requests import HTTPConnection

    from transact.fastapi.database import Installable

_NOT_ASKED = Options()
SCOPE_KEY = "transact.requests"
# At the higher levels a transaction is one snapshot, and to end it would be to read another one.
_READS_MAY_PAUSE = frozenset({None, Isolation.READ_UNCOMMITTED, Isolation.READ_COMMITTED})


def request_label(scope: Mapping[str, Any]) -> str:
    """The request's method and its route's path, with parameters by name: few different labels, and no values."""
    # Newer FastAPI leaves an included route without its prefixes in "route", and the whole path there; it is not documented,
    # and a label without prefixes is all that is lost if it goes.
    included = (scope.get("fastapi") or {}).get("effective_route_context")
    path = getattr(included, "path", None) or getattr(scope.get("route"), "path", None) or "(no route)"
    return one_line(f"{scope.get('method', '')} {scope.get('root_path', '')}{path}".strip())


def one_line(words: str) -> str:
    """``words`` for a log line. What could end the line or steer a terminal is escaped: the client may have sent it."""
    return words if words.isprintable() else repr(words)[1:-1]


class RequestUnits:
    """What one request holds of one database: an automatic unit of work and, if asked for, a reading and a manual one.

    The reading one is that of ``read_only=True``, asked for before anything that may write; after that, it is the automatic
    one. Nothing is opened before it is asked for. ``used`` is set when something is, ``ended`` when the response begins.
    """

    __slots__ = ("_connections", "_label", "_manual", "_reading", "_runtime", "_scope", "automatic", "ended", "used")

    _spawn: Spawn = staticmethod(greenlet_spawn)
    _connection_of: Callable[[Unit], Any] = GuardedConnection

    def __init__(self, runtime: Runtime, scope: Mapping[str, Any]) -> None:
        self._runtime = runtime
        self._scope = scope
        self._manual: Unit | None = None
        self._reading: Unit | None = None
        self._connections: dict[Unit, GuardedConnection] = {}
        # Not the method of this object: a cycle would leave each request to the garbage collector.
        self._label = partial(request_label, scope)
        self.automatic = runtime.new_unit(_NOT_ASKED, self._label, state=State.READY)
        self.used = False
        self.ended = False

    def label(self) -> str:
        """What logs and events call this request."""
        return request_label(self._scope)

    def connection(self, unit: Unit) -> GuardedConnection:
        """The connection of ``unit``'s transaction."""
        found = self._connections.get(unit)
        if found is None:
            found = self._connections[unit] = self._connection_of(unit)
        return found

    async def unit(self, options: Options) -> Unit:
        """The unit of work that ``options`` ask for. Raises ``OptionsConflict`` if it was asked for otherwise before."""
        self._check_not_ended()
        self.used = True
        root = self.automatic.root
        if root.state is not State.READY:
            return _joined(self.automatic, options)
        if options.read_only:
            return self._reading_unit(options)
        root.options = options.or_else(self._runtime.defaults)
        self.automatic.own_limits = self.automatic.limits = limits_of(root.options)  # its time begins now
        if options.label is not None:
            root.rename(options.label)
        root.move_to(State.ACTIVE)
        reading = self._reading
        if reading is not None and not reading.reads_alone and reading.root.options.isolation in _READS_MAY_PAUSE:
            # Requests that hold one connection and wait for another could wait for each other.
            await pause(reading, self._spawn)
        return self.automatic

    def _reading_unit(self, options: Options) -> Unit:
        # Apart from the writing one, or a dependency that only reads would make its route's writes fail.
        if self._reading is not None:
            return _joined(self._reading, options)
        self._reading = self._runtime.new_unit(options.or_else(self._runtime.defaults), options.label or self._label)
        self._reading.beside = self.automatic
        return self._reading

    async def manual_session(self) -> AsyncSession:
        """A session that the route itself begins, commits and rolls back."""
        self._check_not_ended()
        self.used = True
        if self._manual is None:
            isolation = self._runtime.defaults.isolation
            self._manual = self._runtime.new_unit(Options(isolation=isolation), self._label, managed=False)
            shield_commits(self._manual)
        return self._manual.handle

    @property
    def retry(self) -> Retry | None:
        """How this request is tried again. One with a manual session is not: it may have committed something."""
        if self._manual is not None:
            return None
        unit = self.automatic if self.automatic.root.options.retry is not None else self._reading
        return unit.root.options.retry if unit is not None else None

    @property
    def cause(self) -> BaseException | None:
        """The first error that doomed a transaction of this request, whoever handled it since."""
        units = (self.automatic, self._reading)
        return next((c for unit in units if unit is not None and (c := first_cause(unit.root.marks))), None)

    def end(self, error: BaseException | None, *, success: bool) -> Awaitable[None]:
        """End everything: ``error`` or no ``success`` roll back. What it returns raises what makes the response untrue."""
        self.ended = True
        cause = error or (None if success else ROLLED_BACK)
        if self._manual is None and self._reading is None:  # as in most requests, whose way is kept short
            return self._end(self.automatic, cause)
        return self._end_all(cause)

    async def _end_all(self, cause: BaseException | None) -> None:
        failed: BaseException | None = None
        for unit in (self._manual, self._reading, self.automatic):
            if unit is not None:
                try:
                    await self._end(unit, failed or cause)
                except BaseException as first:  # noqa: BLE001  # what comes after must give its connection back all the same
                    failed = failed or first
        if failed is not None:
            raise failed

    @property
    def two_phase(self) -> bool:
        """Whether it can be prepared, and committed with others or not at all."""
        return self._runtime.resolver is not None

    def leave(self) -> None:
        """Everything has ended: give back what the request held beside its units."""

    def _end(self, unit: Unit, cause: BaseException | None) -> Awaitable[None]:
        if unit is self._manual and cause is None:
            cause = ROLLED_BACK
            if unit.has_changes:
                unit.emit(ChangesDiscarded)
        return end(unit, cause, self._spawn)

    def let_go(self) -> None:
        """Leave nothing to the garbage collector: the request is over."""
        for unit in (self._manual, self._reading, self.automatic):
            if unit is not None:
                unit.let_go()

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
                f"a session was asked for after the response of {self.label()!r} had begun; use "
                f"`{self._runtime.enter_by} db.transaction()`"
            )


def _joined(unit: Unit, options: Options) -> Unit:
    """``unit``, which ``options`` are asked of as well. The request is one: whoever asks for a retry asks for all of it."""
    root = unit.root
    check_compatible(options, root.options)
    if options.retry is not None:
        root.options = replace(root.options, retry=options.retry)
    shorten(unit, options)
    return unit


class ResponseVetoed(Exception):  # not an error: the reason of a rollback, never raised
    """Why a transaction was rolled back although no exception left the route: its response says that it failed."""


ROLLED_BACK = ResponseVetoed("the response's status rolls back")


def units_of(connection: HTTPConnection, database: Installable) -> RequestUnits:
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
