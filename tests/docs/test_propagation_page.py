"""docs/propagation.md says what the code does: its table of decisions, and each cell of its matrices, run for real."""

import re
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from tests.docs.pages import ROOT, table
from transact import Database, Propagation, errors
from transact._core.propagation import decide
from transact.errors import NoTransaction, TransactionExists
from transact.options import Options

PAGE = ROOT / "docs" / "propagation.md"
DECIDED = {
    "begins one": "BEGIN",
    "joins it": "JOIN",
    "sets a savepoint": "SAVEPOINT",
    "raises `NoTransaction`": NoTransaction,
    "raises `TransactionExists`": TransactionExists,
    "suspends it and begins one": "SUSPEND_AND_BEGIN",
    "autocommit": "AUTOCOMMIT",
    "suspends it, autocommit": "SUSPEND_AND_AUTOCOMMIT",
}
DECISIONS = table(PAGE, "Which one")


@pytest.mark.parametrize(("name", "closed", "open_", "use"), DECISIONS, ids=[name for name, *_ in DECISIONS])
def test_the_table_of_propagations_is_what_is_decided(name, closed, open_, use):
    assert use
    asked = Options(propagation=Propagation[name.strip("`")])
    for cell, around in ((closed, None), (open_, Options())):
        if isinstance(DECIDED[cell], str):
            assert decide(asked, around).name == DECIDED[cell]
        else:
            with pytest.raises(DECIDED[cell]) as raised:
                decide(asked, around)
            assert raised.type is DECIDED[cell]


def test_the_table_of_propagations_has_all_of_them():
    assert {name.strip("`") for name, *_ in DECISIONS} == set(Propagation.__members__)


def matrix(heading: str) -> list[Any]:
    """The cells of a matrix: propagation, column, what it shows."""
    return [
        pytest.param(Propagation[name], column, cell, id=f"{name}-{column}")
        for names, *cells in table(PAGE, heading)
        for name in re.findall(r"`(\w+)`", names)
        for column, cell in zip("ABCDEF", cells, strict=True)
    ]


class Raised(Exception):
    """What the inner or the outer block raises."""


class Harmless(Exception):
    """What the inner block raises and what does not roll back."""


INNER_RAISES = {"B": Raised, "D": Raised, "F": Harmless}


async def write(session: AsyncSession, word: str) -> None:
    await session.execute(text("INSERT INTO words VALUES (:word)"), {"word": word})


async def call_inner(db: Database, propagation: Propagation, column: str) -> None:
    """The inner block, called by somebody who catches or raises as the column says."""
    try:
        async with db.transaction(propagation=propagation, no_rollback_for=Harmless) as session:
            await write(session, "I")
            if column == "E":
                db.current.set_rollback_only()
            if column in INNER_RAISES:
                raise INNER_RAISES[column]
    except (Raised, Harmless):
        if column not in {"B", "F"}:
            raise


async def in_a_transaction(db: Database, propagation: Propagation, column: str) -> None:
    async with db.transaction() as session:
        await write(session, "O1")
        await call_inner(db, propagation, column)
        if not db.current.rollback_only:
            await write(session, "O2")
        if column == "C":
            raise Raised


async def alone(db: Database, propagation: Propagation, column: str) -> None:
    await call_inner(db, propagation, column)
    if column == "C":
        raise Raised


async def shown(url: str, observer: Any, run: Callable[[Database], Awaitable[None]]) -> str:
    """What a cell should show: what is stored, and the error of the library's own."""
    observer.execute("CREATE TABLE words (word VARCHAR(2))")
    raised = ""
    async with Database(url) as db:
        try:
            await run(db)
        except errors.TransactError as error:
            raised = f", `{type(error).__name__}`"
        except Raised:
            pass
    words = {word for (word,) in observer.rows("SELECT word FROM words")}
    return (" ".join(word for word in ("O1", "I", "O2") if word in words) or "nothing") + raised


@pytest.mark.engines("pg18-asyncpg")
@pytest.mark.parametrize(("propagation", "column", "cell"), matrix("A transaction is open"))
async def test_a_cell_of_the_matrix_with_a_transaction_open_is_what_happens(
    database_url, observer, propagation, column, cell
):
    assert await shown(database_url, observer, lambda db: in_a_transaction(db, propagation, column)) == cell


@pytest.mark.engines("pg18-asyncpg")
@pytest.mark.parametrize(("propagation", "column", "cell"), matrix("None is open"))
async def test_a_cell_of_the_matrix_with_none_open_is_what_happens(database_url, observer, propagation, column, cell):
    assert await shown(database_url, observer, lambda db: alone(db, propagation, column)) == cell


def test_the_matrices_have_every_propagation_that_runs_its_body():
    shown_open = {param.values[0] for param in matrix("A transaction is open")}
    shown_alone = {param.values[0] for param in matrix("None is open")}
    assert shown_open == set(Propagation) - {Propagation.NEVER}
    assert shown_alone == set(Propagation) - {Propagation.MANDATORY}
