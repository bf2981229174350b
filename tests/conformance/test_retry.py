"""Retry: what is tried again, what never is, and what an attempt leaves behind."""

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from tests.conformance.failures import MARIADB, POSTGRESQL, PREPARED, SQLITE, Failure, Stage
from tests.conformance.tables import Stored, store
from tests.conformance.trying import EACH_VERB, QUICK, Verb
from tests.engines import Observer
from transact import Database, errors
from transact.events import Began, Committed, Event, Retried, RolledBack


@pytest.fixture
def stage(database_url: str, observer: Observer, observing: Callable[[str], Observer], tables: None) -> Stage:
    observer.execute("INSERT INTO words (text) VALUES ('one'), ('two')")
    observer.execute("CREATE TABLE changing (a integer)")
    observer.execute("INSERT INTO changing VALUES (1)")
    return Stage(database_url, observer, observing(database_url))


def each(failures: dict[str, Failure]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("failure", failures.values(), ids=list(failures))


@EACH_VERB
@each(POSTGRESQL)
@pytest.mark.engines("pg18-asyncpg", "pg18-psycopg")
async def test_a_transient_failure_of_postgresql_is_tried_again(
    db: Database, stage: Stage, stored: Stored, events: list[Event], *, failure: Failure, verb: Verb
) -> None:
    await tried_again(db, stage, stored, events, failure=failure, verb=verb)


@EACH_VERB
@each(MARIADB)
@pytest.mark.engines("mariadb")
async def test_a_transient_failure_of_mariadb_is_tried_again(
    db: Database, stage: Stage, stored: Stored, events: list[Event], *, failure: Failure, verb: Verb
) -> None:
    await tried_again(db, stage, stored, events, failure=failure, verb=verb)


@EACH_VERB
@each(SQLITE)
@pytest.mark.engines("sqlite")
async def test_a_transient_failure_of_sqlite_is_tried_again(
    stage: Stage, make_db: Callable[..., Database], stored: Stored, failure: Failure, verb: Verb
) -> None:
    impatient = make_db(f"{stage.url}?timeout=0.02")
    events: list[Event] = []
    impatient.listen(events.append)
    await tried_again(impatient, stage, stored, events, failure=failure, verb=verb)


async def tried_again(
    db: Database, stage: Stage, stored: Stored, events: list[Event], *, failure: Failure, verb: Verb
) -> None:
    """The whole law, once for each failure: a new session, nothing doubled, hooks with their own attempt."""
    if db.engine.dialect.driver not in failure.drivers:
        pytest.skip("this driver does not prepare statements by itself")
    sessions: list[AsyncSession] = []
    told: list[Any] = []

    async def work(session: AsyncSession) -> str:
        number = len(sessions)
        sessions.append(session)
        db.after_commit(lambda: told.append(("commit", number)))
        db.after_rollback(lambda error: told.append(("rollback", number, error)))
        db.after_completion(lambda outcome: told.append((outcome.value, number)))
        if number == 0:
            # SQLite's writer could not even begin while another one writes.
            if db.engine.dialect.name != "sqlite":
                await store(session, "word")
            await failure.provoke(stage, session)
        else:
            await store(session, "word")
        return "done"

    await db.run(lambda session: session.execute(PREPARED))
    events.clear()
    assert await verb(db, work, retry=QUICK, isolation=failure.isolation, label="job") == "done"

    assert stored() == {"one", "two", "word"}
    assert len(sessions) == 2
    assert sessions[0] is not sessions[1]
    [retried] = [event for event in events if isinstance(event, Retried)]
    assert (retried.attempt, retried.label, retried.delay) == (1, "job", 0)
    assert isinstance(retried.cause, failure.kind)
    assert code_of(retried.cause) in failure.codes
    assert told == [("rollback", 0, retried.cause), ("rolled back", 0), ("commit", 1), ("committed", 1)]
    order = [type(event) for event in events if isinstance(event, (Began, RolledBack, Retried, Committed))]
    assert order[-3:] == [Retried, Began, Committed]
    with pytest.raises(errors.TransactionEnded):
        await sessions[0].execute(text("SELECT 1"))


def code_of(error: Any) -> Any:
    if isinstance(error, errors.DatabaseError):
        return error.sqlstate if error.errno is None else error.errno
    return getattr(error, "sqlite_errorcode", None) or error.orig.args[0]
