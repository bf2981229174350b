"""The COMMITs of a request that uses several databases and stores all of it or nothing: ``two_phase=True``."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from transact._core.branches import Branch, group_of
from transact._sqlalchemy.branching import Part, Stage
from transact._sqlalchemy.ending import wants_commit
from transact._sqlalchemy.shielding import shielded
from transact._sqlalchemy.two_phase import commit, find_out, leave, look, prepare, roll_back
from transact.errors import CommitOutcomeUnknown, ConfigurationError
from transact.fastapi.commits import Commits, listed

if TYPE_CHECKING:
    from transact._sqlalchemy.unit import Unit
    from transact.fastapi.requests import RequestUnits


class TwoPhaseCommits(Commits):
    """``Commits`` that cannot end partially: what was written is prepared everywhere before it is committed anywhere."""

    def __init__(self, used: Sequence[RequestUnits]) -> None:
        super().__init__(used)
        self._left: list[Part] = []

    async def _end_all(self) -> None:
        open_ = [
            unit
            for unit in self._units
            if unit in self._begun and wants_commit(unit, None) and unit.plain.in_transaction()
        ]
        if len(open_) < 2:  # noqa: PLR2004  # one has nobody to agree with
            await super()._end_all()
            return
        writers = await self._writers(open_)
        if self._failed is None and len(writers) > 1:
            await self._end_together(writers)
            return
        for part in writers:  # one alone needs no second phase
            await self._end(part.unit, self._failed)

    async def _writers(self, open_: Sequence[Unit]) -> list[Part]:
        """Those that have written; the others are ended, while a failure of theirs still rolls all back."""
        writers = [Part(unit) for unit in open_]
        for part in writers:
            if self._failed is None:
                await self._step(part, look)
                if self._cancelled is not None:
                    self._fail(part.unit, self._cancelled)
        if self._failed is None:
            writers = [part for part in writers if part.stock.transaction is not None]
        if self._failed is None and len(writers) > 1:
            self._failed = _refusal(writers)
        written = {part.unit for part in writers}
        for unit in self._units:
            if unit not in written:
                self._begun.discard(unit)
                await self._end(unit, self._failed)
        return writers

    async def _end_together(self, parts: list[Part]) -> None:
        """The two phases; ``_core.branches`` tells why this order, and none other."""
        parts.sort(key=lambda part: part.branching.decides)
        _name(parts)
        last = parts[-1]
        for part in parts:
            await self._step(part, prepare)
            if part.stage is not Stage.PREPARED or (self._cancelled is not None and part is not last):
                break
        if last.stage is Stage.IN_DOUBT:
            await self._step(last, find_out)
        if last.stage is Stage.PREPARED:
            self._failed = None  # that of the last one, if its answer was lost
            await self._commit(parts)
        elif last.stage is Stage.IN_DOUBT:
            await self._leave(parts)
        else:
            cause = self._failed or self._cancelled
            for part in parts:
                if cause is not None:
                    self._causes[part.unit] = cause
                await self._step(part, roll_back, cause)

    async def _commit(self, parts: list[Part]) -> None:
        for part in parts:
            await self._step(part, commit)
            if part.stage is not Stage.ENDED:
                break  # and not the last one: it has to stay as long as another does
        await self._leave([part for part in parts if part.stage is not Stage.ENDED])

    async def _leave(self, parts: list[Part]) -> None:
        self._left = parts
        for part in parts:
            await self._step(part, leave, self._failed or self._cancelled)

    async def _step(self, part: Part, step: Callable[..., object], *arguments: Any) -> None:
        """Take ``step``, which says by ``part.stage`` what came of it, where no cancellation reaches it."""
        unit = part.unit
        try:
            await shielded(unit.root, self._spawns[unit](step, part, *arguments), apart=True)
        except asyncio.CancelledError as cancelled:
            self._cancelled = cancelled
        except BaseException as failed:  # noqa: BLE001  # told when the others have ended too
            self._fail(unit, failed)

    def _told(self) -> BaseException | None:
        if not self._left:
            return super()._told()
        names = tuple(part.name for part in self._left)
        label = self._units[0].label
        if self._left[-1].stage is Stage.PREPARED:
            what = f"{label!r} is prepared everywhere, and not yet committed on"
        else:
            what = (
                f"nobody could tell in time whether {label!r} is prepared on {self._failed_on!r}, so it is left open on"
            )
        unknown = CommitOutcomeUnknown(
            f"{what} {listed([part.unit.runtime.name for part in self._left])}; transact.resolve_prepared() ends it: "
            f"{listed(names)}"
        )
        unknown.prepared = names
        unknown.__cause__ = self._failed
        return unknown


def _name(parts: list[Part]) -> None:
    """Give each its name: the last one's transaction and database, and who belongs together, are in all of them."""
    last = parts[-1].stock
    assert last.transaction is not None  # noqa: S101  # it has written
    global_id = last.xid.global_id if last.xid is not None else uuid.uuid4().hex
    group = group_of(part.stock.fingerprint for part in parts)
    for number, part in enumerate(parts, 1):
        name = part.unit.runtime.name
        part.branch = Branch(global_id, number, len(parts), last.transaction, last.fingerprint, group, name)


def _refusal(parts: Sequence[Part]) -> ConfigurationError | None:
    """Why what was written cannot be stored together."""
    for part in parts:
        if part.stock.refusal is not None:
            return ConfigurationError(part.stock.refusal)
    deciding = [part.unit.runtime.name for part in parts if part.branching.decides]
    if len(deciding) > 1:
        return ConfigurationError(
            f"two_phase=True: the request has written to {listed(deciding)}, all on MariaDB, where only one may be. Nothing "
            "is stored. Schemas of one server can be written to through one Database: shop.orders, reports.sales"
        )
    among = next((part.stock.among for part in parts if part.branching.decides), None)
    return next((_stranger(part) for part in parts if among is not None and part.stock.fingerprint not in among), None)


def _stranger(part: Part) -> ConfigurationError:
    """What the name of the part that decides does not tell of, so that it could be committed without this one."""
    runtime = part.unit.runtime
    runtime.fingerprint = part.stock.fingerprint
    return ConfigurationError(
        f"two_phase=True: the server of {runtime.name!r} is another than the one that was asked before. Nothing is stored; try "
        "again"
    )
