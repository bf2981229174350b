"""How a block ends, and what it costs when it does nothing."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import event, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from tests.conformance.tables import Stored, Word, store
from transact import Database, errors
from transact.events import Event, MarkedRollbackOnly

# One of each driver; the laws that a server could break have marks of their own.
pytestmark = pytest.mark.engines("sqlite", "pg18-asyncpg", "pg18-psycopg", "mariadb")


class Stop(BaseException):
    """An exception like KeyboardInterrupt, which no `except Exception` sees."""


async def returning(db: Database) -> None:
    async with db.transaction() as session:
        await store(session, "word")
        return


async def breaking(db: Database) -> None:
    for _ in range(3):
        async with db.transaction() as session:
            await store(session, "word")
            break


async def continuing(db: Database) -> None:
    for _ in range(1):
        async with db.transaction() as session:
            await store(session, "word")
            continue


async def ending(db: Database) -> None:
    async with db.transaction() as session:
        await store(session, "word")


async def pending(db: Database) -> None:
    async with db.transaction() as session:
        session.add(Word(text="word"))


@pytest.mark.parametrize("leave", [ending, pending, returning, breaking, continuing])
async def test_return_break_and_continue_out_of_a_block_commit_and_so_does_its_end(
    db: Database, stored: Stored, leave
) -> None:
    await leave(db)
    assert stored() == {"word"}


@pytest.mark.parametrize("error", [ValueError, Stop, asyncio.CancelledError, GeneratorExit, SystemExit])
async def test_every_exception_rolls_back_cancellation_and_generator_exit_included_and_goes_on_as_it_is(
    db: Database, stored: Stored, error: type[BaseException]
) -> None:
    raised = error("this one")

    async def work() -> None:
        async with db.transaction() as session:
            await store(session, "word")
            raise raised

    with pytest.raises(error) as caught:
        await work()
    assert caught.value is raised
    assert stored() == set()


async def test_closing_a_generator_in_the_middle_of_its_block_rolls_back(db: Database, stored: Stored) -> None:
    async def words() -> AsyncIterator[str]:
        async with db.transaction() as session:
            await store(session, "word")
            yield "word"

    generator = words()
    assert await anext(generator) == "word"
    await generator.aclose()
    assert stored() == set()


async def test_what_a_block_stored_is_seen_by_others_when_it_has_ended_and_not_before(
    db: Database, stored: Stored
) -> None:
    async with db.transaction() as session:
        session.add(Word(text="word"))
        await session.flush()
        assert stored() == set()
    assert stored() == {"word"}


@pytest.mark.parametrize("fails", [False, True])
async def test_a_block_without_a_statement_takes_no_connection_and_sends_nothing(
    db: Database, events: list[Event], *, fails: bool
) -> None:
    seen: list[str] = []
    engine = db.engine.sync_engine
    for name in ("connect", "checkout", "begin", "before_cursor_execute", "commit", "rollback"):
        event.listen(engine, name, lambda *_, name=name, **__: seen.append(name))
    with pytest.raises(ValueError) if fails else contextlib.nullcontext():
        async with db.transaction(), db.transaction():
            assert db.in_transaction
            if fails:
                raise ValueError
    assert seen == []
    assert {type(event) for event in events} <= {MarkedRollbackOnly}
    assert db.engine.pool.checkedout() == 0


async def test_the_connection_is_taken_with_the_first_statement_and_back_at_the_end(db: Database) -> None:
    async with db.transaction() as session:
        assert db.engine.pool.checkedout() == 0
        await session.execute(select(Word))
        assert db.engine.pool.checkedout() == 1
    assert db.engine.pool.checkedout() == 0


async def test_a_transaction_costs_one_begin_one_commit_and_its_statements(db: Database) -> None:
    sent: list[str] = []
    engine = db.engine.sync_engine
    async with db.transaction() as session:
        await session.execute(text("SELECT 1"))  # what a new connection takes is not counted
    event.listen(engine, "begin", lambda *_: sent.append("begin"))
    event.listen(engine, "commit", lambda *_: sent.append("commit"))
    event.listen(engine, "rollback", lambda *_: sent.append("rollback"))
    event.listen(
        engine, "before_cursor_execute", lambda _c, _u, statement, *_: sent.append(statement.partition(" ")[0])
    )
    async with db.transaction() as session:
        await store(session, "word")
    assert [word for word in sent if word != "BEGIN"] == ["begin", "INSERT", "commit"]


ENDINGS = ["begin", "commit", "rollback", "close", "invalidate", "reset"]


async def test_a_managed_session_cannot_be_ended_by_hand_and_the_attempt_changes_nothing(
    db: Database, stored: Stored
) -> None:
    async def attempt(session: AsyncSession, name: str) -> None:
        found = getattr(session, name)()
        if hasattr(found, "__aenter__"):
            async with found:
                pass
        else:
            await found

    async with db.transaction(label="register") as session:
        session.add(Word(text="pending"))
        await store(session, "before")
        for name in [*ENDINGS, "aclose"]:
            with pytest.raises(errors.UsageError, match=r"'register'.*nothing was changed"):
                await attempt(session, name)
        await store(session, "after")
    assert stored() == {"pending", "before", "after"}


async def test_a_managed_session_cannot_be_ended_by_its_plain_session_either(db: Database, stored: Stored) -> None:
    async with db.transaction() as session:
        await store(session, "before")
        for name in [*ENDINGS, "prepare"]:
            with pytest.raises(errors.UsageError):
                await session.run_sync(lambda sync, name=name: getattr(sync, name)())
        await store(session, "after")
    assert stored() == {"before", "after"}


async def test_a_managed_session_cannot_be_ended_by_its_session_transaction_either(
    db: Database, stored: Stored
) -> None:
    for name in ("commit", "rollback", "close"):
        with pytest.raises(errors.TransactError):
            async with db.transaction() as session:
                await store(session, name)
                await session.run_sync(lambda sync, name=name: getattr(sync.get_transaction(), name)())
                await store(session, "after")
    assert stored() == set()
    async with db.transaction() as session:
        await store(session, "next")
    assert stored() == {"next"}


async def test_a_session_transaction_ended_by_hand_refuses_what_follows_and_is_told_at_the_end(
    db: Database, stored: Stored
) -> None:
    with pytest.raises(errors.UnexpectedRollback) as caught:
        async with db.transaction() as session:
            await store(session, "lost")
            await session.run_sync(lambda sync: sync.get_transaction().rollback())
            with pytest.raises(errors.UnexpectedRollback):
                await store(session, "after")
    assert "by hand" in caught.value.__notes__[0]
    assert stored() == set()


async def test_a_commit_of_the_session_transaction_that_is_caught_changes_nothing(db: Database, stored: Stored) -> None:
    async with db.transaction() as session:
        await store(session, "before")
        with pytest.raises(errors.UsageError):
            await session.get_transaction().commit()
        assert stored() == set()
        await store(session, "after")
    assert stored() == {"before", "after"}


async def test_a_with_block_over_the_session_is_refused_before_its_body(db: Database, stored: Stored) -> None:
    """`async with session:` would close it, `async with session.begin():` would commit it."""
    async with db.transaction() as session:
        await store(session, "before")
        with pytest.raises(errors.UsageError):
            async with session.begin():
                pass
        with pytest.raises(errors.UsageError):
            async with session:
                await store(session, "inside")
        await store(session, "after")
    assert stored() == {"before", "inside", "after"}


# Tasks.


async def test_tasks_with_transactions_of_their_own_do_not_meet(db: Database, stored: Stored) -> None:
    async def one(word: str) -> None:
        async with db.transaction() as session:
            await store(session, word)
            if word == "bad":
                raise ValueError

    results = await asyncio.gather(*(one(word) for word in ("a", "b", "bad", "c")), return_exceptions=True)
    assert [type(result) for result in results] == [type(None), type(None), ValueError, type(None)]
    assert stored() == {"a", "b", "c"}


async def test_a_child_task_joins_the_transaction_that_it_was_started_in(db: Database, stored: Stored) -> None:
    async def child() -> bool:
        async with db.transaction() as joined:
            await store(joined, "child")
            return joined is session

    async with db.transaction() as session:
        await store(session, "parent")
        assert await asyncio.create_task(child())
        await store(session, "after")
    assert stored() == {"parent", "child", "after"}


async def test_a_child_task_that_outlives_the_transaction_gets_one_of_its_own(db: Database, stored: Stored) -> None:
    ended = asyncio.Event()

    async def child() -> bool:
        await ended.wait()
        assert not db.in_transaction
        with pytest.raises(errors.NoTransaction):
            db.current  # noqa: B018  # it raises
        async with db.transaction() as own:
            await store(own, "child")
            return own is session

    with pytest.raises(ValueError):
        async with db.transaction() as session:
            await store(session, "parent")
            task = asyncio.create_task(child())
            raise ValueError
    ended.set()
    assert not await task
    assert stored() == {"child"}


async def test_two_databases_have_transactions_of_their_own(db: Database, make_db, sqlite_url: str) -> None:
    other = make_db(sqlite_url, name="other")
    async with db.transaction():
        assert not other.in_transaction
        async with other.transaction():
            assert other.current is not db.current
        assert db.in_transaction


async def test_a_transaction_shows_its_label_its_state_and_whether_it_can_only_be_rolled_back(db: Database) -> None:
    async with db.transaction(label="outer"):
        outer = db.current
        assert (outer.label, outer.state.value, outer.rollback_only) == ("outer", "active", False)
        async with db.savepoint():
            inner = db.current
        assert inner.state.value == "committed"
        assert "outer" in repr(outer)
        outer.set_rollback_only()
        assert (outer.state.value, outer.rollback_only) == ("rollback only", True)
    assert outer.state.value == "rolled back"


async def test_a_block_without_a_label_is_called_after_its_function(db: Database) -> None:
    async with db.transaction():
        assert db.current.label.endswith("test_a_block_without_a_label_is_called_after_its_function")


async def test_savepoint_with_none_open_raises_before_the_body(db: Database) -> None:
    with pytest.raises(errors.NoTransaction):
        async with db.savepoint():
            pass


@pytest.mark.engines("sqlite", "pg18-asyncpg")
@pytest.mark.parametrize("fails", [False, True])
async def test_a_savepoint_that_outlives_its_transaction_says_so_and_changes_nothing(
    db: Database, stored: Stored, *, fails: bool
) -> None:
    entered, go_on = asyncio.Event(), asyncio.Event()

    async def late() -> None:
        async with db.savepoint() as session:
            await store(session, "inside")
            entered.set()
            await go_on.wait()
            if fails:
                raise KeyError

    async with db.transaction() as session:
        task = asyncio.create_task(late())
        await entered.wait()
        await store(session, "word")
    before = stored()
    go_on.set()
    with pytest.raises(KeyError if fails else errors.TransactionEnded):
        await task
    assert stored() == before
