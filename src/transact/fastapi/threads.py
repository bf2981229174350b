"""``transact.fastapi.SyncDatabase``: what plain ``def`` routes ask for their session."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import anyio.to_thread
from anyio import CapacityLimiter
from starlette.types import Scope

import transact.sync
from transact._sqlalchemy.connection import SyncGuardedConnection
from transact._sqlalchemy.line import Line, Place
from transact._sqlalchemy.pool import TransactPool
from transact._sqlalchemy.resolving import check_server
from transact._sqlalchemy.shielding import wait_for_ends
from transact._sqlalchemy.unit import Unit
from transact.fastapi.database import Installable
from transact.fastapi.requests import RequestUnits
from transact.options import Options

T = TypeVar("T")
_ENDERS = 40
"""How many threads end transactions at once, where the pool does not say how many there can be."""


class Door:
    """Lets as many requests to their routes as the pool has connections.

    A note, since it is the reason for this module: **why requests wait before they have a thread.** A ``def`` route runs in
    one of the server's few worker threads. If it waited there for a connection, then soon each thread would be held by a
    request that waits for a connection, while those that have one wait for a thread, to run their route or to COMMIT:
    nothing moves until the pool's timeout. So a request waits for its turn as a task, which holds nothing; whoever is let
    through finds a connection; and COMMIT has threads of its own.
    """

    def __init__(self, runtime: Any) -> None:
        self._runtime = runtime
        self._line = Line(runtime.capacity)
        self._limiters: WeakKeyDictionary[asyncio.AbstractEventLoop, CapacityLimiter] = WeakKeyDictionary()

    async def come_in(self) -> Place:
        """Wait for a turn. Raises ``PoolTimeout``, as whoever waits for a connection."""
        place = Place(0)
        pool = self._runtime.engine.pool
        if self._line.take(place) or not isinstance(pool, TransactPool):
            return place
        started = time.perf_counter()
        pool.refuse_if_too_many(started, self._line.waiting)
        if not await self._line.wait(place, pool.timeout()):
            raise pool.refusal_after_wait(started)
        pool.tell_wait(started)
        return place

    def leave(self, place: Place) -> None:
        """Let the next one in."""
        self._line.give_back(place)

    async def in_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call ``function`` in a thread that no route can hold. It has returned when this has, also if it is cancelled."""
        loop = asyncio.get_running_loop()
        limiter = self._limiters.get(loop)
        if limiter is None:
            limiter = self._limiters[loop] = CapacityLimiter(self._runtime.capacity or _ENDERS)
        call = functools.partial(function, *arguments)
        task = loop.create_task(anyio.to_thread.run_sync(call, limiter=limiter))
        cancelled = None
        while not task.done():
            try:
                await asyncio.wait([task])
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            task.exception()  # or asyncio would tell that nobody asked
            raise cancelled
        return task.result()


class SyncRequestUnits(RequestUnits):
    """``RequestUnits`` of a ``SyncDatabase``."""

    __slots__ = ("_door", "_place", "_spawn")

    _connection_of = SyncGuardedConnection

    def __init__(self, runtime: Any, scope: Scope, door: Door) -> None:
        super().__init__(runtime, scope)
        self._door = door
        self._place: Place | None = None
        self._spawn = door.in_thread

    async def unit(self, options: Options) -> Unit:
        """See ``RequestUnits``."""
        await self._come_in()
        return await super().unit(options)

    async def manual_session(self) -> Any:
        """See ``RequestUnits``."""
        await self._come_in()
        return await super().manual_session()

    async def _come_in(self) -> None:
        if self._place is None and not self.ended:
            self._place = await self._door.come_in()

    async def end(self, error: BaseException | None, *, success: bool) -> None:
        """See ``RequestUnits``."""
        try:
            await super().end(error, success=success)
        finally:
            self.leave()

    def leave(self) -> None:
        """See ``RequestUnits``."""
        if self._place is not None:
            self._door.leave(self._place)


class SyncDatabase(Installable, transact.sync.SyncDatabase):
    """A ``transact.SyncDatabase`` that FastAPI applications install; see there for its arguments and verbs.

    Its sessions are for ``def`` routes and what they call. A request waits for its turn before it takes a worker thread,
    and COMMIT and ROLLBACK run in threads of their own.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._door = Door(self._runtime)

    @asynccontextmanager
    async def lifespan(self, _app: Any = None) -> AsyncIterator[None]:
        """Open the database when the application starts and close it when it stops: ``FastAPI(lifespan=db.lifespan)``.

        An application with a lifespan of its own enters it there: ``async with db.lifespan(app): yield``.
        """
        self.open()
        try:
            await check_server(self._runtime)
            yield
        finally:
            await wait_for_ends(self._runtime)
            await self._door.in_thread(self.close)

    def _new_units(self, scope: Scope) -> RequestUnits:
        return SyncRequestUnits(self._runtime, scope, self._door)
