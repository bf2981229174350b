"""A session that is used after its transaction has ended: refused, and no connection is taken."""

from collections.abc import Awaitable, Callable

import pytest
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import Field, SQLModel
from sqlmodel import select as sqlmodel_select
from sqlmodel.ext.asyncio.session import AsyncSession as SQLModelSession

from tests.conformance.tables import Meaning, Stored, Word, store
from transact import Database, errors

# One of each driver; the laws that a server could break have marks of their own.
pytestmark = pytest.mark.engines("sqlite", "pg18-asyncpg", "pg18-psycopg", "mariadb")


async def stream(session: AsyncSession) -> None:
    async for _ in await session.stream(select(Word)):
        pass


async def stream_scalars(session: AsyncSession) -> None:
    async for _ in await session.stream_scalars(select(Word)):
        pass


async def begin(session: AsyncSession) -> None:
    async with session.begin():
        pass


async def begin_nested(session: AsyncSession) -> None:
    async with session.begin_nested():
        pass


def now(f: Callable[[AsyncSession], object]) -> Callable[[AsyncSession], Awaitable[None]]:
    async def call(session: AsyncSession) -> None:
        f(session)

    return call


LATE: dict[str, Callable[[AsyncSession], Awaitable[object]]] = {
    "add": now(lambda s: s.add(Word(text="late"))),
    "add_all": now(lambda s: s.add_all([Word(text="late")])),
    "begin": begin,
    "begin_nested": begin_nested,
    "commit": lambda s: s.commit(),
    "connection": lambda s: s.connection(),
    "delete": lambda s: s.delete(Word(id=1, text="late")),
    "execute": lambda s: s.execute(text("SELECT 1")),
    "flush": lambda s: s.flush(),
    "get": lambda s: s.get(Word, 1),
    "get_one": lambda s: s.get_one(Word, 1),
    "merge": lambda s: s.merge(Word(id=1, text="late")),
    "refresh": lambda s: s.refresh(Word(id=1, text="late")),
    "reset": lambda s: s.reset(),
    "rollback": lambda s: s.rollback(),
    "run_sync": lambda s: s.run_sync(lambda sync: sync.execute(text("SELECT 1"))),
    "scalar": lambda s: s.scalar(text("SELECT 1")),
    "scalars": lambda s: s.scalars(text("SELECT 1")),
    "stream": stream,
    "stream_scalars": stream_scalars,
}


@pytest.mark.parametrize("how", ["committed", "rolled back", "never used"])
async def test_every_method_of_an_ended_session_says_so_and_takes_no_connection(
    db: Database, stored: Stored, how: str
) -> None:
    try:
        async with db.transaction(label="register") as session:
            if how != "never used":
                await store(session, "word")
            if how == "rolled back":
                raise ZeroDivisionError
    except ZeroDivisionError:
        pass
    before = stored()
    for name, use in LATE.items():
        with pytest.raises(errors.TransactionEnded) as caught:
            await use(session)
        assert "'register' had ended" in str(caught.value), name
        assert f"{db._runtime.enter_by} db.transaction()" in str(caught.value), name
        assert db.engine.pool.checkedout() == 0, name
    assert stored() == before


async def test_closing_an_ended_session_by_hand_is_refused_like_any_other_use_of_it(db: Database) -> None:
    async with db.transaction() as session:
        await session.execute(text("SELECT 1"))
    with pytest.raises(errors.TransactionEnded):
        await session.close()


async def test_lazy_loading_works_inside_and_is_refused_after_the_end(db: Database) -> None:
    async with db.transaction() as session:
        word = Word(text="word", meanings=[Meaning(), Meaning()])
        session.add(word)
    async with db.transaction() as session:
        word = (await session.scalars(select(Word))).one()
        assert len(await word.awaitable_attrs.meanings) == 2
    async with db.transaction() as session:
        word = (await session.scalars(select(Word))).one()
    with pytest.raises(Exception) as caught:
        await word.awaitable_attrs.meanings
    assert isinstance(caught.value, errors.TransactionEnded) or "not bound to a Session" in str(caught.value)
    assert word.text == "word"
    assert db.engine.pool.checkedout() == 0


async def test_lazy_loading_in_a_rollback_only_transaction_is_refused(db: Database) -> None:
    async with db.transaction() as session:
        session.add(Word(text="word", meanings=[Meaning()]))
    async with db.transaction() as session:
        word = (await session.scalars(select(Word))).one()
        db.current.set_rollback_only()
        with pytest.raises(errors.UnexpectedRollback):
            await word.awaitable_attrs.meanings


class Model(SQLModel, table=True):
    __tablename__ = "words"
    __table_args__ = {"extend_existing": True}  # SQLModel's way
    id: int | None = Field(default=None, primary_key=True)
    text: str


async def test_the_session_of_sqlmodel_is_guarded_with_its_own_methods(
    database_url: str, tables: None, make_db, stored: Stored
) -> None:
    db = make_db(database_url, session_class=SQLModelSession)
    async with db.transaction() as session:
        assert isinstance(session, SQLModelSession)
        session.add(Model(text="word"))
        assert (await session.exec(sqlmodel_select(Model.text))).all() == ["word"]
        with pytest.raises(errors.UsageError):
            await session.commit()
    assert stored() == {"word"}
    with pytest.raises(errors.TransactionEnded):
        await session.exec(sqlmodel_select(Model))
    assert db.engine.pool.checkedout() == 0


class Shouting(AsyncSession):
    async def shout(self) -> list[str]:
        return [word.upper() for word in await self.scalars(select(Word.text))]


async def test_a_session_class_of_ones_own_keeps_its_methods(
    database_url: str, tables: None, make_db, stored: Stored
) -> None:
    db = make_db(database_url, session_class=Shouting)
    async with db.transaction() as session:
        await store(session, "word")
        assert await session.shout() == ["WORD"]
    with pytest.raises(errors.TransactionEnded):
        await session.shout()
