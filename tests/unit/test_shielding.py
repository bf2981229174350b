"""Work that no cancellation cuts short, in the task that runs it; the faults tests try it on real servers."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from transact import Database
from transact._sqlalchemy.shielding import shielded
from transact._sqlalchemy.transaction import Transaction


@pytest.fixture
async def scope(tmp_path: Path) -> AsyncIterator[Transaction]:
    async with Database(f"sqlite+aiosqlite:///{tmp_path / 'test.db'}") as db, db.transaction():
        yield db.current


Run = Callable[[Coroutine[Any, Any, Any]], "asyncio.Task[Any]"]


@pytest.fixture
def run(scope: Transaction) -> Run:
    assert scope._unit.runtime.waits_for_futures

    def start(work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        return asyncio.get_running_loop().create_task(shielded(scope, work))

    return start


async def waits_for(answer: Awaitable[Any], done: list[Any]) -> Any:
    done.append(await answer)
    return done[-1]


async def test_a_cancelled_task_waits_for_its_work_and_is_cancelled_then(run: Run) -> None:
    answer, done = asyncio.get_running_loop().create_future(), []
    task = run(waits_for(answer, done))
    for _ in range(3):
        await asyncio.sleep(0)
        task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    assert not answer.cancelled()
    answer.set_result("stored")
    with pytest.raises(asyncio.CancelledError):
        await task
    assert done == ["stored"]


@pytest.mark.parametrize("first", ["answer", "cancellation"])
async def test_a_cancellation_in_the_same_turn_as_the_answer_is_not_lost_and_cuts_nothing_short(
    run: Run, first: str
) -> None:
    answer, done = asyncio.get_running_loop().create_future(), []
    task = run(waits_for(answer, done))
    await asyncio.sleep(0)
    steps = [lambda: answer.set_result("stored"), task.cancel]
    for step in steps if first == "answer" else reversed(steps):
        step()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert done == ["stored"]


async def test_a_cancellation_before_the_work_began_is_one_after_it_has_ended(run: Run) -> None:
    done: list[Any] = []

    async def work() -> None:
        await asyncio.sleep(0)
        done.append("stored")

    task = run(work())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert done == ["stored"]


@pytest.mark.parametrize("failure", [ValueError("no"), asyncio.CancelledError("of the driver")])
async def test_what_fails_under_the_shield_fails_as_itself(run: Run, failure: BaseException) -> None:
    answer = asyncio.get_running_loop().create_future()
    seen: list[BaseException] = []

    async def work() -> None:
        try:
            await answer
        except BaseException as error:
            seen.append(error)
            raise

    task = run(work())
    await asyncio.sleep(0)
    if isinstance(failure, asyncio.CancelledError):
        answer.cancel("of the driver")
    else:
        answer.set_exception(failure)
    with pytest.raises(type(failure)):
        await task
    assert [type(error) for error in seen] == [type(failure)]


async def test_the_work_is_not_over_when_a_part_of_it_is(run: Run) -> None:
    loop = asyncio.get_running_loop()
    answers = [loop.create_future() for _ in range(3)]

    async def work() -> list[int]:
        return [await answer for answer in answers]

    task = run(work())
    for number, answer in enumerate(answers):
        await asyncio.sleep(0)
        if number == 1:
            task.cancel()
            await asyncio.sleep(0)
        assert not task.done()
        answer.set_result(number)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert all(answer.done() and not answer.cancelled() for answer in answers)
