"""What the conformance tests store, and how: the same on every engine."""

from collections.abc import Callable

from sqlalchemy import ForeignKey, String, insert, text
from sqlalchemy.dialects import registry
from sqlalchemy.ext.asyncio import AsyncAttrs, AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship
from sqlalchemy.schema import CreateTable

from tests.engines import Observer


class Base(AsyncAttrs, DeclarativeBase):
    pass


class Word(Base):
    __tablename__ = "words"
    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str] = mapped_column(String(100), unique=True)
    meanings: Mapped[list["Meaning"]] = relationship()


class Meaning(Base):
    __tablename__ = "meanings"
    id: Mapped[int] = mapped_column(primary_key=True)
    word_id: Mapped[int] = mapped_column(ForeignKey("words.id"))


SLEEP = {
    "postgresql": text("SELECT pg_sleep(0.1)"),
    "mysql": text("SELECT sleep(0.1)"),
    # SQLite has no such function; counting does.
    "sqlite": text(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 300000) SELECT count(*) FROM n"
    ),
}


def create_tables(observer: Observer, url: str) -> None:
    dialect = registry.load(url.partition("://")[0].replace("+", "."))()
    for table in Base.metadata.sorted_tables:
        observer.execute(str(CreateTable(table).compile(dialect=dialect)))


async def store(session: AsyncSession, word: str) -> None:
    await session.execute(insert(Word).values(text=word))


Stored = Callable[[], set[str]]
