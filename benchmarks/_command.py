"""What every measurement's command does: take a database or start one, make the tables, print Markdown."""

import argparse
import asyncio
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from sqlalchemy import insert, text
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from benchmarks.apps._routes import ROWS, Base, Entry
from tests.engines import BY_ID, Engines

ENGINES = {True: "pg15-asyncpg", False: "pg18-asyncpg"}


@contextmanager
def database() -> Iterator[str]:
    """The URL of an empty database: on the server that TRANSACT_TEST_POSTGRESQL names, else on one started for the block.

    That one runs without fsync: the speed of a disk is none of the things compared.
    """
    engine = BY_ID[ENGINES["TRANSACT_TEST_POSTGRESQL" in os.environ]]
    engines = Engines()
    with engines.stack, ExitStack() as stack:
        yield engines.another_database(engine, Path(), stack)


@contextmanager
def with_tables(url: str) -> Iterator[str]:
    """The tables that the applications use, for the length of the block; yields what the server is."""
    yield asyncio.run(_prepare(url))
    asyncio.run(_drop(url))


async def _prepare(url: str) -> str:
    engine = create_async_engine(url)
    async with engine.begin() as connection:
        await _empty(connection)
        await connection.run_sync(Base.metadata.create_all)
        entries = [{"name": f"entry {number}", "amount": number} for number in range(ROWS)]
        await connection.execute(insert(Entry), entries)
        server = await _server(connection)
    await engine.dispose()
    return server


async def _server(connection: AsyncConnection) -> str:
    if connection.dialect.name != "postgresql":
        return connection.dialect.name
    number = (await connection.execute(text("SHOW server_version"))).scalar_one()
    fsync = (await connection.execute(text("SHOW fsync"))).scalar_one()
    return f"PostgreSQL {number.split()[0]}{'' if fsync == 'on' else ' without fsync'} on the same machine"


async def _drop(url: str) -> None:
    engine = create_async_engine(url)
    async with engine.begin() as connection:
        await _empty(connection)
    await engine.dispose()


async def _empty(connection: AsyncConnection) -> None:
    await connection.run_sync(Base.metadata.drop_all)


def say(progress: str) -> None:
    """What the one who waits may read; the report goes to standard output."""
    print(progress, file=sys.stderr, flush=True)


def command(report: Callable[[str, str, bool], str], description: str | None) -> None:
    """Run ``report(url, server, quick)`` as a command and print what it returns."""
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    parser.add_argument("--url", help="postgresql+asyncpg://…; without it, a PostgreSQL is started for the measurement")
    parser.add_argument(
        "--quick", action="store_true", help="a few requests, to see that it runs; the figures mean nothing"
    )
    given = parser.parse_args()
    with ExitStack() as stack:
        url = given.url or stack.enter_context(database())
        server = stack.enter_context(with_tables(url))
        print(report(url, server, given.quick))
