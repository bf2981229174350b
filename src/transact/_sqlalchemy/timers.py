"""Timers where no event loop is: one thread calls what is due."""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

_log = logging.getLogger("transact")
_IDLE = 10.0
"""Seconds after which a thread that has nothing to wait for ends."""


class Timer(Protocol):
    """What can be cancelled before its time: asyncio's timers are such, and the ones below."""

    def cancel(self) -> None:
        """Let nothing happen."""


class ThreadTimer:
    """A call that is due at a time on the monotonic clock."""

    __slots__ = ("call",)

    def __init__(self, call: Callable[[], object] | None) -> None:
        self.call = call

    def cancel(self) -> None:
        """Let nothing happen. What is under way already goes on."""
        self.call = None


class ThreadTimers:
    """A thread of its own for each timer would cost more than the transaction that it watches."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._due: list[tuple[float, int, ThreadTimer]] = []
        self._numbers = itertools.count()
        self._thread: threading.Thread | None = None

    def call_later(self, seconds: float, call: Callable[..., object], *arguments: Any) -> ThreadTimer:
        """Call ``call(*arguments)`` after ``seconds``, in another thread."""
        timer = ThreadTimer(lambda: call(*arguments))
        due = time.monotonic() + seconds
        with self._changed:
            heapq.heappush(self._due, (due, next(self._numbers), timer))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="transact timers", daemon=True)
                self._thread.start()
            elif self._due[0][2] is timer:
                self._changed.notify()
        return timer

    def _run(self) -> None:
        while (timer := self._next()) is not None:
            call = timer.call
            if call is not None:
                try:
                    call()
                except Exception:  # noqa: BLE001  # the thread has others to call
                    _log.exception("a timer failed")

    def _next(self) -> ThreadTimer | None:
        with self._changed:
            while True:
                while self._due and self._due[0][2].call is None:
                    heapq.heappop(self._due)
                if not self._due:
                    if not self._changed.wait(_IDLE) and not self._due:
                        self._thread = None
                        return None
                    continue
                left = self._due[0][0] - time.monotonic()
                if left <= 0:
                    return heapq.heappop(self._due)[2]
                self._changed.wait(left)
