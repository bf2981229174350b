"""What differs where threads wait for the database, and no event loop does."""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from sqlalchemy.orm import sessionmaker

from transact._core.hooks import Hook
from transact._sqlalchemy import shielding
from transact._sqlalchemy.line import Line, Place
from transact._sqlalchemy.liveness import hang_up
from transact._sqlalchemy.marking import Marking
from transact._sqlalchemy.runtime import Runtime
from transact._sqlalchemy.timers import ThreadTimer, ThreadTimers
from transact._sqlalchemy.transaction import Transaction
from transact._sqlalchemy.unit import Unit
from transact.errors import ConcurrentUse, UsageError
from transact.options import Options

T = TypeVar("T")
_CLOSING: Any = vars(Marking)["closing"]  # the slot, under what overrides it


class SyncUnit(Unit):
    """A unit of work whose session several threads may try to use at once, though only one at a time is let."""

    __slots__ = ("_claiming", "interrupt")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._claiming = threading.RLock()
        self.interrupt: BaseException | None = None  # Ctrl-C that came while it was rolled back
        super().__init__(*args, **kwargs)

    def enter(self, operation: str, argument: object) -> bool:
        """See ``Unit``. Between its look and its claim, no other thread may look."""
        with self._claiming:
            return super().enter(operation, argument)

    # Who returns from a statement and who ends the transaction beside it agree on which of them gives the connection back.

    def leave(self) -> None:
        """See ``Unit``."""
        with self._claiming:
            super().leave()

    def claim_savepoint(self) -> bool:
        """See ``Unit``."""
        with self._claiming:
            return super().claim_savepoint()

    def claim_end(self) -> ConcurrentUse | None:
        """See ``Unit``."""
        with self._claiming:
            return super().claim_end()

    def leave_end_to_its_user(self) -> bool:
        """See ``Unit``."""
        with self._claiming:
            return super().leave_end_to_its_user()

    def let_go(self) -> None:
        """See ``Unit``."""
        with self._claiming:
            super().let_go()

    def rollback_failed(self, error: BaseException) -> None:
        """See ``Unit``. What asks the program to end is kept until all of this is at its end."""
        super().rollback_failed(error)
        if isinstance(error, KeyboardInterrupt | SystemExit):
            self.interrupt = error

    @property
    def closing(self) -> bool:
        """See ``Unit``. Who is about to end it waits until a claim that is under way can be seen."""
        found: bool = _CLOSING.__get__(self)
        return found

    @closing.setter
    def closing(self, value: bool) -> None:
        with self._claiming:
            _CLOSING.__set__(self, value)


class SyncRuntime(Runtime):
    """The shared part of one ``SyncDatabase``."""

    is_async = False
    enter_by = "with"
    users = "threads"
    instead = (
        "Use it in one after the other, or give each thread its own `with db.transaction() as session`; one session cannot "
        "serve two threads"
    )
    whoami: Callable[[], object] = staticmethod(threading.current_thread)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._timers = ThreadTimers()
        self._ends: dict[threading.Event, threading.Thread] = {}

    def _make_factory(self, engine: Any) -> Any:
        return sessionmaker(engine, class_=self._sync_class, expire_on_commit=False)

    def new_unit(self, options: Options, label: str | Callable[[], str], **kind: Any) -> Unit:
        """See ``Runtime``."""
        return SyncUnit(self, options, label, **kind)

    def check_hook(self, hook: Hook) -> None:
        """See ``Runtime``."""
        if inspect.iscoroutinefunction(hook):
            raise _async_hook(hook)

    def wait(self, awaitable: Awaitable[object]) -> object:
        """See ``Runtime``: nobody here can await."""
        if inspect.iscoroutine(awaitable):
            awaitable.close()
        raise _async_hook(awaitable)

    def sleep(self, seconds: float) -> None:
        """See ``Runtime``."""
        time.sleep(seconds)

    def bounded(self, seconds: float, call: Callable[..., T], *arguments: Any) -> T:
        """See ``Runtime``. A thread cannot be stopped: one that waits in vain is left to end with its connection."""
        answer: Future[T] = Future()

        def run() -> None:
            try:
                answer.set_result(call(*arguments))
            except BaseException as failed:  # noqa: BLE001  # raised to whoever still waits
                answer.set_exception(failed)

        threading.Thread(target=run, name="transact question", daemon=True).start()
        return answer.result(seconds)

    def shield(self, scope: Transaction, call: Callable[..., Any], *arguments: Any) -> None:
        """See ``Runtime``. For a ROLLBACK that no server answers nobody waits longer than ``GRACE``."""
        unit = scope._unit
        watch = _Watch(self._timers, unit) if unit.connection is not None else None
        ended = threading.Event()
        self._ends[ended] = threading.current_thread()
        try:
            call(*arguments)
        finally:
            if watch is not None:
                watch.cancel()
            self._ends.pop(ended, None)
            ended.set()
            interrupt = getattr(unit, "interrupt", None)
            if interrupt is not None:
                raise interrupt

    def wait_for_ends(self) -> None:
        """Wait until what is ending in other threads has ended, no longer than ``GRACE``."""
        until = time.monotonic() + shielding.GRACE
        for ended, thread in list(self._ends.items()):
            if thread is not threading.current_thread():  # a hook that closes the database would wait for itself
                ended.wait(max(0.0, until - time.monotonic()))

    def stand_in_line(self, line: Line, place: Place, seconds: float) -> bool:
        """See ``Runtime``."""
        return line.wait_in_thread(place, seconds)

    def call_later(self, seconds: float, call: Callable[..., object], *arguments: Any) -> ThreadTimer:
        """See ``Runtime``."""
        return self._timers.call_later(seconds, call, *arguments)

    def give_up(self, unit: Unit, task: asyncio.Task[Any]) -> None:  # noqa: ARG002  # it ends with its thread
        """See ``Runtime``: the thread that waits learns that the connection is lost."""
        _hang_up(unit)

    def locate(self, who: object) -> str | None:
        """See ``Runtime``: another thread's place is gone before it could be told."""
        return f"thread {who.name!r}" if isinstance(who, threading.Thread) else None


class _Watch:
    """Hangs up on a server that does not answer a ROLLBACK."""

    def __init__(self, timers: ThreadTimers, unit: Unit) -> None:
        self._timers = timers
        self._unit = unit
        self._over = False
        self._timer = timers.call_later(shielding.GRACE, self._look)

    def _look(self) -> None:
        awaits = self._unit.awaits
        if awaits is not None and awaits[0] == "ROLLBACK" and time.monotonic() - awaits[1] >= shielding.GRACE:
            _hang_up(self._unit)
        elif not self._over:
            self._timer = self._timers.call_later(shielding.GRACE, self._look)

    def cancel(self) -> None:
        self._over = True
        self._timer.cancel()


def _hang_up(unit: Unit) -> None:
    connection = unit.connection
    if connection is not None and not connection.closed and not connection.invalidated:
        hang_up(connection.connection.driver_connection)


def _async_hook(hook: object) -> UsageError:
    name = getattr(hook, "__qualname__", repr(hook))
    return UsageError(
        f"{name} is an async hook, and nothing awaits it in the transactions of a SyncDatabase: write a plain `def`"
    )
