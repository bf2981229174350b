# ruff: noqa: FBT001, FBT002, ARG002  # the signatures are SQLAlchemy's, and so is their documentation
"""The connections of a pool that nobody holds: what ``QueuePool`` keeps in a queue."""

from __future__ import annotations

from collections import deque
from typing import Any

from sqlalchemy.util.queue import Empty, Full, Queue, QueueCommon


class IdleConnections(QueueCommon[Any]):
    """The connections that nobody holds. Those who come here have a place: there is one, or room to make one.

    To wait here would not be fair, and waits for a connection to come back also when there is room for a new one, as after
    a connect that failed. So none of what asyncio's queue has for those who wait is needed.
    """

    def __init__(self, maxsize: int = 0, use_lifo: bool = False) -> None:
        self.maxsize = maxsize
        self.use_lifo = use_lifo
        self._idle: deque[Any] = deque()
        self._take = self._idle.pop if use_lifo else self._idle.popleft

    # As SQLAlchemy's pool calls them, whose queues wait.

    def empty(self) -> bool:
        return not self._idle

    def full(self) -> bool:
        return 0 < self.maxsize <= len(self._idle)

    def qsize(self) -> int:
        return len(self._idle)

    def put_nowait(self, item: Any) -> None:
        if 0 < self.maxsize <= len(self._idle):
            raise Full
        self._idle.append(item)

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        self.put_nowait(item)

    def get_nowait(self) -> Any:
        try:
            return self._take()
        except IndexError:
            raise Empty from None

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        return self.get_nowait()


class IdleConnectionsOfThreads(Queue[Any]):
    """The same between threads."""

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        return super().get(block=False)
