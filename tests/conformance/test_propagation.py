"""The two tables of semantics.md, "Propagation": what is stored at the end, and what is raised, wherever it is asked."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from tests.conformance.surroundings import NOT_OPEN, OPEN, Around, AroundCall
from tests.conformance.tables import Stored, store
from transact import Propagation, errors
from transact.fastapi import Database

pytestmark = pytest.mark.engines("sqlite", "pg18-asyncpg", "pg18-psycopg", "mariadb")

ALL_OF_THEM = tuple(Propagation)
REQUIRED, REQUIRES_NEW, NESTED, SUPPORTS, NOT_SUPPORTED, MANDATORY, NEVER = ALL_OF_THEM


class Inner(Exception):
    """What the inner block raises."""


class Harmless(Exception):
    """What the inner block raises and what does not roll back."""


class Outer(Exception):
    """What the outer block raises."""


@dataclass(frozen=True)
class Cell:
    """One column: what the inner and the outer block do."""

    inner_raises: type[Exception] | None = None
    outer_catches: bool = False
    outer_raises: type[Exception] | None = None
    inner_marks: bool = False


CELLS = {
    "A": Cell(),
    "B": Cell(inner_raises=Inner, outer_catches=True),
    "C": Cell(outer_raises=Outer),
    "D": Cell(inner_raises=Inner),
    "E": Cell(inner_marks=True),
    "F": Cell(inner_raises=Harmless, outer_catches=True),
}


def refused(error: str, *, outer_is_open: bool = True) -> tuple[str, ...]:
    """The row of a block that is refused before its body (in B and F the outer catches that, and goes on and commits)."""
    lost = f"none !{error}"
    caught = "O1 O2" if outer_is_open else lost
    return (lost, caught, lost, lost, lost, caught)


# What is stored at the end; after the "!" what is raised to the caller of the outermost block.
#     A          B                           C              D              E                           F
JOINS = ("O1 I O2", "none !UnexpectedRollback", "none !Outer", "none !Inner", "none !UnexpectedRollback", "O1 I O2")
SAVES = ("O1 I O2", "O1 O2", "none !Outer", "none !Inner", "O1 O2", "O1 I O2")
APART = ("O1 I O2", "O1 O2", "I !Outer", "none !Inner", "O1 O2", "O1 I O2")
ALONE = ("O1 I O2", "O1 I O2", "I !Outer", "I !Inner", "I !NoTransaction", "O1 I O2")
ONE_IS_OPEN = {
    REQUIRED: JOINS,
    SUPPORTS: JOINS,
    MANDATORY: JOINS,
    NESTED: SAVES,
    REQUIRES_NEW: APART,
    NOT_SUPPORTED: ALONE,
    NEVER: refused("TransactionExists"),
}
# SQLite has one writer at a time, and here that is the outer one, which waits.
ON_SQLITE = {REQUIRES_NEW: refused("PoolSelfDeadlock"), NOT_SUPPORTED: refused("PoolSelfDeadlock")}

# There is no outer block, so what the inner one raises comes to the caller in every cell.
BEGINS = ("I", "none !Inner", "I !Outer", "none !Inner", "none", "I !Harmless")
COMMITS_ITSELF = ("I", "I !Inner", "I !Outer", "I !Inner", "I !NoTransaction", "I !Harmless")
NONE_IS_OPEN = {
    REQUIRED: BEGINS,
    REQUIRES_NEW: BEGINS,
    NESTED: BEGINS,
    SUPPORTS: COMMITS_ITSELF,
    NOT_SUPPORTED: COMMITS_ITSELF,
    NEVER: COMMITS_ITSELF,
    MANDATORY: refused("NoTransaction", outer_is_open=False),
}


# The runner.


@pytest.fixture
def db(database_url: str, tables: None, make_db: Callable[..., Database]) -> Database:
    """The face of FastAPI, since one of the surroundings is a request."""
    return make_db(database_url, kind=Database)


async def inner(db: Database, cell: Cell, propagation: Propagation, name: str) -> None:
    async with db.transaction(propagation=propagation, no_rollback_for=Harmless) as session:
        await store(session, f"{name} I")
        if cell.inner_marks:
            db.current.set_rollback_only("the inner block thinks better of it")
        if cell.inner_raises:
            raise cell.inner_raises


async def outer(db: Database, cell: Cell, propagation: Propagation, name: str, session: AsyncSession) -> None:
    await store(session, f"{name} O1")
    try:
        await inner(db, cell, propagation, name)
    except (Inner, Harmless, errors.TransactionExists, errors.PoolSelfDeadlock):
        if not cell.outer_catches:
            raise
    if db.current.rollback_only:
        with pytest.raises(errors.UnexpectedRollback):
            await store(session, f"{name} O2")
    else:
        await store(session, f"{name} O2")
    if cell.outer_raises:
        raise cell.outer_raises


Run = Callable[[Cell, Propagation, str], Awaitable[None]]


async def table(stored: Stored, run: Run) -> dict[Propagation, tuple[str, ...]]:
    """What each cell stores and raises, in the words of the tables."""
    cells = {(p, column): f"{p.value} {column}" for p in Propagation for column in CELLS}
    raised = dict.fromkeys(cells, "")
    for (propagation, column), name in cells.items():
        try:
            await run(CELLS[column], propagation, name)
        except (errors.TransactError, Inner, Outer, Harmless) as error:
            first = error.exceptions[0] if isinstance(error, errors.AfterCommitError) else error
            raised[propagation, column] = f" !{type(first).__name__}"
    found = stored()

    def kept(name: str) -> str:
        return " ".join(part for part in ("O1", "I", "O2") if f"{name} {part}" in found) or "none"

    return {p: tuple(kept(cells[p, column]) + raised[p, column] for column in CELLS) for p in Propagation}


@pytest.mark.parametrize("around", OPEN, ids=lambda f: f.__name__)
async def test_when_a_transaction_is_open_what_is_stored_and_raised_is_what_the_table_says(
    db: Database, stored: Stored, around: Around
) -> None:
    async def run(cell: Cell, propagation: Propagation, name: str) -> None:
        await around(db, lambda session: outer(db, cell, propagation, name, session))

    assert await table(stored, run) == ONE_IS_OPEN | (ON_SQLITE if db.engine.dialect.name == "sqlite" else {})


@pytest.mark.parametrize("around", NOT_OPEN, ids=lambda f: f.__name__)
async def test_when_none_is_open_what_is_stored_and_raised_is_what_the_table_says(
    db: Database, stored: Stored, around: AroundCall
) -> None:
    async def run(cell: Cell, propagation: Propagation, name: str) -> None:
        async def call() -> None:
            assert not db.in_transaction
            await inner(db, cell, propagation, name)
            if cell.outer_raises:
                raise cell.outer_raises

        await around(db, call)

    assert await table(stored, run) == NONE_IS_OPEN
