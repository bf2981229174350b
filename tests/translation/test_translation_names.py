"""With the application's MetaData, an engine that tells columns tells the constraint too, and the other way round."""

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import sqlalchemy as sa

from tests.translation.bench import Bench, sql
from tests.translation.schema import METADATA, UNCONVENTIONAL
from transact import errors
from transact.translation import translate

ALL = ("sqlite", "postgresql", "mariadb")


@dataclass(frozen=True)
class Rule:
    """A constraint, two statements that break it, and what is known of it then; engines that know less are named."""

    what: str
    statements: tuple[str, ...]
    constraint: str | None
    table: str | None
    columns: tuple[str, ...]
    unless: Mapping[str, tuple[str | None, str | None, tuple[str, ...]]]

    def expected(self, engine_id: str) -> tuple[str | None, str | None, tuple[str, ...]]:
        exception = next((known for part, known in self.unless.items() if part in engine_id), None)
        return exception or (self.constraint, self.table, self.columns)


RULES = (
    Rule("a name of its own", ("INSERT INTO users (id, username) VALUES (1, 'a'), (2, 'a')",), "one_of_a_name", "users", ("username",), {}),
    Rule("a name by convention", ("INSERT INTO users (id, username, tenant, badge) VALUES (1, 'a', 1, 1), (2, 'b', 1, 1)",),
         "uq_users_tenant_badge", "users", ("tenant", "badge"), {}),
    Rule("a unique index", ("INSERT INTO users (id, username, email) VALUES (1, 'a', 'e'), (2, 'b', 'e')",), "ix_users_email", "users", ("email",), {}),
    # Every primary key of MariaDB is called PRIMARY, and it does not say whose it is.
    Rule("a primary key", ("INSERT INTO users (id, username) VALUES (1, 'a'), (1, 'b')",), "pk_users", "users", ("id",),
         {"mariadb": ("PRIMARY", None, ())}),
    Rule("a foreign key", ("INSERT INTO orders (id, user_id) VALUES (1, 4711)",), "fk_orders_user_id", "orders", ("user_id",),
         {"sqlite": (None, None, ())}),
    Rule("a check", ("INSERT INTO users (id, age) VALUES (1, -1)",), "ck_users_age", "users", (), {}),
    # MariaDB tells the column of a NOT NULL, and nothing else; PostgreSQL 18 has names for them.
    Rule("not null", ("INSERT INTO users (id, username) VALUES (1, NULL)",), None, "users", ("username",),
         {"mariadb": (None, None, ("username",))}),
    Rule("unique without a name", ("INSERT INTO unnamed (id, code) VALUES (1, 1), (2, 1)",), "unnamed_code_key", "unnamed", ("code",),
         {"sqlite": (None, "unnamed", ("code",)), "mariadb": ("code", "unnamed", ("code",))}),
    Rule("a primary key without a name", ("INSERT INTO unnamed (id) VALUES (1), (1)",), "unnamed_pkey", "unnamed", ("id",),
         {"sqlite": (None, "unnamed", ("id",)), "mariadb": ("PRIMARY", None, ())}),
    Rule("a foreign key without a name", ("INSERT INTO unnamed (id, owner) VALUES (1, 9)",), "unnamed_owner_fkey", "unnamed", ("owner",),
         {"sqlite": (None, None, ()), "mariadb": ("unnamed_ibfk_1", "unnamed", ("owner",))}),
    Rule("a table that the metadata lacks", ("CREATE TABLE stray (a int, CONSTRAINT one UNIQUE (a))", "INSERT INTO stray VALUES (1), (1)"),
         "one", "stray", (), {"sqlite": (None, "stray", ("a",)), "mariadb": ("one", None, ())}),
)  # fmt: skip


@pytest.mark.engines(*ALL)
@pytest.mark.parametrize("rule", RULES, ids=[rule.what for rule in RULES])
async def test_what_an_engine_leaves_out_is_in_the_metadata(bench: Bench, rule: Rule) -> None:
    async with bench.engine.begin() as connection:
        await connection.run_sync(UNCONVENTIONAL.create_all)
    bench.metadata = _together()
    error = await bench.raised(sql(*rule.statements))
    assert isinstance(error, errors.IntegrityViolation)
    assert (error.constraint, error.table, error.columns) == rule.expected(bench.id)


@pytest.mark.engines("sqlite", "pg18-psycopg", "mariadb")
async def test_a_name_that_was_cut_to_fit_the_engine_is_found(bench: Bench) -> None:
    metadata = sa.MetaData(naming_convention={"uq": "uq_%(table_name)s_%(column_0_N_name)s"})
    table = sa.Table("t" * 30, metadata, *(sa.Column(letter * 20, sa.Integer) for letter in "ab"))
    table.append_constraint(sa.UniqueConstraint(*table.columns))
    bench.metadata = metadata
    async with bench.engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
    error = await bench.raised(sql(f"INSERT INTO {table.name} VALUES (1, 1), (1, 1)"))
    assert error.table == table.name
    assert error.columns == ("a" * 20, "b" * 20)
    assert error.constraint.startswith("uq_ttttt")


@pytest.mark.engines("sqlite", "pg18-asyncpg", "mariadb")
async def test_names_that_need_quoting_are_found(bench: Bench) -> None:
    metadata = sa.MetaData()
    sa.Table("Select", metadata, sa.Column("Order", sa.Integer), sa.UniqueConstraint("Order", name='A "Key"'))
    bench.metadata = metadata
    async with bench.engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
    insert = metadata.tables["Select"].insert()

    async def provoke(_: Bench) -> None:
        async with bench.engine.connect() as connection:
            await connection.execute(insert, [{"Order": 1}, {"Order": 1}])

    error = await bench.raised(provoke)
    assert (error.constraint, error.table, error.columns) == ('A "Key"', "Select", ("Order",))


@pytest.mark.engines("postgresql")
async def test_tables_of_one_name_are_told_apart_by_their_schema(bench: Bench) -> None:
    metadata = sa.MetaData()
    for schema, column in (("one", "a"), ("two", "b")):
        sa.Table(
            "twins", metadata, sa.Column(column, sa.Integer), sa.UniqueConstraint(column, name="uq"), schema=schema
        )
    bench.metadata = metadata
    drop = ["DROP SCHEMA IF EXISTS one CASCADE", "DROP SCHEMA IF EXISTS two CASCADE"]
    async with bench.engine.begin() as connection:
        for statement in (*drop, "CREATE SCHEMA one", "CREATE SCHEMA two"):
            await connection.exec_driver_sql(statement)
        await connection.run_sync(metadata.create_all)
    error = await bench.raised(sql("INSERT INTO two.twins VALUES (1), (1)"))
    async with bench.engine.begin() as connection:
        for statement in drop:
            await connection.exec_driver_sql(statement)
    assert (error.constraint, error.columns) == ("uq", ("b",))


def test_a_name_that_two_tables_have_is_not_guessed_at() -> None:
    metadata = sa.MetaData()
    for name in ("one", "two"):
        sa.Table(name, metadata, sa.Column("a", sa.Integer), sa.UniqueConstraint("a", name="uq"))
    error = translate(_mysql(1062, "Duplicate entry 'x' for key 'uq'"), "mysql", metadata=metadata)
    assert (error.constraint, error.table, error.columns) == ("uq", None, ())


def test_a_primary_key_of_mariadb_could_be_any_table_s() -> None:
    metadata = sa.MetaData()
    sa.Table("only", metadata, sa.Column("a", sa.Integer, primary_key=True))
    error = translate(_mysql(1062, "Duplicate entry '1' for key 'PRIMARY'"), "mariadb", metadata=metadata)
    assert (error.constraint, error.table, error.columns) == ("PRIMARY", None, ())


def test_of_two_rules_over_the_same_columns_the_named_one_is_told() -> None:
    metadata = sa.MetaData()
    sa.Table("t", metadata, sa.Column("a", sa.Integer, unique=True), sa.UniqueConstraint("a", name="uq"))
    driver_error = sqlite3.IntegrityError("UNIQUE constraint failed: t.a")
    driver_error.sqlite_errorcode = sqlite3.SQLITE_CONSTRAINT_UNIQUE
    assert translate(driver_error, "sqlite", metadata=metadata).constraint == "uq"


@pytest.mark.engines("pg18-psycopg")
async def test_a_name_that_the_engine_could_not_hold_breaks_nothing(bench: Bench) -> None:
    bench.metadata = sa.MetaData()
    sa.Table("users", bench.metadata, sa.Column("username", sa.String), sa.UniqueConstraint("username", name="u" * 99))
    error = await bench.raised(sql("INSERT INTO users (id, username) VALUES (1, 'a'), (2, 'a')"))
    assert (error.constraint, error.table) == ("one_of_a_name", "users")


@pytest.mark.engines("sqlite", "postgresql")
async def test_an_index_over_an_expression_is_found_by_its_name(bench: Bench) -> None:
    bench.metadata = sa.MetaData()
    table = sa.Table("mail", bench.metadata, sa.Column("id", sa.Integer, unique=True), sa.Column("address", sa.String))
    sa.Index("lower_address", sa.func.lower(table.c.address), unique=True)
    async with bench.engine.begin() as connection:
        await connection.run_sync(bench.metadata.create_all)
    error = await bench.raised(sql("INSERT INTO mail VALUES (1, 'a'), (2, 'A')"))
    assert (error.constraint, error.table, error.columns) == ("lower_address", "mail", ("address",))


def test_mysql_8_puts_the_table_before_the_key() -> None:
    error = translate(_mysql(1062, "Duplicate entry '7' for key 'users.PRIMARY'"), "mysql", metadata=METADATA)
    assert (error.constraint, error.table, error.columns) == ("pk_users", "users", ("id",))


def test_a_check_of_mysql_8_is_found_by_its_name() -> None:
    error = translate(_mysql(3819, "Check constraint 'ck_users_age' is violated."), "mysql", metadata=METADATA)
    assert (error.constraint, error.table) == ("ck_users_age", "users")


def _mysql(*args: Any) -> Exception:
    from asyncmy.errors import IntegrityError  # noqa: PLC0415  # MySQL itself is not here to say it

    return IntegrityError(*args)


def _together() -> sa.MetaData:
    both = sa.MetaData()
    for metadata in (METADATA, UNCONVENTIONAL):
        for table in metadata.tables.values():
            table.to_metadata(both)
    return both
