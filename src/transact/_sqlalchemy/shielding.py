"""Work that no cancellation cuts short: a COMMIT, a ROLLBACK, and the giving back of the connection."""

from __future__ import annotations

import asyncio
import time
import types
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context
from typing import TYPE_CHECKING, Any, TypeVar, cast

if TYPE_CHECKING:
    from transact._sqlalchemy.runtime import Runtime
    from transact._sqlalchemy.transaction import Transaction
    from transact._sqlalchemy.unit import Unit

T = TypeVar("T")
_Future = asyncio.Future[Any]

GRACE = 5.0
"""Seconds that a cancelled task waits for the answer to its COMMIT, and any task for the answer to its ROLLBACK."""


async def shielded(scope: Transaction, work: Coroutine[Any, Any, T], *, apart: bool = False) -> T:
    """Await ``work``, which ends ``scope``, even if the awaiting task is cancelled; then that goes on.

    A COMMIT or ROLLBACK that is cut off in the middle leaves an outcome that nobody knows and a connection that nobody can
    use; ``asyncio.shield`` would go on at once, while the connection is still in use. For a server that does not answer at
    all nobody waits longer than ``GRACE``: then the connection is thrown away. Hooks are awaited however long they take.
    ``apart``: ``work`` may cancel the task that it runs in, as a timeout does.
    """
    unit = scope._unit
    runtime = unit.runtime
    task = asyncio.current_task()
    assert task is not None  # noqa: S101  # this is a coroutine
    waiters: list[_Future] = []
    runtime.ending[scope] = (task, waiters)
    try:
        # What has a timeout in it, as a hook may, cancels the task that it runs in; that must not be the one shielded here.
        if runtime.waits_for_futures and runtime.verifier is None and not (scope.calls_after or apart):
            return await _until_disturbed(scope, work)
        return await _in_a_task(scope, work)
    finally:
        runtime.ending.pop(scope, None)
        for waiter in waiters:
            _wake(waiter)


async def wait_for_ends(runtime: Runtime) -> None:
    """Wait until what is ending has ended, no longer than ``GRACE``: a program that closes its database may stop next.

    Its event loop then cancels every task, those that are shielded too.
    """
    loop = asyncio.get_running_loop()
    ended = []
    for task, waiters in runtime.ending.values():
        if task.get_loop() is loop and task is not asyncio.current_task():
            ended.append(loop.create_future())
            waiters.append(ended[-1])
    if ended:
        await asyncio.wait(ended, timeout=GRACE)


@types.coroutine
def _until_disturbed(scope: Transaction, work: Coroutine[Any, Any, T]) -> Generator[Any, Any, T]:
    """Run ``work`` in this task, which is cheaper than one of its own, until somebody cancels it or it takes long."""
    while True:
        try:
            awaited: _Future | None = work.send(None)
        except StopIteration as done:
            return cast("T", done.value)
        try:
            yield from _undisturbed(scope._unit, awaited)
        except _Disturbed as disturbed:
            return (yield from _in_a_task(scope, _rest(work, awaited), disturbed.by).__await__())


class _Disturbed(Exception):  # not an error, and never seen by anybody else
    def __init__(self, by: asyncio.CancelledError | None) -> None:
        self.by = by


def _undisturbed(unit: Unit, awaited: _Future | None) -> Generator[Any, Any, None]:
    """Wait for ``awaited``, whatever comes of it: the work is told by the future itself. Raises ``_Disturbed``."""
    shield = _Shield(awaited) if awaited is not None else None  # none: asyncio.sleep(0)
    timer = None
    if shield is not None and unit.awaits is not None and unit.awaits[0] == "ROLLBACK":
        timer = shield.get_loop().call_later(GRACE, shield.wake)
    try:
        yield shield
    except asyncio.CancelledError as cancelled:
        if awaited is None or not awaited.cancelled():
            raise _Disturbed(cancelled) from None
    except Exception:
        if awaited is None or not awaited.done():
            raise
    finally:
        if timer is not None:
            timer.cancel()
    if awaited is not None and not awaited.done():
        raise _Disturbed(None)


class _Shield:
    """What a task awaits in place of ``inner``: to cancel the task does not cancel that.

    A future as far as a task can see (``asyncio.isfuture``): it is yielded once, to a task, and does only what a task asks.
    """

    def __init__(self, inner: _Future) -> None:
        self._inner = inner
        self._wakeup: Callable[[_Future], object] | None = None
        self._context: Context | None = None
        inner._asyncio_future_blocking = False
        self._asyncio_future_blocking = True

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return self._inner.get_loop()

    def add_done_callback(self, callback: Callable[[_Future], object], *, context: Context | None = None) -> None:
        self._wakeup, self._context = callback, context
        self._inner.add_done_callback(callback, context=context)

    def done(self) -> bool:
        return self._inner.done()

    def cancel(self, msg: Any = None) -> bool:
        """Wake the task, and it alone, with a cancellation."""
        stopped = self._stop_waiting()
        if stopped is None:
            return False
        stopped.cancel(msg)
        return True

    def wake(self) -> None:
        """Wake the task before there is a result."""
        stopped = self._stop_waiting()
        if stopped is not None:
            stopped.set_result(None)

    def _stop_waiting(self) -> _Future | None:
        wakeup = self._wakeup
        if wakeup is None or self._inner.done():
            return None
        self._inner.remove_done_callback(wakeup)
        self._wakeup = None
        other: _Future = self.get_loop().create_future()
        other.add_done_callback(wakeup, context=self._context)
        return other


def _wake(wake: asyncio.Future[None], *_: object) -> None:
    if not wake.done():
        wake.set_result(None)


@types.coroutine
def _continued(work: Coroutine[Any, Any, T], awaited: _Future | None) -> Generator[Any, Any, T]:
    """Go on with ``work`` where it waits for ``awaited``, as if it had been run here from the start."""
    while True:
        if awaited is not None:
            awaited._asyncio_future_blocking = True
        try:
            try:
                yield awaited
            except BaseException as error:  # noqa: BLE001  # whatever is thrown in is the work's to handle
                awaited = work.throw(error)
            else:
                awaited = work.send(None)
        except StopIteration as done:
            return cast("T", done.value)


async def _rest(work: Coroutine[Any, Any, T], awaited: _Future | None) -> T:
    if awaited is not None and awaited.done():
        awaited = None  # a task must not be given a future that has been waited for
    return await _continued(work, awaited)


async def _in_a_task(
    scope: Transaction, work: Coroutine[Any, Any, T], cancelled: asyncio.CancelledError | None = None
) -> T:
    ended: list[tuple[T | None, BaseException | None]] = []

    async def run() -> None:
        # Not the task's own result: when the closing of a connection is cut off, the pool cancels the task once more, and
        # a task that ends before that arrives ends as cancelled, whatever came of its work.
        try:
            ended.append((await work, None))
        except BaseException as failed:  # noqa: BLE001  # raised below
            ended.append((None, failed))

    unit = scope._unit
    task = asyncio.get_running_loop().create_task(run())
    runtime = unit.runtime
    runtime.ending[scope] = (task, runtime.ending[scope][1])
    patience = 0.0  # the work may have waited for long already; but a task has to begin before it can be cancelled
    while not task.done():
        try:
            await asyncio.wait([task], timeout=patience)
        except asyncio.CancelledError as error:  # an anyio scope cancels again and again
            cancelled = error
        patience = GRACE
        if _waits_in_vain(unit, cancelled=cancelled is not None):
            runtime.give_up(unit, task)
    if cancelled is not None:
        raise cancelled  # what came of the work, the listeners have been told
    result, failure = ended.pop()
    if failure is not None:
        raise failure
    return cast("T", result)


def _waits_in_vain(unit: Unit, *, cancelled: bool) -> bool:
    if unit.awaits is None:
        return False
    statement, since = unit.awaits
    return (cancelled or statement == "ROLLBACK") and time.monotonic() - since >= GRACE
