"""A line before a number of places: who comes first is served first."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from typing import Protocol

CONNECTING = "(connecting)"
"""What stands in place of a statement until the connection is there."""


class Place:
    """One place, or the wish for one; each is used once.

    ``since``: when it was taken; ``due``: after how many seconds it is next told about; ``statement``: the last one that
    was sent on its connection.
    """

    __slots__ = ("due", "since", "statement")

    def __init__(self, due: float) -> None:
        self.since = time.perf_counter()
        self.due = due
        self.statement: str | None = CONNECTING

    @property
    def seconds(self) -> float:
        """For how long it has been taken."""
        return time.perf_counter() - self.since


class Waiter(Protocol):
    """Who stands in a line and is told when it is served."""

    @property
    def is_alive(self) -> bool:
        """Whether it can still be served."""
        ...

    def hand_over(self, line: Line) -> bool:
        """Whether it has to be served elsewhere, and that has been seen to."""
        ...

    def wake(self) -> None:
        """Let it go on. It is no longer alive then."""


class Line:
    """``places``: how many there are, ``None`` for no bound.

    The set of taken places is the only account that is kept: to give back twice, or what was never taken, does no harm.
    Threads may use it beside event loops.
    """

    def __init__(self, places: int | None) -> None:
        self.places = places
        self._taken: set[Place] = set()
        self._waiting: deque[tuple[Place, Waiter]] = deque()
        # The garbage collector may give back a place in the middle of anything here, in the same thread.
        self._changing = threading.RLock()

    @property
    def taken(self) -> Iterable[Place]:
        """The places that are taken now, the longest first."""
        with self._changing:
            return sorted(self._taken, key=lambda place: place.since)

    @property
    def waiting(self) -> int:
        """How many wait."""
        with self._changing:
            return sum(waiter.is_alive for _, waiter in self._waiting)

    def take(self, place: Place) -> bool:
        """Take ``place`` if one is free and nobody waits for it; return whether that was so."""
        with self._changing:
            if self._waiting:
                self.serve()
            if self._waiting or not self._has_free():
                return False
            self._taken.add(place)
            return True

    async def wait(self, place: Place, seconds: float) -> bool:
        """Wait for ``place`` behind those that wait already; return whether it was taken within ``seconds``."""
        waiter = _Task(asyncio.get_running_loop())
        entry = self._join(place, waiter)
        timer = waiter.loop.call_later(seconds, waiter.wake)
        try:
            await waiter.future
        except BaseException:
            self._leave(entry)
            self.give_back(place)  # it may have been served in the same instant
            raise
        finally:
            timer.cancel()
        return self._leave(entry)

    def wait_in_thread(self, place: Place, seconds: float) -> bool:
        """The same for a thread, which does nothing else meanwhile."""
        waiter = _Thread()
        entry = self._join(place, waiter)
        try:
            waiter.woken.wait(seconds)
        except BaseException:  # Ctrl-C
            self._leave(entry)
            self.give_back(place)
            raise
        return self._leave(entry)

    def give_back(self, place: Place) -> None:
        """Free ``place`` for the next in the line."""
        with self._changing:
            self._taken.discard(place)
            if self._waiting:
                self.serve()

    def _join(self, place: Place, waiter: Waiter) -> tuple[Place, Waiter]:
        entry = (place, waiter)
        with self._changing:
            self._waiting.append(entry)
            self.serve()
        return entry

    def _leave(self, entry: tuple[Place, Waiter]) -> bool:
        with self._changing:
            with suppress(ValueError):  # who was served is out of the line already
                self._waiting.remove(entry)
            return entry[0] in self._taken

    def _has_free(self) -> bool:
        return self.places is None or len(self._taken) < self.places

    def serve(self) -> None:
        """Give the free places to those who wait."""
        with self._changing:
            while self._waiting and self._has_free():
                place, waiter = self._waiting[0]
                if not waiter.is_alive:
                    self._waiting.popleft()
                    continue
                if waiter.hand_over(self):
                    return
                self._waiting.popleft()
                place.since = time.perf_counter()
                # From now on it is taken, so that nobody can step in before the waiter runs.
                self._taken.add(place)
                waiter.wake()


class _Task:
    """A task waits."""

    __slots__ = ("future", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.future: asyncio.Future[None] = loop.create_future()

    @property
    def is_alive(self) -> bool:
        return not self.future.done() and not self.loop.is_closed()

    def hand_over(self, line: Line) -> bool:
        # A connection that was lost to the garbage collector can come back in any thread.
        if _running_loop() is self.loop:
            return False
        self.loop.call_soon_threadsafe(line.serve)
        return True

    def wake(self) -> None:
        if not self.future.done():
            self.future.set_result(None)


class _Thread:
    """A thread waits."""

    __slots__ = ("woken",)

    def __init__(self) -> None:
        self.woken = threading.Event()

    @property
    def is_alive(self) -> bool:
        return not self.woken.is_set()

    def hand_over(self, line: Line) -> bool:  # noqa: ARG002  # a thread is woken from anywhere
        return False

    def wake(self) -> None:
        self.woken.set()


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
