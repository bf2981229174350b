"""The COMMITs of a request that uses several databases."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from transact._core.hooks import Hooks
from transact._core.states import State, first_cause
from transact._sqlalchemy.calling import call_hooks
from transact._sqlalchemy.faces import end
from transact._sqlalchemy.shielding import shielded
from transact._sqlalchemy.together import forget_after_all
from transact.errors import AfterCommitError, CommitOutcomeUnknown, PartialCommit

if TYPE_CHECKING:
    from transact._sqlalchemy.unit import Unit
    from transact.fastapi.requests import RequestUnits

_log = logging.getLogger("transact")


class Commits:
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
        await self._end_all()
        if not all(unit.root.state is State.COMMITTED for unit in self._units):
            for hooks in self._hooks.values():
                forget_after_all(hooks)
        critical = await self._call_hooks()
        told = self._told()
        if isinstance(told, PartialCommit) or (isinstance(told, CommitOutcomeUnknown) and told.prepared):
            _log.error("%s", told)  # also if nobody is told: the client has left, or a handler keeps it to itself
        if self._cancelled is not None:
            raise self._cancelled
        if told is not None:
            raise told
        if critical:
            raise AfterCommitError(f"{self._units[0].label!r} is committed, but hooks failed", critical)

    async def _end_all(self) -> None:
        for unit in self._units:
            await self._end(unit, self._failed)

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
                f"{self._units[0].label!r} is committed on {listed(committed)}, but COMMIT on {self._failed_on!r} raised "
                f"{type(failed).__name__}" + (f"; rolled back: {listed(rolled_back)}" if rolled_back else ""),
                committed=committed,
                unknown=unknown,
                rolled_back=rolled_back,
            )
            partial.__cause__ = failed
            return partial
        if isinstance(failed, CommitOutcomeUnknown) and rolled_back:
            failed.add_note(f"That was on {listed(unknown)}; rolled back: {listed(rolled_back)}.")
        return failed

    def _names(self, state: State) -> tuple[str, ...]:
        # Where no statement ran, nothing was there to commit.
        return tuple(unit.runtime.name for unit in self._units if unit in self._begun and unit.root.state is state)


def listed(names: Sequence[str]) -> str:
    """``names`` as a text says them."""
    return ", ".join(map(repr, names))
