"""Every state in which an application may answer with an error, brought about on real engines, with canaries everywhere.

Whatever a client must never see has `canary` in its name: tables, columns, constraints, values, the database's user, its
password, the place in the program, and what the program says to itself.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from contextvars import Context
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.ext.asyncio import AsyncSession

from tests.observers import Observer, observe
from transact import Isolation, Propagation, Retry, errors
from transact.fastapi import Database

PASSWORD = "canary-password"  # noqa: S105
FAMILIES = {"sqlite": "sqlite", "postgresql": "postgresql", "mysql": "mariadb"}

TABLE = (
    "CREATE TABLE canary_table (canary_id integer PRIMARY KEY, canary_column varchar(20), canary_number integer NOT NULL,"
    " canary_parent integer, CONSTRAINT uq_canary UNIQUE (canary_column),"
    " CONSTRAINT ck_canary CHECK (canary_number >= 0),"
    " CONSTRAINT fk_canary FOREIGN KEY (canary_parent) REFERENCES canary_table (canary_id))"
)
ROW = "INSERT INTO canary_table (canary_id, canary_column, canary_number) VALUES ({0}, 'canary-{0}', 0)"
TOUCH = "UPDATE canary_table SET canary_number = canary_number + 1 WHERE canary_id = {0}"
TAKEN = ROW.format(1)
KILLED_AT_COMMIT = (
    "CREATE TABLE canary_fatal (canary_id integer)",
    (
        "CREATE FUNCTION canary_kill() RETURNS trigger LANGUAGE plpgsql AS $$"
        " BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); PERFORM pg_sleep(10); RETURN NULL; END $$"
    ),
    (
        "CREATE CONSTRAINT TRIGGER canary_kill AFTER INSERT ON canary_fatal DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW EXECUTE FUNCTION canary_kill()"
    ),
)


@dataclass
class Scene:
    """The database of the application, and a second one on the same tables for whoever is in its way."""

    db: Database
    other: Database
    observer: Observer


Provoke = Callable[[Scene, AsyncSession], Awaitable[object]]


@dataclass(frozen=True)
class State:
    """`provoke` runs in a route whose session has `options`; the answer is a problem document with one of `codes`."""

    provoke: Provoke
    codes: str
    engines: tuple[str, ...] = ("sqlite", "postgresql", "mariadb")
    options: dict[str, Any] = field(default_factory=dict)


def sql(*statements: str) -> Provoke:
    async def provoke(_: Scene, session: AsyncSession) -> None:
        for statement in statements:
            # Values travel as parameters, as they do in applications; asyncmy writes them into the statement.
            await session.execute(text(statement), {"value": "canary-value"} if ":value" in statement else {})

    return provoke


async def lock_timeout(scene: Scene, session: AsyncSession) -> None:
    async with scene.other.transaction() as other:
        await other.execute(text(TOUCH.format(1)))
        await session.execute(text(TOUCH.format(1)))


async def serialization(scene: Scene, session: AsyncSession) -> None:
    await session.execute(text("SELECT * FROM canary_table"))
    scene.observer.execute(TOUCH.format(1))
    await session.execute(text(TOUCH.format(1)))


async def deadlock_of_postgresql(scene: Scene, session: AsyncSession) -> None:
    await session.execute(text("SET LOCAL deadlock_timeout = '20ms'"))  # whose timeout ends first is the one that fails
    async with scene.other.transaction() as other:
        await other.execute(text("SET LOCAL deadlock_timeout = '60s'"))
        await cross(session, other, "SELECT count(*) FROM pg_locks WHERE NOT granted", scene)


async def deadlock_of_mariadb(scene: Scene, session: AsyncSession) -> None:
    async with scene.other.transaction() as other:
        for number in range(10, 60):  # of two in a deadlock, InnoDB rolls back the one with fewer changes
            await other.execute(text(ROW.format(number)))
        await cross(session, other, "SELECT 1", scene)


async def cross(session: AsyncSession, other: AsyncSession, waiting: str, scene: Scene) -> None:
    await session.execute(text(TOUCH.format(1)))
    await other.execute(text(TOUCH.format(2)))
    blocked = asyncio.create_task(other.execute(text(TOUCH.format(1))))
    try:
        async with asyncio.timeout(10):
            while not scene.observer.scalar(waiting):
                await asyncio.sleep(0.005)  # the server tells nobody that a session waits
        await session.execute(text(TOUCH.format(2)))
    finally:
        await asyncio.wait({blocked})


async def lost_on_mariadb(scene: Scene, session: AsyncSession) -> None:
    async with scene.db.savepoint():
        await deadlock_of_mariadb(scene, session)


async def killed(scene: Scene, session: AsyncSession) -> None:
    if session.bind.dialect.name == "postgresql":
        pid = await session.scalar(text("SELECT pg_backend_pid()"))
        scene.observer.scalar("SELECT pg_terminate_backend(?, 5000)", pid)
    else:
        scene.observer.execute(f"KILL {await session.scalar(text('SELECT connection_id()'))}")
    await session.execute(text("SELECT * FROM canary_table"))


async def pool_timeout(scene: Scene, _: AsyncSession) -> None:
    async with (
        Database(scene.db.engine.url, pool_size=1, max_overflow=0, pool_timeout=0) as small,
        small.transaction(read_only=True, isolation=Isolation.REPEATABLE_READ, label="canary label") as holder,
    ):
        await (await holder.connection()).execute(text("SELECT * FROM canary_table"))
        await asyncio.create_task(_reads(small), context=Context())  # as another request would


async def _reads(db: Database) -> None:
    async with db.transaction(read_only=True) as session:
        await session.execute(text("SELECT * FROM canary_table"))


async def swallowed(_: Scene, session: AsyncSession) -> None:
    with suppress(errors.UniqueViolation):
        await session.execute(text(TAKEN))


async def marked(scene: Scene, session: AsyncSession) -> None:
    async with scene.db.transaction():
        scene.db.current.set_rollback_only("canary reason")


async def committed_by_hand(_: Scene, session: AsyncSession) -> None:
    await session.execute(text("SELECT * FROM canary_table"))
    await session.commit()


async def at_once(_: Scene, session: AsyncSession) -> None:
    query = text("SELECT a.canary_id FROM canary_table a, canary_table b, canary_table c")
    for result in await asyncio.gather(*(session.execute(query) for _ in range(2)), return_exceptions=True):
        if isinstance(result, errors.ConcurrentUse):
            raise result


async def already_there(scene: Scene, session: AsyncSession) -> None:
    async with scene.db.transaction(propagation=Propagation.NEVER, label="canary label"):
        pass


async def other_options(scene: Scene, session: AsyncSession) -> None:
    await session.execute(text("SELECT * FROM canary_table"))
    async with scene.db.transaction(isolation=Isolation.SERIALIZABLE, label="canary label"):
        pass


async def waits_for_itself(scene: Scene, _: AsyncSession) -> None:
    async with (
        Database(scene.db.engine.url, pool_size=1, max_overflow=0) as small,
        small.transaction(label="canary label") as outer,
    ):
        await outer.execute(text("SELECT * FROM canary_table"))
        async with small.transaction(propagation=Propagation.REQUIRES_NEW, label="canary label") as inner:
            await inner.execute(text("SELECT * FROM canary_table"))


async def session_after_the_end(scene: Scene, _: AsyncSession) -> None:
    async with scene.other.transaction(label="canary label") as session:
        pass
    await session.execute(text("SELECT * FROM canary_table"))


async def none_is_open(scene: Scene, _: AsyncSession) -> None:
    scene.other.after_commit(lambda: None)


async def failing_hook(scene: Scene, session: AsyncSession) -> None:
    def canary_hook() -> None:
        raise ValueError("canary in a hook")

    await session.execute(text(ROW.format(5)))
    scene.db.after_commit(canary_hook, critical=True)


TWO = ("postgresql", "mariadb")
PARENT = "INSERT INTO canary_table (canary_id, canary_number, canary_parent) VALUES (3, 0, 99)"
AGAIN = {"retry": Retry(2, base=0, on=(errors.UniqueViolation,))}
SHORT = {"lock_timeout": 0.05}

STATES = {
    "a missing table": State(sql("SELECT canary_column FROM canary_missing"), "invalid-statement"),
    "a missing column": State(sql("SELECT canary_missing FROM canary_table"), "invalid-statement"),
    "a missing schema": State(sql("SELECT * FROM canary_schema.canary_table"), "invalid-statement permission-denied"),
    "a mistake in SQL": State(sql("SELEC canary_column FROM canary_table WHERE :value = 1"), "invalid-statement"),
    "unique": State(sql(TAKEN), "unique-violation"),
    "foreign key": State(sql(PARENT), "foreign-key-violation"),
    "not null": State(
        sql("INSERT INTO canary_table (canary_id, canary_number) VALUES (3, NULL)"), "not-null-violation"
    ),
    "check": State(sql("UPDATE canary_table SET canary_number = -1"), "check-violation"),
    "text for a number": State(
        sql("UPDATE canary_table SET canary_number = CAST('canary' AS integer)"), "invalid-data", ("postgresql",)
    ),
    "a text too long": State(
        sql(f"UPDATE canary_table SET canary_column = '{'canary' * 9}' WHERE canary_id = 1"), "invalid-data", TWO
    ),
    "a lock timeout": State(lock_timeout, "lock-timeout", options=SHORT),
    "a serialization failure": State(
        serialization, "serialization-failure", ("postgresql",), {"isolation": Isolation.REPEATABLE_READ}
    ),
    "a deadlock on PostgreSQL": State(deadlock_of_postgresql, "deadlock-detected", ("postgresql",)),
    "a deadlock on MariaDB": State(deadlock_of_mariadb, "deadlock-detected transaction-lost", ("mariadb",)),
    "a lost transaction on MariaDB": State(lost_on_mariadb, "transaction-lost", ("mariadb",)),
    "a lost transaction on SQLite": State(
        sql(TOUCH.format(1), TAKEN.replace("INSERT", "INSERT OR ROLLBACK"), TOUCH.format(1)),
        "unique-violation",
        ("sqlite",),
    ),
    "a statement timeout on PostgreSQL": State(
        sql("SET LOCAL statement_timeout = 20", "SELECT pg_sleep(20), 'canary'"), "statement-timeout", ("postgresql",)
    ),
    "a statement timeout on MariaDB": State(
        sql(
            "SET STATEMENT max_statement_time = 0.02 FOR SELECT 'canary', a.seq, b.seq FROM seq_1_to_1000000 a, seq_1_to_1000000 b ORDER BY 2, 3 DESC LIMIT 1"
        ),
        "statement-timeout",
        ("mariadb",),
    ),
    "the deadline": State(sql(TOUCH.format(1)), "transaction-timeout", options={"timeout": 1e-6}),
    "a killed connection": State(killed, "connection-lost server-shutdown", TWO),
    "an unknown outcome": State(sql("INSERT INTO canary_fatal VALUES (1)"), "commit-outcome-unknown", ("postgresql",)),
    "a full pool": State(pool_timeout, "pool-timeout"),
    "retries exhausted": State(sql(TAKEN), "retries-exhausted", options=AGAIN),
    "a write in a reading request": State(sql(TOUCH.format(1)), "read-only-violation", options={"read_only": True}),
    "a swallowed error": State(swallowed, "unexpected-rollback"),
    "a joined block that gave up": State(marked, "unexpected-rollback"),
    "a commit by hand": State(committed_by_hand, "usage-error"),
    "two statements at once": State(at_once, "concurrent-use"),
    "a transaction where none may be": State(already_there, "transaction-exists"),
    "other options": State(other_options, "options-conflict"),
    "a task that waits for itself": State(waits_for_itself, "pool-self-deadlock"),
    "a session after its end": State(session_after_the_end, "transaction-ended"),
    "no transaction": State(none_is_open, "no-transaction"),
    "a hook after COMMIT": State(failing_hook, "after-commit-error"),
}

#: What is wrong with the way to the server -> the kinds that tell of it.
CONNECTING: dict[str, tuple[dict[str, Any], str]] = {
    "refused": ({"port": 1}, "database-unavailable"),
    "a password in the query": (
        {"port": 1, "password": None, "query": {"password": PASSWORD}},
        "database-unavailable",
    ),
    "unknown host": ({"host": "canary.invalid"}, "database-unavailable"),
    "unknown user": ({"username": "canary_nobody"}, "permission-denied database-unavailable"),
    "unknown database": ({"database": "canary_database"}, "database-unavailable permission-denied"),
    "full": ({"username": "canary_full"}, "too-many-connections database-unavailable"),  # libpq tells no code
}


@contextmanager
def canary_user(url: str, name: str, connections: int = -1) -> Iterator[URL]:
    """The same database as somebody whose name and password are canaries; of `connections` if that is not -1."""
    admin = make_url(url)
    family = FAMILIES[admin.get_backend_name()]
    if family == "sqlite":
        yield admin
        return
    with ExitStack() as stack:
        observer = stack.enter_context(observe(url))
        if family == "postgresql":
            rights = "SUPERUSER" if connections < 0 else f"CONNECTION LIMIT {connections}"
            observer.execute(f"CREATE ROLE {name} LOGIN {rights} PASSWORD '{PASSWORD}'")
            stack.callback(observer.execute, f"DROP ROLE {name}")
        else:
            limit = f"WITH MAX_USER_CONNECTIONS {connections}" if connections >= 0 else ""
            observer.execute(f"CREATE USER {name}@'%' IDENTIFIED BY '{PASSWORD}' {limit}")
            stack.callback(observer.execute, f"DROP USER {name}@'%'")
            observer.execute(f"GRANT ALL ON `{admin.database}`.* TO {name}@'%'")
        yield admin.set(username=name, password=PASSWORD)


@asynccontextmanager
async def scene(url: str, **options: Any) -> AsyncIterator[Scene]:
    """The tables, and the databases of a user whose name and password are canaries."""
    with canary_user(url, f"canary_{(make_url(url).database or '')[-8:]}") as own, observe(url) as observer:
        fatal = KILLED_AT_COMMIT if own.get_backend_name() == "postgresql" else ()
        for statement in (TABLE, ROW.format(1), ROW.format(2), *fatal):
            observer.execute(statement)
        async with Database(own, name="canary database", **options) as db, Database(own) as other:
            yield Scene(db, other, observer)
