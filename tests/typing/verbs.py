"""What type checkers make of the verbs. mypy and pyright read this; nobody runs it."""

# pyright: reportUnnecessaryTypeIgnoreComment=true
# ruff: noqa: ARG003, ARG004

from collections.abc import Callable, Coroutine
from typing import Any, assert_type

from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from transact import Database, Isolation, Propagation, Retry, Transaction

db = Database("sqlite+aiosqlite://")
assert_type(Database.from_env(), Database)
assert_type(db.engine, AsyncEngine)
assert_type(db.read_engine, AsyncEngine)
assert_type(db.session_factory, async_sessionmaker[Any])


@db.transactional
async def plain(session: AsyncSession, name: str, *, age: int = 3) -> list[str]:
    return [name] * age


@db.transactional(propagation=Propagation.NESTED, isolation=Isolation.SERIALIZABLE, read_only=False, label="named")
async def with_options(session: AsyncSession, name: str, *, age: int = 3) -> list[str]:
    return [name] * age


@db.transactional
async def alone(session: AsyncSession) -> None: ...


class MySession(AsyncSession):
    async def mine(self) -> int:
        return 1


@db.transactional
async def with_session_of_ones_own(session: MySession, factor: int) -> int:
    return factor * await session.mine()


class Service:
    @db.transactional
    async def method(self, session: AsyncSession, name: str, *, age: int = 3) -> int:
        return age

    @db.transactional(label="named")
    async def method_with_options(self, session: AsyncSession, name: str) -> str:
        return name

    @classmethod
    @db.transactional
    async def of_class(cls, session: AsyncSession, name: str) -> str:
        return name

    @classmethod
    @db.transactional(read_only=True)
    async def of_class_with_options(cls, session: AsyncSession, name: str, *, age: int = 3) -> int:
        return age

    @staticmethod
    @db.transactional
    async def static(session: AsyncSession, name: str) -> str:
        return name

    @staticmethod
    @db.transactional(propagation=Propagation.REQUIRES_NEW)
    async def static_with_options(session: AsyncSession, name: str, *, age: int = 3) -> int:
        return age

    @db.transactional(label="named")
    async def with_session_of_ones_own(self, session: MySession, *, factor: int = 1) -> int:
        return factor * await session.mine()

    # Beside **ages a caller could mean session= by a keyword too, so mypy wants it said that nobody does.
    @db.transactional
    async def with_any_arguments(self, session: AsyncSession, /, *names: str, **ages: int) -> int:
        return len(names) + len(ages)


async def function(session: AsyncSession, name: str) -> dict[str, int]:
    return {name: 1}


async def service_method(session: AsyncSession, name: str) -> int:
    return len(name)


async def uses_a_session_of_ones_own(session: MySession, factor: int) -> int:
    return factor * await session.mine()


def plain_function(session: AsyncSession, name: str) -> None: ...


async def calls(service: Service) -> None:
    assert_type(await plain("a"), list[str])
    assert_type(await plain("a", age=4), list[str])
    assert_type(await with_options(name="a", age=4), list[str])
    assert_type(await with_session_of_ones_own(2), int)
    await alone()

    await plain()  # type: ignore[call-arg]
    await plain(3)  # type: ignore[arg-type]
    await with_options("a", age="x")  # type: ignore[arg-type]

    assert_type(await service.method("a", age=3), int)
    assert_type(await service.method_with_options("a"), str)
    assert_type(await Service.of_class("a"), str)
    assert_type(await Service.static("a"), str)
    await service.method(3)  # type: ignore[arg-type]
    assert_type(await service.of_class("a"), str)
    assert_type(await Service.of_class_with_options("a", age=4), int)
    assert_type(await service.static(name="a"), str)
    assert_type(await Service.static_with_options("a", age=4), int)
    assert_type(await service.with_session_of_ones_own(factor=2), int)
    assert_type(await service.with_any_arguments("a", "b", ann=3), int)
    assert_type(await Service.method(service, "a"), int)
    await service.method("a", 3)  # type: ignore[call-arg]
    await service.method_with_options()  # type: ignore[call-arg]
    await Service.of_class(3)  # type: ignore[arg-type]
    await Service.static_with_options("a", age="x")  # type: ignore[arg-type]
    await service.with_session_of_ones_own(factor="x")  # type: ignore[arg-type]
    await service.with_any_arguments("a", ann="x")  # type: ignore[arg-type]

    assert_type(await db.run(function, "a"), dict[str, int])
    assert_type(await db.run(function, "a", propagation=Propagation.REQUIRED, label="run"), dict[str, int])

    assert_type(await db.run(service_method, "a", retry=None), int)
    assert_type(await db.run(uses_a_session_of_ones_own, 3), int)
    await db.run(plain_function, "a")  # type: ignore[arg-type]
    await db.run(function, "a", retries=3)  # type: ignore[call-arg]

    takes_callable: Callable[[str], Coroutine[Any, Any, str]] = service.method_with_options
    assert_type(await takes_callable("a"), str)


async def blocks() -> None:
    async with db.transaction(no_rollback_for=(ValueError, KeyError), timeout=None) as session:
        assert_type(session, AsyncSession)
        async with db.savepoint() as same:
            assert_type(same, AsyncSession)
    assert_type(db.current, Transaction)
    assert_type(db.in_transaction, bool)
    db.transaction(retries=3)  # type: ignore[call-arg]
    db.transaction(propagation="required")  # type: ignore[arg-type]
    async with Database("sqlite+aiosqlite://") as entered:
        assert_type(entered, Database)


def hooks() -> None:
    @db.after_commit
    def plain_hook() -> None: ...

    @db.after_rollback
    async def awaited(error: BaseException | None) -> None: ...

    db.after_commit(plain_hook, critical=True)


def cannot_be_decorated() -> None:
    @db.transactional  # type: ignore[arg-type]
    async def nothing() -> None: ...

    @db.transactional  # type: ignore[arg-type]
    def sync(session: AsyncSession) -> None: ...


async def attempts() -> None:
    async for attempt in db.attempts(retry=Retry(5), isolation=Isolation.SERIALIZABLE):
        async with attempt as session:
            assert_type(session, AsyncSession)


@db.transactional(retry=Retry(3), timeout=5, lock_timeout=0.5)
async def bounded(session: AsyncSession, name: str) -> int:
    return len(name)


async def calls_bounded() -> None:
    assert_type(await bounded("a"), int)
