"""What one more costs: a nested call, a hook, a savepoint, an installed database.

    python -m benchmarks.growth [--url URL] [--quick]

CPU per request of a route that inserts one row, with 0, 1, 2, 4 and 8 of a kind; in process, over ASGI, in alternating rounds.
"""

import asyncio
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from typing import Annotated

from fastapi import FastAPI
from sqlalchemy.ext.asyncio import AsyncSession

from benchmarks._asgi import cost
from benchmarks._command import command, say
from benchmarks._report import machine, microseconds, table, versions
from benchmarks._worker import PACKAGES
from benchmarks.apps._routes import insert_item
from transact.fastapi import Database

COUNTS = (0, 1, 2, 4, 8)
Make = Callable[[str, int], FastAPI]


def _installed(url: str, more: int = 0) -> tuple[FastAPI, Database]:
    """An application with its database, and with some more that its routes do not use."""
    db = Database(url, pool_size=2, max_overflow=0)
    app = FastAPI(lifespan=db.lifespan)
    db.install(app)
    for number in range(more):
        Database(url, pool_size=2, max_overflow=0, name=f"other-{number}").install(app)
    return app, db


def nested(url: str, count: int) -> FastAPI:
    app, db = _installed(url)

    @db.transactional()
    async def level(session: AsyncSession, below: int) -> dict[str, int]:
        return await level(below - 1) if below else await insert_item(session)

    @app.post("/insert")
    async def insert(session: Annotated[AsyncSession, db.session()]) -> dict[str, int]:
        return await level(count - 1) if count else await insert_item(session)

    return app


def hooks(url: str, count: int) -> FastAPI:
    app, db = _installed(url)

    @app.post("/insert")
    async def insert(session: Annotated[AsyncSession, db.session()]) -> dict[str, int]:
        for _ in range(count):
            db.after_commit(lambda: None)
        return await insert_item(session)

    return app


def savepoints(url: str, count: int) -> FastAPI:
    app, db = _installed(url)

    @app.post("/insert")
    async def insert(session: Annotated[AsyncSession, db.session()]) -> dict[str, int]:
        return await _within(session, count)

    async def _within(session: AsyncSession, below: int) -> dict[str, int]:
        if not below:
            return await insert_item(session)
        async with db.savepoint():
            return await _within(session, below - 1)

    return app


def databases(url: str, count: int) -> FastAPI:
    app, db = _installed(url, more=count)

    @app.post("/insert")
    async def insert(session: Annotated[AsyncSession, db.session()]) -> dict[str, int]:
        return await insert_item(session)

    return app


KINDS: dict[str, Make] = {
    "a nested `@db.transactional` call": nested,
    "an `after_commit` hook": hooks,
    "a savepoint inside the other": savepoints,
    "an installed database, not used": databases,
}


def report(url: str, server: str, quick: bool) -> str:  # noqa: FBT001  # every measurement is called like this
    rounds, requests = (1, 3) if quick else (9, 100)
    taken = asyncio.run(_measure(url, rounds, requests))
    rows = [(kind, *(microseconds(taken[kind, count]) for count in COUNTS), _slope(taken, kind)) for kind in KINDS]
    said = f"CPU per request, µs; medians of {rounds} alternating rounds of {requests} requests."
    head = ("", *(str(count) for count in COUNTS), "each one more")
    return f"{said} {machine(versions(*PACKAGES), server)}\n{table(head, rows)}"


async def _measure(url: str, rounds: int, requests: int) -> dict[tuple[str, int], list[float]]:
    taken: dict[tuple[str, int], list[float]] = defaultdict(list)
    for kind, make in KINDS.items():
        say(f"growth: {kind}")
        async with AsyncExitStack() as stack:
            apps = {count: make(url, count) for count in COUNTS}
            for app in apps.values():
                await stack.enter_async_context(app.router.lifespan_context(app))
            for number in range(rounds + 1):
                for count, app in apps.items():
                    measured = await cost(app, "POST", "/insert", requests)
                    if number:  # the first round warms up
                        taken[kind, count].append(measured.cpu)
    return taken


def _slope(taken: dict[tuple[str, int], list[float]], kind: str) -> str:
    """µs for each one more: the median of the rounds' regression lines."""

    def line(costs: Sequence[float]) -> float:
        return statistics.linear_regression(COUNTS, costs).slope

    slopes = [line(costs) for costs in zip(*(taken[kind, count] for count in COUNTS), strict=True)]
    return f"{statistics.median(slopes) * 1e6:+.1f}"


if __name__ == "__main__":
    command(report, __doc__)
