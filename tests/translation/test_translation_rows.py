"""Every row of the table of codes, raised by real SQL: what class it becomes, and what it keeps."""

import pickle

import pytest
import sqlalchemy as sa

from tests.translation import rows_mariadb, rows_postgresql, rows_sqlite
from tests.translation.bench import Bench, Row
from transact import errors


def table(rows: tuple[Row, ...]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("row", rows, ids=[row.what for row in rows])


@pytest.mark.engines("postgresql")
@table(rows_postgresql.ROWS)
async def test_a_sqlstate_of_postgresql_is_a_class(bench: Bench, row: Row) -> None:
    await check(bench, row)


@pytest.mark.engines("mariadb")
@table(rows_mariadb.ROWS)
async def test_a_number_of_mariadb_is_a_class(bench: Bench, row: Row) -> None:
    await check(bench, row)


@pytest.mark.engines("sqlite")
@table(rows_sqlite.ROWS)
async def test_an_extended_code_of_sqlite_is_a_class(bench: Bench, row: Row) -> None:
    await check(bench, row)


async def check(bench: Bench, row: Row) -> None:
    expected = row.expected(bench)
    if expected is None:
        pytest.skip(f"{bench.id} has none of it, or an old driver")
    kind, code = expected
    error = await bench.raised(row.provoke)
    assert transact_class(error) is kind
    said = error.sqlstate if isinstance(code, str) or error.errno is None else error.errno
    assert said in code if isinstance(code, frozenset) else said == code
    for name, value in row.about.items():
        assert getattr(error, name) == value, name
    shows_no_values(error)
    is_whole_after_pickling(error)
    await is_what_sqlalchemy_raises(bench, row, error)


def transact_class(error: Exception) -> type[errors.DatabaseError]:
    """The nearest class of `transact.errors` that a program can import; the error's own class only has its name."""
    return next(base for base in type(error).__mro__ if getattr(errors, base.__name__, None) is base)


def shows_no_values(error: Exception) -> None:
    for text in (str(error), repr(error), *error.args):
        assert "s3cret" not in text
        assert "hunter2" not in text


def is_whole_after_pickling(error: errors.DatabaseError) -> None:
    again = pickle.loads(pickle.dumps(error))  # noqa: S301  # our own
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert {name: value for name, value in vars(again).items() if name != "orig"} == {
        name: value for name, value in vars(error).items() if name not in {"orig", "__notes__"}
    }
    assert type(again.orig) is type(error.orig)


async def is_what_sqlalchemy_raises(bench: Bench, row: Row, error: errors.DatabaseError) -> None:
    """Whoever knows SQLAlchemy's error finds all of it in ours."""
    driver_error, wrapped = next(pair for pair in reversed(bench.seen) if pair[0] is error.orig)
    async with Bench(bench.id, bench.url, translating=False) as plain_bench:
        plain = await plain_bench.raised(row.provoke)
    if wrapped is None:  # SQLAlchemy lets this one through as it is
        assert type(plain) is type(driver_error)
        assert isinstance(error, sa.exc.OperationalError)
        assert error.statement is None
        return
    assert type(plain) is type(wrapped)
    assert isinstance(error, type(wrapped))
    assert type(error.orig) is type(plain.orig)
    for name in ("statement", "params", "hide_parameters", "connection_invalidated", "ismulti", "code", "detail"):
        assert getattr(error, name) == getattr(wrapped, name), name
