"""`retry=` on a request: after a transient failure the application is called again, and nobody outside can tell."""

import asyncio
from collections.abc import Callable
from typing import Annotated, Any

import pytest
from fastapi import BackgroundTasks, Depends, Request
from sqlalchemy import insert, text

from tests.fastapi.app import Person
from tests.fastapi.conftest import Local
from tests.fastapi.serving import serving
from tests.fastapi.stories import (
    LAYOUTS,
    PLACES,
    RETRY,
    Story,
    at_commit,
    bare,
    in_a_savepoint,
    in_a_streaming_response,
    in_an_http_exception,
    in_the_route,
    inside,
    outside,
)
from transact import Retry
from transact.events import Retried
from transact.fastapi import Database

pytestmark = pytest.mark.engines("sqlite", "pg18-asyncpg")


@LAYOUTS
@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
@pytest.mark.parametrize("failures", [1, 2])
async def test_after_a_transient_failure_anywhere_the_application_is_called_again_with_the_same_request(
    local: Local, *, layout: Any, place: Callable[[Story], None], failures: int
) -> None:
    story = layout(local, lambda: Story(local))
    place(story)
    story.failures = failures
    async with local.client(raising=True) as client:
        answer = await client.post("/do")
    assert (answer.status_code, answer.json()) == (200, "done")
    assert story.calls == failures + 1
    assert local.names() == [f"call {failures + 1}"]
    assert len({id(session) for session in story.sessions}) == len(story.sessions)
    assert [event.label for event in story.retried] == ["POST /do"] * failures
    if place is in_a_streaming_response and layout is not inside:  # that one reads ahead
        assert story.told == ["streaming"]


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
async def test_when_every_attempt_fails_the_client_reads_that_it_may_try_again_later(
    local: Local, place: Callable[[Story], None]
) -> None:
    story = Story(local)
    place(story)
    story.failures = 9
    async with local.client(raising=True) as client:
        answer = await client.post("/do")
    document = answer.json()
    assert (answer.status_code, document["code"], document["retryable"]) == (503, "retries-exhausted", True)
    assert answer.headers["retry-after"] == "1"
    assert answer.headers["content-type"] == "application/problem+json"
    assert story.calls == 3
    assert len(story.retried) == 2
    assert local.names() == []


@pytest.mark.engines("pg18-asyncpg", "pg18-psycopg")
@pytest.mark.parametrize("where", ["statement", "COMMIT"])
@pytest.mark.parametrize("default", [False, True])
async def test_a_serialization_failure_is_tried_again_at_commit_too_and_by_the_databases_own_retry(
    local: Local, *, where: str, default: bool
) -> None:
    retry = Retry(base=0)
    db = Database(local.url, retry=retry) if default else local.db
    story = Story(local, None if default else retry, db)
    by_chance = "BEGIN RAISE EXCEPTION 'by chance' USING ERRCODE = '40001'; END"
    local.observer.execute(f"CREATE OR REPLACE FUNCTION fails() RETURNS trigger LANGUAGE plpgsql AS $$ {by_chance} $$")
    local.observer.execute(
        "CREATE CONSTRAINT TRIGGER fails AFTER INSERT ON person DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW WHEN (NEW.name = 'unlucky') EXECUTE FUNCTION fails()"
    )

    @story.app.post("/do")
    async def do(session: story.session_type) -> str:
        story.calls += 1
        await session.execute(insert(Person).values(name="unlucky" if story.calls == 1 else "lucky"))
        if where == "statement":
            await session.execute(text("SET CONSTRAINTS ALL IMMEDIATE"))
        return "done"

    async with db:
        assert (await local.post("/do")).json() == "done"
    assert story.calls == 2
    assert local.names() == ["lucky"]
    assert [type(event.cause).__name__ for event in story.retried] == ["SerializationFailure"]


@pytest.mark.parametrize("layout", [bare, outside], ids=lambda f: f"BaseHTTPMiddleware {f.__name__}")
async def test_an_error_that_leaves_a_savepoint_and_ends_the_request_is_tried_again(local: Local, layout: Any) -> None:
    story = layout(local, lambda: Story(local))
    in_a_savepoint(story)
    assert (await local.post("/do")).json() == "done"
    assert story.calls == 2
    assert local.names() == ["call 2"]


@pytest.mark.parametrize("place", [at_commit, in_an_http_exception], ids=lambda place: place.__name__)
async def test_an_application_that_answers_for_itself_when_its_response_is_dropped_is_not_heard(
    local: Local, place: Callable[[Story], None]
) -> None:
    class Stubborn:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            try:
                await self.app(scope, receive, send)
            except BaseException:
                await send({"type": "http.response.start", "status": 500, "headers": []})
                await send({"type": "http.response.body", "body": b"it failed"})

    local.app.add_middleware(Stubborn)
    story = Story(local)
    place(story)
    answer = await local.post("/do")
    assert (answer.status_code, answer.json(), story.calls) == (200, "done", 2)


async def test_hooks_of_a_failed_attempt_run_with_that_attempt_and_never_again(local: Local) -> None:
    story = Story(local)
    in_the_route(story)
    assert (await local.post("/do")).status_code == 200
    assert story.told == [("rollback", 1, "UniqueViolation"), ("commit", 2)]


@LAYOUTS
async def test_background_tasks_of_a_failed_attempt_do_not_run_and_those_of_the_last_one_run_once(
    local: Local, layout: Any
) -> None:
    story = layout(local, lambda: Story(local))

    @story.app.post("/do")
    async def do(session: story.session_type, tasks: BackgroundTasks) -> str:
        await story.fail_at_commit(session)
        tasks.add_task(story.told.append, f"task {story.calls}")
        return "done"

    assert (await local.post("/do")).status_code == 200
    assert story.told == ["task 2"]


async def test_the_state_and_the_scope_are_those_of_a_new_request_in_each_attempt(local: Local) -> None:
    story = Story(local)
    kept: list[Any] = []

    class Around:
        """Around the library's middleware; it looks at the state that the successful attempt left."""

        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "http":
                scope.setdefault("state", {})["from outside"] = "kept"
                scope["session"] = {}
            state = scope.get("state")
            await self.app(scope, receive, send)
            if scope["type"] == "http":
                kept.append((dict(state), scope["session"]))

    story.app.add_middleware(Around)

    async def user(request: Request) -> int:
        story.told.append("dependency")
        return len(story.told)

    @story.app.post("/do/{number}")
    async def do(
        request: Request, session: story.session_type, number: int, user: Annotated[int, Depends(user)]
    ) -> str:
        assert not hasattr(request.state, "seen")
        assert "seen" not in request.scope["session"]
        assert getattr(request.state, "from outside") == "kept"
        assert (request.path_params, number, request.query_params["q"]) == ({"number": "7"}, 7, "x")
        request.state.seen = request.scope["session"]["seen"] = story.calls + 1
        request.scope["headers"].append((b"x-seen", b"1"))
        assert request.scope["headers"].count((b"x-seen", b"1")) == 1
        await story.fail(session)
        return "done"

    async with local.client(raising=True) as client:
        assert (await client.post("/do/7?q=x")).status_code == 200
    assert [told for told in story.told if told == "dependency"] == ["dependency"] * 2
    assert kept == [({"from outside": "kept", "seen": 2}, {"seen": 2})]
    assert [event.label for event in story.retried] == ["POST /do/{number}"]


# Clients that leave.


async def test_a_request_that_is_cancelled_during_the_pause_is_not_called_again(local: Local) -> None:
    story = Story(local, Retry(base=100, max_delay=100, on=RETRY.on))
    in_the_route(story)
    pausing = asyncio.Event()
    story.db.listen(lambda event: pausing.set() if isinstance(event, Retried) else None)
    async with local.client() as client:
        task = asyncio.create_task(client.post("/do"))
        async with asyncio.timeout(10):
            await pausing.wait()
            assert local.db.engine.pool.checkedout() == 0
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
    assert story.calls == 1
    assert local.names() == []


async def test_a_client_that_leaves_between_two_attempts_loses_nothing_but_its_answer(local: Local) -> None:
    story = Story(local, Retry(base=0.05, on=RETRY.on))
    in_the_route(story)
    done = asyncio.Event()
    pausing = asyncio.Event()
    story.db.listen(lambda event: pausing.set() if isinstance(event, Retried) else None)
    story.db.listen(lambda event: done.set() if type(event).__name__ == "Committed" else None)
    async with serving(story.app) as client:
        task = asyncio.create_task(client.post("/do"))
        async with asyncio.timeout(10):
            await pausing.wait()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await done.wait()
    assert story.calls == 2
    assert local.names() == ["call 2"]


async def test_the_openapi_document_lists_exhausted_retries_under_503(local: Local) -> None:
    story = Story(local)
    in_the_route(story)
    described = story.app.openapi()["paths"]["/do"]["post"]["responses"]["503"]
    assert "retries-exhausted" in described["description"]
    assert "Retry-After" in described["headers"]
