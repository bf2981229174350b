"""What the units of work of one ``Database`` share: engines, session classes, listeners, and who is open where."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any

from sqlalchemy.engine import Connection, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.util import await_only

from transact._core.events import Event, Listener
from transact._sqlalchemy.session import guarded
from transact._sqlalchemy.transaction import Transaction, suspended_location
from transact._sqlalchemy.unit import Unit
from transact.errors import ConfigurationError
from transact.options import Isolation, Options

READ_ONLY = "transact_read_only"
QUEUED = "transact_queued"
AUTOCOMMIT = "AUTOCOMMIT"
_log = logging.getLogger("transact")


class Runtime:
    """The shared part of one ``Database``.

    ``units`` is the table of who holds a connection now; ``capacity`` the most connections that the pool can give, or
    ``None`` if it has no such number.
    """

    def __init__(self, name: str, session_class: type[AsyncSession]) -> None:
        self.name = name
        self.listeners: list[Listener] = []
        self.capacity: int | None = None
        self.units: dict[Connection, Unit] = {}
        self.current: ContextVar[Transaction | None] = ContextVar(f"transact.{name}", default=None)
        self.engine: AsyncEngine  # set once it is made; it makes connections for this
        self._session_class = session_class
        # A session class may bring a plain session class of its own, as SQLModel's does; only an instance tells which.
        self._sync_class = guarded(type(session_class().sync_session))  # type: ignore[arg-type]  # classes are hashable
        self._engines: dict[tuple[str | None, bool], AsyncEngine] = {}
        self._factories: dict[tuple[str | None, bool], async_sessionmaker[Any]] = {}

    def engine_for(self, options: Options) -> AsyncEngine:
        """The engine whose connections begin as ``options`` ask; all of them share one pool."""
        key = (options.isolation.value if options.isolation else None, bool(options.read_only))
        return self._engine_for(key)

    def _engine_for(self, key: tuple[str | None, bool]) -> AsyncEngine:
        found = self._engines.get(key)
        if found is None:
            options = self._execution_options(*key)
            found = self._engines[key] = self.engine.execution_options(**options) if options else self.engine
        return found

    def _execution_options(self, isolation: str | None, read_only: bool) -> dict[str, Any]:  # noqa: FBT001  # a cache key
        dialect = self.engine.dialect.name
        chosen: dict[str, Any] = {}
        # SQLite has one level, SERIALIZABLE, which gives what any other promises.
        # PostgreSQL's READ UNCOMMITTED is READ COMMITTED (manual, 13.2.1), and asyncpg's dialect does not know the word.
        if dialect == "postgresql" and isolation == Isolation.READ_UNCOMMITTED.value:
            isolation = Isolation.READ_COMMITTED.value
        if isolation is not None and (dialect != "sqlite" or isolation == AUTOCOMMIT):
            chosen["isolation_level"] = isolation
        if dialect == "sqlite":
            chosen[QUEUED] = True
        if read_only:
            chosen["postgresql_readonly" if dialect == "postgresql" else READ_ONLY] = True
        return chosen

    def factory_for(self, options: Options, *, autocommit: bool = False) -> async_sessionmaker[Any]:
        """The session factory for ``options``."""
        isolation = AUTOCOMMIT if autocommit else options.isolation.value if options.isolation else None
        key = (isolation, bool(options.read_only))
        found = self._factories.get(key)
        if found is None:
            found = self._factories[key] = async_sessionmaker(
                self._engine_for(key),
                class_=self._session_class,
                sync_session_class=self._sync_class,
                expire_on_commit=False,
            )
        return found

    def make_session(self, unit: Unit) -> AsyncSession:
        """A new session that belongs to ``unit``. A managed one is closed for good when its transaction ends."""
        factory = self.factory_for(unit.root.options, autocommit=unit.autocommit)
        manual = not unit.managed and not unit.autocommit
        session: AsyncSession = factory() if manual else factory(close_resets_only=False)
        session.sync_session._transact_unit = unit  # type: ignore[attr-defined]  # the guard's own attribute
        return session

    def innermost(self) -> Transaction | None:
        """The innermost block whose transaction is open for the running task. A task inherits those of its creator."""
        found = self.enclosing()
        return None if found is None or found._unit.autocommit else found

    def enclosing(self) -> Transaction | None:
        """The innermost block that is open, also one that runs without a transaction."""
        found = self.current.get()
        while found is not None and not found.is_open:
            found = found._parent
        return found

    @property
    def single_writer(self) -> bool:
        """Whether the engine lets only one transaction write at a time."""
        return self.engine.dialect.name == "sqlite"

    def emit(self, event: Event) -> None:
        """Tell every listener; one that fails is logged and hurts nobody."""
        for listener in self.listeners:
            try:
                listener(event)
            except Exception:  # noqa: BLE001  # a listener is the application's; whatever it raises is not the transaction's
                _log.exception("a listener of database %r failed on %s", self.name, type(event).__name__)

    # What differs between the async face and a plain one.

    whoami: Callable[[], object] = staticmethod(asyncio.current_task)

    def wait(self, awaitable: Awaitable[object]) -> object:
        """Await, from inside SQLAlchemy's greenlet, what a hook returned."""
        return await_only(awaitable)

    def locate(self, who: object) -> str | None:
        """``file:line`` where another task waits."""
        return suspended_location(who.get_coro()) if isinstance(who, asyncio.Task) else None


def parse_url(url: object) -> Any:
    """Parse a database URL; raises ``ConfigurationError`` that never repeats it, since it may hold a password."""
    try:
        parsed = make_url(url)  # type: ignore[arg-type]  # whatever it is, SQLAlchemy says whether it is a URL
    except (ArgumentError, ValueError, TypeError):
        parsed = None
    # SQLAlchemy reads a password up to the first @; what follows would be the host, which gets shown.
    if parsed is None or "@" in (parsed.host or ""):
        raise ConfigurationError(
            "the database URL cannot be read; write it as driver://user:password@host:port/name, for example "
            "postgresql+asyncpg://app@localhost/shop (a @, : or / in a password is written %40, %3A, %2F)"
        )
    return parsed
