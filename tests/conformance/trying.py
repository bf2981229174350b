"""The verbs that try a transaction again, as one kind of function."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from transact import Database, Retry

Work = Callable[[AsyncSession], Awaitable[Any]]
Verb = Callable[..., Awaitable[Any]]
#: Without pauses.
QUICK = Retry(base=0)
#: A failure that is not tried again unless it is named.
DUPLICATE = text("INSERT INTO words (text) VALUES ('same'), ('same')")


async def run(db: Database, work: Work, **options: Any) -> Any:
    return await db.run(work, **options)


async def decorated(db: Database, work: Work, **options: Any) -> Any:
    @db.transactional(**options)
    async def function(session: AsyncSession) -> Any:
        return await work(session)

    return await function()


async def attempts(db: Database, work: Work, **options: Any) -> Any:
    if not db._runtime.is_async:
        return db.attempted(work, **options)  # it is a database in place, and the loop is of `for`
    async for attempt in db.attempts(**options):
        async with attempt as session:
            result = await work(session)
    return result


VERBS = {"run": run, "transactional": decorated, "attempts": attempts}
EACH_VERB = pytest.mark.parametrize("verb", VERBS.values(), ids=list(VERBS))


class OutOfStockError(Exception):
    """An error of the application's own."""


def counted(work: Callable[[AsyncSession], Awaitable[Any]]) -> tuple[list[AsyncSession], Callable[..., Awaitable[Any]]]:
    """`work`, and the sessions that it was called with."""
    sessions: list[AsyncSession] = []

    async def call(session: AsyncSession) -> Any:
        sessions.append(session)
        return await work(session)

    return sessions, call
