"""The body of a request that is tried again: replayed byte for byte, within a bound."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any

import pytest
from fastapi import File, Form, Request, UploadFile

from tests.fastapi.conftest import Local
from tests.fastapi.serving import serving
from tests.fastapi.stories import (
    LAYOUTS,
    Story,
)
from transact.fastapi._replay import LIMIT

pytestmark = pytest.mark.engines("sqlite", "pg18-asyncpg")


def json_body(story: Story) -> dict[str, Any]:
    @story.app.post("/do")
    async def do(session: story.session_type, body: dict[str, Any]) -> str:
        story.told.append(body)
        await story.fail(session)
        return "done"

    return {"json": {"name": "ann", "list": [1, None, "é"]}}


def form_body(story: Story) -> dict[str, Any]:
    pytest.importorskip("python_multipart")

    @story.app.post("/do")
    async def do(session: story.session_type, name: Annotated[str, Form()], age: Annotated[int, Form()]) -> str:
        story.told.append((name, age))
        await story.fail(session)
        return "done"

    return {"data": {"name": "ann & bob", "age": "3"}}


PICTURE = bytes(range(256)) * 800


def multipart_body(story: Story) -> dict[str, Any]:
    pytest.importorskip("python_multipart")

    @story.app.post("/do")
    async def do(
        session: story.session_type,
        picture: UploadFile,
        name: Annotated[str, Form()],
        small: Annotated[bytes, File()],
    ) -> str:
        story.told.append((await picture.read() == PICTURE, picture.filename, name, small))
        await story.fail(session)
        return "done"

    return {"files": {"picture": ("a.png", PICTURE, "image/png"), "small": b"\0\r\n--"}, "data": {"name": "ann"}}


def chunked_body(story: Story) -> dict[str, Any]:
    async def chunks() -> AsyncIterator[bytes]:
        for part in (b"a" * 70_000, b"", b"b", b"c" * 100_000):
            yield part
            await asyncio.sleep(0)

    _raw(story)
    return {"content": chunks()}


def no_body(story: Story) -> dict[str, Any]:
    _raw(story)
    return {}


def _raw(story: Story) -> None:
    @story.app.post("/do")
    async def do(session: story.session_type, request: Request) -> str:
        story.told.append(await request.body())
        await story.fail(session)
        return "done"


BODIES = (json_body, form_body, multipart_body, chunked_body, no_body)


@LAYOUTS
@pytest.mark.parametrize("body", BODIES, ids=lambda body: body.__name__)
async def test_the_body_is_replayed_byte_for_byte(
    local: Local, body: Callable[[Story], dict[str, Any]], layout: Any
) -> None:
    story = layout(local, lambda: Story(local))
    story.failures = 2
    request = body(story)
    async with serving(story.app) as client:
        answer = await client.post("/do", **request)
    assert (answer.status_code, answer.json()) == (200, "done")
    seen = [told for told in story.told if not (isinstance(told, tuple) and told[0] in {"commit", "rollback"})]
    assert len(seen) == 3
    assert seen[0] == seen[1] == seen[2]
    if body is chunked_body:
        assert seen[0] == b"a" * 70_000 + b"b" + b"c" * 100_000
    if body is multipart_body:
        assert seen[0] == (True, "a.png", "ann", b"\0\r\n--")


@pytest.mark.parametrize("over", [0, 1])
@pytest.mark.parametrize("network", [False, True])
async def test_a_body_of_one_mebibyte_is_replayed_and_one_byte_more_is_not(
    local: Local, *, over: int, network: bool
) -> None:
    story = Story(local)
    _raw(story)
    content = b"x" * (1024 * 1024 + over)
    async with serving(story.app) if network else local.client() as client:
        answer = await client.post("/do", content=content)
    assert LIMIT == 1024 * 1024
    assert (answer.status_code, story.calls) == ((409, 1) if over else (200, 2))
    assert local.names() == ([] if over else ["call 2"])
    assert [len(told) for told in story.told if isinstance(told, bytes)] == [len(content)] * story.calls


async def test_what_the_failed_attempt_left_unread_is_read_by_the_next(local: Local) -> None:
    story = Story(local)

    @story.app.post("/do")
    async def do(session: story.session_type, request: Request) -> str:
        read = b""
        async for part in request.stream():
            read += part
            if story.calls == 0:
                await story.fail(session)
        story.told.append(read)
        await story.fail(session)
        return "done"

    async def chunks() -> AsyncIterator[bytes]:
        for part in (b"one", b"two", b"three"):
            yield part
            await asyncio.sleep(0.01)  # so that they arrive one by one

    async with serving(story.app) as client:
        answer = await client.post("/do", content=chunks())
    assert answer.status_code == 200
    assert [told for told in story.told if isinstance(told, bytes)] == [b"onetwothree"]


async def test_without_retry_no_body_is_kept(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    monkeypatch.setattr("transact.fastapi.middleware.Replay", made.append)
    story = Story(local, None)
    _raw(story)
    answer = await local.post("/do", content=b"x")
    assert (answer.status_code, story.calls) == (409, 1)
    assert made == []
