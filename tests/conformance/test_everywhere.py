"""What a block does, and how that ends, is the same in a transaction, in a savepoint, in a joined block and in a request."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest
from sqlalchemy import exc, text
from sqlalchemy.ext.asyncio import AsyncSession

from tests.conformance.surroundings import OPEN, Around, in_a_joined_block, in_a_savepoint
from tests.conformance.tables import SLEEP, Stored, store
from transact import Isolation, Propagation, errors
from transact.fastapi import Database

pytestmark = pytest.mark.engines("sqlite", "pg18-asyncpg", "pg18-psycopg", "mariadb")


class Inner(Exception):
    """What a block raises."""


Do = Callable[[Database, AsyncSession], Awaitable[None]]


async def returns(db: Database, session: AsyncSession) -> None:
    return


async def raises(db: Database, session: AsyncSession) -> None:
    raise Inner


async def is_cancelled(db: Database, session: AsyncSession) -> None:
    raise asyncio.CancelledError


async def swallows_a_database_error(db: Database, session: AsyncSession) -> None:
    with pytest.raises(exc.IntegrityError):
        await store(session, "taken")
    with pytest.raises(errors.UnexpectedRollback):
        await session.execute(text("SELECT 1"))


async def expects_a_database_error_in_a_savepoint(db: Database, session: AsyncSession) -> None:
    with pytest.raises(exc.IntegrityError):
        async with db.savepoint():
            await store(session, "taken")


async def swallows_the_failure_of_a_participant(db: Database, session: AsyncSession) -> None:
    with pytest.raises(Inner):
        async with db.transaction():
            raise Inner
    with pytest.raises(errors.UnexpectedRollback):
        await session.execute(text("SELECT 1"))


async def swallows_the_failure_of_a_participant_in_a_savepoint(db: Database, session: AsyncSession) -> None:
    with pytest.raises(errors.UnexpectedRollback):
        async with db.savepoint():
            await swallows_the_failure_of_a_participant(db, session)


async def marks_itself(db: Database, session: AsyncSession) -> None:
    db.current.set_rollback_only("a rehearsal")
    with pytest.raises(errors.UnexpectedRollback):
        await session.execute(text("SELECT 1"))


async def is_marked_by_a_participant(db: Database, session: AsyncSession) -> None:
    async with db.transaction():
        db.current.set_rollback_only("stock is gone")


async def asks_for_a_savepoint_when_it_is_marked(db: Database, session: AsyncSession) -> None:
    await is_marked_by_a_participant(db, session)
    with pytest.raises(errors.UnexpectedRollback):
        async with db.transaction(propagation=Propagation.NESTED):
            raise AssertionError


async def ends_its_session_by_hand(db: Database, session: AsyncSession) -> None:
    for end in (session.commit, session.rollback, session.close):
        with pytest.raises(errors.UsageError):
            await end()


async def uses_its_session_in_two_tasks(db: Database, session: AsyncSession) -> None:
    sleep = SLEEP[db.engine.dialect.name]
    results = await asyncio.gather(session.execute(sleep), session.execute(text("SELECT 1")), return_exceptions=True)
    assert [type(result) for result in results if isinstance(result, Exception)] == [errors.ConcurrentUse]


async def asks_for_what_the_open_one_does_not_have(db: Database, session: AsyncSession) -> None:
    with pytest.raises(errors.OptionsConflict):
        async with db.transaction(isolation=Isolation.SERIALIZABLE):
            raise AssertionError


@dataclass(frozen=True)
class End:
    """How it ends: whether all of it is stored, what the caller gets, and which hooks run."""

    stored: bool
    raises: type[BaseException] | None
    hooks: tuple[str, ...]


DONE = End(stored=True, raises=None, hooks=("before", "commit", "committed"))
QUIET = End(stored=False, raises=None, hooks=("rollback", "rolled back"))


def lost(error: type[BaseException]) -> End:
    return End(stored=False, raises=error, hooks=("rollback", "rolled back"))


SURPRISE = lost(errors.UnexpectedRollback)
ENDS: dict[Do, End] = {
    returns: DONE,
    raises: lost(Inner),
    is_cancelled: lost(asyncio.CancelledError),
    swallows_a_database_error: SURPRISE,
    expects_a_database_error_in_a_savepoint: DONE,
    swallows_the_failure_of_a_participant: SURPRISE,
    swallows_the_failure_of_a_participant_in_a_savepoint: DONE,
    marks_itself: QUIET,
    is_marked_by_a_participant: SURPRISE,
    asks_for_a_savepoint_when_it_is_marked: SURPRISE,
    ends_its_session_by_hand: DONE,
    uses_its_session_in_two_tasks: DONE,
    asks_for_what_the_open_one_does_not_have: DONE,
}
BUT: dict[Around, dict[Do, End]] = {
    # Who joined did not begin it, so whoever did has to hear of it.
    in_a_joined_block: {marks_itself: SURPRISE},
    # The transaction around goes on and is committed.
    in_a_savepoint: {marks_itself: End(stored=False, raises=None, hooks=("rollback", "committed"))},
}


@pytest.fixture
def db(database_url: str, tables: None, make_db: Callable[..., Database]) -> Database:
    """The face of FastAPI, since one of the surroundings is a request."""
    return make_db(database_url, kind=Database)


def register(db: Database, ran: list[str]) -> None:
    db.before_commit(lambda: ran.append("before"))
    db.after_commit(lambda: ran.append("commit"))
    db.after_rollback(lambda _error: ran.append("rollback"))
    db.after_completion(lambda outcome: ran.append(outcome.value))


@pytest.mark.parametrize("around", OPEN, ids=lambda f: f.__name__)
async def test_what_a_block_does_ends_alike_wherever_the_block_is(db: Database, stored: Stored, around: Around) -> None:
    async with db.transaction() as first:
        await store(first, "taken")

    async def end(do: Do) -> End:
        ran: list[str] = []
        sessions: list[AsyncSession] = []
        raised: type[BaseException] | None = None

        async def body(session: AsyncSession) -> None:
            sessions.append(session)
            register(db, ran)
            await store(session, f"{do.__name__} before")
            await do(db, session)
            if not db.current.rollback_only:
                await store(session, f"{do.__name__} after")

        try:
            await around(db, body)
        except (errors.TransactError, Inner, asyncio.CancelledError) as error:
            raised = type(error)
        with pytest.raises(errors.TransactionEnded):
            await sessions[0].execute(text("SELECT 1"))
        kept = {word.rpartition(" ")[2] for word in stored() if word.startswith(f"{do.__name__} ")}
        assert kept in (set(), {"before", "after"}), "half of it is stored"
        return End(bool(kept), raised, tuple(ran))

    found: dict[Any, End] = {do: await end(do) for do in ENDS}
    assert found == ENDS | BUT.get(around, {})
