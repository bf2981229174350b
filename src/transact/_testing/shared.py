"""The one connection of a test: an outer transaction, and the application's transactions in it as savepoints."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy.pool import NullPool
from sqlalchemy.util import await_only, greenlet_spawn

from transact._sqlalchemy.liveness import has_hung_up
from transact._testing.faults import Faults
from transact._testing.rules import RULES, ForeignKeysBroken
from transact._testing.said import broken_foreign_key
from transact.errors import UsageError
from transact.translation import translate

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine
    from sqlalchemy.pool import Pool, PoolProxiedConnection

    from transact._testing.lent import LentConnection

T = TypeVar("T")
_USERS_SAVEPOINT = re.compile(r"((?:ROLLBACK TO |RELEASE )?SAVEPOINT )(sa_savepoint_\d+)")


@dataclass(eq=False, slots=True)
class Call:
    """Who asks: the task, the connections of the blocks around it, and the label of the innermost one.

    ``abandoned``: nobody waits for the answer any more.
    """

    task: object
    around: frozenset[object]
    label: str
    abandoned: bool = False


@dataclass(eq=False, slots=True)
class Level:
    """One of the application's transactions: a savepoint.

    ``wrote``: it may have written; ``failed``: a statement of it failed, and PostgreSQL refuses the rest; ``kept``: the
    labels of transactions that were committed inside of it; ``settings``: what SET LOCAL has to be put back to.
    """

    lent: LentConnection
    task: object
    label: str
    name: str
    read_only: bool
    wrote: bool = False
    failed: bool = False
    defers: bool = False
    kept: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)


class SharedConnection:
    """The physical connection of one engine and the transactions that are open on it, the innermost last.

    All of it happens in the portal's loop. ``patience``: seconds that a statement waits for another transaction to end;
    ``notes``: what went differently than on a server, to be told when the test is over.
    """

    def __init__(self, engine: AsyncEngine, pool: Pool, patience: float) -> None:
        self.engine = engine
        self.patience = patience
        self.faults = Faults(engine.dialect, lambda: None)  # each test has its own
        self.notes: list[str] = []
        self.commit_was_kept = False  # the outcome of the last COMMIT whose answer was lost
        self._rules = RULES[engine.dialect.name]()
        self._pool = pool
        self._fairy: PoolProxiedConnection | None = None
        self._levels: list[Level] = []
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
        self.notes = []
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
            for level in self._levels:
                level.lent.level = None
            self._levels.clear()
            if self._gone is None:
                await greenlet_spawn(self._roll_back)
            self._wire.notify_all()
        if self._gone is not None:
            await self.close()

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

    async def drive(self, lent: LentConnection, call: Call, awaitable: Awaitable[T]) -> T:
        """Await what a method of the driver returned, in the transaction of ``lent``."""
        if lent.level is None and (lent.autocommit or not self._rules.begins("COPY")):
            return await awaitable
        await self.start(lent, call, read_only=False)
        async with self._wire:
            await self._wait_for_turn(lent, call)
            return await awaitable

    async def start(self, lent: LentConnection, call: Call, *, read_only: bool) -> None:
        """Begin a transaction, as a statement asks for by itself."""
        async with self._wire:
            await self._wait_for_turn(lent, call)
            self._check(lent)
            if lent.level is None:
                await greenlet_spawn(self._push, lent, call, read_only=read_only or lent.read_only)

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
                f"transaction of {self._levels[-1].label!r} is open: end that before (commit, roll back or leave its "
                "block), or do not let one transaction of a test wait for another"
            ) from None

    def _may_go(self, lent: LentConnection, call: Call) -> bool:
        if call.abandoned:
            raise asyncio.CancelledError
        top = self._levels[-1] if self._levels else None
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
            self._push(lent, call, read_only=lent.read_only)
        level = lent.level
        guard = level is None and self._rules.guards_autocommit
        if guard:
            level = self._push(lent, call, read_only=lent.read_only)
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

    def _push(self, lent: LentConnection, call: Call, *, read_only: bool) -> Level:
        name = f"transact_test_{len(self._levels) + 1}"
        level = Level(lent, call.task, call.label, name, read_only)
        self.send(f"SAVEPOINT {name}")
        self._levels.append(level)
        lent.level = level
        self._rules.enter(level, self.send)
        return level

    def _commit(self, level: Level, *, counts: bool = True) -> None:
        if level.failed:  # a server answers this COMMIT with ROLLBACK, and says nothing
            self._undo(level)
            return
        try:
            lost = self.faults.at_commit(self, level) if counts else None
            if lost is None or lost.kept:
                self._rules.check(level, self.send)
                self._release(level)
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

    def _release(self, level: Level) -> None:
        self.send(f"RELEASE SAVEPOINT {level.name}")
        self._drop(level)
        if self._levels:
            self._levels[-1].kept += [*level.kept, *([level.label] if level.wrote else [])]
        self._rules.released(level, self.send)

    def _drop(self, level: Level) -> list[Level]:
        at = self._levels.index(level)
        dropped = self._levels[at:]
        del self._levels[at:]
        for each in dropped:
            each.lent.level = None
        return dropped

    def _undo(self, level: Level) -> None:
        if level not in self._levels:
            return
        dropped = self._drop(level)
        if self._gone is not None:
            return
        kept = [label for each in dropped for label in each.kept]
        harmless = not any(each.wrote or each.failed for each in dropped)
        if kept and not harmless:
            self.notes.append(
                f"the rollback of {level.label!r} took with it what {', '.join(map(repr, kept))} had committed inside of it. "
                "On a server that would have stayed: in a test all transactions share one connection"
            )
        if not (kept and harmless):
            self.send(f"ROLLBACK TO SAVEPOINT {level.name}")
        self.send(f"RELEASE SAVEPOINT {level.name}")
        if kept and harmless and self._levels:
            self._levels[-1].kept += kept


def renamed(statement: str, number: int) -> str:
    """The application's own savepoints under names that no other of its connections uses.

    MySQL forgets a savepoint when another one of the same name is set.
    """
    return _USERS_SAVEPOINT.sub(rf"\1\2_of_{number}", statement)


def physical_pool(engine: AsyncEngine, *, memory: bool) -> Pool:
    """Where the test's connection comes from: it is made as the engine makes its own."""
    pool = engine.sync_engine.pool
    if memory:  # another connection would be another database
        return pool
    return NullPool(pool._creator, dialect=engine.dialect, _dispatch=pool.dispatch)
