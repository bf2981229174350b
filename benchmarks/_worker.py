"""The process of a variant: it makes requests when told to by standard input, and answers on what was standard output.

    python -m benchmarks._worker URL NAME...

Each line, in and out, is a JSON object. The process ends when standard input does.
"""

import asyncio
import gc
import importlib
import json
import os
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, TextIO

from benchmarks._asgi import cost, request
from benchmarks._report import versions

PACKAGES = ("fastapi", "starlette", "pydantic", "sqlalchemy", "asyncpg")


async def memory(app: Any, requests: int) -> dict[str, int]:
    """Make half as many requests of each kind; then say how large the process is, in bytes and in Python's own blocks."""
    for _ in range(requests // 2):
        await request(app, "POST", "/insert")
        await request(app, "GET", "/one")
    gc.collect()
    return {"rss": resident(), "blocks": sys.getallocatedblocks()}


def resident() -> int:
    """Bytes of this process in memory: proc(5), second field of statm."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def serve(url: str, names: Sequence[str], answers: TextIO) -> None:
    def answer(found: object) -> None:
        answers.write(json.dumps(found) + "\n")
        answers.flush()

    async with AsyncExitStack() as stack:
        apps = {name: importlib.import_module(f"benchmarks.apps.{name}").make_app(url) for name in names}
        for app in apps.values():
            await stack.enter_async_context(app.router.lifespan_context(app))
        answer({name: versions(*PACKAGES, name) for name in names})  # a peer is its own distribution
        for line in sys.stdin:  # blocks the event loop, which has nothing else to do
            match json.loads(line):
                case {"do": "cost", "name": name, "method": method, "path": path, "requests": requests}:
                    answer((await cost(apps[name], method, path, requests))._asdict())
                case {"do": "repeat", "name": name, "method": method, "path": path, "requests": requests}:
                    for _ in range(requests):
                        await request(apps[name], method, path)
                    answer({})
                case {"do": "memory", "name": name, "requests": requests}:
                    answer(await memory(apps[name], requests))


if __name__ == "__main__":
    # What a library prints must not get between the answers.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as stdout:
        os.dup2(2, 1)
        asyncio.run(serve(sys.argv[1], sys.argv[2:], stdout))
