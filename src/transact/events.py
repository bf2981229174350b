"""The events of a ``Database``, and the listener that logs them.

``db.listen(f)`` registers a callable that is called with each event, in the task where it happened (``ConnectionHeld``: in
none); it must be quick and must not use the database. An exception that it raises is logged and goes no further.
"""

from __future__ import annotations

import logging
import time
from collections import Counter

from transact._core.events import (
    Began,
    ChangesDiscarded,
    Committed,
    ConnectionHeld,
    Event,
    Holder,
    HookFailed,
    Listener,
    MarkedRollbackOnly,
    OutcomeUnknown,
    Retried,
    RollbackFailed,
    RolledBack,
    SavepointRolledBack,
    WaitedForConnection,
)

__all__ = [
    "Began",
    "ChangesDiscarded",
    "Committed",
    "ConnectionHeld",
    "Event",
    "Holder",
    "HookFailed",
    "Listener",
    "LoggingListener",
    "MarkedRollbackOnly",
    "OutcomeUnknown",
    "Retried",
    "RollbackFailed",
    "RolledBack",
    "SavepointRolledBack",
    "WaitedForConnection",
]


_QUIET = 1.0
"""Seconds after a line that names the holders of a full pool in which no other one does."""
#: What is told at DEBUG.
_USUAL = frozenset({Began, Committed, RolledBack, SavepointRolledBack, MarkedRollbackOnly})


class LoggingListener:
    """Logs events to ``logging.getLogger("transact")``: trouble as warnings and errors, the rest at DEBUG.

    Log lines carry labels, seconds and the classes of exceptions, never values. While requests are refused for want of a
    connection, one line a second names the holders and says how many were refused since the last.
    """

    def __init__(self, logger: logging.Logger | None = None) -> None:
        self.logger = logger if logger is not None else logging.getLogger("transact")
        self._said_at: dict[str, float] = {}
        self._unsaid: Counter[str] = Counter()

    def hears(self, kind: type[Event]) -> bool:
        """Whether an event of ``kind`` would be logged as the logger is set now."""
        return kind not in _USUAL or self.logger.isEnabledFor(logging.DEBUG)

    def __call__(self, event: Event) -> None:
        """Log one event."""
        where = (event.database, event.label)
        match event:
            case OutcomeUnknown():
                self.logger.error("[%s] COMMIT of %r: outcome unknown", *where, exc_info=event.cause)
            case HookFailed():
                self.logger.error(
                    "[%s] an %s hook of %r failed", event.database, event.phase, event.label, exc_info=event.cause
                )
            case RollbackFailed():
                self.logger.error(
                    "[%s] ROLLBACK of %r failed; its connection is thrown away", *where, exc_info=event.cause
                )
            case ChangesDiscarded():
                self.logger.warning("[%s] %r answered with success but left changes uncommitted; rolled back", *where)
            case Retried():
                self.logger.info(
                    "[%s] attempt %d of %r failed with %s; the next one in %.3f s",
                    event.database, event.attempt, event.label, type(event.cause).__name__, event.delay,
                )  # fmt: skip
            case WaitedForConnection(served=False):
                self._refused(event)
            case ConnectionHeld():
                self.logger.warning(
                    "[%s] a connection is still held: %s",
                    event.database, _holder(Holder(event.label, event.seconds, event.statement)),
                )  # fmt: skip
            case _:
                self.logger.debug("[%s] %r: %s", *where, type(event).__name__)

    def _refused(self, event: WaitedForConnection) -> None:
        # Under overload there are hundreds in a second, and each line has all holders: the log would be a load of its own.
        now = time.monotonic()
        if now < self._said_at.get(event.database, -_QUIET) + _QUIET:
            self._unsaid[event.database] += 1
            return
        self._said_at[event.database] = now
        unsaid = self._unsaid.pop(event.database, 0)
        self.logger.warning(
            "[%s] no connection became free in %.3f s%s; %d are held: %s",
            event.database, event.seconds, f", and {unsaid} times more since this was last said" if unsaid else "",
            len(event.holders), "; ".join(map(_holder, event.holders)) or "none",
        )  # fmt: skip


def _holder(holder: Holder) -> str:
    last = f"last statement: {holder.statement}" if holder.statement else "no statement"
    return f"{holder.label!r} for {holder.seconds:.1f} s, {last}"
