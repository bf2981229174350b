"""Many at once, all with retry: everybody succeeds in the end, and the books are right."""

import asyncio
import random
from collections.abc import Callable

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from tests.engines import Observer
from transact import Database, Isolation, Retry
from transact.events import Event, Retried

pytestmark = pytest.mark.engines("sqlite", "pg18-asyncpg", "pg18-psycopg", "mariadb")

ACCOUNTS, TASKS, EACH, START = 10, 20, 50, 1000
#: Generous: of those who meet, one wins at least, so nobody needs more attempts than there are transfers.
PATIENT = Retry(attempts=TASKS * EACH, base=0.01, max_delay=1.0)

BALANCE = text("SELECT balance FROM account WHERE id = :id")
SET_BALANCE = text("UPDATE account SET balance = :balance WHERE id = :id")
NOTE = text("INSERT INTO transfer (id, number) VALUES (:id, :number)")


async def transfer(session: AsyncSession, task: int, number: int, source: int, target: int) -> None:
    """Reads and writes what it has read: two at once, unprotected, would lose an update."""
    taken = await session.scalar(BALANCE, {"id": source})
    given = await session.scalar(BALANCE, {"id": target})
    await session.execute(SET_BALANCE, {"id": source, "balance": taken - 1})
    await session.execute(SET_BALANCE, {"id": target, "balance": given + 1})
    await session.execute(NOTE, {"id": task * EACH + number, "number": number})


@pytest.mark.engines("sqlite", "pg18-asyncpg", "mariadb")
async def test_twenty_tasks_with_fifty_serializable_transfers_each_all_succeed_and_the_sum_is_constant(
    database_url: str, observer: Observer, make_db: Callable[..., Database]
) -> None:
    observer.execute("CREATE TABLE account (id integer PRIMARY KEY, balance integer NOT NULL)")
    observer.execute("CREATE TABLE transfer (id integer PRIMARY KEY, number integer NOT NULL)")
    for account in range(ACCOUNTS):
        observer.execute(f"INSERT INTO account VALUES ({account}, {START})")
    db = make_db(database_url, isolation=Isolation.SERIALIZABLE, retry=PATIENT)
    events: list[Event] = []
    db.listen(events.append)
    choose = random.Random(1)  # noqa: S311  # not for secrets
    pairs = [[choose.sample(range(ACCOUNTS), 2) for _ in range(EACH)] for _ in range(TASKS)]
    moved: list[int] = []

    async def work(task: int) -> None:
        for number, pair in enumerate(pairs[task]):
            await db.run(transfer, task, number, *pair)
            moved.append(task)

    async with asyncio.TaskGroup() as group:
        for task in range(TASKS):
            group.create_task(work(task))

    assert len(moved) == TASKS * EACH
    assert observer.scalar("SELECT count(*) FROM transfer") == TASKS * EACH
    expected = [START] * ACCOUNTS
    for source, target in (pair for each in pairs for pair in each):
        expected[source] -= 1
        expected[target] += 1
    assert [b for (b,) in observer.rows("SELECT balance FROM account ORDER BY id")] == expected
    assert sum(expected) == START * ACCOUNTS
    # On SQLite writers take turns; elsewhere nothing would be shown if they never met.
    assert any(isinstance(event, Retried) for event in events) is (db.engine.dialect.name != "sqlite")


ROUNDS = 20


async def test_of_two_doctors_who_both_go_off_call_at_once_one_always_stays(
    database_url: str, observer: Observer, make_db: Callable[..., Database]
) -> None:
    observer.execute("CREATE TABLE doctor (name varchar(10) PRIMARY KEY, on_call integer NOT NULL)")
    observer.execute("INSERT INTO doctor VALUES ('Ann', 1), ('Bob', 1)")
    db = make_db(database_url)
    takes_turns = db.engine.dialect.name == "sqlite"

    for _ in range(ROUNDS):
        observer.execute("UPDATE doctor SET on_call = 1")
        both_have_looked = asyncio.Barrier(1 if takes_turns else 2)
        looked: set[str] = set()

        @db.transactional(isolation=Isolation.SERIALIZABLE, retry=PATIENT)
        async def go_off_call(session: AsyncSession, name: str) -> bool:
            others = await session.scalar(text("SELECT count(*) FROM doctor WHERE on_call = 1"))
            if name not in looked:  # noqa: B023  # each round has its own
                looked.add(name)  # noqa: B023
                await both_have_looked.wait()  # noqa: B023
            if others < 2:
                return False
            await session.execute(text("UPDATE doctor SET on_call = 0 WHERE name = :name"), {"name": name})
            return True

        went = await asyncio.gather(go_off_call("Ann"), go_off_call("Bob"))
        assert sorted(went) == [False, True]
        assert observer.scalar("SELECT count(*) FROM doctor WHERE on_call = 1") == 1
