"""Functions in transactions: the decorator and `run`."""

import inspect
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from tests.conformance.tables import Stored, Word, store
from transact import Database, Propagation, errors

pytestmark = pytest.mark.engines("sqlite", "pg18-asyncpg", "mariadb")


async def test_a_decorated_function_runs_in_a_transaction_of_its_own_or_joins_one(db: Database, stored: Stored) -> None:
    @db.transactional
    async def register(session: AsyncSession, word: str, *, suffix: str = "") -> str:
        await store(session, word + suffix)
        if word == "bad":
            raise ZeroDivisionError
        return word

    assert await register("a", suffix="!") == "a"
    assert stored() == {"a!"}
    with pytest.raises(ZeroDivisionError):
        await register("bad")
    assert stored() == {"a!"}
    with pytest.raises(KeyError):
        async with db.transaction():
            await register("joined")
            raise KeyError
    assert stored() == {"a!"}


async def test_each_call_is_a_transaction_of_its_own(db: Database, stored: Stored) -> None:
    sessions = []

    @db.transactional(label="insert")
    async def insert(session: AsyncSession, word: str) -> None:
        sessions.append(session)
        assert db.current.label == "insert"
        session.add(Word(text=word))

    await insert("a")
    await insert(word="b")
    assert sessions[0] is not sessions[1]
    assert stored() == {"a", "b"}


async def test_a_decorated_function_keeps_name_docs_and_signature_without_the_session(db: Database) -> None:
    @db.transactional
    async def register(session: AsyncSession, name: str, *, age: int = 3) -> int:
        """Register somebody."""
        return age

    assert register.__name__ == "register"
    assert register.__doc__ == "Register somebody."
    assert str(inspect.signature(register)) == "(name: str, *, age: int = 3) -> int"
    assert set(register.__annotations__) == {"name", "age", "return"}
    assert inspect.iscoroutinefunction(register)


async def test_the_function_itself_stays_callable_with_a_session_of_ones_own(db: Database, stored: Stored) -> None:
    @db.transactional
    async def register(session: AsyncSession, word: str) -> None:
        await store(session, word)

    async with db.session_factory() as own:
        await register.__wrapped__(own, "kept back")
        await own.rollback()
    assert stored() == set()


async def test_methods_and_classmethods_can_be_decorated(db: Database, stored: Stored) -> None:
    class Service:
        prefix = "s-"

        @db.transactional
        async def one(self, session: AsyncSession, word: str) -> str:
            await store(session, self.prefix + word)
            return word

        @classmethod
        @db.transactional(propagation=Propagation.NESTED)
        async def two(cls, session: AsyncSession, word: str) -> str:
            await store(session, cls.prefix + word)
            return word

        @staticmethod
        @db.transactional
        async def three(session: AsyncSession, word: str) -> str:
            await store(session, word)
            return word

    service = Service()
    assert [await service.one("1"), await Service.two("2"), await service.three(word="3")] == ["1", "2", "3"]
    assert stored() == {"s-1", "s-2", "3"}
    assert str(inspect.signature(service.one)) == "(word: str) -> str"


async def test_a_default_session_of_the_callers_cannot_be_given_twice(db: Database) -> None:
    @db.transactional
    async def register(session: AsyncSession, word: str) -> None: ...

    with pytest.raises(TypeError):
        await register("a", session=None)


async def test_what_cannot_be_decorated_says_why(db: Database) -> None:
    def plain(session: AsyncSession) -> None: ...

    async def generator(session: AsyncSession) -> AsyncIterator[int]:
        yield 1

    async def nothing() -> None: ...

    async def only_keywords(*, session: AsyncSession) -> None: ...

    class Service:
        async def method(self) -> None: ...

    for function, why in (
        (plain, "async def"),
        (generator, "async generator"),
        (nothing, "no parameter for the session"),
        (only_keywords, "no parameter for the session"),
        (Service.method, "no parameter for the session"),
    ):
        with pytest.raises(errors.UsageError, match=why):
            db.transactional(function)
        with pytest.raises(errors.UsageError, match=why):
            db.transactional(label="x")(function)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"retires": 3}, "no option"),
        ({"propagation": "required"}, "Propagation"),
        ({"isolation": "SERIALIZABLE"}, "Isolation"),
        ({"read_only": 1}, "read_only"),
        ({"no_rollback_for": 3}, "no_rollback_for"),
        ({"rollback_for": (ValueError, "x")}, "rollback_for"),
        ({"timeout": 0}, "seconds above 0"),
        ({"lock_timeout": "3"}, "seconds above 0"),
        ({"retry": 3}, "Retry"),
    ],
)
async def test_a_wrong_option_is_refused_where_it_is_written_by_every_verb(
    db: Database, options: dict, why: str
) -> None:
    async def function(session: AsyncSession) -> None: ...

    with pytest.raises(errors.UsageError, match=why):
        db.transactional(**options)
    with pytest.raises(errors.UsageError, match=why):
        db.transaction(**options)
    with pytest.raises(errors.UsageError, match=why):
        await db.run(function, **options)


async def test_options_that_are_none_mean_not_asked_for(db: Database) -> None:
    async with db.transaction(timeout=None, lock_timeout=None, retry=None, isolation=None, label=None) as session:
        assert await session.scalar(text("SELECT 1")) == 1


async def test_run_calls_a_function_in_a_transaction_and_returns_what_it_returns(db: Database, stored: Stored) -> None:
    async def register(session: AsyncSession, word: str, number: int) -> tuple[str, int]:
        await store(session, word)
        assert "register" in db.current.label
        if number < 0:
            raise ValueError
        return word, number

    assert await db.run(register, "a", 1, label=None) == ("a", 1)
    with pytest.raises(ValueError):
        await db.run(register, "b", -1)
    assert stored() == {"a"}
    with pytest.raises(ValueError):
        await db.run(register, "c", -1, no_rollback_for=ValueError)
    assert stored() == {"a", "c"}
