"""When a request with `retry=` is not tried again."""

from collections.abc import AsyncIterator
from typing import Annotated, Any

import pytest
from fastapi import Depends, FastAPI, HTTPException
from fastapi.responses import StreamingResponse
from sqlalchemy import insert, text
from sqlalchemy.ext.asyncio import AsyncSession

from tests.fastapi.app import Person
from tests.fastapi.conftest import Local
from tests.fastapi.stories import RETRY, OutOfStockError, Story
from transact import Propagation, Retry, errors
from transact.fastapi import Database

pytestmark = pytest.mark.engines("sqlite", "pg18-asyncpg")


async def test_once_the_response_has_begun_nothing_is_tried_again(local: Local) -> None:
    story = Story(local)

    @story.app.post("/do")
    async def do(session: story.session_type) -> StreamingResponse:
        story.calls += 1
        await session.execute(insert(Person).values(name="ann"))

        async def body() -> AsyncIterator[bytes]:
            yield b"first"
            raise errors.SerializationFailure

        return StreamingResponse(body())

    with pytest.raises((RuntimeError, ExceptionGroup, errors.TransactError)):  # as the version of Starlette has it
        async with local.client(raising=True) as client:
            await client.post("/do")
    assert story.calls == 1
    assert local.names() == ["ann"]


@pytest.mark.parametrize("status", [200, 404])
async def test_an_answer_without_a_failure_is_sent_as_it_is(local: Local, status: int) -> None:
    story = Story(local)

    @story.app.post("/do")
    async def do(session: story.session_type) -> str:
        story.calls += 1
        try:
            async with story.db.savepoint():
                await session.execute(insert(Person).values([{"name": "same"}, {"name": "same"}]))
        except errors.UniqueViolation:
            pass
        if status != 200:
            raise HTTPException(status)
        return "done"

    assert (await local.post("/do")).status_code == status
    assert story.calls == 1


async def test_a_failure_that_something_around_handles_already_is_not_the_requests(local: Local) -> None:
    story = Story(local)
    story.failures = 0

    class Around:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            try:
                raise errors.SerializationFailure
            except errors.SerializationFailure:
                await self.app(scope, receive, send)

    story.app.add_middleware(Around)

    @story.app.post("/do")
    async def do(session: story.session_type, status: int) -> str:
        await story.fail(session)
        if status != 200:
            raise HTTPException(status)
        return "done"

    assert (await local.post("/do?status=404")).status_code == 404
    assert (await local.post("/do?status=200")).status_code == 200
    assert story.calls == 2
    assert local.names() == ["call 2"]


async def test_a_request_with_a_manual_session_is_not_tried_again_because_it_may_have_committed(local: Local) -> None:
    story = Story(local)

    @story.app.post("/do")
    async def do(session: story.session_type, own: Annotated[AsyncSession, story.db.manual_session()]) -> str:
        own.add(Person(name="own"))
        await own.commit()
        await story.fail(session)
        return "done"

    assert (await local.post("/do")).status_code == 409
    assert story.calls == 1
    assert local.names() == ["own"]


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("order", [1, -1])
async def test_a_request_that_used_two_databases_is_tried_again_as_one_while_neither_has_committed(
    local: Local, tmp_path: Any, *, both: bool, order: int
) -> None:
    other = Database(f"sqlite+aiosqlite:///{tmp_path}/other.db", retry=RETRY, name="other")
    if order == 1:
        story = Story(local)
        other.install(story.app)
    else:
        other.install(local.app)
        story = Story(local)

    async def use(session: Annotated[AsyncSession, other.session()]) -> None:
        await session.execute(text("INSERT INTO told VALUES (1)"))

    @story.app.post("/do", dependencies=[Depends(use)] if both else [])
    async def do(session: story.session_type) -> str:
        await story.fail(session)
        return "done"

    async with other:
        async with other.transaction() as session:
            await session.execute(text("CREATE TABLE told (a integer)"))
        answer = await local.post("/do")
        async with other.transaction() as session:
            told = await session.scalar(text("SELECT count(*) FROM told"))
    assert (answer.status_code, story.calls) == (200, 2)
    assert told == (1 if both else 0)
    assert local.names() == ["call 2"]


async def test_a_request_that_also_used_the_database_of_a_mounted_application_is_not_tried_again(
    local: Local, tmp_path: Any
) -> None:
    other = Database(f"sqlite+aiosqlite:///{tmp_path}/other.db", name="other")
    story = Story(local)
    inner = FastAPI()
    other.install(inner)
    story.app.mount("/inner", inner)

    @inner.post("/do")
    async def do(session: story.session_type, theirs: Annotated[AsyncSession, other.session()]) -> str:
        await theirs.execute(text("CREATE TABLE told (a integer)"))  # commits when the response leaves its application
        await story.fail_at_commit(session)
        return "done"

    async with other:
        answer = await local.post("/inner/do")
        async with other.transaction() as session:
            assert await session.scalar(text("SELECT count(*) FROM told")) == 0
    assert (answer.status_code, story.calls) == (409, 1)
    assert local.names() == []


async def test_a_commit_with_a_failing_critical_hook_is_stored_and_not_done_twice(local: Local) -> None:
    story = Story(local, Retry(base=0, on=(Exception,)))
    story.failures = 0

    def fail() -> None:
        raise ValueError

    @story.app.post("/do")
    async def do(session: story.session_type) -> str:
        await story.fail(session)
        story.db.after_commit(fail, critical=True)
        return "done"

    answer = await local.post("/do")
    assert (answer.status_code, answer.json()["code"]) == (500, "after-commit-error")
    assert story.calls == 1
    assert local.names() == ["call 1"]


async def test_a_function_that_asks_for_retry_inside_the_requests_transaction_raises(local: Local) -> None:
    story = Story(local, None)

    @story.app.post("/do")
    async def do(session: story.session_type) -> str:
        with pytest.raises(errors.UsageError, match=r"db.session\(retry="):
            await story.db.run(story.fail, retry=RETRY, propagation=Propagation.REQUIRES_NEW)
        return "done"

    assert (await local.post("/do")).json() == "done"
    assert story.calls == 0


async def test_whoever_of_the_dependencies_asks_for_a_retry_asks_for_the_whole_request(local: Local) -> None:
    story = Story(local, None)
    asking = Annotated[AsyncSession, story.db.session(retry=RETRY)]

    @story.app.post("/do")
    async def do(session: story.session_type, again: asking) -> str:
        await story.fail(session)
        return "done"

    assert (await local.post("/do")).json() == "done"
    assert story.calls == 2


async def test_a_request_that_only_reads_is_tried_again_too(local: Local) -> None:
    story = Story(local, None)
    reading = Annotated[AsyncSession, story.db.session(read_only=True, retry=Retry(base=0, on=(OutOfStockError,)))]

    @story.app.post("/do")
    async def do(session: reading) -> int:
        story.calls += 1
        if story.calls == 1:
            raise OutOfStockError
        return await session.scalar(text("SELECT 7"))

    assert (await local.post("/do")).json() == 7
    assert story.calls == 2
