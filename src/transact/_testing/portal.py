"""A thread with an event loop, in which the test's connection lives whatever loops the test and its application run in."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar, cast

T = TypeVar("T")
Work = Callable[[], Coroutine[Any, Any, T]]

_log = logging.getLogger("transact")


class Portal:
    """Runs coroutines in its own loop, for callers in any other loop or in none.

    A driver's connection belongs to the loop that opened it; a ``TestClient`` has a loop for each of its lives, pytest's
    plugins one for each test.
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopped: asyncio.Event
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="transact test connection", daemon=True)
        self._thread.start()
        self._ready.wait()

    def _run(self) -> None:
        asyncio.run(self._main())

    async def _main(self) -> None:
        self._loop, self._stopped = asyncio.get_running_loop(), asyncio.Event()
        self._ready.set()
        await self._stopped.wait()

    def run(self, work: Work[T]) -> T:
        """Run ``work`` and block this thread until it is done."""
        assert self._loop is not None  # noqa: S101  # it is ready
        return asyncio.run_coroutine_threadsafe(work(), self._loop).result()

    async def ask(self, work: Work[T]) -> T:
        """Run ``work`` and await it in the caller's own loop. What runs already goes on if the caller is cancelled."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()

        def settle(result: T | None, error: BaseException | None) -> None:
            if answer.done():  # cancelled: nobody waits for it any more
                return
            if error is None:
                answer.set_result(cast("T", result))
            else:
                answer.set_exception(error)

        async def run() -> None:
            result, failed = None, None
            try:
                result = await work()
            except BaseException as error:  # noqa: BLE001  # raised in the caller's loop
                failed = error
            with suppress(RuntimeError):  # that loop is closed
                loop.call_soon_threadsafe(settle, result, failed)

        self._start(run)
        return await answer

    def post(self, work: Work[None]) -> None:
        """Run ``work`` without waiting for it. What fails is logged."""

        async def run() -> None:
            try:
                await work()
            except Exception:  # noqa: BLE001  # nobody waits for it
                _log.exception("the test's connection could not be tidied up")

        with suppress(RuntimeError):  # the portal is closed, and its connections with it
            self._start(run)

    def _start(self, run: Work[None]) -> None:
        assert self._loop is not None  # noqa: S101  # it is ready
        self._loop.call_soon_threadsafe(self._create_task, run)

    def _create_task(self, run: Work[None]) -> None:
        task = asyncio.get_running_loop().create_task(run())
        _running.add(task)
        task.add_done_callback(_running.discard)

    def stop(self) -> None:
        """Stop the loop and its thread."""
        assert self._loop is not None  # noqa: S101  # it is ready
        self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join()


_running: set[asyncio.Task[None]] = set()  # a loop keeps only weak references to its tasks
