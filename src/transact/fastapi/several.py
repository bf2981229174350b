"""Several databases in one application: what a request holds of them is ended together, by the outermost middleware.

An application with one database never comes here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

from starlette.types import Receive, Scope, Send

from transact._core.hooks import Hooks
from transact._core.states import ENDED, State, first_cause
from transact._sqlalchemy.ending import call_hooks, check_commit, needs_preparation, prepare, wants_commit
from transact._sqlalchemy.faces import end
from transact._sqlalchemy.shielding import shielded
from transact._sqlalchemy.together import forget_after_all
from transact._sqlalchemy.unit import Unit
from transact.errors import AfterCommitError, CommitOutcomeUnknown, PartialCommit
from transact.fastapi.middleware import TransactMiddleware, Veto, _Request
from transact.fastapi.requests import ROLLED_BACK, SCOPE_KEY, RequestUnits
from transact.options import Retry

if TYPE_CHECKING:
    from transact.fastapi.database import Installable

_log = logging.getLogger("transact")
_ROUNDS = 100
"""Flushes after which the databases are taken to be prepared, as often as SQLAlchemy's own COMMIT flushes."""


class _Installed(NamedTuple):
    database: Installable
    veto: Veto


_INSTALLED: WeakKeyDictionary[Any, list[_Installed]] = WeakKeyDictionary()
"""Each application's databases, in the order in which they were installed."""


def middleware_for(application: Any, database: Installable, veto: Veto) -> type[TransactMiddleware]:
    """Note that ``database`` is installed in ``application``; return the middleware that it needs there."""
    installed = _INSTALLED.setdefault(application, [])
    installed.append(_Installed(database, veto))
    return TransactMiddleware if len(installed) == 1 else SeveralMiddleware


def _any_veto(together: Sequence[_Installed], status: int, headers: Mapping[str, str]) -> bool:
    return any(each.veto(status, headers) for each in together)


class SeveralMiddleware(TransactMiddleware):
    """The middleware of the second database of an application, and of those after it.

    The outermost, which is the last one's, ends what the request holds of all of them; the others find their databases in
    the scope and pass everything on.
    """

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Run one request. Raises what the application raises, or the error of a COMMIT that no handler takes."""
        if scope["type"] != "http":
            return super().__call__(scope, receive, send)
        held = scope.setdefault(SCOPE_KEY, {})
        installed = _INSTALLED[scope["app"]]
        together = [each for each in installed if each.database not in held]  # an application around may share some
        if not together:
            return self.app(scope, receive, send)
        if scope["app"] is not self._checked:
            for each in installed:
                each.database._check_routes(scope["app"])
            self._checked = scope["app"]
        return _SeveralRequest(together, self, scope, receive, send).run()


class _SeveralRequest(_Request):
    __slots__ = ("_each", "_together")

    def __init__(
        self, together: list[_Installed], middleware: SeveralMiddleware, scope: Scope, receive: Receive, send: Send
    ) -> None:
        self._together = together
        # The one that is asked whether requests are tried again, and that tells its listeners when they are.
        lead = next((each for each in together if each.database._runtime.retries_requests), together[0]).database
        leading = TransactMiddleware(middleware.app, database=lead, veto=partial(_any_veto, together))
        super().__init__(leading, scope, receive, send)

    def _databases(self) -> Iterable[Installable]:
        return [each.database for each in self._together]

    def _new_units(self) -> SeveralUnits:
        held = self._scope[SCOPE_KEY]
        self._each = []
        for database, _ in self._together:
            units = held[database] = database._new_units(self._scope)
            database._runtime.current.set(units.automatic.root)
            self._each.append(units)
        return SeveralUnits(self._each)

    def _used_elsewhere(self) -> bool:
        return any(units.used for units in self._scope[SCOPE_KEY].values() if units not in self._each)


class SeveralUnits:
    """What one request holds of several databases, in the order in which they commit."""

    __slots__ = ("_each", "ended")

    def __init__(self, each: Sequence[RequestUnits]) -> None:
        self._each = each
        self.ended = False

    def label(self) -> str:
        """What logs and events call this request."""
        return self._each[0].label()

    @property
    def retry(self) -> Retry | None:
        """How this request is tried again: as the first database says that says anything, and not beside a manual session."""
        if any(units._manual is not None for units in self._each):
            return None
        return next((units.retry for units in self._each if units.retry is not None), None)

    @property
    def cause(self) -> BaseException | None:
        """The first error that doomed a transaction of this request, whoever handled it since."""
        return next((units.cause for units in self._each if units.cause is not None), None)

    def hint(self, error: BaseException) -> str | None:
        """What to add to the log line of a response that could not be built."""
        return next((hint for units in self._each if (hint := units.hint(error))), None)

    async def end(self, error: BaseException | None, *, success: bool) -> None:
        """End everything: ``error`` or no ``success`` roll back everywhere. Raises what makes the response untrue."""
        self.ended = True
        for units in self._each:
            units.ended = True
        try:
            await self._end(error, success=success)
        finally:
            for units in self._each:
                units.leave()

    async def _end(self, error: BaseException | None, *, success: bool) -> None:
        if error is not None or not success:
            await self._roll_back(error or ROLLED_BACK)
            return
        used = [units for units in self._each if units.automatic.root.is_open]
        try:
            for units in self._each:
                await self._end_beside(units)
            await self._prepare(used)
        except BaseException as failed:
            await self._roll_back(failed)
            raise
        await _Commits(used).run()

    @staticmethod
    async def _end_beside(units: RequestUnits) -> None:
        for unit in (units._manual, units._reading):
            if unit is not None:
                await units._end(unit, None)
        if not units.automatic.root.is_open:  # nobody asked for it
            await units._end(units.automatic, None)

    @staticmethod
    async def _prepare(used: Sequence[RequestUnits]) -> None:
        """All that may still fail without harm, for all databases, before anything is stored in one of them."""
        for _ in range(_ROUNDS):  # a hook of one database may write to another
            waiting = [
                each for each in used if wants_commit(each.automatic, None) and needs_preparation(each.automatic)
            ]
            if not waiting:
                break
            for units in waiting:
                await units._spawn(prepare, units.automatic)
        for units in used:
            await units._spawn(check_commit, units.automatic)

    async def _roll_back(self, cause: BaseException) -> None:
        failed: BaseException | None = None
        for units in self._each:
            for unit in (units._manual, units._reading, units.automatic):
                if unit is None or unit.root.state in ENDED:
                    continue
                try:
                    await units._end(unit, cause)
                except BaseException as first:  # noqa: BLE001  # the others must give their connections back all the same
                    failed = failed or first
        if failed is not None:
            raise failed


class _Commits:
    """The COMMITs of one request, one after the other, and what becomes of the others if one of them fails.

    Nothing runs between two of them that need not: hooks come after the last. A cancellation waits for that too, since it
    would leave one database with its part and the next without.
    """

    def __init__(self, used: Sequence[RequestUnits]) -> None:
        units = self._units = [each.automatic for each in used]
        self._spawns = {each.automatic: each._spawn for each in used}
        self._begun = {unit for unit in units if unit.has_begun}
        self._hooks: dict[Unit, Hooks] = {}
        self._causes: dict[Unit, BaseException] = {}
        self._failed: BaseException | None = None
        self._failed_on = ""
        self._cancelled: BaseException | None = None

    async def run(self) -> None:
        """Raises the error of a COMMIT before which nothing was stored, ``PartialCommit`` or ``AfterCommitError``."""
        for unit in self._units:
            self._hooks[unit], unit.root.hooks = unit.root.hooks, Hooks()
            await self._end(unit, self._failed)
        if not all(unit.root.state is State.COMMITTED for unit in self._units):
            for hooks in self._hooks.values():
                forget_after_all(hooks)
        critical = await self._call_hooks()
        told = self._told()
        if isinstance(told, PartialCommit):
            _log.error("%s", told)  # also if nobody is told: the client has left, or a handler keeps it to itself
        if self._cancelled is not None:
            raise self._cancelled
        if told is not None:
            raise told
        if critical:
            raise AfterCommitError(f"{self._units[0].label!r} is committed, but hooks failed", critical)

    async def _end(self, unit: Unit, error: BaseException | None) -> None:
        try:
            await end(unit, error, self._spawns[unit])
        except asyncio.CancelledError as cancelled:
            self._cancelled = cancelled
            if unit.root.state is not State.COMMITTED:
                self._fail(unit, cancelled)
        except BaseException as failed:  # noqa: BLE001  # told when the others have ended too
            self._fail(unit, failed)
        cause = self._failed or first_cause(unit.root.marks)
        if cause is not None:
            self._causes[unit] = cause

    def _fail(self, unit: Unit, failed: BaseException) -> None:
        if self._failed is None:
            self._failed, self._failed_on = failed, unit.runtime.name

    async def _call_hooks(self) -> list[Exception]:
        critical: list[Exception] = []
        for unit, hooks in self._hooks.items():
            if hooks.come_after:
                unit.root.hooks = hooks
                try:
                    await shielded(unit.root, self._spawns[unit](call_hooks, unit, self._causes.get(unit)))
                except AfterCommitError as failed:
                    critical += failed.exceptions
                except asyncio.CancelledError as cancelled:
                    self._cancelled = cancelled
        return critical

    def _told(self) -> BaseException | None:
        """What to raise of a COMMIT that failed."""
        failed = self._failed
        if failed is None:
            return None
        committed, unknown = self._names(State.COMMITTED), self._names(State.UNKNOWN)
        rolled_back = self._names(State.ROLLED_BACK)
        if committed:
            partial = PartialCommit(
                f"{self._units[0].label!r} is committed on {_listed(committed)}, but COMMIT on {self._failed_on!r} raised "
                f"{type(failed).__name__}" + (f"; rolled back: {_listed(rolled_back)}" if rolled_back else ""),
                committed=committed,
                unknown=unknown,
                rolled_back=rolled_back,
            )
            partial.__cause__ = failed
            return partial
        if isinstance(failed, CommitOutcomeUnknown) and rolled_back:
            failed.add_note(f"That was on {_listed(unknown)}; rolled back: {_listed(rolled_back)}.")
        return failed

    def _names(self, state: State) -> tuple[str, ...]:
        # Where no statement ran, nothing was there to commit.
        return tuple(unit.runtime.name for unit in self._units if unit in self._begun and unit.root.state is state)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names))
