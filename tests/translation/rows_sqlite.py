"""SQLite's codes, each from the library's own mouth."""

import sqlite3

from sqlalchemy.engine import URL
from sqlalchemy.pool import AsyncAdaptedQueuePool

from tests.translation.bench import SECRET, Bench, Row, begin, run, sql
from transact import errors

USER = "INSERT INTO users (id, username) VALUES (1, :secret)"


async def stale_snapshot(bench: Bench) -> None:
    async with bench.engine.connect() as reader, bench.engine.connect() as writer:
        await begin(reader)
        await run(reader, "SELECT * FROM users")
        await run(writer, "UPDATE users SET age = 1 WHERE id = 0")
        await run(writer, "INSERT OR REPLACE INTO users (id) VALUES (0)")
        await run(reader, "UPDATE users SET age = 2")


async def busy(bench: Bench) -> None:
    async with bench.engine.connect() as holder, bench.engine.connect() as waiter:
        await run(holder, "BEGIN IMMEDIATE")
        await run(waiter, "BEGIN IMMEDIATE")


async def locked_in_a_shared_cache(bench: Bench) -> None:
    url = URL.create(
        "sqlite+aiosqlite", database="file:shared", query={"mode": "memory", "cache": "shared", "uri": "true"}
    )
    engine = bench.open(url, poolclass=AsyncAdaptedQueuePool)
    async with engine.connect() as holder, engine.connect() as waiter:
        await run(holder, "CREATE TABLE t (a int)", "BEGIN IMMEDIATE", "INSERT INTO t VALUES (1)")
        await run(waiter, "SELECT * FROM t")


async def interrupted(bench: Bench) -> None:
    async with bench.engine.connect() as connection:
        driver = (await connection.get_raw_connection()).driver_connection
        await driver.set_progress_handler(lambda: 1, 100)
        try:
            await run(
                connection, "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
            )
        finally:
            await driver.set_progress_handler(None, 0)


async def forbidden(bench: Bench) -> None:
    async with bench.engine.connect() as connection:
        driver = (await connection.get_raw_connection()).driver_connection
        await driver.set_authorizer(lambda *_: sqlite3.SQLITE_DENY)
        try:
            await run(connection, "SELECT * FROM users")
        finally:
            await driver.set_authorizer(None)


async def read_only_file(bench: Bench) -> None:
    url = URL.create("sqlite+aiosqlite", database=f"file:{bench.url.database}", query={"mode": "ro", "uri": "true"})
    async with bench.open(url).connect() as connection:
        await run(connection, "INSERT INTO users (id) VALUES (1)")


async def query_only(bench: Bench) -> None:
    async with bench.engine.connect() as connection:
        await run(connection, "PRAGMA query_only = ON")
        try:
            await run(connection, "INSERT INTO users (id) VALUES (1)")
        finally:
            await run(connection, "PRAGMA query_only = OFF")


async def no_folder(bench: Bench) -> None:
    async with bench.open(bench.url.set(database=f"{bench.url.database}/nosuch/x.db")).connect():
        pass


async def failing_at_commit(bench: Bench) -> None:
    async with bench.engine.connect() as connection:
        await run(
            connection,
            "DROP TABLE IF EXISTS later",
            "CREATE TABLE later (a int REFERENCES users (id) DEFERRABLE INITIALLY DEFERRED)",
            "BEGIN",
            "INSERT INTO later VALUES (4711)",
        )
        try:
            await connection.commit()
        finally:  # SQLite keeps the transaction open; without this the pool would get it back that way
            await connection.rollback()


ROWS = (
    Row("unique", sql(USER, "INSERT INTO users (id, username) VALUES (2, :secret)", secret=SECRET), errors.UniqueViolation, 2067,
        {"constraint": None, "table": "users", "columns": ("username",)}),
    Row("unique over two columns", sql("INSERT INTO users (id, username, tenant, badge) VALUES (1, 'a', 1, 1), (2, 'b', 1, 1)"),
        errors.UniqueViolation, 2067, {"table": "users", "columns": ("tenant", "badge")}),
    Row("unique over an expression", sql("CREATE UNIQUE INDEX lower_name ON users (lower(username))",
                                         "INSERT INTO users (id, username) VALUES (1, 'a'), (2, 'A')"),
        errors.UniqueViolation, 2067, {"constraint": "lower_name", "table": None, "columns": ()}),
    Row("primary key", sql("INSERT INTO users (id, username) VALUES (1, 'a'), (1, 'b')"), errors.UniqueViolation, 1555,
        {"table": "users", "columns": ("id",)}),
    Row("rowid", sql("CREATE TEMPORARY TABLE heap (a int)", "INSERT INTO heap (rowid) VALUES (1)", "INSERT INTO heap (rowid) VALUES (1)"),
        errors.UniqueViolation, 2579, {"table": "heap", "columns": ("rowid",)}),
    Row("foreign key", sql("INSERT INTO orders (id, user_id) VALUES (1, 4711)"), errors.ForeignKeyViolation, 787,
        {"constraint": None, "table": None, "columns": ()}),
    Row("foreign key at COMMIT", failing_at_commit, errors.ForeignKeyViolation, 787),
    Row("not null", sql("INSERT INTO users (id, username) VALUES (1, NULL)"), errors.NotNullViolation, 1299,
        {"constraint": None, "table": "users", "columns": ("username",)}),
    Row("check", sql("INSERT INTO users (id, age) VALUES (1, -1)"), errors.CheckViolation, 275, {"constraint": "ck_users_age"}),
    Row("check without a name", sql("CREATE TEMPORARY TABLE some (a int CHECK (a > 0))", "INSERT INTO some VALUES (0)"),
        errors.CheckViolation, 275, {"constraint": None}),
    Row("any other rule", sql("CREATE TEMPORARY TRIGGER no BEFORE INSERT ON users BEGIN SELECT RAISE(ABORT, 'no'); END", USER, secret=SECRET),
        errors.IntegrityViolation, 1811),
    Row("not of a strict column's type", sql("CREATE TABLE strictly (a int) STRICT", "INSERT INTO strictly VALUES (:secret)", secret=SECRET),
        errors.InvalidData, 3091),
    Row("too long", sql("SELECT zeroblob(2000000000)"), errors.InvalidData, 18),
    Row("not an integer key", sql("INSERT INTO orders (id) VALUES (:secret)", secret=SECRET), errors.InvalidData, 20),
    Row("serialization", stale_snapshot, errors.SerializationFailure, 517),
    Row("busy", busy, errors.LockTimeout, 5),
    Row("locked", locked_in_a_shared_cache, errors.LockTimeout, 262),
    Row("interrupted", interrupted, errors.StatementTimeout, 9),
    Row("full", sql("PRAGMA max_page_count = 1", "CREATE TABLE more (a)", "INSERT INTO more VALUES (randomblob(1000000))"),
        errors.DatabaseUnavailable, 13),
    Row("read-only by request", query_only, errors.ReadOnlyViolation, 8),
    Row("read-only file", read_only_file, errors.ReadOnlyViolation, 8),
    Row("no right", forbidden, errors.PermissionDenied, 23, since={"aiosqlite": "0.22"}),
    Row("syntax", sql("SELEC 1"), errors.InvalidStatement, 1),
    Row("no such table", sql("SELECT * FROM nosuch"), errors.InvalidStatement, 1),
    Row("cannot open", no_folder, errors.DatabaseUnavailable, 14),
)  # fmt: skip
