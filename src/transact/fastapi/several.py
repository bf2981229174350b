"""Several databases in one application: what a request holds of them is ended together, by the outermost middleware.

An application with one database never comes here.
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

from starlette.types import Receive, Scope, Send

from transact._core.states import ENDED
from transact._sqlalchemy.ending import check_commit, needs_preparation, prepare, wants_commit
from transact.errors import ConfigurationError
from transact.fastapi.commits import Commits
from transact.fastapi.middleware import TransactMiddleware, Veto, _Request
from transact.fastapi.requests import ROLLED_BACK, SCOPE_KEY, RequestUnits
from transact.fastapi.two_phase import TwoPhaseCommits
from transact.options import Retry

if TYPE_CHECKING:
    from transact.fastapi.database import Installable

_ROUNDS = 100
"""Flushes after which the databases are taken to be prepared, as often as SQLAlchemy's own COMMIT flushes."""


class _Installed(NamedTuple):
    database: Installable
    veto: Veto


_INSTALLED: WeakKeyDictionary[Any, list[_Installed]] = WeakKeyDictionary()
"""Each application's databases, in the order in which they were installed."""


def middleware_for(application: Any, database: Installable, veto: Veto) -> type[TransactMiddleware]:
    """Note that ``database`` is installed in ``application``; return the middleware that it needs there.

    Raises ``ConfigurationError`` if it commits in two phases, and those before it do not, or the other way round.
    """
    installed = _INSTALLED.setdefault(application, [])
    for other, _ in installed:
        if other._two_phase is not database._two_phase:
            with_it, without = (database, other) if database._two_phase else (other, database)
            raise ConfigurationError(
                f"database {with_it.name!r} has two_phase=True and {without.name!r} has not: of one application either all "
                "databases have it or none, since one that only commits could be left with its part when others have failed"
            )
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
        together = tuple(each.database._runtime for each in self._together if each.database._two_phase)
        for database, _ in self._together:
            units = held[database] = database._new_units(self._scope)
            if len(together) > 1:
                units.automatic.together = together
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
        commits = TwoPhaseCommits if used and all(each.two_phase for each in used) else Commits
        await commits(used).run()

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
