"""Two tasks in one session at once: one proceeds, the others are told so in the same words on every engine."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest
from sqlalchemy import event, insert, select, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.util import await_only

from tests.conformance.tables import SLEEP, Stored, Word, store
from transact import Database, errors

pytestmark = pytest.mark.engines("sqlite", "postgresql", "mariadb")

Use = Callable[[AsyncSession], Awaitable[object]]


async def flush(session: AsyncSession) -> None:
    await session.flush()


async def get(session: AsyncSession) -> object:
    return await session.get(Word, 1, populate_existing=True)


async def refresh(session: AsyncSession) -> None:
    await session.refresh(next(iter(session.sync_session.identity_map.values())))


async def merge(session: AsyncSession) -> None:
    await session.merge(Word(id=2, text="merged"))


async def stream(session: AsyncSession) -> None:
    async for _ in await session.stream(select(Word.text)):
        pass


USES: dict[str, Use] = {
    "execute": lambda s: s.execute(text("SELECT 1")),
    "scalar": lambda s: s.scalar(select(Word.text)),
    "scalars": lambda s: s.scalars(select(Word.text)),
    "insert": lambda s: s.execute(insert(Word).values(text="inserted")),
    "flush": flush,
    "get": get,
    "refresh": refresh,
    "merge": merge,
    "connection": lambda s: s.connection(),
    "run_sync": lambda s: s.run_sync(lambda sync: sync.execute(text("SELECT 1"))),
    "stream": stream,
    "begin_nested": lambda s: s.begin_nested().start(),
}


def split(results: list[object]) -> tuple[list[object], list[errors.ConcurrentUse]]:
    refused = [result for result in results if isinstance(result, errors.ConcurrentUse)]
    return [result for result in results if not isinstance(result, BaseException)], refused


async def test_a_use_beside_a_statement_that_is_running_is_refused_whatever_it_is_and_the_transaction_commits(
    db: Database, stored: Stored
) -> None:
    sleep = SLEEP[db.engine.dialect.name]
    async with db.transaction(label="the block") as session:
        word = Word(text="loaded")
        session.add(word)
        await session.flush()
        session.add(Word(text="pending"))
        with session.no_autoflush:
            running = asyncio.create_task(session.execute(sleep))
            await asyncio.sleep(0)
            for name, use in USES.items():
                with pytest.raises(errors.ConcurrentUse) as caught:
                    await use(session)
                message = str(caught.value)
                assert "two tasks use the session of 'the block' at once" in message, name
                assert f"{__file__}:" in message or "still running" in message
                assert str(sleep).split("(")[0][:20] in message
                assert "asyncio.gather" in message
            await running
        await store(session, "after")
    assert stored() == {"loaded", "pending", "after"}


@pytest.mark.parametrize("pool", ["cold", "warm"])
@pytest.mark.parametrize("kind", ["reads", "writes", "mixed"])
async def test_gather_lets_exactly_one_proceed(db: Database, stored: Stored, pool: str, kind: str) -> None:
    if pool == "warm":
        await db.ping()

    def read(session: AsyncSession) -> Awaitable[object]:
        return session.execute(select(Word))

    def write(session: AsyncSession) -> Awaitable[object]:
        return session.execute(insert(Word).values(text="gathered"))

    uses = {"reads": [read, read, read], "writes": [write, write], "mixed": [write, read, flush, get]}[kind]
    async with db.transaction(label="the block") as session:
        results = await asyncio.gather(*(use(session) for use in uses), return_exceptions=True)
        proceeded, refused = split(results)
        assert len(proceeded) == 1
        assert len(refused) == len(uses) - 1
        for error in refused:
            assert str(error).startswith("two tasks use the session of 'the block' at once: session.execute(")
            assert "was refused. Await one after the other" in str(error)
        await store(session, "after")
    assert stored() == {"after"} | ({"gathered"} if kind != "reads" else set())


async def test_gather_over_flushes_lets_exactly_one_proceed(db: Database, stored: Stored) -> None:
    async with db.transaction() as session:
        session.add(Word(text="a"))
        proceeded, refused = split(
            await asyncio.gather(session.flush(), session.flush(), session.flush(), return_exceptions=True)
        )
        assert (len(proceeded), len(refused)) == (1, 2)
    assert stored() == {"a"}


async def test_both_statements_are_named_without_their_values(db: Database) -> None:
    async with db.transaction() as session:
        _, [refused] = split(
            await asyncio.gather(
                session.execute(text("SELECT 1 AS first_one")),
                session.execute(select(Word).where(Word.text == "s3cret")),
                return_exceptions=True,
            )
        )
    assert "first_one" in str(refused)
    assert "FROM words" in str(refused)
    assert "s3cret" not in str(refused)


async def test_a_block_that_ends_while_another_task_still_uses_its_session_rolls_back(
    db: Database, stored: Stored
) -> None:
    sleep = SLEEP[db.engine.dialect.name]
    with pytest.raises(errors.ConcurrentUse):
        async with db.transaction() as session:
            await store(session, "lost")
            task = asyncio.create_task(session.execute(sleep))
            await asyncio.sleep(0)
    with pytest.raises(errors.TransactError):
        await task
    assert stored() == set()
    async with db.transaction() as session:
        await store(session, "next")
    assert stored() == {"next"}


async def test_a_failing_block_beside_a_running_statement_raises_its_own_error(db: Database, stored: Stored) -> None:
    sleep = SLEEP[db.engine.dialect.name]
    with pytest.raises(ZeroDivisionError):
        async with db.transaction() as session:
            await store(session, "lost")
            task = asyncio.create_task(session.execute(sleep))
            await asyncio.sleep(0)
            raise ZeroDivisionError
    with pytest.raises(errors.TransactError):
        await task
    assert stored() == set()


SAVEPOINTS: dict[str, Callable[[Database, AsyncSession], Any]] = {
    "a savepoint": lambda db, _: db.savepoint(),
    "one of the session's own": lambda _, session: session.begin_nested(),
}
savepoints = pytest.mark.parametrize("savepoint", SAVEPOINTS.values(), ids=SAVEPOINTS)
ends = pytest.mark.parametrize("end", ["release_savepoint", "rollback_savepoint"])


@savepoints
async def test_a_savepoint_that_ends_beside_a_running_statement_is_refused(
    db: Database, stored: Stored, savepoint: Callable[..., Any]
) -> None:
    sleep = SLEEP[db.engine.dialect.name]
    with pytest.raises(errors.UnexpectedRollback):
        async with db.transaction() as session:
            await store(session, "lost")
            with pytest.raises(errors.ConcurrentUse):
                async with savepoint(db, session):
                    task = asyncio.create_task(session.execute(sleep))
                    await asyncio.sleep(0)
            await asyncio.wait([task])
    assert stored() == set()


class Leaving:
    """A task that leaves a savepoint, and stands still in the middle of that."""

    def __init__(self, db: Database, savepoint: Callable[..., Any], end: str) -> None:
        self.db = db
        self.savepoint = savepoint
        self.end = end
        self.reached = asyncio.Event()
        self.go_on = asyncio.Event()
        event.listen(db.engine.sync_engine, end, self._wait, once=True)

    def _wait(self, *_: object) -> None:
        self.reached.set()
        await_only(self.go_on.wait())

    async def leave(self, session: AsyncSession) -> None:
        with suppress(LookupError):
            async with self.savepoint(self.db, session):
                await store(session, "inner")
                if self.end == "rollback_savepoint":
                    raise LookupError


@ends
@savepoints
async def test_a_use_beside_the_end_of_a_savepoint_is_refused_and_the_transaction_commits(
    db: Database, stored: Stored, savepoint: Callable[..., Any], end: str
) -> None:
    other = Leaving(db, savepoint, end)
    async with db.transaction() as session:
        word = Word(text="loaded")
        session.add(word)
        await session.flush()
        leaving = asyncio.create_task(other.leave(session))
        await other.reached.wait()
        for use in USES.values():
            with pytest.raises(errors.ConcurrentUse):
                await use(session)
        other.go_on.set()
        await leaving
        await store(session, "after")
    assert stored() == {"loaded", "after"} | ({"inner"} if end == "release_savepoint" else set())


@ends
@savepoints
async def test_a_block_that_ends_beside_the_end_of_a_savepoint_leaves_its_rollback_to_that(
    db: Database, stored: Stored, savepoint: Callable[..., Any], end: str
) -> None:
    other = Leaving(db, savepoint, end)
    with pytest.raises(errors.ConcurrentUse):
        async with db.transaction() as session:
            await store(session, "lost")
            leaving = asyncio.create_task(other.leave(session))
            await other.reached.wait()
    assert db.engine.pool.checkedout() == 1
    other.go_on.set()
    if end == "release_savepoint" or savepoint is not SAVEPOINTS["a savepoint"]:
        with pytest.raises(errors.TransactionEnded):
            await leaving
    else:  # its own error goes on
        await leaving
    assert db.engine.pool.checkedout() == 0
    assert stored() == set()


async def test_a_task_group_with_a_transaction_for_each_task_is_what_works(db: Database, stored: Stored) -> None:
    async def one(word: str) -> None:
        async with db.transaction() as session:
            await store(session, word)

    async with asyncio.TaskGroup() as group:
        for word in ("a", "b", "c"):
            group.create_task(one(word))
    assert stored() == {"a", "b", "c"}
