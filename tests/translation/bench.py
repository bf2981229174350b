"""Where a driver's error is raised twice: once as plain SQLAlchemy shows it, once translated."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, Self

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import URL, ExceptionContext, make_url
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from tests.translation.schema import METADATA
from transact import errors
from transact.translation import translate

#: A row's value, made to slip through careless cutting: it has marks, a colon, and ends like a message does.
SECRET = "s3cret'\": 's3cret' at row 1 for key 's3cret"  # noqa: S105  # of a row, not of a login


@dataclass
class Bench:
    """One database with the schema, and what is needed to make trouble in it."""

    id: str
    url: URL
    opened: list[AsyncEngine] = field(default_factory=list)
    #: What drivers raised, in order, and what SQLAlchemy would have raised in its place.
    seen: list[tuple[BaseException, sa.exc.StatementError | None]] = field(default_factory=list)
    translating: bool = True
    metadata: sa.MetaData | None = None
    _engine: AsyncEngine | None = None

    @property
    def driver(self) -> str:
        return self.url.get_driver_name()

    @property
    def engine(self) -> AsyncEngine:
        """The engine to provoke errors on."""
        if self._engine is None:
            self._engine = self.open(self.url)
        return self._engine

    def open(self, url: URL, **options: Any) -> AsyncEngine:
        """An engine that translates, or does not, as the bench is set; closed at the end of the test."""
        options.setdefault("hide_parameters", True)
        engine = create_async_engine(url, **options)
        if self.translating:
            self._listen(engine)
        if engine.dialect.name == "sqlite":
            event.listen(engine.sync_engine, "connect", _as_in_production)
        self.opened.append(engine)
        return engine

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for engine in self.opened:
            await engine.dispose()
        self.opened.clear()
        self._engine = None

    def _listen(self, engine: AsyncEngine) -> None:
        @event.listens_for(engine.sync_engine, "handle_error", retval=True)
        def handle(context: ExceptionContext) -> BaseException | None:
            self.seen.append((context.original_exception, context.sqlalchemy_exception))
            return translate(
                context.original_exception,
                engine.dialect.name,
                wrapped=context.sqlalchemy_exception,
                connecting=context.connection is None,
                disconnected=context.is_disconnect,
                metadata=self.metadata,
            )

    async def raised(self, provoke: "Provoke") -> Exception:
        """What `provoke` raises. What passes SQLAlchemy by, as a refused socket does, is handed over like a pool would."""
        try:
            await provoke(self)
        except errors.TransactError as error:
            return error
        except Exception as error:
            if not self.translating or isinstance(error, sa.exc.SQLAlchemyError):
                return error
            self.seen.append((error, None))
            translated = translate(error, self.url.get_backend_name(), connecting=True, metadata=self.metadata)
            if translated is None:
                raise
            return translated
        raise AssertionError("nothing was raised")


Provoke = Callable[[Bench], Awaitable[object]]


def _as_in_production(connection: Any, _record: object) -> None:
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA busy_timeout = 0")
    cursor.close()


@asynccontextmanager
async def open_bench(engine_id: str, url: str) -> AsyncIterator[Bench]:
    """A bench over an empty database: makes the schema, and closes every connection at the end."""
    async with Bench(engine_id, make_url(url)) as bench:
        async with bench.engine.begin() as connection:
            await connection.run_sync(METADATA.create_all)
        yield bench


Kind = type[errors.DatabaseError]
Codes = str | int | frozenset[int] | None


@dataclass(frozen=True)
class Row:
    """One line of the table of codes: what is done, and what comes of it. `{}` by a part of the engine's id.

    `about`: what the error names. `only`: parts of the ids of the engines that can do it. `since`: the version of each
    driver that reports it; with an older one it is `older`, or nothing to test.
    """

    what: str
    provoke: Provoke
    kind: Kind | Mapping[str, Kind]
    code: Codes | Mapping[str, Codes]
    about: Mapping[str, object] = field(default_factory=dict)
    only: tuple[str, ...] = ("",)
    since: Mapping[str, str] = field(default_factory=dict)
    older: tuple[Kind, Mapping[str, Codes]] | None = None

    def expected(self, bench: Bench) -> tuple[Kind, Codes] | None:
        """The class and the code, or None if this engine and this driver cannot show it."""
        if not any(part in bench.id for part in self.only):
            return None
        if _release(version(bench.driver)) >= _release(self.since.get(bench.driver, "0")):
            return _by_engine(self.kind, bench.id), _by_engine(self.code, bench.id)
        return self.older and (self.older[0], _by_engine(self.older[1], bench.id))


def _by_engine(value: Any, engine_id: str) -> Any:
    if not isinstance(value, Mapping):
        return value
    return next(entry for part, entry in value.items() if part in engine_id)


def _release(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".") if part.isdecimal())


def sql(*statements: str, **params: object) -> Provoke:
    """Run the statements in one transaction, which is rolled back at the end."""

    async def provoke(bench: Bench) -> None:
        async with bench.engine.connect() as connection:
            await begin(connection)
            await run(connection, *statements, **params)

    return provoke


async def begin(connection: AsyncConnection) -> None:
    """Begin a transaction also on SQLite, where Python's sqlite3 is told to leave that to us."""
    if connection.dialect.name == "sqlite":
        await connection.exec_driver_sql("BEGIN")


async def run(connection: AsyncConnection, *statements: str, **params: object) -> Any:
    """Run statements; each gets those of the parameters that it names."""
    result = None
    for statement in statements:
        clause = sa.text(statement)
        result = await connection.execute(clause, {name: params[name] for name in clause._bindparams})
    return result


async def in_step(*sides: Callable[[asyncio.Barrier], Awaitable[object]]) -> None:
    """Run the sides at once, with a barrier between them; raise the first error when all are done."""
    barrier = asyncio.Barrier(len(sides))
    results = await asyncio.gather(*(side(barrier) for side in sides), return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
