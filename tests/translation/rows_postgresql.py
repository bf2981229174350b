"""PostgreSQL's codes, each from the server's own mouth."""

import asyncio
import uuid

from sqlalchemy.engine import URL

from tests.translation.bench import SECRET, Bench, Row, in_step, run, sql
from transact import errors

USER = "INSERT INTO users (id, username, email) VALUES (1, :secret, 'a')"
ASYNCPG, PSYCOPG = "asyncpg", "psycopg"


#: What a server says before it cuts a connection is lost in older drivers.
LAST_WORDS = {
    "since": {ASYNCPG: "0.32", PSYCOPG: "3.2.4"},
    "older": (errors.ConnectionLost, {ASYNCPG: "08003", PSYCOPG: None}),
}


def said(sqlstate: str):  # the server says what it is told to, where nothing else makes it say so
    return sql(f"DO $$ BEGIN RAISE 'made up' USING ERRCODE = '{sqlstate}'; END $$")


async def stale_snapshot(bench: Bench) -> None:
    async with bench.engine.connect() as reader, bench.engine.connect() as writer:
        await run(reader, "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        await run(writer, "INSERT INTO users (id) VALUES (1)")
        await writer.commit()
        await run(reader, "SELECT * FROM users")
        await run(writer, "UPDATE users SET age = 2")
        await writer.commit()
        try:
            await run(reader, "UPDATE users SET age = 3")
        finally:
            await clear(bench)


async def write_skew(bench: Bench) -> None:
    try:
        async with bench.engine.connect() as one, bench.engine.connect() as other:
            for connection, key in ((one, 1), (other, 2)):
                await run(connection, "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE", "SELECT count(*) FROM users")
                await run(connection, "INSERT INTO users (id, username) VALUES (:key, :name)", key=key, name=str(key))
            await one.commit()
            await other.commit()  # the failure comes with COMMIT
    finally:
        await clear(bench)


async def deadlock(bench: Bench) -> None:
    async with bench.engine.begin() as connection:
        await run(connection, "INSERT INTO users (id, username) VALUES (1, 'a'), (2, 'b')")

    def side(first: int, second: int):
        async def steps(barrier: asyncio.Barrier) -> None:
            async with bench.engine.begin() as connection:
                await run(
                    connection, "SET LOCAL deadlock_timeout = '10ms'", "UPDATE users SET age = 1 WHERE id = :i", i=first
                )
                await barrier.wait()
                await run(connection, "UPDATE users SET age = 1 WHERE id = :i", i=second)

        return steps

    try:
        await in_step(side(1, 2), side(2, 1))
    finally:
        await clear(bench)


def locked(*statements: str):
    async def provoke(bench: Bench) -> None:
        async with bench.engine.connect() as holder, bench.engine.connect() as waiter:
            await run(holder, "LOCK TABLE users")
            await run(waiter, *statements)

    return provoke


async def stale_plan(bench: Bench) -> None:
    async with bench.engine.connect() as connection, bench.engine.connect() as other:
        await run(other, "DROP TABLE IF EXISTS plans", "CREATE TABLE plans (a int)")
        await other.commit()
        for _ in range(7):  # psycopg prepares a statement after it ran five times
            await run(connection, "SELECT * FROM plans")
        await connection.commit()
        await run(other, "ALTER TABLE plans ADD COLUMN b int")
        await other.commit()
        await run(connection, "SELECT * FROM plans")


async def stale_type(bench: Bench) -> None:
    async with bench.engine.connect() as connection, bench.engine.connect() as other:
        await run(other, "DROP TABLE IF EXISTS pairs", "DROP TYPE IF EXISTS pair", "CREATE TYPE pair AS (a int)")
        await run(other, "CREATE TABLE pairs (p pair)", "INSERT INTO pairs VALUES (ROW(1))")
        await other.commit()
        await run(connection, "SELECT p FROM pairs")
        await connection.commit()
        await run(other, "ALTER TYPE pair ADD ATTRIBUTE b int")
        await other.commit()
        await run(connection, "SELECT p FROM pairs")


def connect(change):
    async def provoke(bench: Bench) -> None:
        async with bench.open(change(bench.url)).connect():
            pass

    return provoke


async def crowd(bench: Bench) -> None:
    role = f"role_{uuid.uuid4().hex}"
    async with bench.engine.begin() as connection:
        await run(connection, f"CREATE ROLE {role} LOGIN PASSWORD '{role}' CONNECTION LIMIT 0")
    try:
        await connect(lambda url: url.set(username=role, password=role))(bench)
    finally:
        async with bench.engine.begin() as connection:
            await run(connection, f"DROP ROLE {role}")


async def clear(bench: Bench) -> None:
    async with bench.engine.begin() as connection:
        await run(connection, "DELETE FROM users")


def closed_port(url: URL) -> URL:
    return url.set(port=1)


VIOLATIONS = (
    Row("unique", sql(USER, "INSERT INTO users (id, username) VALUES (2, :secret)", secret=SECRET), errors.UniqueViolation, "23505",
        {"constraint": "one_of_a_name", "table": "users"}),
    Row("exclusion", sql("CREATE TABLE stays (during int4range, CONSTRAINT ex_stays EXCLUDE USING gist (during WITH &&))",
                         "INSERT INTO stays VALUES ('[1,5)'), ('[4,8)')"), errors.ExclusionViolation, "23P01",
        {"constraint": "ex_stays", "table": "stays"}),
    Row("foreign key", sql("INSERT INTO orders (id, user_id) VALUES (1, 4711)"), errors.ForeignKeyViolation, "23503",
        {"constraint": "fk_orders_user_id", "table": "orders"}),
    Row("still referenced", sql(USER, "INSERT INTO orders (id, user_id) VALUES (1, 1)", "DELETE FROM users", secret=SECRET),
        errors.ForeignKeyViolation, "23503", {"constraint": "fk_orders_user_id", "table": "orders"}),
    Row("restrict", sql(USER, "INSERT INTO orders (id, guard_id) VALUES (1, 1)", "DELETE FROM users", secret=SECRET),
        errors.ForeignKeyViolation, {"pg18": "23001", "pg15": "23503"}, {"constraint": "fk_orders_guard_id", "table": "orders"}),
    Row("restrict, by its own code", said("23001"), errors.ForeignKeyViolation, "23001"),
    Row("not null", sql("INSERT INTO users (id, username) VALUES (1, NULL)"), errors.NotNullViolation, "23502",
        {"table": "users", "columns": ("username",)}),
    Row("check", sql("INSERT INTO users (id, age) VALUES (1, -1)"), errors.CheckViolation, "23514",
        {"constraint": "ck_users_age", "table": "users"}),
    Row("check of a domain", sql("CREATE DOMAIN even AS int CONSTRAINT ck_even CHECK (VALUE % 2 = 0)", "SELECT CAST(3 AS even)"),
        errors.CheckViolation, "23514", {"constraint": "ck_even"}),
    Row("check of a view", sql("CREATE VIEW old AS SELECT * FROM users WHERE age > 9 WITH CHECK OPTION",
                               "INSERT INTO old (id, age) VALUES (1, 2)"), errors.CheckViolation, "44000"),
    Row("any other rule", said("23000"), errors.IntegrityViolation, "23000"),
)  # fmt: skip

DATA = (
    Row("too long", sql("INSERT INTO users (id, note) VALUES (1, CAST(:secret AS text))", secret=SECRET), errors.InvalidData, "22001"),
    Row("out of range", sql("SELECT CAST(CAST(:n AS bigint) AS int)", n=2**40), errors.InvalidData, "22003"),
    Row("not a date", sql("SELECT CAST(CAST(:secret AS text) AS date)", secret=SECRET), errors.InvalidData, "22007"),
    Row("no such date", sql("SELECT CAST(CAST(:day AS text) AS date)", day="2021-02-30"), errors.InvalidData, "22008"),
    Row("not a number", sql("SELECT CAST(CAST(:secret AS text) AS int)", secret=SECRET), errors.InvalidData, "22P02"),
    Row("not UTF-8", sql("SELECT convert_from(CAST(:raw AS bytea), 'UTF8')", raw=b"\xff"), errors.InvalidData, "22021"),
    Row("division by zero", sql("SELECT 1 / 0"), errors.InvalidData, "22012"),
    Row("too long for an index", sql("INSERT INTO users (id, username) SELECT 1, 'x' WHERE false", "CREATE TABLE wide (a text UNIQUE)",
                                     "INSERT INTO wide SELECT string_agg(md5(i::text), '') FROM generate_series(1, 999) i"),
        errors.InvalidData, "54000"),
)  # fmt: skip

TRANSIENT = (
    Row("a type that is stale", stale_type, errors.TransientError, None, only=("asyncpg",)),
    Row("serialization", stale_snapshot, errors.SerializationFailure, "40001"),
    Row("serialization at COMMIT", write_skew, errors.SerializationFailure, "40001"),
    Row("deadlock", deadlock, errors.DeadlockDetected, "40P01"),
    Row("NOWAIT", locked("LOCK TABLE users NOWAIT"), errors.LockTimeout, "55P03"),
    Row("lock_timeout", locked("SET LOCAL lock_timeout = '1ms'", "SELECT * FROM users"), errors.LockTimeout, "55P03"),
    Row("a plan that is stale", stale_plan, errors.TransientError, "0A000"),
    Row("ended by an administrator", sql("SELECT pg_terminate_backend(pg_backend_pid())"), errors.ServerShutdown, "57P01", **LAST_WORDS),
    Row("crash of another session", said("57P02"), errors.ServerShutdown, "57P02"),
    Row("connection failure", said("08006"), errors.ConnectionLost, "08006"),
    Row("idle too long", said("57P05"), errors.ConnectionLost, "57P05"),
)  # fmt: skip

TIME = (
    Row("statement_timeout", sql("SET LOCAL statement_timeout = '1ms'", "SELECT pg_sleep(9)"), errors.StatementTimeout, "57014"),
    Row("cancelled", sql("SELECT pg_cancel_backend(pg_backend_pid())"), errors.StatementTimeout, "57014"),
    Row("transaction_timeout", sql("SET LOCAL transaction_timeout = '50ms'", "SELECT pg_sleep(9)"), errors.TransactionTimeout, "25P04",
        only=("pg18",), **LAST_WORDS),
    Row("transaction_timeout of an old server", said("25P04"), errors.TransactionTimeout, "25P04"),
    Row("idle in a transaction", said("25P03"), errors.TransactionTimeout, "25P03"),
)  # fmt: skip

REFUSED = (
    Row("read-only", sql("SET TRANSACTION READ ONLY", "INSERT INTO users (id) VALUES (1)"), errors.ReadOnlyViolation, "25006"),
    Row("no right", sql("SET LOCAL ROLE pg_read_all_settings", "SELECT * FROM public.users"), errors.PermissionDenied, "42501"),
    Row("wrong password", said("28P01"), errors.PermissionDenied, "28P01"),
    Row("syntax", sql("SELEC 1"), errors.InvalidStatement, "42601"),
    Row("no such table", sql("SELECT * FROM nosuch"), errors.InvalidStatement, "42P01"),
    Row("no such column", sql("SELECT nosuch FROM users"), errors.InvalidStatement, "42703"),
    Row("no such schema", sql("CREATE TABLE nosuch.t (a int)"), errors.InvalidStatement, "3F000"),
    Row("starting up", said("57P03"), errors.DatabaseUnavailable, "57P03"),
    Row("disk full", said("53100"), errors.DatabaseUnavailable, "53100"),
    Row("too many connections, in a statement", said("53300"), errors.TooManyConnections, "53300"),
    Row("outcome unknown", said("40003"), errors.DatabaseError, "40003"),
    Row("resolution unknown", said("08007"), errors.DatabaseError, "08007"),
    Row("not supported", said("0A000"), errors.DatabaseError, "0A000"),
    Row("raised by a function", said("P0001"), errors.DatabaseError, "P0001"),
)  # fmt: skip

# libpq has no SQLSTATE for a failed connect, only words, and words are not judged.
CONNECTING = (
    Row("closed port", connect(closed_port), errors.DatabaseUnavailable, None),
    Row("no such host", connect(lambda url: url.set(host="nosuch.invalid")), errors.DatabaseUnavailable, None),
    Row("no such database", connect(lambda url: url.set(database="nosuch")), errors.DatabaseUnavailable,
        {ASYNCPG: "3D000", PSYCOPG: None}),
    Row("too many connections", crowd, {ASYNCPG: errors.TooManyConnections, PSYCOPG: errors.DatabaseUnavailable},
        {ASYNCPG: "53300", PSYCOPG: None}),
    Row("no such user", connect(lambda url: url.set(username="nosuch")),
        {ASYNCPG: errors.PermissionDenied, PSYCOPG: errors.DatabaseUnavailable}, {ASYNCPG: "28000", PSYCOPG: None}),
)  # fmt: skip

ROWS = (*VIOLATIONS, *DATA, *TRANSIENT, *TIME, *REFUSED, *CONNECTING)
