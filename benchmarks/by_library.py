"""Where a request's CPU goes: by sampling, to the library whose code was running.

    python -m benchmarks.by_library [--url URL] [--quick]

A timer of the process's CPU time (``setitimer(2)``, ITIMER_PROF) looks now and then which frame is innermost. What C code
takes, counts for the Python code that called it: the protocol of asyncpg for asyncio, which feeds it, or for asyncpg.
"""

import asyncio
import importlib
import signal
from collections import Counter
from contextlib import AsyncExitStack
from types import FrameType
from typing import NamedTuple

from benchmarks._asgi import cost
from benchmarks._command import command, say
from benchmarks._report import machine, table, versions
from benchmarks._variants import BARE, CONNECTION, CONTROL, TRANSACT
from benchmarks._worker import PACKAGES

EVERY = 0.001  # seconds of CPU; the system may look less often
ROUTES = (("POST", "/insert", "INSERT, ORM"), ("GET", "/one", "one SELECT"), ("GET", "/idle", "session not used"))
VARIANTS = (CONTROL, BARE, TRANSACT, CONNECTION)
#: Parts of the path of a file, and whose it is; the first that fits.
LIBRARIES = (
    ("/transact/", "transact"),
    ("/sqlalchemy/", "SQLAlchemy"),
    ("/asyncpg/", "asyncpg"),
    ("/fastapi/", "FastAPI"),
    ("/starlette/", "FastAPI"),
    ("/pydantic", "FastAPI"),
    ("/anyio/", "FastAPI"),
    ("/asyncio/", "asyncio"),
    ("/selectors.py", "asyncio"),
)
SHOWN = ("FastAPI", "SQLAlchemy", "asyncpg", "asyncio", "transact", "the rest")


class Sampled(NamedTuple):
    """Seconds of CPU per request, and how often each library was seen at work."""

    cpu: float
    seen: Counter[str]


def library_of(frame: FrameType | None) -> str:
    """Whose code runs: that of the frame, or of its caller where Python itself is at work."""
    while frame is not None:
        name = frame.f_code.co_filename
        for part, library in LIBRARIES:
            if part in name:
                return library
        frame = frame.f_back if "/lib/python" in name or name.startswith("<") else None
    return "the rest"


def report(url: str, server: str, quick: bool) -> str:  # noqa: FBT001  # every measurement is called like this
    rounds, requests = (1, 20) if quick else (8, 500)
    found = asyncio.run(_measure(url, rounds, requests))
    said = f"CPU per request, µs, of {rounds * requests:,} requests each, in {rounds} alternating rounds."
    parts = [f"{said} {machine(versions(*PACKAGES), server)}"]
    for _, path, name in ROUTES:
        rows = []
        for variant in VARIANTS:
            cpu, seen = found[path, variant.name]
            shares = (f"{cpu * 1e6 * seen[library] / max(seen.total(), 1):,.0f}" for library in SHOWN)
            rows.append((variant.shown, f"{cpu * 1e6:,.0f}", *shares))
        parts.append(table((name, "all", *SHOWN), rows))
    return "\n".join(parts)


async def _measure(url: str, rounds: int, requests: int) -> dict[tuple[str, str], Sampled]:
    found = {(path, variant.name): Sampled(0.0, Counter()) for _, path, _ in ROUTES for variant in VARIANTS}
    async with AsyncExitStack() as stack:
        apps = {
            variant.name: importlib.import_module(f"benchmarks.apps.{variant.name}").make_app(url)
            for variant in VARIANTS
        }
        for app in apps.values():
            await stack.enter_async_context(app.router.lifespan_context(app))
        for method, path, name in ROUTES:
            say(f"by_library: {name}")
            for app in apps.values():
                await cost(app, method, path, requests // 5)
            for _ in range(rounds):
                for variant, app in apps.items():
                    before = found[path, variant]
                    with_timer = await _sampled(app, method, path, requests, before.seen)
                    found[path, variant] = Sampled(before.cpu + with_timer / rounds, before.seen)
    return found


async def _sampled(app: object, method: str, path: str, requests: int, seen: Counter[str]) -> float:
    def look(_signal: int, frame: FrameType | None) -> None:
        seen[library_of(frame)] += 1

    before = signal.signal(signal.SIGPROF, look)
    signal.setitimer(signal.ITIMER_PROF, EVERY, EVERY)
    try:
        return (await cost(app, method, path, requests)).cpu
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


if __name__ == "__main__":
    command(report, __doc__)
