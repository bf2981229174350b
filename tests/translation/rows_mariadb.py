"""MariaDB's numbers, each from the server's own mouth."""

import asyncio
import uuid

from tests.translation.bench import SECRET, Bench, Row, in_step, run, sql
from transact import errors

USER = "INSERT INTO users (id, username) VALUES (1, :secret)"


def said(number: int):  # the server says what it is told to, where nothing else makes it say so
    return sql(f"SIGNAL SQLSTATE 'HY000' SET MYSQL_ERRNO = {number}, MESSAGE_TEXT = 'made up'")


async def stale_snapshot(bench: Bench) -> None:
    try:
        async with bench.engine.connect() as reader, bench.engine.connect() as writer:
            await run(reader, "SET SESSION innodb_snapshot_isolation = ON")
            await run(writer, "INSERT INTO users (id) VALUES (1)")
            await writer.commit()
            await run(reader, "SELECT * FROM users")
            await run(writer, "UPDATE users SET age = 2")
            await writer.commit()
            await run(reader, "UPDATE users SET age = 3")
    finally:
        await clear(bench)


def deadlock(*, in_savepoints: bool):
    async def provoke(bench: Bench) -> None:
        async with bench.engine.begin() as connection:
            await run(connection, "INSERT INTO users (id, username) VALUES (1, 'a'), (2, 'b')")

        def side(first: int, second: int):
            async def updates(connection, barrier: asyncio.Barrier) -> None:
                await run(connection, "UPDATE users SET age = 1 WHERE id = :i", i=first)
                await barrier.wait()
                await run(connection, "UPDATE users SET age = 1 WHERE id = :i", i=second)

            async def steps(barrier: asyncio.Barrier) -> None:
                async with bench.engine.begin() as connection:
                    if in_savepoints:
                        async with connection.begin_nested():
                            await updates(connection, barrier)
                    else:
                        await updates(connection, barrier)

            return steps

        try:
            await in_step(side(1, 2), side(2, 1))
        finally:
            await clear(bench)

    return provoke


def locked(*statements: str):
    async def provoke(bench: Bench) -> None:
        async with bench.engine.connect() as holder, bench.engine.connect() as waiter:
            await run(holder, "INSERT INTO users (id) VALUES (1)")
            await run(waiter, *statements)

    return provoke


def killed(how: str):
    async def provoke(bench: Bench) -> None:
        async with bench.engine.connect() as connection:
            number = (await run(connection, "SELECT connection_id()")).scalar_one()
            await run(connection, f"{how} {number}")

    return provoke


async def killed_by_another(bench: Bench) -> None:
    async with bench.engine.connect() as connection, bench.engine.connect() as other:
        number = (await run(connection, "SELECT connection_id()")).scalar_one()
        await run(other, f"KILL {number}")
        gone = "SELECT count(*) FROM information_schema.processlist WHERE id = :number"
        while (await run(other, gone, number=number)).scalar_one():
            await asyncio.sleep(0)
        await run(connection, "SELECT 1")


def connect(change):
    async def provoke(bench: Bench) -> None:
        async with bench.open(change(bench.url)).connect():
            pass

    return provoke


def as_a_stranger(*statements: str, database: bool = False, limit: int = 0):
    """Connect as a user that may log in and do nothing else."""

    async def provoke(bench: Bench) -> None:
        name = f"user_{uuid.uuid4().hex[:20]}"
        async with bench.engine.begin() as connection:
            await run(connection, f"CREATE USER {name} IDENTIFIED BY '{name}' WITH MAX_USER_CONNECTIONS {limit}")
        try:
            url = bench.url.set(username=name, password=name, database=bench.url.database if database else "")
            stranger = bench.open(url)
            async with stranger.connect() as connection:
                await run(connection, *statements)
                async with stranger.connect():
                    pass
        finally:
            await stranger.dispose()
            async with bench.engine.begin() as connection:
                await run(connection, f"DROP USER {name}")

    return provoke


async def clear(bench: Bench) -> None:
    async with bench.engine.begin() as connection:
        await run(connection, "DELETE FROM users")


VIOLATIONS = (
    Row("unique", sql(USER, "INSERT INTO users (id, username) VALUES (2, :secret)", secret=SECRET), errors.UniqueViolation, 1062,
        {"constraint": "one_of_a_name"}),
    Row("primary key", sql(USER, USER.replace(":secret", "'b'"), secret=SECRET), errors.UniqueViolation, 1062, {"constraint": "PRIMARY"}),
    Row("unique, with the key's name", said(1586), errors.UniqueViolation, 1586),
    Row("foreign key", sql("INSERT INTO orders (id, user_id) VALUES (1, 4711)"), errors.ForeignKeyViolation, 1452,
        {"constraint": "fk_orders_user_id", "table": "orders", "columns": ("user_id",)}),
    Row("still referenced", sql(USER, "INSERT INTO orders (id, user_id) VALUES (1, 1)", "DELETE FROM users", secret=SECRET),
        errors.ForeignKeyViolation, 1451, {"constraint": "fk_orders_user_id", "table": "orders", "columns": ("user_id",)}),
    Row("not null", sql("INSERT INTO users (id, username) VALUES (1, NULL)"), errors.NotNullViolation, 1048, {"columns": ("username",)}),
    Row("no default", sql("INSERT INTO users (age) VALUES (1)"), errors.NotNullViolation, 1364, {"columns": ("id",)}),
    Row("check", sql("INSERT INTO users (id, age) VALUES (1, -1)"), errors.CheckViolation, 4025,
        {"constraint": "ck_users_age", "table": "users"}),
    Row("check of a column", sql("CREATE TEMPORARY TABLE some (a int CHECK (a > 0))", "INSERT INTO some VALUES (0)"), errors.CheckViolation,
        4025, {"constraint": None, "table": "some", "columns": ("a",)}),
    Row("check of MySQL", said(3819), errors.CheckViolation, 3819),
)  # fmt: skip

DATA = (
    Row("out of range", sql("INSERT INTO users (id) VALUES (:n)", n=2**40), errors.InvalidData, 1264),
    Row("truncated", sql("CREATE TEMPORARY TABLE moods (a enum('good'))", "INSERT INTO moods VALUES (:secret)", secret=SECRET),
        errors.InvalidData, 1265),
    Row("not a date", sql("CREATE TEMPORARY TABLE days (a date)", "INSERT INTO days VALUES (:secret)", secret=SECRET), errors.InvalidData, 1292),
    Row("not a number", sql("INSERT INTO users (id) VALUES (:secret)", secret=SECRET), errors.InvalidData, 1366),
    Row("too long", sql("INSERT INTO users (id, note) VALUES (1, :secret)", secret=SECRET), errors.InvalidData, 1406),
    Row("result out of range", sql("SELECT 18446744073709551615 + :n", n=5), errors.InvalidData, 1690),
    Row("only a SQLSTATE", sql("SIGNAL SQLSTATE '22009' SET MESSAGE_TEXT = 'made up'"), errors.InvalidData, 1644,
        since={"asyncmy": "0.2.18"}),
)  # fmt: skip

TRANSIENT = (
    Row("serialization", stale_snapshot, errors.SerializationFailure, 1020),
    Row("deadlock", deadlock(in_savepoints=False), errors.DeadlockDetected, 1213),
    Row("deadlock in a savepoint", deadlock(in_savepoints=True), errors.DeadlockDetected, 1213),
    Row("innodb_lock_wait_timeout", locked("SET innodb_lock_wait_timeout = 0", "INSERT INTO users (id) VALUES (1)"), errors.LockTimeout, 1205),
    Row("NOWAIT", locked("SELECT * FROM users WHERE id = 1 FOR UPDATE NOWAIT"), errors.LockTimeout, 1205),
    Row("NOWAIT of MySQL", said(3572), errors.LockTimeout, 3572),
    Row("killed", killed("KILL"), errors.ServerShutdown, 1927),
    Row("killed by another", killed_by_another, errors.ConnectionLost, frozenset({2006, 2013})),
    Row("shutdown", said(1053), errors.ServerShutdown, 1053),
    Row("lost in a query", said(2013), errors.ConnectionLost, 2013),
    Row("lost, extended", said(2055), errors.ConnectionLost, 2055),
)  # fmt: skip

TIME = (
    Row("max_statement_time", sql("SET STATEMENT max_statement_time = 0.01 FOR SELECT sleep(9)"),
        errors.StatementTimeout, 1969),
    Row("max_execution_time of MySQL", said(3024), errors.StatementTimeout, 3024),
    Row("query killed", killed("KILL QUERY"), errors.StatementTimeout, 1317),
)  # fmt: skip

REFUSED = (
    Row("read-only transaction", sql("COMMIT", "START TRANSACTION READ ONLY", "INSERT INTO users (id) VALUES (1)"),
        errors.ReadOnlyViolation, 1792),
    Row("read-only server", said(1290), errors.ReadOnlyViolation, 1290),
    Row("read-only mode", said(1836), errors.ReadOnlyViolation, 1836),
    Row("no right to a table", as_a_stranger("SELECT * FROM mysql.user"), errors.PermissionDenied, 1142),
    Row("no right to a column", said(1143), errors.PermissionDenied, 1143),
    Row("syntax", sql("SELEC :secret", secret=SECRET), errors.InvalidStatement, 1064),
    Row("no such table", sql("SELECT * FROM nosuch"), errors.InvalidStatement, 1146),
    Row("no such column", sql("SELECT nosuch FROM users"), errors.InvalidStatement, 1054),
    Row("no such savepoint", sql("ROLLBACK TO SAVEPOINT nosuch"), errors.InvalidStatement, 1305),
    Row("table full", sql("SET max_heap_table_size = 16384", "CREATE TEMPORARY TABLE full (a char(255)) ENGINE = MEMORY",
                          "INSERT INTO full SELECT 'a' FROM information_schema.columns"), errors.DatabaseUnavailable, 1114),
    Row("disk full", said(1021), errors.DatabaseUnavailable, 1021),
    Row("outside of the table", said(1644), errors.DatabaseError, 1644),
)  # fmt: skip

CONNECTING = (
    Row("closed port", connect(lambda url: url.set(port=1)), errors.DatabaseUnavailable, 2003),
    Row("no such host", connect(lambda url: url.set(host="nosuch.invalid")), errors.DatabaseUnavailable, 2003),
    Row("no such database", connect(lambda url: url.set(database="nosuch")), errors.DatabaseUnavailable, 1049),
    Row("wrong password", connect(lambda url: url.set(username="nosuch", password="hunter2")), errors.PermissionDenied, 1045),  # noqa: S106
    Row("no right to the database", as_a_stranger(database=True), errors.PermissionDenied, 1044),
    Row("too many of a user", as_a_stranger(limit=1), errors.TooManyConnections, 1226),
    Row("too many of a user, by default", said(1203), errors.TooManyConnections, 1203),
    Row("too many connections", said(1040), errors.TooManyConnections, 1040),
)  # fmt: skip

ROWS = (*VIOLATIONS, *DATA, *TRANSIENT, *TIME, *REFUSED, *CONNECTING)
