"""`db.attempts()`: a loop of attempts, in whatever code it stands, never takes a failure for a success."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from tests.conformance.tables import Stored, store
from tests.engines import Observer
from transact import Database, Retry, errors

pytestmark = pytest.mark.engines("sqlite")  # the loop knows no engine

LATE = "CREATE TABLE late (id integer PRIMARY KEY, other integer REFERENCES late (id) DEFERRABLE INITIALLY DEFERRED)"
RETRY = Retry(attempts=3, base=0, on=(errors.ForeignKeyViolation, ZeroDivisionError))
Work = Callable[[AsyncSession], Awaitable[int]]
Shape = Callable[[Database, Work, list[str]], Awaitable[Any]]


class Trial:
    """Work that fails so many times, in its body or at COMMIT; its number is what it returns."""

    def __init__(self, failures: int, *, at_commit: bool) -> None:
        self.failures = failures
        self.at_commit = at_commit
        self.calls = 0

    async def __call__(self, session: AsyncSession) -> int:
        self.calls += 1
        await store(session, f"word {self.calls}")
        if self.calls <= self.failures:
            if not self.at_commit:
                raise ZeroDivisionError
            await session.execute(text("INSERT INTO late (id, other) VALUES (1, 2)"))
        return self.calls


@pytest.fixture
def late(observer: Observer, tables: None) -> None:
    observer.execute(LATE)


# Loops whose block leads back to them: a failure in the body and one of COMMIT are tried again.


async def plain(db: Database, work: Work, after: list[str]) -> None:
    async for attempt in db.attempts(retry=RETRY):
        async with attempt as session:
            await work(session)
    after.append("after")


async def with_a_result(db: Database, work: Work, after: list[str]) -> int:
    async for attempt in db.attempts(retry=RETRY):
        async with attempt as session:
            result = await work(session)
    after.append("after")
    return result


async def something_before_the_block(db: Database, work: Work, after: list[str]) -> None:
    number = 0
    async for attempt in db.attempts(retry=RETRY):
        number += 1
        if number > 100:
            break
        async with attempt as session:
            await work(session)
    after.append("after")


async def continue_at_its_end(db: Database, work: Work, after: list[str]) -> None:
    async for attempt in db.attempts(retry=RETRY):
        async with attempt as session:
            await work(session)
            continue
    after.append("after")


async def an_else(db: Database, work: Work, after: list[str]) -> None:
    async for attempt in db.attempts(retry=RETRY):
        async with attempt as session:
            await work(session)
    else:  # noqa: PLW0120  # one may write it
        after.append("after")


async def inside_another_loop(db: Database, work: Work, after: list[str]) -> None:
    for _ in range(1):
        async for attempt in db.attempts(retry=RETRY):
            async with attempt as session:
                await work(session)
    after.append("after")


async def inside_a_block(db: Database, work: Work, after: list[str]) -> None:
    async with asyncio.timeout(60):
        async for attempt in db.attempts(retry=RETRY):
            async with attempt as session:
                await work(session)
    after.append("after")


async def inside_try_and_finally(db: Database, work: Work, after: list[str]) -> None:
    try:
        async for attempt in db.attempts(retry=RETRY):
            async with attempt as session:
                await work(session)
    finally:
        after.append("after")


async def a_handler_around_the_block(db: Database, work: Work, after: list[str]) -> None:
    async for attempt in db.attempts(retry=RETRY):
        try:
            async with attempt as session:
                await work(session)
        except KeyError:
            after.append("never")
    after.append("after")


async def a_block_in_the_block(db: Database, work: Work, after: list[str]) -> None:
    async for attempt in db.attempts(retry=RETRY):
        async with attempt as session, db.savepoint():
            await work(session)
    after.append("after")


async def a_long_body(db: Database, work: Work, after: list[str]) -> None:
    """So long that its jumps need more than a byte."""
    async for attempt in db.attempts(retry=RETRY):
        async with attempt as session:
            x = 0
            x = x + 1 if x < 1 else x - 1 if x < 2 else x + 3 if x < 3 else x - 4 if x < 4 else x + 5 if x < 5 else x
            x = x + 1 if x < 1 else x - 1 if x < 2 else x + 3 if x < 3 else x - 4 if x < 4 else x + 5 if x < 5 else x
            x = x + 1 if x < 1 else x - 1 if x < 2 else x + 3 if x < 3 else x - 4 if x < 4 else x + 5 if x < 5 else x
            x = x + 1 if x < 1 else x - 1 if x < 2 else x + 3 if x < 3 else x - 4 if x < 4 else x + 5 if x < 5 else x
            x = x + 1 if x < 1 else x - 1 if x < 2 else x + 3 if x < 3 else x - 4 if x < 4 else x + 5 if x < 5 else x
            x = x + 1 if x < 1 else x - 1 if x < 2 else x + 3 if x < 3 else x - 4 if x < 4 else x + 5 if x < 5 else x
            x = x + 1 if x < 1 else x - 1 if x < 2 else x + 3 if x < 3 else x - 4 if x < 4 else x + 5 if x < 5 else x
            x = x + 1 if x < 1 else x - 1 if x < 2 else x + 3 if x < 3 else x - 4 if x < 4 else x + 5 if x < 5 else x
            await work(session)
    after.append("after")


async def in_a_generator(db: Database, work: Work, after: list[str]) -> None:
    async def items() -> AsyncIterator[int]:
        async for attempt in db.attempts(retry=RETRY):
            async with attempt as session:
                found = await work(session)
        yield found

    async for _ in items():
        after.append("after")  # noqa: PERF401  # a loop is the matter


BACK = (
    plain, with_a_result, something_before_the_block, continue_at_its_end, an_else, inside_another_loop, inside_a_block,
    inside_try_and_finally, a_handler_around_the_block, a_block_in_the_block, a_long_body, in_a_generator,
)  # fmt: skip


# Blocks after which something else comes if all is well.


async def returns(db: Database, work: Work, after: list[str]) -> int:
    async for attempt in db.attempts(retry=RETRY):
        async with attempt as session:
            return await work(session)
    raise AssertionError


async def returns_a_constant(db: Database, work: Work, after: list[str]) -> str:
    async for attempt in db.attempts(retry=RETRY):
        async with attempt as session:
            await work(session)
            return "stored"
    raise AssertionError


async def returns_nothing(db: Database, work: Work, after: list[str]) -> None:
    async for attempt in db.attempts(retry=RETRY):
        async with attempt as session:
            await work(session)
            return


async def breaks(db: Database, work: Work, after: list[str]) -> None:
    async for attempt in db.attempts(retry=RETRY):
        async with attempt as session:
            await work(session)
            break
    after.append("after")


async def breaks_inside_another_loop(db: Database, work: Work, after: list[str]) -> None:
    for _ in range(1):
        async for attempt in db.attempts(retry=RETRY):
            async with attempt as session:
                await work(session)
                break
    after.append("after")


ONLY_AT_COMMIT = (returns, returns_a_constant, returns_nothing, breaks, breaks_inside_another_loop)


async def a_statement_after_it(db: Database, work: Work, after: list[str]) -> None:
    async for attempt in db.attempts(retry=RETRY):
        async with attempt as session:
            await work(session)
        after.append("after")


async def an_await_after_it(db: Database, work: Work, after: list[str]) -> None:
    async for attempt in db.attempts(retry=RETRY):
        async with attempt as session:
            await work(session)
        await asyncio.sleep(0)


async def a_return_after_it(db: Database, work: Work, after: list[str]) -> str:
    async for attempt in db.attempts(retry=RETRY):
        async with attempt as session:
            await work(session)
        return "stored"
    raise AssertionError


async def a_break_after_it(db: Database, work: Work, after: list[str]) -> None:
    async for attempt in db.attempts(retry=RETRY):
        async with attempt as session:
            await work(session)
        break
    after.append("after")


async def a_yield_after_it(db: Database, work: Work, after: list[str]) -> None:
    async def items() -> AsyncIterator[str]:
        async for attempt in db.attempts(retry=RETRY):
            async with attempt as session:
                await work(session)
            yield "stored"

    async for item in items():
        after.append(item)  # noqa: PERF401  # a loop is the matter


async def try_and_finally_around_it(db: Database, work: Work, after: list[str]) -> None:
    finished = []
    async for attempt in db.attempts(retry=RETRY):
        try:
            async with attempt as session:
                await work(session)
        finally:
            finished.append(1)
    after.append("after")


async def try_and_else_around_it(db: Database, work: Work, after: list[str]) -> None:
    async for attempt in db.attempts(retry=RETRY):
        try:
            async with attempt as session:
                await work(session)
        except KeyError:
            pass
        else:
            after.append("stored")


@asynccontextmanager
async def told(after: list[str]) -> AsyncIterator[None]:
    """A block that is told how it ends, as another database's transaction is."""
    yield
    after.append("told of success")


async def a_block_around_it(db: Database, work: Work, after: list[str]) -> None:
    async for attempt in db.attempts(retry=RETRY):
        async with told(after), attempt as session:  # the two kinds differ in their code
            await work(session)


async def a_block_before_it(db: Database, work: Work, after: list[str]) -> None:
    async for attempt in db.attempts(retry=RETRY):
        async with told(after), attempt as session:
            await work(session)


@contextmanager
def told_plainly(after: list[str]) -> Any:
    yield
    after.append("told of success")


async def a_plain_block_around_it(db: Database, work: Work, after: list[str]) -> None:
    async for attempt in db.attempts(retry=RETRY):
        with told_plainly(after):
            async with attempt as session:
                await work(session)


async def an_exit_stack(db: Database, work: Work, after: list[str]) -> None:
    async for attempt in db.attempts(retry=RETRY):
        async with AsyncExitStack() as stack:
            await work(await stack.enter_async_context(attempt))


async def a_function_that_enters_it(db: Database, work: Work, after: list[str]) -> None:
    async def one(attempt: Any) -> None:
        async with attempt as session:
            await work(session)
        after.append("stored")

    async for attempt in db.attempts(retry=RETRY):
        await one(attempt)


async def by_hand(db: Database, work: Work, after: list[str]) -> None:
    attempts = db.attempts(retry=RETRY)
    attempt = await anext(attempts)
    async with attempt as session:
        await work(session)
    after.append("after")


async def by_hand_in_a_loop(db: Database, work: Work, after: list[str]) -> None:
    attempts = db.attempts(retry=RETRY)
    for _ in range(3):
        attempt = await anext(attempts)
        async with attempt as session:
            await work(session)
    after.append("after")


EVER = (
    a_statement_after_it, an_await_after_it, a_return_after_it, a_break_after_it, a_yield_after_it,
    try_and_finally_around_it, try_and_else_around_it, a_block_around_it, a_block_before_it, a_plain_block_around_it,
    an_exit_stack, a_function_that_enters_it, by_hand, by_hand_in_a_loop,
)  # fmt: skip


def each(shapes: tuple[Shape, ...]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("shape", shapes, ids=lambda shape: shape.__name__)


AT_COMMIT = pytest.mark.parametrize("at_commit", [False, True], ids=["in the body", "at COMMIT"])


@AT_COMMIT
@each(BACK)
@pytest.mark.parametrize("failures", [0, 2])
async def test_a_failure_is_tried_again_until_an_attempt_succeeds(
    db: Database, stored: Stored, late: None, *, shape: Shape, failures: int, at_commit: bool
) -> None:
    work = Trial(failures, at_commit=at_commit)
    after: list[str] = []
    await shape(db, work, after)
    assert work.calls == failures + 1
    assert stored() == {f"word {failures + 1}"}
    assert after == ["after"]


@AT_COMMIT
@each(BACK)
async def test_when_every_attempt_fails_the_loop_raises(
    db: Database, stored: Stored, late: None, *, shape: Shape, at_commit: bool
) -> None:
    work = Trial(9, at_commit=at_commit)
    after: list[str] = []
    with pytest.raises(errors.RetriesExhausted) as caught:
        await shape(db, work, after)
    assert caught.value.attempts == work.calls == 3
    assert isinstance(caught.value.__cause__, errors.ForeignKeyViolation if at_commit else ZeroDivisionError)
    assert stored() == set()
    assert after == (["after"] if shape is inside_try_and_finally else [])


@each(ONLY_AT_COMMIT)
async def test_a_failure_in_the_body_is_tried_again_even_if_the_body_would_have_left_the_loop(
    db: Database, stored: Stored, late: None, shape: Shape
) -> None:
    work = Trial(2, at_commit=False)
    await shape(db, work, [])
    assert work.calls == 3
    assert stored() == {"word 3"}


@each(ONLY_AT_COMMIT)
async def test_a_failed_commit_after_return_or_break_goes_on_and_is_never_taken_for_success(
    db: Database, stored: Stored, late: None, shape: Shape
) -> None:
    await goes_on(db, stored, shape, Trial(1, at_commit=True))


@AT_COMMIT
@each(EVER)
async def test_a_failure_before_more_code_goes_on_and_is_never_taken_for_success(
    db: Database, stored: Stored, late: None, *, shape: Shape, at_commit: bool
) -> None:
    await goes_on(db, stored, shape, Trial(1, at_commit=at_commit))


async def goes_on(db: Database, stored: Stored, shape: Shape, work: Trial) -> None:
    after: list[str] = []
    with pytest.raises(errors.ForeignKeyViolation if work.at_commit else ZeroDivisionError) as caught:
        await shape(db, work, after)
    assert "not tried again" in caught.value.__notes__[-1]
    assert work.calls == 1
    assert stored() == set()
    assert after == []


@each((*ONLY_AT_COMMIT, *EVER))
async def test_what_succeeds_at_once_may_be_left_in_any_way(
    db: Database, stored: Stored, late: None, shape: Shape
) -> None:
    work = Trial(0, at_commit=False)
    if shape is by_hand_in_a_loop:
        with pytest.raises(StopAsyncIteration):
            await shape(db, work, [])
    else:
        await shape(db, work, [])
    assert work.calls == 1
    assert stored() == {"word 1"}


async def test_an_attempt_cannot_be_used_twice(db: Database, stored: Stored) -> None:
    with pytest.raises(errors.UsageError, match="used twice"):
        async for attempt in db.attempts():
            async with attempt as session:
                await store(session, "word")
            async with attempt as session:
                await store(session, "again")
    assert stored() == {"word"}


async def test_an_attempt_that_is_not_used_is_told(db: Database) -> None:
    with pytest.raises(errors.UsageError, match="async with attempt as session"):
        async for _ in db.attempts():
            pass


async def test_a_loop_inside_an_attempt_joins_it_and_is_tried_again_with_it(
    db: Database, stored: Stored, late: None
) -> None:
    work = Trial(2, at_commit=False)
    entered = 0
    async for attempt in db.attempts(retry=RETRY):
        async with attempt as outer:
            entered += 1
            async for inner_attempt in db.attempts():
                async with inner_attempt as session:
                    assert session is outer
                    await work(session)
    assert (entered, work.calls) == (3, 3)
    assert stored() == {"word 3"}


async def test_attempts_of_two_databases_can_be_nested(
    db: Database, database_url: str, tmp_path: Any, make_db: Callable[..., Database], stored: Stored, *, late: None
) -> None:
    other = make_db(f"sqlite+aiosqlite:///{tmp_path}/other.db", name="other")
    async with other.engine.begin() as connection:
        await connection.execute(text("CREATE TABLE words (text varchar(20) PRIMARY KEY)"))
    work, inner_work = Trial(1, at_commit=True), Trial(2, at_commit=False)
    async for attempt in db.attempts(retry=RETRY):
        async with attempt as session:
            async for inner_attempt in other.attempts(retry=RETRY):
                async with inner_attempt as inner:
                    await inner_work(inner)
            await work(session)
    assert (work.calls, inner_work.calls) == (2, 4)
    assert stored() == {"word 2"}
    async with other.transaction() as session:
        assert set(await session.scalars(text("SELECT text FROM words"))) == {"word 3", "word 4"}


async def test_the_label_of_an_attempt_is_the_functions(db: Database) -> None:
    async for attempt in db.attempts():
        async with attempt:
            assert db.current.label.endswith("test_the_label_of_an_attempt_is_the_functions")
