"""Applications whose requests fail so many times, in every place where a request can, and what surrounds them."""

from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any

import pytest
from fastapi import Depends, HTTPException, Request
from fastapi.responses import JSONResponse, StreamingResponse
from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.middleware.base import BaseHTTPMiddleware

from tests.fastapi.app import Person
from tests.fastapi.conftest import Local
from transact import Retry, errors
from transact.events import Event, Retried
from transact.fastapi import Database

#: Failures that any engine can be made to have, one in a statement and one at COMMIT.
RETRY = Retry(attempts=3, base=0, on=(errors.UniqueViolation, errors.ForeignKeyViolation))


class OutOfStockError(Exception):
    """An error of the application's own."""


class Story:
    """An application whose request fails so many times; it remembers what each attempt found and left."""

    def __init__(self, local: Local, retry: Retry | None = RETRY, db: Database | None = None) -> None:
        self.app, self.db = local.app, db or local.db
        self.local = local
        self.failures = 1
        self.calls = 0
        self.sessions: list[AsyncSession] = []
        self.told: list[Any] = []
        self.events: list[Event] = []
        self.session_type = Annotated[AsyncSession, self.db.session(retry=retry)]
        self.db.listen(self.events.append)
        self.db.install(self.app)

    async def fail(self, session: AsyncSession) -> None:
        """Store a word, and fail in a statement if this attempt is to fail."""
        self.calls += 1
        number = self.calls
        self.sessions.append(session)
        self.db.after_commit(lambda: self.told.append(("commit", number)))
        self.db.after_rollback(lambda error: self.told.append(("rollback", number, type(error).__name__)))
        await session.execute(insert(Person).values(name=f"call {number}"))
        if number <= self.failures:
            await session.execute(insert(Person).values(name=f"call {number}"))

    async def fail_at_commit(self, session: AsyncSession) -> None:
        self.calls += 1
        self.sessions.append(session)
        await session.execute(
            insert(Person).values(name=f"call {self.calls}", boss_id=9 if self.calls <= self.failures else None)
        )

    @property
    def retried(self) -> list[Retried]:
        return [event for event in self.events if isinstance(event, Retried)]


def in_the_route(story: Story) -> None:
    @story.app.post("/do")
    async def do(session: story.session_type) -> str:
        await story.fail(session)
        return "done"


def in_a_dependency(story: Story) -> None:
    async def dependency(session: story.session_type) -> None:
        await story.fail(session)

    @story.app.post("/do")
    async def do(nothing: Annotated[None, Depends(dependency)]) -> str:
        return "done"


def at_commit(story: Story) -> None:
    @story.app.post("/do")
    async def do(session: story.session_type) -> str:
        await story.fail_at_commit(session)
        return "done"


def in_a_flush_at_the_end(story: Story) -> None:
    @story.app.post("/do")
    async def do(session: story.session_type) -> str:
        story.calls += 1
        story.sessions.append(session)
        names = [f"call {story.calls}"] * (2 if story.calls <= story.failures else 1)
        session.add_all([Person(name=name) for name in names])
        return "done"


def in_an_http_exception(story: Story) -> None:
    @story.app.post("/do")
    async def do(session: story.session_type) -> str:
        try:
            await story.fail(session)
        except errors.UniqueViolation as error:
            raise HTTPException(409, "taken") from error
        return "done"


def in_an_http_exception_that_hides_it(story: Story) -> None:
    @story.app.post("/do")
    async def do(session: story.session_type) -> str:
        try:
            await story.fail(session)
        except errors.UniqueViolation:
            raise HTTPException(409, "taken") from None
        return "done"


def in_an_error_that_the_application_renders(story: Story, status: int = 418) -> None:
    @story.app.exception_handler(OutOfStockError)
    async def render(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse("own words", status)

    @story.app.post("/do")
    async def do(session: story.session_type) -> str:
        try:
            await story.fail(session)
        except errors.UniqueViolation as error:
            raise OutOfStockError from error
        return "done"


def in_an_error_that_the_application_renders_as_success(story: Story) -> None:
    in_an_error_that_the_application_renders(story, 200)


def in_an_error_that_nobody_renders(story: Story) -> None:
    @story.app.post("/do")
    async def do(session: story.session_type) -> str:
        try:
            await story.fail(session)
        except errors.UniqueViolation:
            raise OutOfStockError from None
        return "done"


def in_a_statement_that_is_swallowed(story: Story) -> None:
    @story.app.post("/do")
    async def do(session: story.session_type) -> str:
        try:
            await story.fail(session)
        except errors.UniqueViolation:
            return "all is well"
        return "done"


def in_a_service(story: Story) -> None:
    @story.db.transactional
    async def service(session: AsyncSession) -> None:
        await story.fail(session)

    @story.app.post("/do")
    async def do(session: story.session_type) -> str:
        await service()
        return "done"


def in_a_savepoint(story: Story) -> None:
    @story.app.post("/do")
    async def do(session: story.session_type) -> str:
        async with story.db.savepoint():
            await story.fail(session)
        return "done"


def in_a_streaming_response(story: Story) -> None:
    @story.app.post("/do")
    async def do(session: story.session_type) -> StreamingResponse:
        await story.fail_at_commit(session)

        async def body() -> AsyncIterator[bytes]:
            story.told.append("streaming")
            yield b'"do'
            yield b'ne"'

        return StreamingResponse(body(), media_type="application/json")


PLACES = (
    in_the_route, in_a_dependency, at_commit, in_a_flush_at_the_end, in_an_http_exception, in_an_http_exception_that_hides_it,
    in_an_error_that_the_application_renders, in_an_error_that_the_application_renders_as_success,
    in_an_error_that_nobody_renders, in_a_statement_that_is_swallowed, in_a_service, in_a_streaming_response,
)  # fmt: skip


class Between(BaseHTTPMiddleware):
    async def dispatch(self, request: Request, call_next: Any) -> Any:
        return await call_next(request)


def bare(local: Local, make: Callable[[], Story]) -> Story:
    return make()


def inside(local: Local, make: Callable[[], Story]) -> Story:
    local.app.add_middleware(Between)
    return make()


def outside(local: Local, make: Callable[[], Story]) -> Story:
    story = make()
    local.app.add_middleware(Between)
    return story


LAYOUTS = pytest.mark.parametrize("layout", [bare, inside, outside], ids=lambda f: f"BaseHTTPMiddleware {f.__name__}")
