"""The rules of semantics.md, "Propagation", that stand under its two tables."""

import pytest
from sqlalchemy import text

from tests.conformance.tables import Stored, store
from transact import Database, Isolation, Propagation, errors

# One of each driver; the laws that a server could break have marks of their own.
pytestmark = pytest.mark.engines("sqlite", "pg18-asyncpg", "pg18-psycopg", "mariadb")

REQUIRED, NESTED, MANDATORY = Propagation.REQUIRED, Propagation.NESTED, Propagation.MANDATORY


class Inner(Exception):
    """What the inner block raises."""


ALL = {"O1", "I", "O2"}
OUTER = {"O1", "O2"}
NONE: set[str] = set()


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
