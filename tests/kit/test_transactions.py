"""The application's transactions keep their promises inside the one of the test."""

import asyncio

import pytest
from sqlalchemy import text

from tests.kit.conftest import add, create, numbers
from transact import Database, Isolation, Propagation, errors


async def test_commits_are_kept_to_the_end_of_the_test_and_rollbacks_are_not(db, database, observer):
    async with db.transaction() as session:
        await add(session, 1)
        with pytest.raises(errors.UniqueViolation):
            async with db.savepoint():
                await add(session, 1)
        await add(session, 2)
    with pytest.raises(ZeroDivisionError):
        async with db.transaction() as session:
            await add(session, 3)
            _ = 1 / 0
    assert await numbers(db) == [1, 2]
    assert observer.rows("SELECT * FROM notes") == []
    database.assert_no_connection_held()


async def test_reads_see_the_data_of_the_test_and_a_write_in_them_is_refused(db, database):
    async with db.transaction() as session:
        await add(session, 1)
    for _ in range(2):
        async with db.transaction(read_only=True) as session:
            assert await session.scalar(text("SELECT count(*) FROM notes")) == 1
        with pytest.raises(errors.ReadOnlyViolation):
            async with db.transaction(read_only=True) as session:
                await add(session, 2)
        async with db.read_engine.connect() as connection:
            assert await connection.scalar(text("SELECT count(*) FROM notes")) == 1
    async with db.transaction() as session:
        await add(session, 3)
    assert await numbers(db) == [1, 3]


async def test_statements_without_a_transaction_are_kept_one_by_one(db, database):
    with pytest.raises(errors.UniqueViolation):
        async with db.transaction(propagation=Propagation.NOT_SUPPORTED) as session:
            await add(session, 1)
            await add(session, 1)
    assert await numbers(db) == [1]


@pytest.mark.engines("postgresql", "mariadb")
@pytest.mark.filterwarnings("ignore::transact.pytest_plugin.TransactTestWarning")
async def test_an_inner_transaction_of_its_own_ends_by_itself(db, database):
    async with db.transaction() as session:
        await add(session, 1)
        async with db.transaction(propagation=Propagation.REQUIRES_NEW) as inner:
            await add(inner, 2)
        with pytest.raises(ZeroDivisionError):
            async with db.transaction(propagation=Propagation.REQUIRES_NEW) as inner:
                await add(inner, 3)
                async with db.savepoint():
                    await add(inner, 4)
                _ = 1 / 0
        async with db.transaction(propagation=Propagation.NOT_SUPPORTED) as inner:
            await add(inner, 5)
        with pytest.raises(errors.UniqueViolation):
            async with db.savepoint():
                await add(session, 5)
    assert await numbers(db) == [1, 2, 5]


@pytest.mark.engines("postgresql", "mariadb")
def test_a_rollback_that_takes_an_inner_commit_with_it_is_told(db, database_url, transact_database, pytester):
    pytester.makepyfile(
        f"""
        from sqlalchemy import text
        from transact import Database, Propagation

        async def test_it(transact_database):
            db = Database({database_url!r})
            transact_database(db)
            try:
                async with db.transaction(label="outer") as session:
                    await session.execute(text("INSERT INTO notes VALUES (1, 'x')"))
                    async with db.transaction(propagation=Propagation.REQUIRES_NEW, label="audit") as inner:
                        await inner.execute(text("INSERT INTO notes VALUES (2, 'x')"))
                    raise KeyError
            except KeyError:
                pass
        """
    )
    result = pytester.runpytest_subprocess("-p", "transact.pytest_plugin", "-o", "asyncio_mode=auto")
    result.assert_outcomes(passed=1, warnings=1)
    result.stdout.fnmatch_lines(
        ["*TransactTestWarning: the rollback of 'outer' took with it what 'audit' had committed*"]
    )


@pytest.mark.engines("postgresql", "mariadb")
async def test_what_was_committed_beside_a_reading_session_outlives_it(db, database):
    async with db.session_factory() as reading:  # as a test that looks before and after
        assert await reading.scalar(text("SELECT count(*) FROM notes")) == 0
        async with db.transaction() as session:
            await add(session, 1)
        assert await reading.scalar(text("SELECT count(*) FROM notes")) == 1
    assert await numbers(db) == [1]


@pytest.mark.engines("postgresql", "mariadb")
async def test_the_outer_session_cannot_be_used_inside_of_the_inner_transaction(db, database):
    async with db.transaction(label="outer") as outer:
        await add(outer, 1)
        async with db.transaction(propagation=Propagation.REQUIRES_NEW) as inner:
            await add(inner, 2)
            with pytest.raises(errors.UsageError, match="the inner one has to end first"):
                await outer.execute(text("SELECT 1"))
        await add(outer, 3)
    assert await numbers(db) == [1, 2, 3]


@pytest.mark.engines("postgresql", "mariadb")
async def test_two_transactions_that_wait_for_each_other_are_told_so(db, transact_database):
    transact_database(db, patience=0.2)
    began, tried = asyncio.Event(), asyncio.Event()

    async def first() -> None:
        async with db.transaction(label="first") as session:
            await add(session, 1)
            began.set()
            await tried.wait()

    async def second() -> None:
        await began.wait()
        try:
            with pytest.raises(errors.UsageError, match=r"'second' has waited .* the transaction of 'first' is open"):
                async with db.transaction(label="second") as session:
                    await add(session, 2)
        finally:
            tried.set()

    await asyncio.gather(first(), second())
    assert await numbers(db) == [1]


async def test_a_cancelled_transaction_is_rolled_back_and_the_test_goes_on(db, database):
    began = asyncio.Event()

    async def work() -> None:
        async with db.transaction() as session:
            await add(session, 1)
            began.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await began.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await numbers(db) == []


@pytest.mark.engines("postgresql", "mariadb")
async def test_a_cancelled_statement_harms_nobody_else(db, database):
    async with db.transaction() as session:
        await add(session, 1)
    with database.faults.slow(0.5):
        task = asyncio.create_task(numbers(db))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert await numbers(db) == [1]
    database.assert_no_connection_held()


@pytest.mark.engines("postgresql")
async def test_set_local_ends_with_its_transaction(db, database):
    async with db.transaction() as session:
        await session.execute(text("SET LOCAL statement_timeout = 12345"))
        await session.execute(text("SELECT set_config('app.tenant', 'seven', true)"))
        assert await session.scalar(text("SELECT current_setting('app.tenant')")) == "seven"
    async with db.transaction(timeout=60) as session:
        await add(session, 1)
    async with db.transaction() as session:
        assert await session.scalar(text("SHOW statement_timeout")) == "0"
        assert not await session.scalar(text("SELECT current_setting('app.tenant', true)"))


@pytest.mark.engines("mariadb")
async def test_a_statement_that_would_commit_the_test_is_refused(db, database):
    with pytest.raises(errors.UsageError, match="Make tables once"):
        async with db.engine.begin() as connection:
            await connection.execute(text("CREATE TABLE others (id INTEGER)"))


@pytest.mark.engines("postgresql", "sqlite")
async def test_tables_made_in_a_test_are_gone_after_it(db, database, observer):
    async with db.engine.begin() as connection:
        await connection.execute(text("CREATE TABLE others (id INTEGER)"))
    async with db.transaction() as session:
        assert await session.scalar(text("SELECT count(*) FROM others")) == 0


async def test_sessions_and_connections_of_ones_own_are_under_test_too(db, database, observer):
    async with db.session_factory() as session:
        await add(session, 1)
        await session.commit()
        await add(session, 2)
    async with db.engine.begin() as connection:
        await connection.execute(text("INSERT INTO notes VALUES (3, 'x')"))
    async with db.transaction() as session:
        rows = await session.stream(text("SELECT id FROM notes ORDER BY id"))
        assert [row.id async for row in rows] == [1, 3]
    assert observer.rows("SELECT * FROM notes") == []


@pytest.mark.engines("postgresql")
async def test_isolation_levels_are_taken_note_of(db, database):
    for level in (Isolation.SERIALIZABLE, Isolation.REPEATABLE_READ):
        async with db.transaction(isolation=level) as session:
            await add(session, len(level.value))
    assert len(await numbers(db)) == 2


@pytest.mark.engines("sqlite")
async def test_a_database_in_memory_is_the_one_that_was_filled_before(database_url, transact_database):
    db = Database("sqlite+aiosqlite:///:memory:")
    async with db.engine.begin() as connection:
        await connection.execute(text("CREATE TABLE notes (id INTEGER PRIMARY KEY, body TEXT)"))
        await connection.execute(text("INSERT INTO notes VALUES (1, 'x')"))
    transact_database(db)
    async with db.transaction() as session:
        await add(session, 2)
    assert await numbers(db) == [1, 2]


async def test_hooks_run_when_the_application_believes_that_it_has_committed(db, database):
    ran = []

    def send_mail() -> None:
        ran.append("mail")

    with database.capture_hooks() as hooks:
        async with db.transaction() as session:
            await add(session, 1)
            db.after_commit(send_mail)
    assert hooks.after_commit == ["send_mail"]
    assert ran == ["mail"]
    with database.capture_hooks(run=False) as hooks:
        async with db.transaction() as session:
            await add(session, 2)
            db.after_commit(send_mail)
        with pytest.raises(errors.UniqueViolation):
            async with db.transaction() as session:
                db.after_rollback(lambda _: None)
                db.after_commit(send_mail)
                await add(session, 1)
    assert hooks.after_commit == ["send_mail"]
    assert hooks.after_rollback == ["<lambda>"]
    assert ran == ["mail"]


async def test_statements_are_counted_and_shown_without_values(db, database):
    with database.assert_queries(2):
        async with db.transaction() as session:
            await add(session, 1, "secret")
            async with db.savepoint():
                await session.execute(text("SELECT 1"))
    with pytest.raises(AssertionError) as caught, database.assert_queries(0):
        async with db.transaction() as session:
            await add(session, 2, "secret")
    assert "0 statements were expected and 1 were sent:\n  1. INSERT INTO notes" in str(caught.value)
    assert "secret" not in str(caught.value)


async def test_a_held_connection_is_told_with_its_holder(db, database):
    async with db.transaction(label="forgetful") as session:
        await session.execute(text("SELECT 1"))
        with pytest.raises(AssertionError, match=r"'forgetful' for .* last statement: SELECT 1"):
            database.assert_no_connection_held()
    database.assert_no_connection_held()


@pytest.mark.engines("postgresql")
async def test_another_database_may_be_under_test_beside_it(db, database, database_url, transact_database):
    other = create(database_url)
    transact_database(other)
    async with db.transaction() as session:
        await add(session, 1)
    assert await numbers(other) == []
