"""The table of semantics.md, "Propagation": what is stored at the end, and what the caller gets."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import pytest
from sqlalchemy import text

from tests.conformance.tables import Stored, store
from tests.engines import Observer
from transact import Database, Isolation, Propagation, errors

# One of each driver; the laws that a server could break have marks of their own.
pytestmark = pytest.mark.engines("sqlite", "pg18-asyncpg", "pg18-psycopg")

REQUIRED, NESTED, MANDATORY = Propagation.REQUIRED, Propagation.NESTED, Propagation.MANDATORY


class Inner(Exception):
    """What the inner block raises."""


class Harmless(Exception):
    """What the inner block raises and what does not roll back."""


class Outer(Exception):
    """What the outer block raises."""


@dataclass(frozen=True)
class Cell:
    """One cell: what the inner and the outer block do."""

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

ALL = {"O1", "I", "O2"}
OUTER = {"O1", "O2"}
NONE: set[str] = set()
JOINED = {
    "A": (ALL, None),
    "B": (NONE, errors.UnexpectedRollback),
    "C": (NONE, Outer),
    "D": (NONE, Inner),
    "E": (NONE, errors.UnexpectedRollback),
    "F": (ALL, None),
}
SAVEPOINT = {
    "A": (ALL, None),
    "B": (OUTER, None),
    "C": (NONE, Outer),
    "D": (NONE, Inner),
    "E": (OUTER, None),
    "F": (ALL, None),
}
ALONE = {
    "A": ({"I"}, None),
    "B": (NONE, None),  # the caller catches
    "C": ({"I"}, Outer),
    "D": (NONE, Inner),
    "E": (NONE, None),
    "F": ({"I"}, Harmless),
}


async def inner(db: Database, cell: Cell, propagation: Propagation) -> None:
    async with db.transaction(propagation=propagation, no_rollback_for=Harmless) as session:
        await store(session, "I")
        if cell.inner_marks:
            db.current.set_rollback_only("the inner block thinks better of it")
        if cell.inner_raises:
            raise cell.inner_raises


async def row(db: Database, observer: Observer, stored: Stored, run: Callable[[Cell], Awaitable[None]]) -> dict:
    """What each cell stores and raises."""
    found = {}
    for name, cell in CELLS.items():
        raised: type[BaseException] | None = None
        try:
            await run(cell)
        except (errors.TransactError, Inner, Outer, Harmless) as error:
            raised = type(error)
        found[name] = (stored(), raised)
        if (
            db.engine.dialect.name == "mysql"
        ):  # where a deleted row may keep the gap beside it locked until it is purged
            observer.execute("SET FOREIGN_KEY_CHECKS = 0")
            observer.execute("TRUNCATE TABLE words")
        observer.execute("DELETE FROM words")
    return found


@pytest.mark.engines("sqlite", "postgresql", "mariadb")
@pytest.mark.parametrize(
    ("propagation", "expected"),
    [(REQUIRED, JOINED), (MANDATORY, JOINED), (NESTED, SAVEPOINT)],
    ids=["required", "mandatory", "nested"],
)
async def test_what_is_stored_when_a_transaction_is_open_is_what_the_table_says(
    db: Database, observer: Observer, stored: Stored, propagation: Propagation, expected: dict
) -> None:
    async def outer(cell: Cell) -> None:
        async with db.transaction() as session:
            await store(session, "O1")
            try:
                await inner(db, cell, propagation)
            except (Inner, Harmless):
                if not cell.outer_catches:
                    raise
            if db.current.rollback_only:
                with pytest.raises(errors.UnexpectedRollback):
                    await store(session, "O2")
            else:
                await store(session, "O2")
            if cell.outer_raises:
                raise cell.outer_raises

    assert await row(db, observer, stored, outer) == expected


@pytest.mark.engines("sqlite", "postgresql", "mariadb")
@pytest.mark.parametrize("propagation", [REQUIRED, NESTED], ids=["required", "nested"])
async def test_what_is_stored_when_none_is_open_is_what_the_table_says(
    db: Database, observer: Observer, stored: Stored, propagation: Propagation
) -> None:
    async def caller(cell: Cell) -> None:
        try:
            await inner(db, cell, propagation)
        except Inner:
            if not cell.outer_catches:
                raise
        if cell.outer_raises:
            raise cell.outer_raises

    assert await row(db, observer, stored, caller) == ALONE


async def test_mandatory_with_none_open_raises_before_the_body(db: Database) -> None:
    ran = False
    with pytest.raises(errors.NoTransaction, match="MANDATORY"):
        async with db.transaction(propagation=MANDATORY):
            ran = True
    assert not ran
    assert not db.in_transaction


async def test_never_inside_a_transaction_raises_before_the_body_and_the_outer_stays_usable(
    db: Database, stored: Stored
) -> None:
    ran = False
    async with db.transaction() as session:
        await store(session, "O1")
        with pytest.raises(errors.TransactionExists, match="NEVER"):
            async with db.transaction(propagation=Propagation.NEVER):
                ran = True
        await store(session, "O2")
    assert not ran
    assert stored() == OUTER


NEW = {
    "A": (ALL, None),
    "B": (OUTER, None),
    "C": ({"I"}, Outer),
    "D": (NONE, Inner),
    "E": (OUTER, None),
    "F": (ALL, None),
}
AUTOCOMMIT_INSIDE = {
    "A": (ALL, None),
    "B": (ALL, None),
    "C": ({"I"}, Outer),
    "D": ({"I"}, Inner),
    "E": ({"I"}, errors.NoTransaction),
    "F": (ALL, None),
}
AUTOCOMMIT_ALONE = {
    "A": ({"I"}, None),
    "B": ({"I"}, None),
    "C": ({"I"}, Outer),
    "D": ({"I"}, Inner),
    "E": ({"I"}, errors.NoTransaction),
    "F": ({"I"}, None),  # the caller catches
}


async def call_alone(db: Database, cell: Cell, propagation: Propagation) -> None:
    try:
        await inner(db, cell, propagation)
    except (Inner, Harmless):
        if not cell.outer_catches:
            raise
    if cell.outer_raises:
        raise cell.outer_raises


@pytest.mark.engines("postgresql", "mariadb")
@pytest.mark.parametrize(
    ("propagation", "expected"),
    [(Propagation.REQUIRES_NEW, NEW), (Propagation.NOT_SUPPORTED, AUTOCOMMIT_INSIDE)],
    ids=["requires_new", "not_supported"],
)
async def test_a_block_that_suspends_has_a_fate_of_its_own(
    db: Database, observer: Observer, stored: Stored, propagation: Propagation, expected: dict
) -> None:
    async def outer(cell: Cell) -> None:
        async with db.transaction() as session:
            await store(session, "O1")
            await call_alone(db, Cell(cell.inner_raises, cell.outer_catches, None, cell.inner_marks), propagation)
            await store(session, "O2")
            if cell.outer_raises:
                raise cell.outer_raises

    assert await row(db, observer, stored, outer) == expected


@pytest.mark.engines("sqlite", "postgresql", "mariadb")
@pytest.mark.parametrize(
    "propagation", [Propagation.SUPPORTS, Propagation.NOT_SUPPORTED, Propagation.NEVER], ids=lambda p: p.value
)
async def test_without_a_transaction_each_statement_commits_itself(
    db: Database, observer: Observer, stored: Stored, propagation: Propagation
) -> None:
    assert await row(db, observer, stored, lambda cell: call_alone(db, cell, propagation)) == AUTOCOMMIT_ALONE


@pytest.mark.engines("sqlite", "postgresql", "mariadb")
async def test_supports_joins_the_transaction_that_is_open(db: Database, observer: Observer, stored: Stored) -> None:
    async def outer(cell: Cell) -> None:
        async with db.transaction() as session:
            await store(session, "O1")
            await call_alone(
                db, Cell(cell.inner_raises, cell.outer_catches, None, cell.inner_marks), Propagation.SUPPORTS
            )
            if not db.current.rollback_only:
                await store(session, "O2")
            if cell.outer_raises:
                raise cell.outer_raises

    assert await row(db, observer, stored, outer) == JOINED


@pytest.mark.engines("sqlite")
async def test_a_second_writer_on_sqlite_is_refused_at_once_and_the_outer_still_commits(
    db: Database, stored: Stored
) -> None:
    async with db.transaction() as session:
        await store(session, "O1")
        with pytest.raises(errors.PoolSelfDeadlock, match="one writer"):
            async with db.transaction(propagation=Propagation.REQUIRES_NEW) as second:
                await store(second, "I")
        await store(session, "O2")
    assert stored() == OUTER


@pytest.mark.engines("postgresql", "mariadb")
@pytest.mark.parametrize("propagation", [Propagation.REQUIRES_NEW, Propagation.NOT_SUPPORTED], ids=lambda p: p.value)
async def test_a_task_that_holds_the_whole_pool_is_refused_another_connection_at_once_and_the_outer_still_commits(
    database_url: str, db: Database, stored: Stored, propagation: Propagation
) -> None:
    async with Database(database_url, pool_size=1, max_overflow=0) as small:
        async with small.transaction() as session:
            await store(session, "O1")
            with pytest.raises(errors.PoolSelfDeadlock, match="all 1"):
                async with small.transaction(propagation=propagation) as second:
                    await store(second, "I")
            await store(session, "O2")
        assert small.engine.pool.checkedout() == 0
    assert stored() == OUTER


async def test_requires_new_takes_the_only_connection_while_the_outer_has_not_begun(
    database_url: str, db: Database, stored: Stored
) -> None:
    async with Database(database_url, pool_size=1, max_overflow=0) as small, small.transaction() as session:
        async with small.transaction(propagation=Propagation.REQUIRES_NEW) as second:
            await store(second, "I")
        await store(session, "O1")
    assert stored() == {"I", "O1"}


@pytest.mark.engines("postgresql", "mariadb")
async def test_hooks_of_a_suspending_transaction_see_no_open_transaction(db: Database, stored: Stored) -> None:
    seen = []

    async def hook() -> None:
        seen.append(db.in_transaction)
        async with db.transaction() as own:
            await store(own, "I")

    class Undone(Exception):
        pass

    with pytest.raises(Undone):
        async with db.transaction() as session:
            await store(session, "O1")
            async with db.transaction(propagation=Propagation.REQUIRES_NEW):
                db.after_commit(hook)
            assert db.in_transaction
            raise Undone
    assert seen == [False]
    assert stored() == {"I"}


@pytest.mark.engines("sqlite", "postgresql", "mariadb")
async def test_in_autocommit_no_transaction_is_open_and_none_can_be_marked(db: Database, stored: Stored) -> None:
    async with db.transaction(propagation=Propagation.SUPPORTS) as session:
        assert not db.in_transaction
        with pytest.raises(errors.NoTransaction):
            db.after_commit(lambda: None)
        with pytest.raises(errors.NoTransaction):
            async with db.savepoint():
                pass
        await store(session, "I")
        assert stored() == {"I"}
    with pytest.raises(errors.TransactionEnded):
        await store(session, "O1")


@pytest.mark.parametrize("propagation", [Propagation.SUPPORTS, Propagation.NEVER], ids=lambda p: p.value)
async def test_isolation_and_read_only_are_refused_where_no_transaction_can_have_them(
    db: Database, propagation: Propagation
) -> None:
    for options in ({"isolation": Isolation.SERIALIZABLE}, {"read_only": True}):
        with pytest.raises(errors.OptionsConflict):
            async with db.transaction(propagation=propagation, **options):
                pass


async def test_a_block_that_joins_sees_the_same_session_and_is_one_deeper(db: Database) -> None:
    async with db.transaction() as outer:
        depths = [db.current.depth]
        async with db.transaction() as joined:
            depths.append(db.current.depth)
            async with db.savepoint() as nested:
                depths.append(db.current.depth)
            depths.append(db.current.depth)
    assert outer is joined is nested
    assert depths == [0, 1, 2, 1]


@pytest.mark.parametrize("propagation", [REQUIRED, NESTED], ids=["required", "nested"])
@pytest.mark.parametrize(
    ("opened_with", "asked"),
    [
        ({}, {"isolation": Isolation.SERIALIZABLE}),
        ({"isolation": Isolation.READ_COMMITTED}, {"isolation": Isolation.SERIALIZABLE}),
        ({"read_only": True}, {"read_only": False}),
    ],
)
async def test_joining_with_options_that_the_open_one_does_not_have_is_refused_and_the_outer_stays_usable(
    db: Database, propagation: Propagation, opened_with: dict, asked: dict
) -> None:
    async with db.transaction(**opened_with) as session:
        with pytest.raises(errors.OptionsConflict):
            async with db.transaction(propagation=propagation, **asked):
                pass
        assert await session.scalar(text("SELECT 1")) == 1
        async with db.transaction(propagation=propagation, **opened_with) as joined:
            assert joined is session


async def test_a_block_that_names_no_level_joins_a_transaction_of_any_level(db: Database, stored: Stored) -> None:
    async with db.transaction(isolation=Isolation.SERIALIZABLE), db.transaction() as session:
        await store(session, "I")
    assert stored() == {"I"}


async def test_nested_in_a_rollback_only_transaction_raises(db: Database, stored: Stored) -> None:
    async with db.transaction() as session:
        await store(session, "O1")
        db.current.set_rollback_only("enough")
        with pytest.raises(errors.UnexpectedRollback):
            async with db.savepoint():
                pass
    assert stored() == NONE


async def test_a_participant_that_fails_and_is_swallowed_inside_nested_is_reported_at_the_nested_edge(
    db: Database, stored: Stored
) -> None:
    async with db.transaction() as session:
        await store(session, "O1")
        with pytest.raises(errors.UnexpectedRollback) as caught:
            async with db.transaction(propagation=NESTED):
                await store(session, "N")
                with pytest.raises(Inner):
                    async with db.transaction():
                        await store(session, "I")
                        raise Inner
        assert isinstance(caught.value.__cause__, Inner)
        await store(session, "O2")
    assert stored() == OUTER


@pytest.mark.parametrize("depth", [1, 2, 5])
async def test_only_the_savepoint_that_fails_is_undone_however_deep_it_is(
    db: Database, stored: Stored, depth: int
) -> None:
    async def dig(level: int) -> None:
        async with db.savepoint() as session:
            await store(session, f"down {level}")
            if level == depth:
                raise Inner
            with pytest.raises(Inner) if level + 1 == depth else no_error():
                await dig(level + 1)
            await store(session, f"up {level}")

    async with db.transaction() as session:
        with pytest.raises(Inner) if depth == 1 else no_error():
            await dig(1)
        await store(session, "end")
    assert stored() == {"end"} | {f"{way} {level}" for level in range(1, depth) for way in ("down", "up")}


class no_error:  # noqa: N801  # reads like pytest.raises
    def __enter__(self) -> None: ...

    def __exit__(self, *error: object) -> None: ...
