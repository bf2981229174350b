"""What a log shows of an error."""

import pytest
import sqlalchemy as sa

from tests.translation.bench import SECRET, Bench, sql
from tests.translation.test_translation_rows import shows_no_values
from transact import errors

ALL = ("sqlite", "postgresql", "mariadb")
TWICE = ("INSERT INTO users (id, username) VALUES (1, :secret)", "INSERT INTO users (id, username) VALUES (2, :secret)")


@pytest.mark.engines(*ALL)
async def test_a_log_shows_the_drivers_words_the_code_and_the_statement(bench: Bench) -> None:
    error = await bench.raised(sql(*TWICE, secret=SECRET))
    lines = str(error).splitlines()
    assert lines[0].startswith(f"({type(error.orig).__module__}.{type(error.orig).__name__}) ")
    assert lines[0].endswith(("[SQLSTATE 23505]", "[SQLSTATE 23000, error 1062]", "[error 1062]", "[error 2067]"))
    assert lines[1].startswith("[SQL: INSERT INTO users (id, username) VALUES (2, ")
    assert lines[2] == "[SQL parameters hidden due to hide_parameters=True]"


@pytest.mark.engines(*ALL)
async def test_parameters_are_shown_by_an_engine_that_was_made_to_and_details_never(bench: Bench) -> None:
    bench._engine = bench.open(bench.url, hide_parameters=False)
    error = await bench.raised(sql(*TWICE, secret=SECRET))
    [shown] = [line for line in str(error).splitlines() if "s3cret" in line]
    assert shown.startswith("[parameters: ")
    assert "s3cret" not in error.args[0]


@pytest.mark.engines("postgresql", "mariadb")
@pytest.mark.parametrize(
    "change", [{"port": 1}, {"host": "nosuch.invalid"}, {"database": "nosuch"}, {"username": "nosuch"}], ids=str
)
async def test_a_connection_that_fails_shows_no_password(bench: Bench, change: dict[str, object]) -> None:
    async def provoke(_: Bench) -> None:
        async with bench.open(bench.url.set(password="s3cret'@:/ x", **change)).connect():  # noqa: S106
            pass

    error = await bench.raised(provoke)
    assert isinstance(error, errors.DatabaseError)
    shows_no_values(error)
    assert len(str(error).splitlines()[0]) > len("(builtins.OSError) ")


async def test_the_class_shows_the_name_that_a_program_can_import(sqlite_bench: Bench) -> None:
    error = await sqlite_bench.raised(sql("SELEC 1"))
    assert f"{type(error).__module__}.{type(error).__qualname__}" == "transact.errors.InvalidStatement"
    assert repr(error).startswith("InvalidStatement('(sqlite3.OperationalError) near ")


async def test_one_pair_of_classes_is_one_class(sqlite_bench: Bench) -> None:
    one, other = [await sqlite_bench.raised(sql("SELEC 1")) for _ in range(2)]
    assert type(one) is type(other)


async def test_handlers_of_either_library_catch_the_error(sqlite_bench: Bench) -> None:
    for caught_as in (
        errors.UniqueViolation,
        errors.IntegrityViolation,
        errors.DatabaseError,
        sa.exc.IntegrityError,
        sa.exc.DBAPIError,
    ):
        async with sqlite_bench.engine.connect() as connection:
            with pytest.raises(caught_as):
                await connection.execute(sa.text("INSERT INTO users (id, username) VALUES (1, 'a'), (2, 'a')"))
