"""Where a code is looked for, and where it is not."""

import subprocess
import sys

import pytest
import sqlalchemy as sa

from tests.translation.bench import Bench, sql
from tests.translation.rows_postgresql import said
from transact import errors
from transact.translation import Code, codes, translate

SERIALIZATION = said("40001")


class OutOfStockError(Exception):
    """An error of the application's own."""


@pytest.mark.engines("postgresql")
async def test_the_code_is_found_on_plain_and_on_translated_errors(bench: Bench) -> None:
    for translating in (True, False):
        async with Bench(bench.id, bench.url, translating=translating) as one:
            assert codes(await one.raised(SERIALIZATION), "postgresql") == ("40001", None)


@pytest.mark.engines("sqlite", "mariadb")
async def test_the_number_is_found_on_plain_and_on_translated_errors(bench: Bench) -> None:
    for translating in (True, False):
        async with Bench(bench.id, bench.url, translating=translating) as one:
            error = await one.raised(sql("SELEC 1"))
            assert codes(error, bench.url.get_backend_name()).errno in {1, 1064}


@pytest.mark.engines("pg18-asyncpg", "pg18-psycopg")
@pytest.mark.parametrize("linked_by", ["__cause__", "__context__"])
async def test_the_code_is_found_behind_an_error_of_the_application(bench: Bench, linked_by: str) -> None:
    error = OutOfStockError()
    setattr(error, linked_by, await bench.raised(SERIALIZATION))
    assert codes(error, "postgresql").sqlstate == "40001"


@pytest.mark.engines("pg18-asyncpg", "pg18-psycopg")
async def test_the_context_of_a_databases_error_is_another_error(bench: Bench) -> None:
    violation = await bench.raised(said("23505"))
    later = await bench.raised(said("P0001"))
    gone = sa.exc.InterfaceError("SELECT 1", {}, Exception("the connection is closed"))
    gone.__context__ = later.__context__ = violation
    assert codes(later, "postgresql") == ("P0001", None)
    assert codes(gone, "postgresql") == Code()


def test_a_chain_that_bites_its_tail_ends() -> None:
    one, other = OutOfStockError(), OutOfStockError()
    one.__cause__, other.__cause__ = other, one
    one.__context__, other.__context__ = other, one
    one.__suppress_context__ = other.__suppress_context__ = False
    assert codes(one, "sqlite") == Code()
    assert translate(one, "sqlite") is None


def test_a_chain_without_an_end_is_followed_for_a_while() -> None:
    class Endless(Exception):
        @property
        def orig(self) -> "Endless":
            return Endless()

    assert codes(Endless(), "postgresql") == Code()


def test_an_attribute_that_raises_hides_nothing() -> None:
    class Broken(Exception):
        sqlstate = "40001"

        @property
        def orig(self) -> Exception:
            raise RuntimeError

    error = OutOfStockError()
    error.__cause__ = sa.exc.DBAPIError("SELECT 1", {}, Broken())
    assert codes(error, "postgresql").sqlstate == "40001"


async def test_what_sqlalchemy_wrapped_is_translated_without_being_unwrapped_first(sqlite_bench: Bench) -> None:
    async with Bench("sqlite", sqlite_bench.url, translating=False) as plain_bench:
        plain = await plain_bench.raised(sql("SELEC 1"))
    error = translate(plain, "sqlite")
    assert isinstance(error, errors.InvalidStatement)
    assert (error.orig, error.statement) == (plain.orig, "SELEC 1")


def test_importing_the_translation_loads_no_driver() -> None:
    program = (
        "import sys, transact.translation;"
        "print([name for name in ('asyncpg', 'psycopg', 'asyncmy', 'aiosqlite', 'fastapi') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
