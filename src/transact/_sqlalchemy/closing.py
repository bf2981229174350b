"""A pool that gets back the place of every connection that is closed, also when that is cancelled or gets no answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy.pool import AsyncAdaptedQueuePool

from transact._sqlalchemy import limits
from transact._sqlalchemy.liveness import hang_up


class ClosingPool(AsyncAdaptedQueuePool):
    """A queue pool whose closing of a connection is not left half done."""

    _all_by: float | None = None

    def dispose(self) -> None:
        """Close the connections that nobody holds, all of them in the time that one may take."""
        self._all_by = time.monotonic() + limits.GRACE
        try:
            super().dispose()
        finally:
            self._all_by = None

    def _close_connection(self, connection: Any, *, terminate: bool = False) -> None:
        # SQLAlchemy closes the connection of a cancelled statement in the cancelled task. An anyio scope cancels that too,
        # and the connection is then cut off at once; but older versions let the error go on, past the giving back.
        try:
            with self._bounded(connection):
                super()._close_connection(connection, terminate=terminate)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or not terminate:
                raise
            task.uncancel()
            task.cancel()  # at the next await, when the place in the pool is free

    @contextmanager
    def _bounded(self, connection: Any) -> Iterator[None]:
        """Hang up on a server that does not answer the good-bye: asyncpg waits until it closes the connection."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # the garbage collector closes it, and does not wait
            yield
            return
        left = limits.GRACE if self._all_by is None else max(0.0, self._all_by - time.monotonic())
        timer = loop.call_later(left, hang_up, getattr(connection, "driver_connection", None))
        try:
            yield
        finally:
            timer.cancel()
