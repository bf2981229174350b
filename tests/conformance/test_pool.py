"""A full pool: who waits, how many may, and what is told of those who hold the connections."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from itertools import pairwise
from typing import Any

import pytest
from sqlalchemy import bindparam, event, exc, insert, literal, select, text
from sqlalchemy.util import greenlet_spawn

from tests.conformance.tables import Word, store
from transact import Database, Isolation, Propagation, errors, events
from transact._sqlalchemy import holding
from transact.events import ConnectionHeld, Event, WaitedForConnection

VALUE = "s3cret"


@asynccontextmanager
async def transaction(db: Database) -> AsyncIterator[Any]:
    async with db.transaction(label="register") as session:
        yield session


@asynccontextmanager
async def reading(db: Database) -> AsyncIterator[Any]:
    async with db.transaction(label="look", read_only=True, isolation=Isolation.REPEATABLE_READ) as session:
        await session.execute(text("SELECT 1"))
        yield session


@asynccontextmanager
async def autocommit(db: Database) -> AsyncIterator[Any]:
    async with db.transaction(label="alone", propagation=Propagation.NOT_SUPPORTED) as session:
        await session.execute(text("SELECT 1"))
        yield session


@asynccontextmanager
async def engine(db: Database) -> AsyncIterator[Any]:
    async with db.engine.connect() as connection:
        yield connection


@asynccontextmanager
async def read_engine(db: Database) -> AsyncIterator[Any]:
    async with db.read_engine.connect() as connection:
        yield connection


@asynccontextmanager
async def factory(db: Database) -> AsyncIterator[Any]:
    async with db.session_factory() as session:
        yield session


@asynccontextmanager
async def ping(db: Database) -> AsyncIterator[Any]:
    await db.ping()
    yield None


#: Every way to a connection, and the label that a report gives it.
WAYS = {
    transaction: "register",
    reading: "look",
    autocommit: "alone",
    engine: holding.UNKNOWN,
    read_engine: holding.UNKNOWN,
    factory: holding.UNKNOWN,
    ping: None,
}


async def use(db: Database, way: Any) -> None:
    async with way(db) as handle:
        if handle is not None:
            await handle.execute(text("SELECT 1"))


@pytest.mark.parametrize("way", [way for way, label in WAYS.items() if label], ids=lambda way: way.__name__)
async def test_pool_timeout_names_who_holds_the_connections_and_their_last_statement_without_its_values(
    database_url: str, tables: None, make_db, caplog: pytest.LogCaptureFixture, way: Any
) -> None:
    db = make_db(database_url, pool_size=1, max_overflow=0, pool_timeout=0.02)
    seen: list[Event] = []
    db.listen(seen.append)
    async with way(db) as handle:
        await handle.execute(select(Word.id).where(Word.text == VALUE))
        with pytest.raises(errors.PoolTimeout) as caught:
            await use(db, engine)
    [holder] = caught.value.holders
    [told] = [event for event in seen if isinstance(event, WaitedForConnection)]
    assert told.holders == (holder,)
    assert holder.label == WAYS[way]
    assert holder.seconds > 0
    assert "SELECT words.id" in holder.statement
    [line] = [record for record in caplog.records if "no connection became free" in record.getMessage()]
    assert line.levelno == logging.WARNING
    assert repr(WAYS[way]) in line.getMessage()
    assert holder.statement in line.getMessage()
    assert VALUE not in line.getMessage() + holder.statement


async def test_what_a_flush_sent_is_the_last_statement_too_and_the_longest_holder_comes_first(
    database_url: str, tables: None, make_db
) -> None:
    db = make_db(database_url, pool_size=2, max_overflow=0, max_waiting=0)
    async with reading(db), db.transaction(label="add", propagation=Propagation.REQUIRES_NEW) as session:
        session.add(Word(text=VALUE))
        await session.flush()
        with pytest.raises(errors.PoolTimeout) as caught:
            await use(db, engine)
    assert [holder.label for holder in caught.value.holders] == ["look", "add"]
    assert caught.value.holders[1].statement.startswith("INSERT INTO words")


async def test_who_has_sent_nothing_has_no_last_statement_of_the_one_before(
    database_url: str, tables: None, make_db
) -> None:
    db = make_db(database_url, pool_size=1, max_overflow=0, max_waiting=0)
    await use(db, transaction)
    async with db.engine.connect():
        with pytest.raises(errors.PoolTimeout) as caught:
            await use(db, engine)
    assert [(holder.label, holder.statement) for holder in caught.value.holders] == [(holding.UNKNOWN, None)]


NASTY = "SELECT 1 /* \r\n2026-01-01 CRITICAL forged \x1b[31m \u2028 */"
STATEMENTS = {
    "a line break": text(NASTY),
    "a long text": text(f"SELECT '{'x' * 5000}'"),
    "a list": select(Word.id).where(Word.text.in_([VALUE] * 500)),
    "a value to be rendered": select(literal(VALUE, literal_execute=True)),
    "a parameter to be rendered": select(Word.id).where(Word.text == bindparam("t", VALUE, literal_execute=True)),
}


@pytest.mark.parametrize("name", STATEMENTS)
@pytest.mark.engines("sqlite", "pg18-asyncpg", "pg18-psycopg", "mariadb")
async def test_no_statement_and_no_label_can_forge_a_log_line_or_show_a_value(
    database_url: str, tables: None, make_db, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    db = make_db(database_url, pool_size=1, max_overflow=0, max_waiting=0)
    async with db.transaction(label=NASTY, read_only=True, isolation=Isolation.REPEATABLE_READ) as session:
        await session.execute(STATEMENTS[name])
        with pytest.raises(errors.PoolTimeout):
            await use(db, engine)
    [line] = [record.getMessage() for record in caplog.records if "no connection became free" in record.getMessage()]
    assert line.isprintable()
    assert len(line) < 500
    assert VALUE not in line


async def test_of_many_that_are_refused_one_log_line_names_the_holders_and_the_next_says_how_many_there_were(
    sqlite_url: str, make_db, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    db = make_db(sqlite_url, pool_size=1, max_overflow=0, max_waiting=0)

    async def refused(times: int) -> list[str]:
        caplog.clear()
        for _ in range(times):
            with pytest.raises(errors.PoolTimeout) as caught:
                await use(db, engine)
            assert len(caught.value.holders) == 1
        return [line for record in caplog.records if "no connection became free" in (line := record.getMessage())]

    async with db.engine.connect():
        monkeypatch.setattr(events, "_QUIET", 3600.0)
        [first] = await refused(5)
        monkeypatch.setattr(events, "_QUIET", 0.0)
        [second, third] = await refused(2)
    assert "1 are held" in first
    assert "4 times more since this was last said; 1 are held" in second
    assert "more since" not in first + third


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.engines("sqlite", "pg18-asyncpg", "mariadb")
async def test_one_more_than_may_wait_is_refused_at_once_whatever_way_it_comes(
    database_url: str, tables: None, make_db, way: Any
) -> None:
    db = make_db(database_url, pool_size=1, max_overflow=0, max_waiting=2)
    async with asyncio.timeout(20):  # of the 30 s that a wait takes
        async with db.engine.connect():
            waiting = [asyncio.create_task(use(db, way)) for _ in range(2)]
            await until_waiting(db, 2)
            with pytest.raises(errors.PoolTimeout, match="as many as may wait"):
                await use(db, way)
            assert not any(task.done() for task in waiting)
        await asyncio.gather(*waiting)


async def test_with_max_waiting_of_zero_nobody_waits_and_all_connections_can_be_taken(
    database_url: str, tables: None, make_db
) -> None:
    db = make_db(database_url, pool_size=2, max_overflow=1, max_waiting=0)
    async with asyncio.timeout(20), AsyncExitStack() as stack:
        for _ in range(3):
            await stack.enter_async_context(db.engine.connect())
        with pytest.raises(errors.PoolTimeout) as caught:
            await use(db, engine)
    assert len(caught.value.holders) == 3
    await use(db, engine)


async def until_waiting(db: Database, number: int) -> None:
    for _ in range(1000):
        if db.engine.pool._line.waiting == number:
            return
        await asyncio.sleep(0)
    raise AssertionError(f"{db.engine.pool._line.waiting} wait, not {number}")


async def test_who_stops_waiting_makes_room_for_another_who_waits(sqlite_url: str, make_db) -> None:
    db = make_db(sqlite_url, pool_size=1, max_overflow=0, max_waiting=1)
    async with asyncio.timeout(20):
        async with db.engine.connect():
            for _ in range(3):
                waiting = asyncio.create_task(use(db, engine))
                await until_waiting(db, 1)
                waiting.cancel()
                with suppress(asyncio.CancelledError):
                    await waiting
            waiting = asyncio.create_task(use(db, engine))
            await until_waiting(db, 1)
        await waiting
    assert db.engine.pool._line.waiting == 0
    assert db.engine.pool.checkedout() == 0


# Those who hold for long.


@pytest.fixture
def long(monkeypatch: pytest.MonkeyPatch) -> float:
    """From when on a holder is reported, in seconds."""
    monkeypatch.setattr(holding, "LONG", 0.05)
    return 0.05


def reports(db: Database) -> "asyncio.Queue[ConnectionHeld]":
    told: asyncio.Queue[ConnectionHeld] = asyncio.Queue()
    db.listen(lambda event: told.put_nowait(event) if isinstance(event, ConnectionHeld) else None)
    return told


@pytest.mark.parametrize("way", [way for way, label in WAYS.items() if label], ids=lambda way: way.__name__)
@pytest.mark.engines("sqlite", "pg18-asyncpg", "mariadb")
async def test_who_holds_a_connection_for_long_is_reported_while_it_does(
    database_url: str, tables: None, make_db, long: float, caplog: pytest.LogCaptureFixture, *, way: Any
) -> None:
    db = make_db(database_url)
    told = reports(db)
    async with asyncio.timeout(20), way(db) as handle:
        await handle.execute(select(Word.id).where(Word.text == VALUE))
        first = await told.get()
        while "SELECT words" not in str(first.statement):  # a slow machine holds it for long before
            first = await told.get()
        second = await told.get()
    assert first.label == second.label == WAYS[way]
    assert first.seconds >= long
    assert second.seconds >= 2 * first.seconds
    lines = [record.getMessage() for record in caplog.records if "still held" in record.getMessage()]
    assert len(lines) >= 2
    assert first.statement in lines[-1]
    assert VALUE not in "".join(lines)


async def test_who_comes_while_another_is_watched_is_reported_by_its_own_time(
    sqlite_url: str, make_db, long: float
) -> None:
    db = make_db(sqlite_url)
    told = reports(db)
    seen: list[ConnectionHeld] = []
    async with asyncio.timeout(20), reading(db):
        while len(seen) < 2:
            seen.append(await told.get())
        async with autocommit(db):
            while [event.label for event in seen].count("alone") < 2:
                seen.append(await told.get())
    for label in ("look", "alone"):
        seconds = [event.seconds for event in seen if event.label == label]
        assert seconds[0] >= long
        assert all(later >= 2 * earlier for earlier, later in pairwise(seconds))


async def test_the_watch_rests_when_nobody_holds_anything_and_is_gone_when_the_database_is_closed(
    sqlite_url: str, make_db, long: float
) -> None:
    db = make_db(sqlite_url)
    watched = db.engine.pool._watch
    async with asyncio.timeout(20):
        await use(db, engine)
        assert watched._timer is not None
        while watched._timer is not None:
            await asyncio.sleep(0.01)
        await use(db, engine)
        timer = watched._timer
        await db.close()
    assert timer.cancelled()
    assert watched._timer is None


def test_holders_are_reported_in_each_event_loop_that_the_pool_serves(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holding, "LONG", 0.05)
    db = Database(sqlite_url)
    told: list[ConnectionHeld] = []

    async def hold() -> None:
        done = reports(db)
        slow = db.transaction(label="slow", read_only=True, isolation=Isolation.REPEATABLE_READ)
        async with asyncio.timeout(20), slow as session:
            await session.execute(text("SELECT 1"))
            while (event := await done.get()).label != "slow":  # to connect may have been slow as well
                pass
            told.append(event)
        await use(db, engine)  # which leaves the watch behind in a loop that is no more

    for _ in range(3):
        asyncio.run(hold())
    asyncio.run(db.close())
    assert [event.label for event in told] == ["slow"] * 3


# In turn.


async def test_who_waits_first_is_served_first_also_when_others_give_up(sqlite_url: str, make_db) -> None:
    db = make_db(sqlite_url, pool_size=1, max_overflow=0)
    asked: list[int] = []
    served: list[int] = []

    async def ask(number: int) -> None:
        asked.append(number)
        async with db.engine.connect():
            served.append(number)
            await asyncio.sleep(0)

    async def churn(number: int) -> None:
        for turn in range(20):
            await ask(100 * number + turn)

    async def give_up(number: int) -> None:
        for turn in range(20):
            asking = asyncio.create_task(ask(-100 * number - turn))
            for _ in range(number + 1):
                await asyncio.sleep(0)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)

    async with asyncio.timeout(20):
        await asyncio.gather(*map(churn, range(8)), *map(give_up, range(1, 8)))
    assert served == [number for number in asked if number in set(served)]
    assert {number for number in asked if number >= 0} <= set(served)


async def test_who_gives_a_connection_back_and_asks_again_in_the_same_instant_comes_after_those_who_wait(
    database_url: str, tables: None, make_db
) -> None:
    db = make_db(database_url, pool_size=1, max_overflow=0)
    served: list[str] = []

    def take(who: str) -> None:
        connection = db.engine.pool.connect()
        served.append(who)
        connection.close()

    async with asyncio.timeout(20):
        first = await greenlet_spawn(db.engine.pool.connect)
        waiting = asyncio.create_task(greenlet_spawn(take, "who waited"))
        await until_waiting(db, 1)
        await greenlet_spawn(lambda: (first.close(), take("who came later")))
        await waiting
    assert served == ["who waited", "who came later"]


async def test_a_connect_that_fails_lets_the_next_in_the_line_try_at_once(make_db) -> None:
    asked, close = asyncio.Event(), asyncio.Event()

    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set()
        await close.wait()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    db = make_db(f"postgresql+asyncpg://app@127.0.0.1:{port}/shop?ssl=disable", pool_size=1, max_overflow=0)
    async with asyncio.timeout(20):  # of the 30 s that a wait takes
        tries = [asyncio.create_task(use(db, engine)) for _ in range(4)]
        await asked.wait()
        await until_waiting(db, 3)
        [holder] = db.engine.pool.holders()
        close.set()
        failures = await asyncio.gather(*tries, return_exceptions=True)
    server.close()
    assert holder.statement == "(connecting)"
    assert all(isinstance(failure, errors.DatabaseError) for failure in failures), failures
    assert not any(isinstance(failure, errors.PoolTimeout) for failure in failures)


# A primary that became read-only.

#: What makes the server say that it is read-only, and cures it; and the number of the server's process or thread.
READ_ONLY = {
    "postgresql": (
        "ALTER DATABASE {name} SET default_transaction_read_only = on",
        "ALTER DATABASE {name} RESET default_transaction_read_only",
        "SELECT pg_backend_pid()",
    ),
    # read_only itself is global, and the server is shared; this is the very error, from the server.
    "mysql": ("", "", "SELECT CONNECTION_ID()"),
}
SIGNALS = {1290: True, 1836: True, 1792: False, 1644: False}


async def sessions(db: Database, number: int) -> set[int]:
    """The server's numbers of that many connections of the pool, held at once."""
    statement = READ_ONLY[db.engine.dialect.name][2]
    async with AsyncExitStack() as stack:
        taken = [await stack.enter_async_context(db.engine.connect()) for _ in range(number)]
        return {await connection.scalar(text(statement)) for connection in taken}


@pytest.mark.engines("postgresql")
async def test_after_a_primary_became_read_only_one_transaction_fails_and_the_pool_makes_new_connections(
    database_url: str, tables: None, make_db, observer: Any, stored: Callable[[], set[str]]
) -> None:
    db = make_db(database_url, pool_size=3, max_overflow=0)
    name = '"{}"'.format(database_url.rpartition("/")[2].partition("?")[0])
    freeze, thaw, _ = (sentence.format(name=name) for sentence in READ_ONLY["postgresql"])
    observer.execute(freeze)
    try:
        old = await sessions(db, 3)
    finally:
        observer.execute(thaw)
    with pytest.raises(errors.ReadOnlyViolation):
        async with db.transaction() as session:
            await store(session, "refused")
    for number in range(3):
        async with db.transaction() as session:
            await store(session, f"stored {number}")
    assert not old & await sessions(db, 3)
    assert stored() == {f"stored {number}" for number in range(3)}


@pytest.mark.engines("mariadb")
@pytest.mark.parametrize("errno", SIGNALS)
async def test_only_the_numbers_of_a_server_that_became_read_only_drop_the_connections_of_mariadb(
    database_url: str, tables: None, make_db, errno: int
) -> None:
    db = make_db(database_url, pool_size=2, max_overflow=0)
    old = await sessions(db, 2)
    with pytest.raises(errors.DatabaseError):
        async with db.transaction() as session:
            await session.execute(text(f"SIGNAL SQLSTATE 'HY000' SET MYSQL_ERRNO = {errno}"))
    new = await sessions(db, 2)
    assert not old & new if SIGNALS[errno] else old == new


@pytest.mark.engines("postgresql", "mariadb")
@pytest.mark.parametrize("how", ["block", "read_engine"])
async def test_a_write_in_a_transaction_that_asked_to_be_read_only_drops_no_connection(
    database_url: str, tables: None, make_db, how: str
) -> None:
    db = make_db(database_url, pool_size=2, max_overflow=0)
    old = await sessions(db, 2)
    with pytest.raises(errors.ReadOnlyViolation):
        if how == "block":
            async with db.transaction(read_only=True) as session:
                await store(session, "refused")
        else:
            async with db.read_engine.begin() as connection:
                await connection.execute(insert(Word).values(text="refused"))
    assert await sessions(db, 2) == old


@pytest.mark.engines("postgresql")
async def test_a_read_only_primary_found_in_a_savepoint_dooms_no_more_than_the_savepoint(
    database_url: str, tables: None, make_db, stored: Callable[[], set[str]]
) -> None:
    db = make_db(database_url, pool_size=1, max_overflow=0)
    old = await sessions(db, 1)
    async with db.transaction() as session:
        await store(session, "kept")
        with pytest.raises(errors.ReadOnlyViolation):
            async with db.savepoint():
                await session.execute(text("SET LOCAL transaction_read_only = on"))
                await store(session, "refused")
    assert stored() == {"kept"}
    assert not old & await sessions(db, 1)


@pytest.mark.engines("sqlite", "pg18-asyncpg")
async def test_a_server_that_closes_each_new_connection_at_once_is_unavailable(db: Database) -> None:
    def closed(*_: object) -> None:
        raise exc.DisconnectionError

    event.listen(db.engine.sync_engine, "checkout", closed)
    with pytest.raises(errors.DatabaseUnavailable) as caught:
        async with db.transaction() as session:
            await session.execute(text("SELECT 1"))
    assert isinstance(caught.value, exc.OperationalError)
    assert db.engine.pool.checkedout() == 0
    event.remove(db.engine.sync_engine, "checkout", closed)
    async with db.transaction() as session:
        await session.execute(text("SELECT 1"))
