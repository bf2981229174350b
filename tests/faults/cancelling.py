"""Cancels a piece of work where it waits first, then where it waits next, and so on: at every await of its life."""

import asyncio
import gc
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from enum import Enum
from importlib.metadata import version
from types import coroutine
from typing import Any

import anyio
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from tests.conformance.tables import store
from tests.engines import Observer
from transact import Database
from transact._core.hooks import Outcome

MOST_STEPS = 1000
PATIENCE = 60.0
Work = Callable[[], Awaitable[object]]


class Moment(Enum):
    """When the blow falls: before the answer that a task waits for, or between the answer and the task that gets it."""

    WAITING = "while it waits"
    ANSWERED = "as its answer comes"


class SiblingError(Exception):
    """What makes a task group cancel the other tasks."""


@dataclass
class Blow:
    """One cancellation, due when any task of the work waits for the `at`-th time."""

    at: int
    moment: Moment
    how: Callable[[], object] = lambda: None
    steps: int = 0
    has_fallen: bool = False
    where: str = ""
    over: bool = False

    def waits(self, task: Coroutine[Any, Any, Any], future: Any) -> None:
        """A task of the work is about to wait for `future`."""
        self.steps += 1
        if self.over or self.steps != self.at:
            return
        self.where = _position(task)
        if self.moment is Moment.WAITING or future is None:
            asyncio.get_running_loop().call_soon(self.fall)
        else:
            future.add_done_callback(self.fall)  # before the task adds its own

    def fall(self, *_: object) -> None:
        """Cancel, unless the work is done."""
        if not self.over:
            self.has_fallen = True
            self.how()

    def __str__(self) -> str:
        return f"cancelled {self.moment.value} the {self.at}th time, at {self.where}"


def _position(task: Any) -> str:
    names = []
    while task is not None and (code := getattr(task, "cr_code", None)) is not None:
        names.append(f"{code.co_name}:{task.cr_frame.f_lineno}" if task.cr_frame else code.co_name)
        task = task.cr_await
    return " > ".join(names[-6:])


@coroutine
def _watched(work: Coroutine[Any, Any, Any], blow: Blow) -> Generator[Any, Any, Any]:
    step: Callable[[], Any] = lambda: work.send(None)  # noqa: E731  # bound anew with each answer
    while True:
        try:
            future = step()
        except StopIteration as done:
            return done.value
        blow.waits(work, future)
        try:
            answer = yield future
        except GeneratorExit:
            work.close()
            raise
        except BaseException as error:
            step = lambda error=error: work.throw(error)  # noqa: E731
        else:
            step = lambda answer=answer: work.send(answer)  # noqa: E731


async def _task(work: Coroutine[Any, Any, Any], blow: Blow) -> Any:
    return await _watched(work, blow)


@contextmanager
def watching(blow: Blow) -> Iterator[None]:
    """Count each wait of each task that begins in this block."""
    loop = asyncio.get_running_loop()

    def task(loop: asyncio.AbstractEventLoop, work: Any, **kwargs: Any) -> asyncio.Task[Any]:
        return asyncio.Task(_task(work, blow), loop=loop, **{"name": getattr(work, "__qualname__", ""), **kwargs})

    loop.set_task_factory(task)
    try:
        yield
    finally:
        blow.over = True
        loop.set_task_factory(None)


# Who cancels.


async def by_the_task(work: Work, blow: Blow) -> None:
    task = asyncio.current_task()
    assert task is not None
    blow.how = task.cancel
    await work()


async def by_a_scope(work: Work, blow: Blow) -> None:
    """An anyio scope cancels again with every turn of the loop, until the work is done."""
    with anyio.CancelScope() as scope:
        blow.how = scope.cancel
        await work()


async def by_a_timeout(work: Work, blow: Blow) -> None:
    async with asyncio.timeout(None) as deadline:
        blow.how = lambda: deadline.reschedule(0)
        await work()


async def by_a_sibling(work: Work, blow: Blow) -> None:
    failing: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def sibling() -> None:
        await failing

    async def working() -> None:
        try:
            await work()
        finally:
            failing.done() or failing.set_result(None)

    blow.how = lambda: failing.done() or failing.set_exception(SiblingError())
    async with asyncio.TaskGroup() as group:
        group.create_task(sibling())
        group.create_task(working())


Way = Callable[[Work, Blow], Coroutine[Any, Any, None]]
WAYS = (by_the_task, by_a_scope, by_a_timeout, by_a_sibling)


async def strike(way: Way, work: Work, blow: Blow) -> None:
    """Do the work with a blow that may fall. Whatever it raises must come from that."""
    with watching(blow):
        main = asyncio.get_running_loop().create_task(way(work, blow))
        _, late = await asyncio.wait([main], timeout=PATIENCE)
    assert not late, f"{blow}: it hangs"
    if main.cancelled():
        assert blow.has_fallen
    elif (error := main.exception()) is not None and not _is_cancellation(error):
        raise error


def _is_cancellation(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return all(_is_cancellation(inner) for inner in error.exceptions)
    return isinstance(error, TimeoutError | SiblingError)


def blows(*moments: Moment) -> Iterator[Blow]:
    """Blows at the first await, at the second, … until the last one came too late for the work."""
    for moment in moments or Moment:
        for at in range(1, MOST_STEPS):
            blow = Blow(at, moment)
            yield blow
            if blow.steps < at:
                break
        else:
            raise AssertionError("the work never ends")


# What must be true after each.


async def nothing_is_held(db: Database, observer: Observer, told: object = "") -> None:
    """No connection is taken, nobody thinks he holds one, and the server sees nothing that is idle in a transaction."""
    assert db.engine.pool.checkedout() == 0, told
    assert not db._runtime.units, told
    assert not db._runtime.waiting, told
    until = time.monotonic() + 10
    while observer.idle_in_transaction():  # a server notices that a connection is gone a moment later, and tells nobody
        assert time.monotonic() < until, told
        await asyncio.sleep(0.005)


#: SQLAlchemy before 2.0.55 loses connections that are cancelled while they are made, or given back by a manual session.
LOSES_CONNECTIONS = tuple(int(n) for n in version("sqlalchemy").split(".")[:3] if n.isdigit()) < (2, 0, 55)
#: What drivers say of connections and cursors that they dropped when they were cancelled. None of it holds anything.
KNOWN = [
    # psycopg, of a server-side cursor that was opened on a connection that was then thrown away
    "AsyncServerCursor",
    # asyncpg, of a connection that was cancelled while it was made
    "unexpected connection_lost() call",
    # A second cancellation while SQLAlchemy closes a connection of aiosqlite makes it stop the thread, which then does not
    # answer the close() that it has in its queue.
    "_terminate_graceful_close",
]
if version("asyncpg").startswith("0.30."):  # and asyncmy of that time
    KNOWN += ["unclosed ", "_finish_unbuffered_query", "TLSUpgradeProto"]


@asynccontextmanager
async def no_complaints() -> AsyncIterator[None]:
    """What Python, asyncio or SQLAlchemy say where nobody can catch it, of connections lost to the garbage collector too."""
    loop = asyncio.get_running_loop()
    heard: list[str] = []

    def hear(said: str) -> None:
        if not any(known in said for known in KNOWN):
            heard.append(said)

    before = sys.unraisablehook
    sys.unraisablehook = lambda said: hear(f"{said.object} {said.exc_value!r}")
    loop.set_exception_handler(lambda _loop, context: hear(str(context)))
    try:
        yield
        await asyncio.sleep(0)
        gc.collect()
        await asyncio.sleep(0)
    finally:
        sys.unraisablehook = before
        loop.set_exception_handler(None)
    assert not heard, heard


# What the work does, and what is looked at afterwards.

FIRST, SECOND, INNER, BY_HOOK, OTHER = "first", "second", "inner", "by hook", "other"
NOTHING: frozenset[str] = frozenset()
ALL = frozenset({FIRST, SECOND})


class AgainError(Exception):
    """What a first attempt fails with."""


@dataclass
class Bench:
    """What the scenarios share."""

    db: Database
    run: int
    ran: list[tuple[str, str, object]] = field(default_factory=list)
    tried: int = 0

    async def store(self, session: AsyncSession, word: str) -> None:
        await store(session, self.own(word))

    def own(self, word: str) -> str:
        """The word of this run: MariaDB would make the next one wait for what is left of the last one's."""
        return f"{word} {self.run}"

    def hooks(self, word: str, *, awaits: bool = False) -> None:
        """Register hooks that tell what became of the transaction that stores `word`."""

        def hook(phase: str, told: object = None) -> Awaitable[None] | None:
            self.ran.append((phase, word, told))
            return asyncio.sleep(0) if awaits else None

        self.db.after_commit(lambda: hook("commit"))
        self.db.after_rollback(lambda _: hook("rollback"))
        self.db.after_completion(lambda outcome: hook("completion", outcome))

    def stored(self, observer: Observer) -> frozenset[str]:
        """What another connection finds of this run."""
        found = observer.rows("SELECT text FROM words WHERE text LIKE ?", self.own("%"))
        return frozenset(word.rpartition(" ")[0] for (word,) in found)

    @property
    def is_sqlite(self) -> bool:
        return self.db.engine.dialect.name == "sqlite"


SETTINGS = {
    "postgresql": "SELECT string_agg(current_setting(n), ',') FROM unnest(ARRAY['statement_timeout', 'lock_timeout',"
    " 'default_transaction_isolation', 'transaction_isolation', 'transaction_read_only']) AS n",
    "mysql": "SELECT CONCAT_WS(',', @@max_statement_time, @@innodb_lock_wait_timeout, @@lock_wait_timeout, @@tx_isolation,"
    " @@tx_read_only, @@autocommit)",
    "sqlite": "SELECT timeout, query_only FROM pragma_busy_timeout, pragma_query_only",
}


async def next_one_works(db: Database, run: int) -> object:
    """A transaction after it, on the same connection if that was kept; returns the settings of its session."""
    async with db.transaction() as session:
        settings = (await session.execute(text(SETTINGS[db.engine.dialect.name]))).all()
        await store(session, f"next {run}")
    return settings


def hooks_agree(bench: Bench, found: frozenset[str], told: str) -> None:
    """Each transaction told its hooks what another connection sees."""
    counted = Counter((phase, word) for phase, word, _ in bench.ran)
    assert set(counted.values()) <= {1}, f"{told}: a hook ran twice: {bench.ran}"
    for _, word, outcome in [r for r in bench.ran if r[0] == "completion"]:
        is_there = word in found
        assert outcome is (Outcome.COMMITTED if is_there else Outcome.ROLLED_BACK) or word == INNER, told
        assert counted["commit", word] == is_there, told
        assert counted["rollback", word] == (not is_there), told
    ended = {word for phase, word, _ in bench.ran if phase == "completion"}
    assert {word for _, word, _ in bench.ran} == ended, f"{told}: after_completion did not run: {bench.ran}"
