"""SQLite with real transactions: what Python's sqlite3 leaves out by default."""

import asyncio

import pytest
from sqlalchemy import event, select, text

from tests.conformance.tables import Meaning, Stored, Word, store
from tests.engines import Observer
from transact import Database, Isolation, errors

pytestmark = pytest.mark.engines("sqlite")


async def begins(db: Database, **options: object) -> list[str]:
    """What SQLite itself is told; the pool has one connection, since nobody needs another."""
    sent: list[str] = []
    async with db.engine.connect() as connection:
        raw = await connection.get_raw_connection()
        await raw.driver_connection.set_trace_callback(sent.append)
    async with db.transaction(**options) as session:
        await session.execute(select(Word))
    return [sql for sql in sent if sql.startswith("BEGIN")]


async def test_a_writer_begins_immediate_a_snapshot_deferred_and_a_reader_not_at_all(db: Database) -> None:
    assert await begins(db) == ["BEGIN IMMEDIATE"]
    assert await begins(db, read_only=True, isolation=Isolation.REPEATABLE_READ) == ["BEGIN"]
    assert await begins(db, read_only=True) == []


async def test_a_begin_that_was_kept_from_being_sent_is_not_sent_later(db: Database) -> None:
    def refuse(_connection: object) -> None:
        raise LookupError

    event.listen(db.engine.sync_engine, "begin", refuse)
    with pytest.raises(LookupError):
        async with db.engine.connect() as connection:
            await connection.execute(select(Word))
    event.remove(db.engine.sync_engine, "begin", refuse)
    async with db.engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        await connection.execute(select(Word))
        raw = await connection.get_raw_connection()
        assert not raw.driver_connection.in_transaction


async def test_a_begin_that_fails_is_named_by_its_error(db: Database) -> None:
    async with (
        Database(f"sqlite+aiosqlite:///{db.engine.url.database}?timeout=0") as other,
        db.transaction() as session,
    ):
        await session.execute(select(Word))
        with pytest.raises(errors.LockTimeout, match=r"SQL: BEGIN IMMEDIATE"):
            async with other.transaction() as second:
                await second.execute(select(Word))


async def test_a_writer_holds_the_lock_from_its_first_statement_and_a_reader_does_not(
    db: Database, observer: Observer
) -> None:
    async with db.transaction() as session:
        await session.execute(select(Word))
        assert observer.idle_in_transaction() == 1
    async with db.transaction(read_only=True) as session:
        await session.execute(select(Word))
        assert observer.idle_in_transaction() == 0


async def test_writers_wait_for_each_other(db: Database, stored: Stored) -> None:
    """With deferred transactions, those that read before they write would fail."""

    async def one(word: str) -> None:
        async with db.transaction() as session:
            await session.execute(select(Word))
            await asyncio.sleep(0)
            await store(session, word)

    async with asyncio.TaskGroup() as group:
        for number in range(8):
            group.create_task(one(str(number)))
    assert stored() == {str(number) for number in range(8)}


async def test_a_reader_does_not_wait_for_a_writer_nor_see_what_is_not_committed(db: Database) -> None:
    async def read() -> list[str]:
        async with db.transaction(read_only=True) as session:
            return list(await session.scalars(select(Word.text)))

    reading = asyncio.Event()

    async def reader() -> list[str]:
        await reading.wait()
        return await read()

    task = asyncio.create_task(reader())
    async with db.transaction() as session:
        await store(session, "word")
        reading.set()
        assert await task == []
    assert await read() == ["word"]


async def test_the_file_is_in_wal_mode_and_foreign_keys_are_kept(db: Database, observer: Observer) -> None:
    async with db.transaction() as session:
        assert await session.scalar(text("PRAGMA foreign_keys")) == 1
    assert observer.rows("SELECT * FROM words") == []  # until it has looked, a connection believes in what it knew
    assert observer.scalar("PRAGMA journal_mode") == "wal"
    with pytest.raises(errors.ForeignKeyViolation):
        async with db.transaction() as session:
            session.add(Meaning(word_id=12345))


@pytest.mark.parametrize(("suffix", "milliseconds"), [("", 7000), ("?timeout=2", 2000)])
async def test_a_writer_waits_for_its_turn_as_long_as_for_a_connection_unless_the_url_says_otherwise(
    database_url: str, suffix: str, milliseconds: int
) -> None:
    async with Database(database_url + suffix, pool_timeout=7) as db, db.transaction() as session:
        assert await session.scalar(text("PRAGMA busy_timeout")) == milliseconds


async def test_ddl_rolls_back_with_the_rest(db: Database, observer: Observer, stored: Stored) -> None:
    with pytest.raises(ZeroDivisionError):
        async with db.transaction() as session:
            await store(session, "word")
            await session.execute(text("CREATE TABLE other (id integer)"))
            await session.execute(text("DROP TABLE meanings"))
            raise ZeroDivisionError
    names = {name for (name,) in observer.rows("SELECT name FROM sqlite_master WHERE type = 'table'")}
    assert names == {"words", "meanings"}
    assert stored() == set()


@pytest.mark.parametrize(
    "url",
    [
        "sqlite+aiosqlite://",
        "sqlite+aiosqlite:///:memory:",
        "sqlite+aiosqlite:///file::memory:?uri=true",
        "sqlite+aiosqlite:///file:shared?mode=memory&uri=true",
    ],
)
async def test_a_database_in_memory_is_one_database_for_all(url: str, make_db) -> None:
    db = make_db(url)
    async with db.transaction() as session:
        await session.execute(text("CREATE TABLE words (id integer primary key, text varchar)"))

    async def one(word: str) -> None:
        async with db.transaction() as session:
            await store(session, word)

    await asyncio.gather(*(one(str(number)) for number in range(4)))
    async with db.transaction(read_only=True) as session:
        assert set(await session.scalars(select(Word.text))) == {"0", "1", "2", "3"}


async def test_a_cancelled_statement_leaves_no_lock_behind(db: Database, observer: Observer, stored: Stored) -> None:
    endless = text("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n")
    started = asyncio.Event()

    async def work() -> None:
        async with db.transaction() as session:
            await store(session, "word")
            started.set()
            await session.execute(endless)

    task = asyncio.create_task(work())
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with db.transaction() as session:
        await store(session, "next")
    assert stored() == {"next"}
