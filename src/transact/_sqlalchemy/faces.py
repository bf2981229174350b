"""The async face over the unit of work: ``async with``, and what only a task can do, such as shielding a COMMIT."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import replace
from types import TracebackType
from typing import Any, TypeVar

from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.util import greenlet_spawn

from transact._core.propagation import Action, decide
from transact._sqlalchemy.ending import finish, has_work, needs_preparation, prepare, release, roll_back, wants_commit
from transact._sqlalchemy.runtime import Runtime
from transact._sqlalchemy.savepoints import enter_savepoint, leave_savepoint
from transact._sqlalchemy.transaction import Transaction
from transact._sqlalchemy.unit import Unit
from transact.options import Isolation, Options

T = TypeVar("T")


class TransactionBlock:
    """``async with`` over one block: begins, joins or sets a savepoint, as the table of propagations says."""

    __slots__ = ("_isolation", "_label", "_options", "_previous", "_runtime", "_scope")

    def __init__(self, runtime: Runtime, options: Options, label: str, isolation: Isolation | None = None) -> None:
        self._runtime = runtime
        self._options = options
        self._isolation = isolation  # of a transaction that names none; a block that joins has not asked for it
        self._label = label
        self._scope: Transaction | None = None
        self._previous: Transaction | None = None

    async def __aenter__(self) -> AsyncSession:
        """Open the block. A transaction sends its BEGIN with the first statement, a savepoint at once."""
        runtime, options = self._runtime, self._options
        outer = runtime.innermost()
        around = outer or runtime.enclosing()
        action = decide(options, outer._unit.root.options if outer is not None else None)
        unit = around._unit if around is not None else None
        if action in {Action.BEGIN, Action.SUSPEND_AND_BEGIN}:
            scope = Unit(runtime, with_isolation(options, self._isolation), self._label, suspended=unit).root
        elif action in {Action.AUTOCOMMIT, Action.SUSPEND_AND_AUTOCOMMIT}:
            scope = Unit(runtime, options, self._label, suspended=unit, autocommit=True).root
        else:
            assert outer is not None and unit is not None  # noqa: S101, PT018  # the table says so
            if action is Action.SAVEPOINT:
                scope = await greenlet_spawn(enter_savepoint, unit, outer, options, self._label)
            else:
                scope = Transaction(unit, outer, kind="joined", options=options, label=self._label)
        self._previous = runtime.current.get()
        runtime.current.set(scope)
        self._scope = scope
        return scope.session

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End the block. Raises what a COMMIT or RELEASE that failed says; an error of the block itself goes on."""
        scope = self._scope
        assert scope is not None  # noqa: S101
        unit = scope._unit
        if scope is unit.root:
            try:
                await end(unit, error)  # hooks before COMMIT still find it open; once it ends, nobody does
            finally:
                self._runtime.current.set(self._previous)
            return
        self._runtime.current.set(self._previous)
        if scope._kind == "savepoint":
            await shielded(greenlet_spawn(leave_savepoint, unit, scope, error))
        else:
            unit.leave_joined(scope, error)


def with_isolation(options: Options, default: Isolation | None) -> Options:
    """The options that a transaction begins with: the database's level where none was asked for."""
    return options if default is None or options.isolation is not None else replace(options, isolation=default)


async def end(unit: Unit, error: BaseException | None) -> None:
    """End a unit of work: prepare what may still fail, then COMMIT or ROLLBACK where no cancellation reaches it.

    Raises what ``finish`` raises, or the error of a flush or a ``before_commit`` hook.
    """
    if wants_commit(unit, error) and needs_preparation(unit):
        try:
            await greenlet_spawn(prepare, unit)
        except BaseException as failed:
            # Whatever a flush or a hook raises rolls back, also what a block may raise and still commit.
            await shielded(greenlet_spawn(roll_back, unit, failed))
            raise
    if has_work(unit):
        await shielded(greenlet_spawn(finish, unit, error))
    else:
        finish(unit, error)


async def pause(unit: Unit) -> None:
    """Give back the connection of a unit that only reads; its next statement takes one anew."""
    await shielded(greenlet_spawn(release, unit))


async def shielded(work: Coroutine[Any, Any, T]) -> T:
    """Await ``work`` to its end even if the awaiting task is cancelled; then the cancellation goes on.

    A COMMIT or ROLLBACK that is cut off in the middle leaves an outcome that nobody knows and a connection that nobody can
    use; ``asyncio.shield`` would go on at once, while the connection is still in use.
    """
    task = asyncio.get_running_loop().create_task(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:  # an anyio scope cancels again and again
            cancelled = error
    if cancelled is None:
        return task.result()
    if not task.cancelled():
        task.exception()  # the listeners have been told; unread, asyncio would complain about it
    raise cancelled
