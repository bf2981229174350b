"""Requests made in the process itself, without a server or a network, and what they cost."""

import asyncio
import gc
import time
from typing import Any, NamedTuple

OK = 200


class Cost(NamedTuple):
    """Seconds per request: of CPU time of the whole process, and as the clock on the wall goes."""

    cpu: float
    wall: float


async def request(app: Any, method: str, path: str) -> None:
    """One request, as a server would make it. Raises ``RuntimeError`` if it is not answered by a 200."""
    body = [{"type": "http.request", "body": b"", "more_body": False}]
    status = None

    async def receive() -> dict[str, Any]:
        return body.pop() if body else await asyncio.Future()

    async def send(message: dict[str, Any]) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
        "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "", "headers": [(b"host", b"bench")],
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80),
    }  # fmt: skip
    await app(scope, receive, send)
    if status != OK:
        raise RuntimeError(f"{method} {path} answered {status}")


async def cost(app: Any, method: str, path: str, requests: int) -> Cost:
    """What each of so many requests costs, one after the other."""
    gc.collect()  # or one round pays for the garbage of another
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(requests):
        await request(app, method, path)
    return Cost((time.process_time() - cpu) / requests, (time.perf_counter() - wall) / requests)
