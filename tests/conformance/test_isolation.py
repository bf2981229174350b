"""The isolation level and the access mode reach the server, and the next user of the same connection finds nothing of them."""

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from contextlib import suppress
from itertools import product
from typing import Annotated, Any

import pymysql
import pytest
from sqlalchemy import event, func, insert, select, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from tests.conformance.surroundings import in_a_request
from tests.conformance.tables import SLEEP, Stored, Word, store
from tests.engines import Observer
from transact import Database, Isolation, Propagation, errors
from transact.fastapi import Database as FastapiDatabase

pytestmark = pytest.mark.engines("sqlite", "postgresql", "mariadb")
ONE_OF_EACH = pytest.mark.engines("sqlite", "pg18-asyncpg", "pg18-psycopg", "mariadb")

RU, RC, RR, SER = Isolation
COUNT = select(func.count()).select_from(Word)
Runs = AsyncSession | AsyncConnection
Use = Callable[[AsyncSession], Awaitable[None]]


# What level is it? Only PostgreSQL can be asked: @@tx_isolation of MariaDB knows nothing of SET TRANSACTION.


async def level_of(runs: Runs, observer: Observer) -> Isolation:
    """The level of the transaction that is open."""
    dialect = runs.get_bind().dialect.name if isinstance(runs, AsyncSession) else runs.dialect.name
    if dialect == "postgresql":
        return Isolation(str(await runs.scalar(text("SHOW transaction_isolation"))).upper())
    if dialect == "sqlite":
        return RU if await runs.scalar(text("PRAGMA read_uncommitted")) else SER
    before = await runs.scalar(COUNT)
    observer.execute("START TRANSACTION")
    try:
        if not wrote(observer):
            return SER  # which locks what it has read
        if await runs.scalar(COUNT) != before:
            return RU
    finally:
        observer.execute("COMMIT")
    return RR if await runs.scalar(COUNT) == before else RC


def wrote(observer: Observer) -> bool:
    """Store a word from outside, unless a lock is in the way."""
    try:
        observer.execute(f"SET STATEMENT innodb_lock_wait_timeout = 0 FOR {add_a_word()}")
    except pymysql.err.OperationalError as error:
        if error.args[0] != pymysql.constants.ER.LOCK_WAIT_TIMEOUT:
            raise
        return False
    return True


async def abandoned_statements_end(observer: Observer) -> None:
    """MariaDB ends a cancelled statement, and lets go of its locks, a moment after its client has gone."""
    running = "SELECT count(*) FROM information_schema.processlist WHERE db = database() AND info LIKE 'SELECT sleep%'"
    async with asyncio.timeout(10):
        while observer.scalar(running):
            await asyncio.sleep(0.01)


def add_a_word() -> str:
    return f"INSERT INTO words (text) VALUES ('{uuid.uuid4()}')"


def given(db: Database, level: Isolation) -> Isolation:
    """What the engine makes of a level that is asked for."""
    if db.engine.dialect.name == "sqlite":
        return SER
    return RC if db.engine.dialect.name == "postgresql" and level is RU else level


USUAL = {"sqlite": SER, "postgresql": RC, "mysql": RR}


@pytest.fixture
def one(database_url: str, tables: None, make_db: Callable[..., Database]) -> Database:
    """A database whose pool has one connection: what a transaction leaves behind on it, the next one finds."""
    return make_db(database_url, kind=FastapiDatabase, pool_size=1, max_overflow=0, pool_timeout=10)


@pytest.fixture
def connects(one: Database) -> list[object]:
    """The connections that have been made."""
    made: list[object] = []
    event.listen(one.engine.sync_engine, "connect", lambda connection, _record: made.append(connection))
    return made


# How a transaction ends, and who comes after it.


async def commits(db: Database, options: Any, use: Use) -> None:
    async with db.transaction(**options) as session:
        await use(session)


async def raises(db: Database, options: Any, use: Use) -> None:
    with pytest.raises(ZeroDivisionError):
        async with db.transaction(**options) as session:
            await use(session)
            raise ZeroDivisionError


async def is_marked(db: Database, options: Any, use: Use) -> None:
    async with db.transaction(**options) as session:
        await use(session)
        db.current.set_rollback_only()


async def fails(db: Database, options: Any, use: Use) -> None:
    with pytest.raises(errors.InvalidStatement):
        async with db.transaction(**options) as session:
            await use(session)
            await session.execute(text("SELECT * FROM nowhere"))


async def fails_and_goes_on(db: Database, options: Any, use: Use) -> None:
    with pytest.raises(errors.UnexpectedRollback):
        async with db.transaction(**options) as session:
            await use(session)
            with suppress(errors.InvalidStatement):
                await session.execute(text("SELECT * FROM nowhere"))


async def rolls_back_to_a_savepoint(db: Database, options: Any, use: Use) -> None:
    async with db.transaction(**options) as session:
        with pytest.raises(errors.InvalidStatement):
            async with db.savepoint():
                await session.execute(text("SELECT * FROM nowhere"))
        await use(session)


async def is_cancelled_in_a_statement(db: Database, options: Any, use: Use) -> None:
    sleep, sleeping = SLEEP[db.engine.dialect.name], asyncio.Event()

    def seen(_connection: object, _cursor: object, sql: str, *_: object) -> None:
        if sql == sleep.text:
            sleeping.set()

    async def work() -> None:
        async with db.transaction(**options) as session:
            await use(session)
            await session.execute(sleep)

    event.listen(db.engine.sync_engine, "before_cursor_execute", seen)
    task = asyncio.create_task(work())
    await asyncio.wait([task, asyncio.create_task(sleeping.wait())], return_when=asyncio.FIRST_COMPLETED)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    event.remove(db.engine.sync_engine, "before_cursor_execute", seen)


ENDINGS = [commits, raises, is_marked, fails, fails_and_goes_on, rolls_back_to_a_savepoint, is_cancelled_in_a_statement]


@pytest.mark.parametrize("ending", ENDINGS, ids=lambda ending: ending.__name__)
async def test_the_level_reaches_the_server_and_however_the_transaction_ends_the_next_one_has_its_own(
    one: Database, observer: Observer, stored: Stored, connects: list[object], ending: Callable[..., Awaitable[None]]
) -> None:
    usual = USUAL[one.engine.dialect.name]
    for level, read_only in product(Isolation, [False, True]):
        seen: list[Isolation] = []

        async def use(session: AsyncSession, seen: list[Isolation] = seen) -> None:
            seen.append(await level_of(session, observer))

        await ending(one, {"isolation": level, "read_only": read_only}, use)
        # A reader that names no higher level has no transaction: each statement sees what is committed by then.
        assert seen == [given(one, RC if read_only and level is RU else level)]
        if one.engine.dialect.name == "mysql":
            await abandoned_statements_end(observer)
        async with one.transaction() as session:
            assert await level_of(session, observer) is usual
            await store(session, f"after {level.name} {read_only}")
    assert {f"after {level.name} {read_only}" for level in Isolation for read_only in (False, True)} <= stored()
    assert ending is is_cancelled_in_a_statement or len(connects) == 1


async def as_the_engine(db: Database, use: Use) -> None:
    async with db.engine.begin() as connection:
        await use(connection)


async def as_a_plain_session(db: Database, use: Use) -> None:
    async with db.session_factory.begin() as session:
        await use(session)


async def in_a_manual_session(db: Database, use: Use) -> None:
    async def route(session: Annotated[AsyncSession, db.manual_session()]) -> None:
        await use(session)
        await session.commit()

    await in_a_request(db, route)


async def in_a_session_of_a_request(db: Database, use: Use) -> None:
    async def route(session: Annotated[AsyncSession, db.session()]) -> None:
        await use(session)

    await in_a_request(db, route)


NEXT = [as_the_engine, as_a_plain_session, in_a_manual_session, in_a_session_of_a_request]


@pytest.mark.parametrize("next_user", NEXT, ids=lambda user: user.__name__)
async def test_whoever_comes_next_has_the_usual_level_and_may_write(
    one: Database, observer: Observer, stored: Stored, connects: list[object], next_user: Callable[..., Awaitable[None]]
) -> None:
    async def use(runs: Runs) -> None:
        assert await level_of(runs, observer) is USUAL[one.engine.dialect.name]
        await runs.execute(insert(Word).values(text=f"after {level.name}"))

    for level in (RU, RC, RR, SER):
        async with one.transaction(isolation=level, read_only=True) as session:
            await session.execute(COUNT)
        await next_user(one, use)
    assert {f"after {level.name}" for level in Isolation} <= stored()
    assert len(connects) == 1


@pytest.mark.parametrize("commit", [True, False], ids=["committed", "forgotten"])
async def test_a_level_that_a_manual_session_chose_is_gone_with_it(
    one: Database, observer: Observer, connects: list[object], *, commit: bool
) -> None:
    names = ["READ UNCOMMITTED", "SERIALIZABLE"] if one.engine.dialect.name != "postgresql" else ["SERIALIZABLE"]
    for name in names:

        async def route(session: Annotated[AsyncSession, one.manual_session()], name: str = name) -> None:
            await session.connection(execution_options={"isolation_level": name})
            assert (await level_of(session, observer)).value == name
            if commit:
                await session.commit()

        await in_a_request(one, route)
        async with one.transaction() as session:
            assert await level_of(session, observer) is USUAL[one.engine.dialect.name]
    assert len(connects) == 1


AUTOCOMMIT = [Propagation.SUPPORTS, Propagation.NOT_SUPPORTED, Propagation.NEVER]


@pytest.mark.parametrize("propagation", AUTOCOMMIT, ids=lambda p: p.value)
async def test_autocommit_leaves_nothing_on_the_connection_and_gets_nothing_from_the_last_transaction(
    one: Database, observer: Observer, stored: Stored, connects: list[object], propagation: Propagation
) -> None:
    for ending in ("well", "badly"):
        async with one.transaction(isolation=SER, read_only=True) as session:
            await session.execute(COUNT)
        with suppress(errors.InvalidStatement):
            async with one.transaction(propagation=propagation) as session:
                await store(session, ending)
                assert ending in stored()
                if ending == "badly":
                    await session.execute(text("SELECT * FROM nowhere"))
        async with one.transaction() as session:
            assert await level_of(session, observer) is USUAL[one.engine.dialect.name]
            await store(session, "undone")
            one.current.set_rollback_only()
        assert "undone" not in stored(), "the transaction after an autocommit block was none"
    assert stored() >= {"well", "badly"}
    assert len(connects) == 1


# The database's own level, and blocks that ask for another.


@pytest.mark.engines("pg18-asyncpg", "pg18-psycopg", "mariadb")
async def test_the_databases_level_is_that_of_every_transaction_that_names_none_also_of_a_suspending_one(
    database_url: str, tables: None, observer: Observer, make_db: Callable[..., Database]
) -> None:
    db = make_db(database_url, isolation=SER, pool_size=2, max_overflow=0)
    for _ in range(2):
        async with db.transaction() as session:
            assert await level_of(session, observer) is SER
        async with db.transaction(isolation=RC) as session:
            assert await level_of(session, observer) is RC
            async with db.transaction(propagation=Propagation.REQUIRES_NEW) as another:
                assert await level_of(another, observer) is SER
            async with db.transaction(propagation=Propagation.REQUIRES_NEW, isolation=RR) as another:
                assert await level_of(another, observer) is RR


JOINING = [Propagation.REQUIRED, Propagation.SUPPORTS, Propagation.MANDATORY, Propagation.NESTED]


@ONE_OF_EACH
async def test_a_level_that_the_open_transaction_does_not_have_is_refused_and_the_open_one_commits(
    db: Database, stored: Stored
) -> None:
    for opened in Isolation:
        async with db.transaction(isolation=opened) as session:
            await store(session, f"{opened.name} before")
            for propagation, asked in product(JOINING, (None, *Isolation)):
                if asked in {None, opened}:
                    async with db.transaction(propagation=propagation, isolation=asked) as joined:
                        assert joined is session
                    continue
                with pytest.raises(errors.OptionsConflict, match=asked.name):
                    async with db.transaction(propagation=propagation, isolation=asked):
                        raise AssertionError
            await store(session, f"{opened.name} after")
    assert stored() == {f"{level.name} {when}" for level in Isolation for when in ("before", "after")}


@ONE_OF_EACH
async def test_writing_that_is_asked_for_inside_a_read_only_transaction_is_refused_and_that_goes_on_reading(
    db: Database, observer: Observer
) -> None:
    observer.execute("INSERT INTO words (text) VALUES ('word')")
    async with db.transaction(read_only=True) as session:
        for propagation in JOINING:
            with pytest.raises(errors.OptionsConflict, match="read_only=False"):
                async with db.transaction(propagation=propagation, read_only=False):
                    raise AssertionError
            for options in ({}, {"read_only": True}):
                async with db.transaction(propagation=propagation, **options) as joined:
                    assert joined is session
            assert await session.scalar(COUNT) == 1


# Read-only transactions.


@pytest.mark.parametrize("level", [RR, SER], ids=lambda level: level.name)
async def test_a_read_only_transaction_sees_one_snapshot_and_refuses_to_write(
    db: Database, observer: Observer, stored: Stored, level: Isolation
) -> None:
    with pytest.raises(errors.ReadOnlyViolation):
        async with db.transaction(isolation=level, read_only=True) as session:
            assert await session.scalar(COUNT) == 0
            if db.engine.dialect.name != "mysql":
                observer.execute(add_a_word())
            else:  # where SERIALIZABLE lets nobody write what it has read
                assert wrote(observer) is (level is RR)
            assert await session.scalar(COUNT) == 0
            await store(session, "refused")
    async with db.transaction(isolation=level) as session:
        await store(session, "written")
    assert "refused" not in stored()
    assert "written" in stored()
