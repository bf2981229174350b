"""What it costs to give each test a clean database: one transaction that is rolled back, TRUNCATE, a schema made anew.

    python -m benchmarks.testing [--url URL] [--quick]

Each test has an event loop of its own, as pytest-asyncio gives it one, and commits one INSERT by the application's ``db``.
Needs an empty database, in which it makes and drops the table ``notes`` and four more.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from sqlalchemy import ForeignKey, MetaData, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from benchmarks._command import command
from benchmarks._report import table
from transact import Database
from transact._testing.database import Kit


class Base(DeclarativeBase):
    metadata = MetaData()


class Note(Base):
    __tablename__ = "notes"
    id: Mapped[int] = mapped_column(primary_key=True)
    body: Mapped[str]


# A small application's schema: TRUNCATE and CREATE TABLE cost by the table.
for _number in range(4):
    type(
        f"Other{_number}",
        (Base,),
        {
            "__tablename__": f"others_{_number}",
            "__annotations__": {"id": Mapped[int], "note_id": Mapped[int]},
            "id": mapped_column(primary_key=True),
            "note_id": mapped_column(ForeignKey("notes.id"), index=True),
        },
    )


async def one_test(db: Database, *, close: bool) -> None:
    async with db.transaction() as session:
        session.add(Note(body="x"))
    if close:  # the connections belong to this test's loop
        await db.close()
        await db.open()


async def make(db: Database, *, anew: bool = False) -> None:
    async with db, db.engine.begin() as connection:
        if anew:
            await connection.run_sync(Base.metadata.drop_all)
        await connection.run_sync(Base.metadata.create_all)
    await db.open()


async def truncate(db: Database) -> None:
    async with db, db.engine.begin() as connection:
        await connection.execute(text(f"TRUNCATE {', '.join(Base.metadata.tables)} RESTART IDENTITY"))
    await db.open()


@contextmanager
def rolled_back(kit: Kit, db: Database) -> Iterator[None]:
    with kit.use() as use:
        use(db)
        yield


@contextmanager
def after(work: Callable[[], object]) -> Iterator[None]:
    yield
    work()


def measure(
    around: Callable[[], AbstractContextManager[object]], db: Database, tests: int, *, close: bool
) -> tuple[float, float]:
    """Milliseconds per test: on the clock, and of this process's CPU."""
    started, worked = time.perf_counter(), time.process_time()
    for _ in range(tests):
        with around():
            asyncio.run(one_test(db, close=close))
    elapsed = time.perf_counter() - started, time.process_time() - worked
    return elapsed[0] / tests * 1000, elapsed[1] / tests * 1000


def report(url: str, server: str, quick: bool) -> str:  # noqa: FBT001  # every measurement is called like this
    tests, few = (3, 1) if quick else (1000, 100)
    db = Database(url)
    asyncio.run(make(db))
    kit = Kit()
    ways: list[tuple[str, Callable[[], AbstractContextManager[object]], int, bool]] = [
        ("(no cleaning at all)", nullcontext, few, True),
        ("one transaction, rolled back", lambda: rolled_back(kit, db), tests, False),
        ("TRUNCATE after each test", lambda: after(lambda: asyncio.run(truncate(db))), few, True),
        ("schema made anew", lambda: after(lambda: asyncio.run(make(db, anew=True))), few, True),
    ]
    found = {name: measure(around, db, count, close=close) for name, around, count, close in ways}
    kit.close()
    asyncio.run(drop(db))
    base = found["one transaction, rolled back"][0]
    rows = [(name, f"{clock:.1f}", f"{cpu:.1f}", f"{clock / base:.1f}") for name, (clock, cpu) in found.items()]
    return f"{server}.\n\n{table(('each test begins with', 'ms per test', 'CPU ms of it', 'ratio'), rows)}"


async def drop(db: Database) -> None:
    async with db, db.engine.begin() as connection:
        await connection.run_sync(Base.metadata.drop_all)


if __name__ == "__main__":
    command(report, __doc__)
