"""The one connection of a test: an outer transaction, and the application's transactions in it as savepoints."""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy.pool import NullPool
from sqlalchemy.util import await_only, greenlet_spawn

from transact._sqlalchemy.liveness import has_hung_up
from transact._sqlalchemy.plain import AnyEngine, plain_engine
from transact._testing.faults import Faults
from transact._testing.levels import Call, Level, Levels
from transact._testing.rules import RULES, ForeignKeysBroken
from transact._testing.said import broken_foreign_key
from transact.errors import UsageError
from transact.translation import translate

if TYPE_CHECKING:
    from sqlalchemy.pool import Pool, PoolProxiedConnection

    from transact._testing.lent import LentConnection
    from transact._testing.portal import Portal

T = TypeVar("T")


class SharedConnection:
    """The physical connection of one engine and the transactions that are open on it.

    All of it happens in the loop of ``portal``. ``patience``: seconds that a statement waits for another transaction to end.
    """

    def __init__(self, engine: AnyEngine, pool: Pool, portal: Portal, patience: float) -> None:
        self.engine = engine
        self.portal = portal
        self.patience = patience
        self.faults = Faults(engine.dialect, lambda: None)  # each test has its own
        self.lent_by: list[AnyEngine] = []  # the engines whose pools lend it
        self.commit_was_kept = False  # the outcome of the last COMMIT whose answer was lost
        self._rules = RULES[engine.dialect.name]()
        self._pool = pool
        self._fairy: PoolProxiedConnection | None = None
        self._levels = Levels(self._rules, self.send)
        self._gone: str | None = None
        self._wire = asyncio.Condition()  # its lock is held by whoever talks to the server

    @property
    def physical(self) -> Any:
        """The DBAPI's connection."""
        assert self._fairy is not None  # noqa: S101  # begin() made it
        return self._fairy.dbapi_connection

    # The outer transaction.

    async def begin(self) -> None:
        """Connect if need be, and begin. Raises what stands in the way."""
        if self._fairy is not None and has_hung_up(self._fairy.driver_connection):
            await self.close()
        await greenlet_spawn(self._begin)

    def _begin(self) -> None:
        if self._fairy is None:
            self._fairy = self._connected()
            dialect: Any = self.engine.dialect
            if getattr(dialect, "_on_connect_isolation_level", None) == "AUTOCOMMIT":
                dialect.set_isolation_level(self.physical, dialect.default_isolation_level)
        self._gone = None
        self._levels.notes.clear()
        self._rules.began(self.send(self._rules.begin))

    def _connected(self) -> PoolProxiedConnection:
        try:
            return self._pool.connect()
        except Exception as error:
            failure = translate(error, self.engine.dialect.name, connecting=True)
            raise failure or error from error

    async def end(self) -> None:
        """Roll everything back."""
        async with self._wire:
            self._levels.forget()
            if self._gone is None:
                await greenlet_spawn(self._roll_back)
            self._wire.notify_all()
        if self._gone is not None:
            await self.close()

    async def bound_lock_waits(self) -> None:
        """Let no statement wait longer for another connection's lock than for another transaction on this one."""
        async with self._wire:
            await greenlet_spawn(self._rules.bound_lock_waits, self.patience, self.send)

    def _roll_back(self) -> None:
        self._rules.end(self.send)
        self.physical.rollback()

    async def close(self) -> None:
        """Close the connection."""
        fairy, self._fairy = self._fairy, None
        if fairy is not None:
            await greenlet_spawn(fairy.invalidate)

    # What the application's connections ask for.

    async def execute(self, lent: LentConnection, call: Call, statement: str, work: Callable[[Any], T]) -> T:
        """Run ``work(physical)``, which sends ``statement``, in the transaction of ``lent``; begin that if it is due."""
        begins = lent.level is not None or (not lent.autocommit and self._rules.begins(statement))
        # What is only a setting is also sent when the pool tidies up, where nothing may wait.
        free = not begins and re.match(r"\s*(set|pragma)\b", statement, re.IGNORECASE) is not None
        async with self._wire:
            if not free:
                await self._wait_for_turn(lent, call)
            self._check(lent)
            try:
                return await greenlet_spawn(self._execute, lent, call, statement, work, begins=begins)
            finally:
                self._wire.notify_all()

    async def drive(self, lent: LentConnection, call: Call, work: Callable[[], Any]) -> Any:
        """Call a method of the driver, and await what it may return, in the transaction of ``lent``."""
        if lent.level is None and (lent.autocommit or not self._rules.begins("COPY")):
            return await _awaited(work())
        await self.start(lent, call, read_only=False)
        async with self._wire:
            await self._wait_for_turn(lent, call)
            return await _awaited(work())

    async def start(self, lent: LentConnection, call: Call, *, read_only: bool) -> None:
        """Begin a transaction, as a statement asks for by itself."""
        async with self._wire:
            await self._wait_for_turn(lent, call)
            self._check(lent)
            if lent.level is None:
                await greenlet_spawn(self._levels.push, lent, call, read_only=read_only or lent.read_only)

    async def commit(self, lent: LentConnection, call: Call) -> None:
        """Release the savepoint of ``lent``, or raise what COMMIT would raise; then it is rolled back."""
        async with self._wire:
            if lent.level is not None:
                await self._wait_for_turn(lent, call)
            try:
                if lent.level is not None:
                    await greenlet_spawn(self._commit, lent.level)
            finally:
                self._wire.notify_all()

    async def rollback(self, lent: LentConnection) -> None:
        """Roll back to the savepoint of ``lent``, and all that was begun in it."""
        async with self._wire:
            try:
                if lent.level is not None:
                    await greenlet_spawn(self._undo, lent.level)
            finally:
                self._wire.notify_all()

    @property
    def notes(self) -> list[str]:
        """What went differently than on a server, to be told when the test is over."""
        return self._levels.notes

    async def poke(self) -> None:
        """Let those who wait look whether they still have to."""
        async with self._wire:
            self._wire.notify_all()

    # Whose turn it is.

    async def _wait_for_turn(self, lent: LentConnection, call: Call) -> None:
        try:
            async with asyncio.timeout(self.patience):
                await self._wire.wait_for(lambda: self._may_go(lent, call))
        except TimeoutError:
            raise UsageError(
                f"{call.label!r} has waited {self.patience:g} s for its turn on the test's one connection, where the "
                f"transaction of {self._levels.label!r} is open: end that before (commit, roll back or leave its block), or "
                "do not let one transaction of a test wait for another"
            ) from None

    def _may_go(self, lent: LentConnection, call: Call) -> bool:
        if call.abandoned:
            raise asyncio.CancelledError
        top = self._levels.top
        if top is None or top is lent.level:
            return True
        nested = top.task is call.task or top.lent in call.around
        if lent.level is None:
            return nested
        if nested:
            raise UsageError(
                f"{call.label!r} uses the session of {lent.level.label!r} while a transaction of its own is open inside of "
                "it. In a test both have one connection, where the inner one has to end first"
            )
        return False

    def _check(self, lent: LentConnection) -> None:
        if lent.closed:
            raise UsageError("this connection was closed, or it belongs to a test that has ended")
        if self._gone is not None:
            raise UsageError(f"{self._gone}, and with it all that the test has stored; nothing more can be asked in it")

    # On the wire.

    def send(self, statement: str) -> list[Any]:
        """Send one statement and return its rows."""
        cursor = self.physical.cursor()
        try:
            cursor.execute(statement)
            return list(cursor.fetchall()) if cursor.description else []
        finally:
            cursor.close()

    def sleep(self, seconds: float) -> None:
        """Be slow."""
        await_only(asyncio.sleep(seconds))

    def _execute(
        self, lent: LentConnection, call: Call, statement: str, work: Callable[[Any], T], *, begins: bool
    ) -> T:
        if begins and lent.level is None:
            self._levels.push(lent, call, read_only=lent.read_only)
        level = lent.level
        guard = level is None and self._rules.guards_autocommit
        if guard:
            level = self._levels.push(lent, call, read_only=lent.read_only)
        try:
            read_only = level.read_only if level is not None else lent.read_only
            self.faults.at_statement(self, statement)
            self._rules.before(statement, read_only=read_only, level=level, send=self.send)
            result = work(self.physical)
        except BaseException as error:
            self._failed(level, error)
            if guard and level is not None:
                self._undo(level)
            raise
        if level is not None:
            level.wrote |= self._rules.writes(statement)
            level.failed &= not statement.startswith("ROLLBACK TO")
        if guard and level is not None:
            self._commit(level, counts=False)
        return result

    def _failed(self, level: Level | None, error: BaseException) -> None:
        if level is not None:
            level.failed = self._rules.guards_autocommit
        if not self.faults.made(error) and self._rules.has_ended(error, self.physical):
            self._gone = f"the server has rolled back the test's whole transaction ({type(error).__name__})"
        elif has_hung_up(self._fairy.driver_connection if self._fairy else None):
            self._gone = f"the test's connection to the server is lost ({type(error).__name__})"

    def _commit(self, level: Level, *, counts: bool = True) -> None:
        if level.failed:  # a server answers this COMMIT with ROLLBACK, and says nothing
            self._undo(level)
            return
        try:
            lost = self.faults.at_commit(self, level) if counts else None
            if lost is None or lost.kept:
                self._rules.check(level, self.send)
                self._levels.release(level)
        except ForeignKeysBroken:
            self._undo(level)
            raise broken_foreign_key() from None
        except BaseException as error:
            self._failed(level, error)
            self._undo(level)
            raise
        if lost is not None:
            self.commit_was_kept = lost.kept
            self._undo(level)
            raise lost.error

    def _undo(self, level: Level) -> None:
        self._levels.undo(level, gone=self._gone is not None)


async def _awaited(result: Any) -> Any:
    return await result if inspect.isawaitable(result) else result


def physical_pool(engine: AnyEngine, *, memory: bool) -> Pool:
    """Where the test's connection comes from: it is made as the engine makes its own."""
    pool = plain_engine(engine).pool
    if memory:  # another connection would be another database
        return pool
    return NullPool(pool._creator, dialect=engine.dialect, _dispatch=pool.dispatch)
