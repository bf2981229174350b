"""The events of a ``Database``, and the listener that logs them.

``db.listen(f)`` registers a callable that is called with each event, in the task where it happened; it must be quick and
must not use the database. An exception that it raises is logged and goes no further.
"""

from __future__ import annotations

import logging

from transact._core.events import (
    Began,
    ChangesDiscarded,
    Committed,
    Event,
    HookFailed,
    Listener,
    MarkedRollbackOnly,
    OutcomeUnknown,
    RollbackFailed,
    RolledBack,
    SavepointRolledBack,
    WaitedForConnection,
)

__all__ = [
    "Began",
    "ChangesDiscarded",
    "Committed",
    "Event",
    "HookFailed",
    "Listener",
    "LoggingListener",
    "MarkedRollbackOnly",
    "OutcomeUnknown",
    "RollbackFailed",
    "RolledBack",
    "SavepointRolledBack",
    "WaitedForConnection",
]


class LoggingListener:
    """Logs events to ``logging.getLogger("transact")``: trouble as warnings and errors, the rest at DEBUG.

    Log lines carry labels, seconds and the classes of exceptions, never values.
    """

    def __init__(self, logger: logging.Logger | None = None) -> None:
        self.logger = logger if logger is not None else logging.getLogger("transact")

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
            case WaitedForConnection(served=False):
                self.logger.warning("[%s] no connection became free in %.3f s", event.database, event.seconds)
            case _ if self.logger.isEnabledFor(logging.DEBUG):
                self.logger.debug("[%s] %r: %s", *where, type(event).__name__)
            case _:
                pass
