"""Hooks: when they run, in which order, to whom they belong, and what their errors do."""

import asyncio
import contextlib
import logging

import pytest
from sqlalchemy import select

from tests.conformance.tables import Stored, Word, store
from transact import Database, Propagation, errors
from transact.events import Event, HookFailed

# What hooks do is decided above the engines; two of them show that the decisions are carried out.
pytestmark = pytest.mark.engines("sqlite", "pg18-asyncpg", "mariadb")


class Inner(Exception):
    """What a block or a hook raises."""


def note(ran: list, word: str):
    """A hook, plain or async in turn, that notes its name and what it was given."""

    def plain(*given: object) -> None:
        ran.append((word, *given))

    async def awaited(*given: object) -> None:
        await asyncio.sleep(0)
        ran.append((word, *given))

    return awaited if len(word) % 2 else plain


def outcomes(ran: list) -> list:
    return [(word, *(getattr(value, "value", value) for value in given)) for word, *given in ran]


def register(db: Database, ran: list, *, name: str = "") -> None:
    db.before_commit(note(ran, f"before{name}"))
    db.after_commit(note(ran, f"after{name}"))
    db.after_rollback(note(ran, f"undone{name}"))
    db.after_completion(note(ran, f"end{name}"))


async def test_hooks_run_first_in_first_out_and_are_awaited_before_the_block_goes_on(
    db: Database, stored: Stored
) -> None:
    ran: list = []
    async with db.transaction() as session:
        register(db, ran, name=" one")
        register(db, ran, name=" 2")
        await store(session, "word")
        db.after_commit(lambda: ran.append(("stored", *stored())))
        db.before_commit(lambda: ran.append(("not yet", *stored())))
        assert ran == []
    assert outcomes(ran) == [
        ("before one",),
        ("before 2",),
        ("not yet",),
        ("after one",),
        ("after 2",),
        ("stored", "word"),
        ("end one", "committed"),
        ("end 2", "committed"),
    ]


async def test_a_rollback_runs_after_rollback_with_the_error_and_after_completion_with_the_outcome(
    db: Database,
) -> None:
    ran: list = []
    error = Inner()
    with pytest.raises(Inner):
        async with db.transaction() as session:
            register(db, ran)
            await store(session, "word")
            raise error
    assert outcomes(ran) == [("undone", error), ("end", "rolled back")]


async def test_a_quiet_rollback_runs_after_rollback_without_an_error(db: Database) -> None:
    ran: list = []
    async with db.transaction() as session:
        register(db, ran)
        await store(session, "word")
        db.current.set_rollback_only()
    assert outcomes(ran) == [("undone", None), ("end", "rolled back")]


async def test_hooks_run_also_where_no_statement_was_sent(db: Database) -> None:
    ran: list = []
    async with db.transaction():
        register(db, ran)
    with pytest.raises(Inner):
        async with db.transaction():
            register(db, ran)
            raise Inner
    assert [word for word, *_ in ran] == ["before", "after", "end", "undone", "end"]


async def test_a_released_savepoint_hands_its_hooks_to_what_is_around(db: Database) -> None:
    ran: list = []
    async with db.transaction():
        register(db, ran, name=" out")
        async with db.savepoint():
            register(db, ran, name=" in")
            async with db.transaction():
                register(db, ran, name=" join")
        assert ran == []
    assert [word for word, *_ in ran] == [
        *("before out", "before in", "before join"),
        *("after out", "after in", "after join"),
        *("end out", "end in", "end join"),
    ]


async def test_a_savepoint_that_is_rolled_back_takes_its_hooks_with_it(db: Database, stored: Stored) -> None:
    ran: list = []
    error = Inner()
    async with db.transaction() as session:
        register(db, ran, name=" out")
        with pytest.raises(Inner):
            async with db.savepoint():
                register(db, ran, name=" in")
                async with db.savepoint():
                    register(db, ran, name=" deep")
                await store(session, "undone")
                raise error
        assert ran == [("undone deep", error), ("undone in", error)]
        ran.clear()
        await store(session, "word")
    assert outcomes(ran) == [
        ("before out",),
        ("after out",),
        ("end out", "committed"),
        ("end in", "committed"),
        ("end deep", "committed"),
    ]
    assert stored() == {"word"}


async def test_a_rollback_of_the_whole_undoes_the_deepest_first(db: Database) -> None:
    ran: list = []
    with pytest.raises(Inner):
        async with db.transaction():
            register(db, ran, name=" out")
            async with db.savepoint():
                register(db, ran, name=" in")
                async with db.savepoint():
                    register(db, ran, name=" deep")
            raise Inner
    assert [word for word, *_ in ran if word.startswith("undone")] == ["undone deep", "undone in", "undone out"]


async def test_on_each_level_the_first_registered_after_rollback_is_the_first_to_run(db: Database) -> None:
    ran: list = []
    with pytest.raises(Inner):
        async with db.transaction():
            register(db, ran, name=" out")
            for name in ("one", "two"):
                async with db.savepoint():
                    async with db.savepoint():
                        register(db, ran, name=f" deep {name}")
                    register(db, ran, name=f" {name}")
            raise Inner
    undone = [word for word, *_ in ran if word.startswith("undone")]
    assert undone == ["undone deep one", "undone deep two", "undone one", "undone two", "undone out"]


async def test_after_rollback_of_a_savepoint_that_ends_normally_is_given_the_error_that_was_swallowed(
    db: Database,
) -> None:
    ran: list = []
    async with db.transaction() as session:
        await store(session, "word")
        with pytest.raises(errors.UnexpectedRollback):
            async with db.savepoint():
                register(db, ran)
                with pytest.raises(errors.UniqueViolation) as swallowed:
                    await store(session, "word")
        assert ran == [("undone", swallowed.value)]


async def test_a_before_commit_hook_costs_a_transaction_that_sends_nothing_no_second_connection(
    database_url: str, db: Database, stored: Stored
) -> None:
    ran: list = []
    async with Database(database_url, pool_size=1, max_overflow=0) as small, small.transaction() as session:
        await store(session, "word")
        async with small.transaction(propagation=Propagation.REQUIRES_NEW):
            register(small, ran)
    assert [word for word, *_ in ran] == ["before", "after", "end"]
    assert stored() == {"word"}


async def test_before_commit_may_write_and_may_add_more(db: Database, stored: Stored) -> None:
    async with db.transaction() as session:
        await store(session, "word")

        async def first() -> None:
            session.add(Word(text="first"))
            db.before_commit(second)

        async def second() -> None:
            async with db.transaction() as same:
                assert same is session
                await store(same, "second")

        db.before_commit(first)
    assert stored() == {"word", "first", "second"}


@pytest.mark.parametrize("no_rollback_for", [(), Inner])
async def test_an_error_in_before_commit_rolls_back_and_is_the_callers(
    db: Database, stored: Stored, no_rollback_for: tuple
) -> None:
    ran: list = []

    async def fail() -> None:
        raise Inner

    with pytest.raises(Inner):
        async with db.transaction(no_rollback_for=no_rollback_for) as session:
            register(db, ran)
            await store(session, "word")
            db.before_commit(fail)
    assert [word for word, *_ in ran] == ["before", "undone", "end"]
    assert stored() == set()


async def test_a_database_error_swallowed_in_before_commit_is_not_a_commit(db: Database, stored: Stored) -> None:
    async def fail() -> None:
        with pytest.raises(errors.UniqueViolation):
            await store(session, "word")

    with pytest.raises(errors.UnexpectedRollback):
        async with db.transaction() as session:
            await store(session, "word")
            db.before_commit(fail)
    assert stored() == set()


async def test_set_rollback_only_in_before_commit_rolls_back(db: Database, stored: Stored) -> None:
    async with db.transaction() as session:
        await store(session, "word")
        transaction = db.current
        db.before_commit(transaction.set_rollback_only)
    assert stored() == set()


async def test_an_after_commit_that_fails_is_logged_and_the_success_stands(
    db: Database, stored: Stored, events: list[Event], caplog: pytest.LogCaptureFixture
) -> None:
    ran: list = []

    async def fail() -> None:
        raise Inner("mail server is down")

    async with db.transaction(label="register") as session:
        await store(session, "word")
        db.after_commit(fail)
        register(db, ran)
    assert [word for word, *_ in ran] == ["before", "after", "end"]
    assert stored() == {"word"}
    [failed] = [event for event in events if isinstance(event, HookFailed)]
    assert (failed.phase, type(failed.cause), failed.label) == ("after_commit", Inner, "register")
    [record] = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert "register" in record.getMessage()
    assert record.exc_info[0] is Inner


async def test_critical_after_commit_hooks_that_fail_become_one_error_that_says_committed(
    db: Database, stored: Stored
) -> None:
    ran: list = []

    def fail() -> None:
        raise Inner("first")

    async def fail_too() -> None:
        raise ValueError("second")

    def not_critical() -> None:
        raise KeyError

    with pytest.raises(errors.AfterCommitError) as caught:
        async with db.transaction() as session:
            await store(session, "word")
            db.after_commit(fail, critical=True)
            db.after_commit(not_critical)
            db.after_commit(fail_too, critical=True)
            register(db, ran)
    assert caught.value.committed
    assert [type(error) for error in caught.value.exceptions] == [Inner, ValueError]
    assert [word for word, *_ in ran] == ["before", "after", "end"]
    assert stored() == {"word"}


async def test_hooks_that_fail_after_a_rollback_hide_nothing(db: Database, events: list[Event]) -> None:
    ran: list = []

    def fail(*_: object) -> None:
        raise KeyError

    with pytest.raises(Inner):
        async with db.transaction() as session:
            await store(session, "word")
            db.after_rollback(fail)
            db.after_completion(fail)
            register(db, ran)
            raise Inner
    assert [word for word, *_ in ran] == ["undone", "end"]
    assert [event.phase for event in events if isinstance(event, HookFailed)] == ["after_rollback", "after_completion"]


@pytest.mark.parametrize("fails", [False, True])
async def test_no_transaction_is_open_while_after_hooks_run_and_the_database_opens_one_of_its_own(
    db: Database, stored: Stored, *, fails: bool
) -> None:
    seen: list = []

    async def look(*_: object) -> None:
        seen.append((db.in_transaction, db.engine.pool.checkedout()))
        async with db.transaction() as own:
            assert own is not session
            await store(own, f"hook {len(seen)}")
        assert f"hook {len(seen)}" in stored()

    with pytest.raises(Inner) if fails else contextlib.nullcontext():
        async with db.transaction() as session:
            await store(session, "word")
            db.after_commit(look)
            db.after_rollback(look)
            db.after_completion(look)
            if fails:
                raise Inner
    assert seen == [(False, 0), (False, 0)]
    assert stored() == {"hook 1", "hook 2"} | (set() if fails else {"word"})


async def test_not_even_the_transaction_around_is_open_while_after_hooks_of_a_savepoint_run(
    db: Database, stored: Stored
) -> None:
    seen: list[object] = []

    async def look(_error: object) -> None:
        seen.append(db.in_transaction)
        try:
            async with db.transaction() as own:
                await store(own, "hook")
        except errors.PoolSelfDeadlock as refused:  # SQLite has one writer, and it is the one around
            seen.append(type(refused))

    async with db.transaction() as around:
        await store(around, "around")
        with pytest.raises(Inner):
            async with db.savepoint() as session:
                await store(session, "undone")
                db.after_rollback(look)
                raise Inner
        assert db.in_transaction
    if db.engine.dialect.name == "sqlite":
        assert seen == [False, errors.PoolSelfDeadlock]
        assert stored() == {"around"}
    else:
        assert seen == [False]
        assert stored() == {"around", "hook"}


async def test_the_session_of_the_ended_transaction_is_refused_in_after_hooks(db: Database, stored: Stored) -> None:
    seen = []

    async def look(*_: object) -> None:
        try:
            await session.execute(select(Word))
        except errors.TransactionEnded:
            seen.append("refused")

    async with db.transaction() as session:
        await store(session, "word")
        db.after_commit(look)
        db.after_completion(look)
    assert seen == ["refused", "refused"]
    assert db.engine.pool.checkedout() == 0


@pytest.mark.parametrize("name", ["before_commit", "after_commit", "after_rollback", "after_completion"])
async def test_registering_a_hook_with_no_transaction_open_raises(db: Database, name: str) -> None:
    with pytest.raises(errors.NoTransaction):
        getattr(db, name)(print)
    async with db.transaction():
        ended = db.current
    with pytest.raises(errors.NoTransaction):
        getattr(ended, name)(print)


async def test_registering_returns_the_hook_so_that_it_can_decorate(db: Database) -> None:
    async with db.transaction():

        @db.after_commit
        def hook() -> None: ...

        assert callable(hook)
        assert db.current.before_commit(hook) is hook


async def test_cancellation_waits_until_the_running_hooks_are_done(db: Database, stored: Stored) -> None:
    started, finish = asyncio.Event(), asyncio.Event()
    done: list = []

    async def slow() -> None:
        started.set()
        await finish.wait()
        done.append("slow")

    async def work() -> None:
        async with db.transaction() as session:
            await store(session, "word")
            db.after_commit(slow)
            db.after_commit(note(done, "next"))

    task = asyncio.create_task(work())
    await started.wait()
    task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    finish.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert done == ["slow", ("next",)]
    assert stored() == {"word"}


async def test_a_nested_block_that_begins_runs_its_own_hooks(db: Database) -> None:
    ran: list = []
    async with db.transaction(propagation=Propagation.NESTED):
        register(db, ran)
    assert [word for word, *_ in ran] == ["before", "after", "end"]
