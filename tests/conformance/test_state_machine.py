"""Programs that nobody thought of: each ends as the reference model says, judged from another connection after each step."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from contextvars import Context
from dataclasses import dataclass
from functools import partial

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test
from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncSession

from tests.conformance.model import RAISED, RULES, Does, Error, Hook, HookFailed, Model
from tests.conformance.tables import SLEEP, Word, create_tables, store
from tests.engines import Observer
from transact import Database, Propagation, errors

PATIENCE = 30  # seconds for one step, after which the program hangs
PHASES = ("before_commit", "after_commit", "after_rollback", "after_completion")
STEPS = 30
PASSES = st.sampled_from((0, 0, 1, 1, 1, 2, 3))
DOES = st.just(Does.NOTHING) | st.sampled_from(Does)
SPOILING = ("send_what_is_refused", "set_rollback_only", "cancel_a_statement")
LEAVE, CATCH = object(), object()
Block = AbstractAsyncContextManager[AsyncSession]
Step = Callable[[AsyncSession | None], Awaitable[None]]


class Program:
    """A task that is inside of blocks and does one step at a time.

    The blocks are real `async with` statements, one in the other; what is raised in one stays there until the program is
    told to catch it or to let it go on.
    """

    def __init__(self, db: Database) -> None:
        self.db = db
        self.orders: asyncio.Queue[object] = asyncio.Queue()
        self.answers: asyncio.Queue[BaseException | None] = asyncio.Queue()
        self.stopped = False
        self.context = Context()
        self.task = asyncio.get_running_loop().create_task(self.run(None), context=self.context)

    async def run(self, session: AsyncSession | None) -> None:
        """Be in a block."""
        answer: BaseException | None = None
        while True:
            try:
                self.answers.put_nowait(answer)
                answer = None
                order = await self.orders.get()
                if order is LEAVE:
                    return
                await order(session)
            except BaseException as error:
                if self.stopped:
                    raise
                self.answers.put_nowait(error)
                if await self.orders.get() is not CATCH:
                    raise
                while self.task.cancelling():
                    self.task.uncancel()

    async def answer(self) -> BaseException | None:
        """Wait until the step is done; return what it raised."""
        async with asyncio.timeout(PATIENCE):
            return await self.answers.get()

    async def stop(self) -> None:
        self.stopped = True
        while not self.task.done():
            self.task.cancel()
            await asyncio.wait([self.task], timeout=1)


@dataclass
class Bench:
    """What the programs of one test share: a database, somebody who looks at it from outside, and a loop."""

    url: str
    observer: Observer
    runner: asyncio.Runner

    def __post_init__(self) -> None:
        self.db = Database(self.url, pool_size=STEPS + 10)  # a connection for each block

    def renew(self) -> None:
        """After a program that went wrong: the next one shall not suffer from what it left."""
        self.runner.run(self.db.close())
        self.__post_init__()


class Transactions(RuleBasedStateMachine):
    """Rules draw what the program does next; the model says what comes of it."""

    def __init__(self, bench: Bench) -> None:
        super().__init__()
        self.bench = bench
        bench.observer.execute("DELETE FROM words")
        self.model = Model(one_writer=bench.db.engine.dialect.name == "sqlite")
        self.ran: list[tuple[str, object]] = []
        self.names = iter(range(10_000))
        self.in_flight: BaseException | None = None
        self.expected: Error | None = None
        self.sound = False
        self.program = bench.runner.run(self._begin())
        self.sound = True

    async def _begin(self) -> Program:
        program = Program(self.bench.db)
        await program.answer()
        return program

    # What a program may do. Outside of all blocks it opens one first, so that no step is wasted. `passes` is how many
    # blocks an error that a step raises leaves before somebody catches it; what is `furnished` has something to lose.

    @rule(
        propagation=st.sampled_from(Propagation),
        rules=st.sampled_from(sorted(RULES)),
        furnished=st.booleans(),
        passes=PASSES,
    )
    def begin(self, propagation: Propagation, rules: str, *, furnished: bool, passes: int) -> None:
        block = partial(self.bench.db.transaction, propagation=propagation, **RULES[rules])
        self.open(block, self.model.open(propagation, rules), furnished, passes)

    @rule(furnished=st.booleans(), passes=PASSES)
    def savepoint(self, *, furnished: bool, passes: int) -> None:
        self.inside()
        self.open(self.bench.db.savepoint, self.model.savepoint(), furnished, passes)

    def open(self, block: Callable[[], Block], refused: Error | None, furnished: object, passes: int) -> None:
        async def enter(_session: object) -> None:
            async with block() as session:
                await self.program.run(session)

        self.step(enter, refused, passes)
        if furnished and refused is None:
            self.hooks(phases=list(PHASES), does=Does.NOTHING, critical=False)
            self.write(0)

    @rule(passes=PASSES)
    def write(self, passes: int) -> None:
        self.inside()
        word = self.name("word")
        self.step(lambda session: store(session, word), self.model.write(word), passes)

    @rule()
    def add(self) -> None:
        self.inside()
        if self.model.scope is None:
            return
        word = self.name("word")

        async def add(session: AsyncSession) -> None:
            session.add(Word(text=word))

        self.step(add, self.model.add(word))

    @rule(phases=st.lists(st.sampled_from(PHASES), min_size=1, max_size=5), does=DOES, critical=st.booleans())
    def hooks(self, *, phases: list[str], does: Does, critical: bool) -> None:
        self.inside()
        hooks = [Hook(self.name(phase), phase, does, critical and phase == "after_commit") for phase in phases]

        async def register(_session: object) -> None:
            for hook in hooks:
                options = {"critical": True} if hook.critical else {}
                getattr(self.bench.db, hook.phase)(self.called(hook), **options)

        self.step(register, self.model.register(hooks))

    @rule(passes=PASSES)
    def leave(self, passes: int) -> None:
        self.inside()
        self.step(LEAVE, self.model.leave(None), passes)

    @rule(how=st.sampled_from(SPOILING), passes=PASSES)
    def spoil(self, how: str, passes: int) -> None:
        self.inside()
        getattr(self, how)(passes)

    def send_what_is_refused(self, passes: int) -> None:
        self.step(lambda session: session.execute(insert(Word).values(text=None)), self.model.fail(), passes)

    def set_rollback_only(self, passes: int) -> None:
        async def mark(_session: object) -> None:
            self.bench.db.current.set_rollback_only()

        self.step(mark, self.model.set_rollback_only(), passes)

    @rule(error=st.sampled_from(RAISED), passes=PASSES)
    def raise_(self, error: Error, passes: int) -> None:
        self.inside()

        async def fail(_session: object) -> None:
            raise error

        if error is asyncio.CancelledError:
            self.program.task.cancel()
        else:
            self.program.orders.put_nowait(fail)
        self.judge(error)
        self.settle(passes)

    def cancel_a_statement(self, passes: int) -> None:
        self.write(0)
        if self.model.scope is None or self.model.scope.rollback_only or not self.model.scope.transaction.connected:
            return
        begun = asyncio.Event()

        async def sleep(session: AsyncSession) -> None:
            begun.set()
            await session.execute(SLEEP[self.bench.db.engine.dialect.name])

        async def strike() -> None:
            await begun.wait()
            self.program.task.cancel()

        self.program.orders.put_nowait(sleep)
        self.bench.runner.run(strike())
        self.judge(self.model.cut_off())
        self.settle(passes)

    # How a step is taken and judged.

    def inside(self) -> None:
        if not self.model.blocks:
            self.begin(Propagation.REQUIRED, "lenient", furnished=True, passes=0)

    def step(self, order: Step | object, expected: Error | None, passes: int = 0) -> None:
        self.program.orders.put_nowait(order)
        self.judge(expected)
        self.settle(passes)

    def settle(self, passes: int) -> None:
        """Let what was raised leave some blocks, and catch it there."""
        while self.in_flight is not None and passes and self.model.blocks:
            before, kind = self.in_flight, self.expected
            expected = self.model.leave(kind)
            self.program.orders.put_nowait(LEAVE)
            self.judge(expected)
            if expected is kind is not asyncio.CancelledError:  # a task can be cancelled twice
                self.check(self.in_flight is before, f"{before!r} became {self.in_flight!r}")
            passes -= 1
        if self.in_flight is not None:
            self.program.orders.put_nowait(CATCH)
            self.judge(None)

    def name(self, what: str) -> str:
        return f"{what} {next(self.names)}"

    def called(self, hook: Hook) -> Callable[..., Awaitable[None]]:
        async def call(*given: object) -> None:
            self.ran.append((hook.name, tuple(_plain(value) for value in given)))
            if hook.does is Does.WRITE:
                await self.bench.db.run(store, hook.name)
            if hook.does is Does.FAIL:
                raise HookFailed
            if hook.does is Does.CANCEL:
                self.program.task.cancel()
                await asyncio.sleep(0)

        return call

    def judge(self, expected: Error | None) -> None:
        self.sound = False
        answer = self.bench.runner.run(self.program.answer())
        self.sound = True
        self.in_flight, self.expected = answer, expected
        self.check(isinstance(answer, expected or type(None)), f"raised {answer!r}, expected {expected}")
        self.check(self.ran == self.model.ran, f"hooks ran: {self.ran}, expected {self.model.ran}")
        stored = {word for (word,) in self.bench.observer.rows("SELECT text FROM words")}
        self.check(stored == self.model.stored, f"stored: {stored}, expected {self.model.stored}")
        is_open = self.program.context.run(lambda: self.bench.db.in_transaction)
        self.check(is_open is (self.model.scope is not None), f"in_transaction: {is_open}")
        if not self.model.blocks:
            left = (self.bench.db.engine.pool.checkedout(), len(self.bench.db._runtime.units))
            self.check(left == (0, 0), f"connections, units left behind: {left}")

    def check(self, holds: object, message: str) -> None:
        self.sound = self.sound and bool(holds)
        assert holds, message

    def teardown(self) -> None:
        try:  # what is open ends normally
            while self.sound and self.model.blocks:
                self.leave(0)
        finally:
            self.bench.runner.run(self.program.stop())
            if not self.sound:
                self.bench.renew()


def _plain(given: object) -> object:
    """What a hook was given, as the model knows it."""
    if isinstance(given, errors.NotNullViolation):
        return errors.NotNullViolation
    return type(given) if isinstance(given, BaseException) else getattr(given, "value", given)


@pytest.fixture
def bench(database_url: str, observer: Observer, caplog: pytest.LogCaptureFixture) -> Iterator[Bench]:
    caplog.set_level(logging.CRITICAL, "transact")  # thousands of hooks fail here
    create_tables(observer, database_url)
    with asyncio.Runner() as runner:
        bench = Bench(database_url, observer, runner)
        yield bench
        runner.run(bench.db.close())


@pytest.mark.timeout(0)  # each step has its own
@pytest.mark.engines("sqlite", "pg18-asyncpg", "pg18-psycopg")
def test_every_program_ends_as_the_model_says(bench: Bench, long: bool) -> None:  # noqa: FBT001  # a fixture
    run_state_machine_as_test(
        lambda: Transactions(bench),
        settings=settings(
            max_examples=5000 if long else 150,
            stateful_step_count=STEPS,
            derandomize=not long,
            database=None,
            deadline=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        ),
    )
