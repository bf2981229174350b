"""A transaction that is broken, or was marked, is rolled back, refuses later statements, and never ends as a success."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from sqlalchemy import exc, insert, select, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm.exc import StaleDataError

from tests.conformance.tables import SLEEP, Stored, Word, store
from tests.engines import Observer
from transact import Database, Propagation, errors

EVERY = pytest.mark.engines("sqlite", "postgresql", "mariadb")
# One of each driver; the laws that a server could break have marks of their own.
pytestmark = pytest.mark.engines("sqlite", "pg18-asyncpg", "pg18-psycopg", "mariadb")


class Inner(Exception):
    """What a block raises."""


async def twice(session: AsyncSession) -> None:
    """A statement that the database refuses."""
    await store(session, "taken")


@pytest.fixture
def taken(observer: Observer, tables: None) -> None:
    observer.execute("INSERT INTO words (text) VALUES ('taken')")


@EVERY
async def test_a_database_error_that_is_swallowed_makes_the_end_of_the_block_raise(
    db: Database, stored: Stored, taken: None
) -> None:
    with pytest.raises(errors.UnexpectedRollback) as caught:
        async with db.transaction() as session:
            await store(session, "before")
            with pytest.raises(exc.IntegrityError) as first:
                await twice(session)
    assert caught.value.__cause__ is first.value
    assert isinstance(first.value, errors.UniqueViolation)
    assert stored() == {"taken"}


@EVERY
async def test_later_statements_of_a_broken_transaction_raise_at_once_with_the_first_cause(
    db: Database, stored: Stored, taken: None
) -> None:
    later: list[Callable[[AsyncSession], Awaitable[object]]] = [
        lambda s: s.execute(text("SELECT 1")),
        lambda s: s.scalar(select(Word)),
        lambda s: s.get(Word, 1),
        lambda s: s.flush(),
        lambda s: s.connection(),
        lambda s: s.run_sync(lambda sync: sync.execute(text("SELECT 1"))),
    ]
    with pytest.raises(errors.UnexpectedRollback):
        async with db.transaction() as session:
            with pytest.raises(exc.IntegrityError) as first:
                await twice(session)
            for use in later:
                with pytest.raises(errors.UnexpectedRollback) as refused:
                    await use(session)
                assert refused.value.__cause__ is first.value
    assert stored() == {"taken"}


@EVERY
@pytest.mark.parametrize("how", ["savepoint", "nested", "begin_nested"])
async def test_a_savepoint_protects_the_transaction_around_it_from_a_statement_that_fails(
    db: Database, stored: Stored, taken: None, how: str
) -> None:
    async with db.transaction() as session:
        await store(session, "before")
        block = {
            "savepoint": db.savepoint,
            "nested": lambda: db.transaction(propagation=Propagation.NESTED),
            "begin_nested": session.begin_nested,
        }[how]
        with pytest.raises(errors.UniqueViolation):
            async with block():
                await store(session, "inside")
                await twice(session)
        await store(session, "after")
    assert stored() == {"taken", "before", "after"}


@EVERY
@pytest.mark.parametrize("how", ["savepoint", "begin_nested"])
async def test_a_database_error_swallowed_inside_a_savepoint_undoes_the_savepoint_and_says_so(
    db: Database, stored: Stored, taken: None, how: str
) -> None:
    async with db.transaction() as session:
        await store(session, "before")
        with pytest.raises(errors.UnexpectedRollback) as caught:
            async with db.savepoint() if how == "savepoint" else session.begin_nested():
                await store(session, "inside")
                with pytest.raises(errors.UniqueViolation) as first:
                    await twice(session)
                with pytest.raises(errors.UnexpectedRollback):
                    await store(session, "too late")
        assert caught.value.__cause__ is first.value
        await store(session, "after")
    assert stored() == {"taken", "before", "after"}


async def test_a_savepoint_inside_the_users_own_savepoint_protects_that_too(
    db: Database, stored: Stored, taken: None
) -> None:
    async with db.transaction() as session:
        async with session.begin_nested():
            await store(session, "own")
            with pytest.raises(errors.UniqueViolation):
                async with db.savepoint():
                    await twice(session)
            await store(session, "own after")
            with pytest.raises(errors.UniqueViolation):
                async with session.begin_nested():
                    await twice(session)
            await store(session, "own end")
        await store(session, "end")
    assert stored() == {"taken", "own", "own after", "own end", "end"}


@pytest.mark.parametrize("how", ["savepoint", "begin_nested"])
async def test_a_statement_on_a_connection_taken_before_the_savepoint_does_not_survive_its_rollback(
    db: Database, stored: Stored, how: str
) -> None:
    async with db.transaction() as session:
        connection = await session.connection()
        with pytest.raises(Inner):
            async with db.savepoint() if how == "savepoint" else session.begin_nested():
                await connection.execute(insert(Word).values(text="lost"))
                raise Inner
        await store(session, "kept")
    assert stored() == {"kept"}


async def test_an_error_on_a_connection_that_was_taken_from_the_session_marks_the_transaction_too(
    db: Database, stored: Stored, taken: None
) -> None:
    with pytest.raises(errors.UnexpectedRollback):
        async with db.transaction() as session:
            await store(session, "before")
            connection = await session.connection()
            with pytest.raises(errors.UniqueViolation):
                await connection.execute(insert(Word).values(text="taken"))
    assert stored() == {"taken"}


# Flushes.


async def stale(session: AsyncSession, observer: Observer) -> None:
    """Make a flush fail in Python: the row to update is gone."""
    word = Word(text="flushed")
    session.add(word)
    await session.flush()
    await session.execute(text("DELETE FROM words"))
    word.text = "other"
    await session.flush()


async def unbindable(session: AsyncSession, observer: Observer) -> None:
    """Make a flush fail in Python: the value has no form in SQL, and SQLAlchemy asks a function for another."""
    session.add(Word(text="pending"))
    session.add(Word(text=Ungrateful()))
    await session.flush()


class Ungrateful:
    def __clause_element__(self) -> object:
        raise RuntimeError("this value cannot be bound")


async def duplicate(session: AsyncSession, observer: Observer) -> None:
    """Make a flush fail in the database."""
    session.add_all([Word(text="same"), Word(text="same")])
    await session.flush()


@pytest.mark.parametrize(
    ("fail", "error"),
    [(stale, StaleDataError), (unbindable, RuntimeError), (duplicate, errors.UniqueViolation)],
    ids=["stale", "unbindable", "duplicate"],
)
async def test_a_failed_flush_that_is_swallowed_stores_nothing_and_says_so(
    db: Database, observer: Observer, stored: Stored, fail: Callable[..., Awaitable[None]], error: type[Exception]
) -> None:
    with pytest.raises(errors.UnexpectedRollback) as caught:
        async with db.transaction() as session:
            await store(session, "before")
            with pytest.raises(error) as first:
                await fail(session, observer)
            with pytest.raises(errors.UnexpectedRollback):
                await store(session, "after")
    assert caught.value.__cause__ is first.value
    assert stored() == set()


@pytest.mark.parametrize(
    ("fail", "error"),
    [(stale, StaleDataError), (unbindable, RuntimeError), (duplicate, errors.UniqueViolation)],
    ids=["stale", "unbindable", "duplicate"],
)
async def test_a_flush_that_fails_inside_a_savepoint_costs_the_savepoint_and_no_more(
    db: Database, observer: Observer, stored: Stored, fail: Callable[..., Awaitable[None]], error: type[Exception]
) -> None:
    async with db.transaction() as session:
        await store(session, "before")
        with pytest.raises(error):
            async with db.savepoint():
                await fail(session, observer)
        with pytest.raises(error):
            async with session.begin_nested():
                await fail(session, observer)
        with pytest.raises(errors.UnexpectedRollback):
            async with db.savepoint():
                with pytest.raises(error):
                    await fail(session, observer)
        with pytest.raises(errors.UnexpectedRollback):
            async with session.begin_nested():
                with pytest.raises(error):
                    await fail(session, observer)
                with pytest.raises(errors.UnexpectedRollback):
                    await store(session, "too late")
        await store(session, "after")
    assert stored() == {"before", "after"}


async def test_a_flush_that_fails_at_the_end_of_the_block_rolls_back_and_raises_its_error(
    db: Database, stored: Stored, taken: None
) -> None:
    with pytest.raises(errors.UniqueViolation):
        async with db.transaction() as session:
            await store(session, "before")
            session.add(Word(text="taken"))
    assert stored() == {"taken"}


# Statements that are cut off.


@EVERY
async def test_a_timeout_swallowed_inside_a_statement_is_not_a_commit(db: Database, stored: Stored) -> None:
    sleep = SLEEP[db.engine.dialect.name]
    with pytest.raises(errors.UnexpectedRollback):
        async with db.transaction() as session:
            await store(session, "before")
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.02):
                    await session.execute(sleep)
            with pytest.raises(errors.UnexpectedRollback):
                await store(session, "after")
    assert stored() == set()
    async with db.transaction() as session:
        await store(session, "next")
    assert stored() == {"next"}


async def test_a_cancellation_swallowed_inside_a_statement_is_not_a_commit(db: Database, stored: Stored) -> None:
    sleep = SLEEP[db.engine.dialect.name]
    waiting = asyncio.Event()

    async def work() -> None:
        async with db.transaction() as session:
            await store(session, "before")
            waiting.set()
            try:
                await session.execute(sleep)
            except asyncio.CancelledError:
                asyncio.current_task().uncancel()

    task = asyncio.create_task(work())
    await waiting.wait()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(errors.UnexpectedRollback):
        await task
    assert stored() == set()


async def test_a_timeout_inside_a_savepoint_is_not_a_commit_of_the_transaction_around_it(
    db: Database, stored: Stored
) -> None:
    sleep = SLEEP[db.engine.dialect.name]
    after_savepoint = None
    with pytest.raises(errors.UnexpectedRollback):
        async with db.transaction() as session:
            await store(session, "before")
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.02), db.savepoint():
                    await session.execute(sleep)
            after_savepoint = db.current.rollback_only
    assert after_savepoint
    assert stored() == set()


# Marks.


async def test_if_the_outermost_block_itself_marked_it_the_rollback_is_quiet(db: Database, stored: Stored) -> None:
    async with db.transaction() as session:
        await store(session, "lost")
        db.current.set_rollback_only("only a try")
        assert db.current.rollback_only
        with pytest.raises(errors.UnexpectedRollback):
            await store(session, "later")
    assert stored() == set()


async def test_set_rollback_only_in_a_joined_block_tells_the_outer_who_where_and_why(
    db: Database, stored: Stored
) -> None:
    line = 0
    with pytest.raises(errors.UnexpectedRollback) as caught:
        async with db.transaction(label="the outer") as session:
            await store(session, "lost")
            async with db.transaction(label="the inner"):
                line = (
                    test_set_rollback_only_in_a_joined_block_tells_the_outer_who_where_and_why.__code__.co_firstlineno
                )
                db.current.set_rollback_only("stock is gone")
    [note] = caught.value.__notes__
    assert "'the inner'" in note
    assert f"{__file__}:" in note
    assert 0 < int(note.partition(f"{__file__}:")[2].split()[0]) - line < 20
    assert "stock is gone" in note
    assert "'the outer'" in str(caught.value)
    assert "db.savepoint()" in str(caught.value)
    assert stored() == set()


async def test_a_joined_block_that_fails_tells_the_outer_who_and_where(db: Database, stored: Stored) -> None:
    with pytest.raises(errors.UnexpectedRollback) as caught:
        async with db.transaction() as session:
            await store(session, "lost")
            with pytest.raises(Inner) as first:
                async with db.transaction(label="the inner"):
                    raise Inner
    [note] = caught.value.__notes__
    assert "'the inner'" in note
    assert f"{__file__}:" in note
    assert "Inner" in note
    assert caught.value.__cause__ is first.value
    assert stored() == set()


async def test_the_first_of_several_causes_is_the_cause_and_every_mark_has_a_note(
    db: Database, stored: Stored, taken: None
) -> None:
    with pytest.raises(errors.UnexpectedRollback) as caught:
        async with db.transaction() as session:
            with pytest.raises(errors.UniqueViolation) as first:
                async with db.transaction(label="one"):
                    await twice(session)
            with pytest.raises(Inner):
                async with db.transaction(label="two"):
                    raise Inner
    assert caught.value.__cause__ is first.value
    assert any("'two'" in note for note in caught.value.__notes__)
    assert stored() == {"taken"}


async def test_set_rollback_only_of_the_owner_ends_quietly_whatever_a_participant_did_before(
    db: Database, stored: Stored
) -> None:
    async with db.transaction() as session:
        await store(session, "lost")
        with pytest.raises(Inner):
            async with db.transaction():
                raise Inner
        db.current.set_rollback_only()
    assert stored() == set()


async def test_set_rollback_only_in_a_savepoint_undoes_the_savepoint_only(db: Database, stored: Stored) -> None:
    async with db.transaction() as session:
        await store(session, "kept")
        async with db.savepoint():
            await store(session, "undone")
            db.current.set_rollback_only()
            with pytest.raises(errors.UnexpectedRollback):
                await store(session, "later")
        assert not db.current.rollback_only
        await store(session, "after")
    assert stored() == {"kept", "after"}


async def test_marking_the_transaction_around_a_savepoint_refuses_statements_in_the_savepoint_too(
    db: Database, stored: Stored
) -> None:
    async with db.transaction() as session:
        outer = db.current
        await store(session, "lost")
        async with db.savepoint():
            outer.set_rollback_only()
            with pytest.raises(errors.UnexpectedRollback):
                await store(session, "later")
    assert stored() == set()


async def test_an_ended_transaction_cannot_be_marked(db: Database) -> None:
    async with db.transaction():
        ended = db.current
    with pytest.raises(errors.NoTransaction, match="ended"):
        ended.set_rollback_only()


# Rules for exceptions.


class Base1(Exception): ...


class Derived(Base1): ...


class Two(Derived, ValueError): ...


@pytest.mark.parametrize(
    ("rules", "raised", "kept"),
    [
        ({}, Derived, False),
        ({"no_rollback_for": Base1}, Base1, True),
        ({"no_rollback_for": Base1}, Derived, True),
        ({"no_rollback_for": Derived}, Base1, False),
        ({"no_rollback_for": Base1, "rollback_for": Derived}, Derived, False),
        ({"no_rollback_for": Derived, "rollback_for": Base1}, Derived, True),
        ({"no_rollback_for": (Derived,), "rollback_for": (Derived,)}, Derived, False),
        ({"no_rollback_for": ValueError, "rollback_for": Base1}, Two, False),
        ({"no_rollback_for": (ValueError, Two), "rollback_for": Base1}, Two, True),
    ],
)
async def test_the_nearest_class_in_the_mro_decides_and_a_tie_rolls_back(
    db: Database, stored: Stored, *, rules: dict, raised: type[Exception], kept: bool
) -> None:
    with pytest.raises(raised):
        async with db.transaction(**rules) as session:
            await store(session, "word")
            raise raised
    assert stored() == ({"word"} if kept else set())


async def test_an_exception_that_does_not_roll_back_never_saves_a_broken_transaction(
    db: Database, stored: Stored, taken: None
) -> None:
    with pytest.raises(Inner):
        async with db.transaction(no_rollback_for=Inner) as session:
            await store(session, "before")
            with pytest.raises(errors.UniqueViolation):
                await twice(session)
            raise Inner
    with pytest.raises(Inner):
        async with db.transaction(no_rollback_for=Inner) as session:
            await store(session, "before")
            db.current.set_rollback_only()
            raise Inner
    with pytest.raises(errors.UniqueViolation):
        async with db.transaction(no_rollback_for=exc.IntegrityError) as session:
            await store(session, "before")
            await twice(session)
    async with db.transaction() as session:
        with pytest.raises(errors.UniqueViolation):
            async with db.transaction(propagation=Propagation.NESTED, no_rollback_for=exc.IntegrityError):
                await store(session, "before")
                await twice(session)
    assert stored() == {"taken"}
