"""Values that never reach a server: every driver refuses them in its own way, and all of it is bad input."""

from datetime import UTC, datetime

import pytest
import sqlalchemy as sa

from tests.translation.bench import Bench, sql
from tests.translation.test_translation_rows import shows_no_values, transact_class
from transact import errors
from transact.translation import translate

ALL = ("sqlite", "postgresql", "mariadb")
INSERT = "INSERT INTO users (id, username) VALUES (:id, :name)"


@pytest.mark.engines(*ALL)
@pytest.mark.parametrize("name", ["\ud800", "s3cret\udfff", "s3cret: '\ud800'"])
async def test_text_that_is_not_unicode_is_invalid_data(bench: Bench, name: str) -> None:
    error = await bench.raised(sql(INSERT, id=1, name=name))
    assert transact_class(error) is errors.InvalidData
    assert isinstance(error, sa.exc.DBAPIError)
    shows_no_values(error)


@pytest.mark.engines("sqlite", "pg18-asyncpg", "pg18-psycopg", "mariadb")
async def test_an_integer_that_no_column_holds_is_invalid_data(bench: Bench) -> None:
    error = await bench.raised(sql(INSERT, id=2**70, name="a"))
    assert transact_class(error) is errors.InvalidData
    assert str(2**70) not in str(error)


@pytest.mark.engines("postgresql")
async def test_nul_in_text_is_invalid_data(bench: Bench) -> None:
    error = await bench.raised(sql(INSERT, id=1, name="s3cret\0"))
    assert transact_class(error) is errors.InvalidData
    shows_no_values(error)


@pytest.mark.engines("pg18-asyncpg", "pg15-asyncpg")
@pytest.mark.parametrize(
    "value", ["s3cret", {"s3cret": 1}, datetime(2000, 1, 1, tzinfo=UTC)], ids=["text", "dict", "datetime"]
)
async def test_a_value_that_asyncpg_cannot_encode_is_invalid_data(bench: Bench, value: object) -> None:
    error = await bench.raised(sql(INSERT, id=value, name="a"))
    assert (transact_class(error), error.sqlstate) == (errors.InvalidData, "22000")
    shows_no_values(error)


async def test_a_log_says_why_a_text_was_refused(sqlite_bench: Bench) -> None:
    error = await sqlite_bench.raised(sql(INSERT, id=1, name="s3cret\ud800"))
    assert str(error).startswith("(builtins.UnicodeEncodeError) text that utf-8 cannot encode (surrogates not allowed)")


async def test_an_integer_over_64_bits_is_a_data_error_for_whoever_knows_sqlalchemy(sqlite_bench: Bench) -> None:
    error = await sqlite_bench.raised(sql(INSERT, id=2**70, name="a"))
    assert isinstance(error, sa.exc.DataError)
    assert isinstance(error.orig, OverflowError)


async def test_a_parameter_that_is_missing_stays_the_programs_mistake(sqlite_bench: Bench) -> None:
    async with sqlite_bench.engine.connect() as connection:
        with pytest.raises(sa.exc.StatementError) as caught:
            await connection.execute(sa.text("SELECT :a, :b"), {"a": 1})
    assert not isinstance(caught.value, errors.TransactError)


async def test_a_type_that_a_driver_does_not_know_is_nothing_but_a_database_error(sqlite_bench: Bench) -> None:
    error = await sqlite_bench.raised(sql(INSERT, id=1, name=object()))
    assert transact_class(error) is errors.DatabaseError
    assert isinstance(error, sa.exc.ProgrammingError)


@pytest.mark.parametrize(
    "error",
    [ValueError("x"), KeyError(1062), KeyboardInterrupt(), errors.NoTransaction("x"), OSError(2, "x")],
    ids=repr,
)
@pytest.mark.parametrize("dialect", ["postgresql", "mysql", "mariadb", "sqlite"])
def test_what_no_database_said_is_left_alone(error: BaseException, dialect: str) -> None:
    assert translate(error, dialect) is None


@pytest.mark.engines("pg18-asyncpg")
async def test_a_statement_on_which_asyncpg_gives_up_is_a_statement_timeout(bench: Bench) -> None:
    engine = bench.open(bench.url, connect_args={"command_timeout": 0.01})

    async def provoke(_: Bench) -> None:
        async with engine.connect() as connection:
            await connection.execute(sa.text("SELECT pg_sleep(9)"))

    error = await bench.raised(provoke)
    assert transact_class(error) is errors.StatementTimeout
    assert isinstance(error.orig, TimeoutError)


@pytest.mark.engines("postgresql", "sqlite")
async def test_a_connection_that_is_gone_is_lost_whatever_was_handled_before(bench: Bench) -> None:
    async def provoke(_: Bench) -> None:
        async with bench.engine.connect() as connection:
            try:
                await connection.execute(sa.text("INSERT INTO orders (id, user_id) VALUES (1, 4711)"))
            except sa.exc.IntegrityError:
                await (await connection.get_raw_connection()).driver_connection.close()
                await connection.execute(sa.text("SELECT 1"))

    error = await bench.raised(provoke)
    assert transact_class(error) is errors.ConnectionLost
    assert error.connection_invalidated
