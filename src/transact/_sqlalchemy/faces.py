"""Two thin faces over the unit of work: ``async with``, and ``with``."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session
from sqlalchemy.util import greenlet_spawn

from transact._core.limits import Limits
from transact._core.propagation import Action, decide
from transact._core.states import first_cause
from transact._sqlalchemy.ending import (
    finish,
    finish_unused,
    has_work,
    needs_preparation,
    prepare,
    release,
    roll_back,
    wants_commit,
)
from transact._sqlalchemy.limits import fail_if_late, lengthen, shorten
from transact._sqlalchemy.runtime import Runtime
from transact._sqlalchemy.savepoints import enter_savepoint, leave_savepoint
from transact._sqlalchemy.shielding import shielded
from transact._sqlalchemy.transaction import Transaction
from transact._sqlalchemy.unit import Unit
from transact.options import Options

Spawn = Callable[..., Coroutine[Any, Any, Any]]


class _Block:
    """One block: begins, joins or sets a savepoint, as the table of propagations says."""

    __slots__ = ("_label", "_limits", "_options", "_previous", "_runtime", "_scope")

    def __init__(self, runtime: Runtime, options: Options, label: str) -> None:
        self._runtime = runtime
        self._options = options
        self._label = label
        self._scope: Transaction | None = None
        self._limits: Limits | None = None  # those of a block that joins
        self._previous: Transaction | None = None

    @property
    def cause(self) -> BaseException | None:
        """The first error that doomed its transaction, whoever handled it since."""
        return first_cause(self._scope.marks) if self._scope is not None else None

    def _open(self) -> Transaction | None:
        """Open what sends no statement. ``None``: a savepoint is to be set."""
        runtime, options = self._runtime, self._options
        outer = runtime.innermost()
        around = outer or runtime.enclosing()
        action = decide(options, outer._unit.root.options if outer is not None else None)
        unit = around._unit if around is not None else None
        if action in {Action.BEGIN, Action.SUSPEND_AND_BEGIN}:
            # A block that joins has not asked for what the database's transactions have by default.
            return runtime.new_unit(options.or_else(runtime.defaults), self._label, suspended=unit).root
        if action in {Action.AUTOCOMMIT, Action.SUSPEND_AND_AUTOCOMMIT}:
            return runtime.new_unit(options, self._label, suspended=unit, autocommit=True).root
        if action is Action.SAVEPOINT:
            return None
        assert outer is not None  # noqa: S101  # the table says so
        return Transaction(outer._unit, outer, kind="joined", options=options, label=self._label)

    def _set_savepoint(self) -> Transaction:
        outer = self._runtime.innermost()
        assert outer is not None  # noqa: S101  # as above
        return enter_savepoint(outer._unit, outer, self._options, self._label)

    def _opened(self, scope: Transaction) -> Any:
        if scope._kind != "root":
            self._limits = shorten(scope._unit, self._options)
        self._previous = self._runtime.current.get()
        self._runtime.current.set(scope)
        self._scope = scope
        return scope.session

    def _left(self, scope: Transaction, error: BaseException | None) -> BaseException | None:
        """What a block that does not own its transaction is to raise, if its time is over."""
        self._runtime.current.set(self._previous)
        late = fail_if_late(scope, self._limits, error)
        lengthen(scope._unit, self._limits)
        if scope._kind == "joined":
            scope._unit.leave_joined(scope, late or error)
        return late


class TransactionBlock(_Block):
    """``async with`` over one block."""

    __slots__ = ()

    async def __aenter__(self) -> AsyncSession:
        """Open the block. A transaction sends its BEGIN with the first statement, a savepoint at once."""
        scope = self._open()
        if scope is None:
            scope = await greenlet_spawn(self._set_savepoint)
        session: AsyncSession = self._opened(scope)
        return session

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End the block. Raises what a COMMIT or RELEASE that failed says; an error of the block itself goes on."""
        scope = self._scope
        assert scope is not None  # noqa: S101
        if scope is scope._unit.root:
            try:
                await end(scope._unit, error)  # hooks before COMMIT still find it open; once it ends, nobody does
            finally:
                self._runtime.current.set(self._previous)
                scope._unit.let_go()
            return
        late = self._left(scope, error)
        if scope._kind == "savepoint":
            await shielded(scope, greenlet_spawn(leave_savepoint, scope._unit, scope, late or error))
        if late is not None:
            raise late


class SyncTransactionBlock(_Block):
    """``with`` over one block."""

    __slots__ = ()

    def __enter__(self) -> Session:
        """Open the block. A transaction sends its BEGIN with the first statement, a savepoint at once."""
        session: Session = self._opened(self._open() or self._set_savepoint())
        return session

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End the block. Raises what a COMMIT or RELEASE that failed says; an error of the block itself goes on."""
        scope = self._scope
        assert scope is not None  # noqa: S101
        runtime = self._runtime
        try:
            if scope is scope._unit.root:
                end_in_place(scope._unit, error)
                return
            late = self._left(scope, error)
            if scope._kind == "savepoint":
                runtime.shield(scope, leave_savepoint, scope._unit, scope, late or error)
        finally:
            runtime.current.set(self._previous)  # hooks have seen none
            if scope._kind == "root":
                scope._unit.let_go()
        if late is not None:
            raise late


def end_in_place(unit: Unit, error: BaseException | None) -> None:
    """``end`` for whoever waits for the database as it is."""
    if finish_unused(unit, error):
        return
    if wants_commit(unit, error) and needs_preparation(unit):
        try:
            prepare(unit)
        except BaseException as failed:
            unit.runtime.shield(unit.root, roll_back, unit, failed)
            raise
    unit.runtime.shield(unit.root, finish, unit, error)


async def end(unit: Unit, error: BaseException | None, spawn: Spawn = greenlet_spawn) -> None:
    """End a unit of work: prepare what may still fail, then COMMIT or ROLLBACK where no cancellation reaches it.

    ``spawn`` runs what waits for the database, where it does not keep the event loop from others. Raises what ``finish``
    raises, or the error of a flush or a ``before_commit`` hook.
    """
    if finish_unused(unit, error):
        return
    if wants_commit(unit, error) and needs_preparation(unit):
        try:
            await spawn(prepare, unit)
        except BaseException as failed:
            # Whatever a flush or a hook raises rolls back, also what a block may raise and still commit.
            await shielded(unit.root, spawn(roll_back, unit, failed))
            raise
    if has_work(unit):
        await shielded(unit.root, spawn(finish, unit, error))
    else:
        finish(unit, error)


async def pause(unit: Unit, spawn: Spawn = greenlet_spawn) -> None:
    """Give back the connection of a unit that only reads; its next statement takes one anew."""
    await shielded(unit.root, spawn(release, unit))
