"""What the units of work of one ``Database`` share: engines, session classes, listeners, and who is open where."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextvars import Context, ContextVar
from functools import partial
from typing import Any, TypeVar
from weakref import WeakSet

from sqlalchemy import event
from sqlalchemy.engine import Connection, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.util import await_only, greenlet_spawn

from transact._core.events import Event, Listener
from transact._core.hooks import Hook
from transact._core.limits import Told
from transact._sqlalchemy.branching import Branching
from transact._sqlalchemy.keys import AUTOCOMMIT, QUEUED, READ_ONLY, UNIT
from transact._sqlalchemy.lazy import lazily_made
from transact._sqlalchemy.line import Line, Place
from transact._sqlalchemy.liveness import lost_between_statements
from transact._sqlalchemy.modes import Mode, Modes
from transact._sqlalchemy.plain import AnySession, plain_engine, plain_session
from transact._sqlalchemy.reading import Reader
from transact._sqlalchemy.session import guarded
from transact._sqlalchemy.shielding import shielded
from transact._sqlalchemy.timers import Timer
from transact._sqlalchemy.transaction import Transaction, suspended_location
from transact._sqlalchemy.unit import Unit
from transact.errors import ConfigurationError
from transact.options import Isolation, Options

T = TypeVar("T")
_log = logging.getLogger("transact")


RUNTIMES: WeakSet[Runtime] = WeakSet()
"""Those of all databases of the process: ``after_all_commits`` asks which of them have a transaction open."""


class Runtime:
    """The shared part of one ``Database``.

    ``units`` is the table of who holds a connection now; ``waiting`` those that ask for one while a unit that holds one
    waits for them; ``asking`` those that may need one, by who uses them; ``capacity`` the most connections that
    the pool can give, or ``None`` if it has no such number; ``max_waiting`` the most uses that may wait for one; ``ending`` the
    tasks that end a transaction or a part of it; ``closed`` whether the database is.
    """

    def __init__(self, name: str, session_class: type[AnySession], defaults: Options) -> None:
        RUNTIMES.add(self)
        self.name = name
        self.defaults = defaults
        self.retries_requests = defaults.retry is not None  # or becomes so with the first dependency that asks for it
        self.listeners: list[Listener] = []
        self.capacity: int | None = None
        self.max_waiting: int | None = None
        self.closed = False
        self.units: dict[Connection, Unit] = {}
        self.ending: dict[Transaction, tuple[asyncio.Task[Any], list[asyncio.Future[Any]]]] = {}
        self.waiting: set[Unit] = set()
        self.asking: dict[object, Unit] = {}
        self.current: ContextVar[Transaction | None] = ContextVar(f"transact.{name}", default=None)
        self.engine: AsyncEngine  # set once it is made; it makes connections for this
        self.reading_engine: AsyncEngine  # and this one for single statements, where there are
        self.modes: Modes | None = None  # ways to tell its connections so
        self.about_to_run: Callable[[str, Hook, str, tuple[object, ...]], bool] | None = None  # a test captures hooks
        self.tell_limits: Callable[[Unit, Connection, Told, Told], None]  # and this with it: what its server enforces
        self.waits_for_futures = False  # or its driver does, and for nothing else: no timeout, no task of its own
        self.verifier: AsyncEngine | None = None  # makes connections to ask what became of a COMMIT
        self.resolver: AsyncEngine | None = None  # and to end what is prepared: it commits in two phases
        self.branching: Branching | None = None  # and in this way
        self.fingerprint: str | None = None  # and this is who the server is, once it has told
        self.introduces_itself_after = 0.0
        self._session_class = session_class
        # A session class may bring a plain session class of its own, as SQLModel's does; only an instance tells which.
        self._sync_class = guarded(type(plain_session(session_class())))  # type: ignore[arg-type]  # classes are hashable
        self._lazily = lazily_made(session_class)  # type: ignore[arg-type]  # classes are hashable
        self._engines: dict[tuple[str | None, bool], AsyncEngine] = {}
        self._factories: dict[tuple[str | None, bool], async_sessionmaker[Any]] = {}

    def engine_for(self, options: Options) -> AsyncEngine:
        """The engine whose connections begin as ``options`` ask; all of them share one pool."""
        return self._engine_for(_key(options))

    def engine_of(self, unit: Unit) -> AsyncEngine:
        """The engine whose connections begin as ``unit`` asks, its limits included."""
        engine = self._engine_for(_key(unit.root.options, autocommit=unit.autocommit))
        return engine if unit.limits is None or not self.single_writer else engine.execution_options(**{UNIT: unit})

    def _engine_for(self, key: tuple[str | None, bool]) -> AsyncEngine:
        found = self._engines.get(key)
        if found is None:
            options = self._execution_options(*key)
            # A copy costs each statement a little, so the usual units go without.
            found = self.engine.execution_options() if options else self.engine
            if options:
                event.listen(plain_engine(found), "engine_connect", _setting(options))
            self._engines[key] = found  # not before it is complete: another thread may look
        return found

    def mode_asked(self) -> Mode:
        """What the connection that is taken now, in this task, will be used for."""
        unit = self.asking.get(self.whoami())
        if unit is None or unit.autocommit or (unit.root.options.isolation is not None and not self.single_writer):
            return Mode.PLAIN  # whoever it is; an isolation level, SQLAlchemy sets by itself
        return Mode.BEGINS

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
        key = _key(options, autocommit=autocommit)
        found = self._factories.get(key)
        if found is None:
            found = self._factories[key] = self._make_factory(self._engine_for(key))
        return found

    def _make_factory(self, engine: Any) -> Any:
        return async_sessionmaker(
            engine, class_=self._session_class, sync_session_class=self._sync_class, expire_on_commit=False
        )

    def make_session(self, unit: Unit) -> Any:
        """A new session that belongs to ``unit``. A managed one is closed for good when its transaction ends."""
        if self._lazily is not None:
            return self._lazily(partial(self._make_now, unit))
        session = self.factory_for(unit.root.options, autocommit=unit.autocommit)(**self._arguments(unit))
        self._belongs(session, unit)
        return session

    def _make_now(self, unit: Unit, session: AsyncSession) -> None:
        # As at the time of its first use: until then a block that joins may bring limits of its own.
        AsyncSession.__init__(
            session, sync_session_class=self._sync_class, expire_on_commit=False, **self._arguments(unit)
        )
        self._belongs(session, unit)

    def _arguments(self, unit: Unit) -> dict[str, Any]:
        closes_for_good = unit.managed or unit.autocommit
        return {"bind": self.engine_of(unit), **({"close_resets_only": False} if closes_for_good else {})}

    def _belongs(self, session: AnySession, unit: Unit) -> None:
        plain: Any = plain_session(session)
        if unit.reads_alone:
            plain.bind = unit.reader = Reader(unit)
        plain._transact_unit = unit
        unit.session = plain

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

    def hears(self, kind: type[Event]) -> bool:
        """Whether any listener wants events of ``kind``: most are not even made."""
        for listener in self.listeners:
            hears = getattr(listener, "hears", None)
            if hears is None or hears(kind):
                return True
        return False

    def emit(self, event: Event) -> None:
        """Tell every listener; one that fails is logged and hurts nobody."""
        for listener in self.listeners:
            try:
                listener(event)
            except Exception:  # noqa: BLE001  # a listener is the application's; whatever it raises is not the transaction's
                _log.exception("a listener of database %r failed on %s", self.name, type(event).__name__)

    # What differs between the async face and the plain one, which overrides all that follows. All of it but ``give_up`` is
    # called inside SQLAlchemy's greenlet.

    is_async = True
    enter_by = "async with"
    users = "tasks"
    instead = (
        "Await one after the other, or give each task its own `async with db.transaction() as session`; asyncio.gather on one "
        "session cannot work"
    )
    whoami: Callable[[], object] = staticmethod(asyncio.current_task)

    def new_unit(self, options: Options, label: str | Callable[[], str], **kind: Any) -> Unit:
        """A unit of work of this face's kind; ``kind`` as ``Unit`` takes it."""
        return Unit(self, options, label, **kind)

    def check_hook(self, hook: Hook) -> None:
        """Raise ``UsageError`` for a hook that could not be called."""

    def wait(self, awaitable: Awaitable[object]) -> object:
        """Await what a hook returned."""
        return await_only(awaitable)

    def sleep(self, seconds: float) -> None:
        """Do nothing for ``seconds``."""
        await_only(asyncio.sleep(seconds))

    def bounded(self, seconds: float, call: Callable[..., T], *arguments: Any) -> T:
        """Call ``call(*arguments)``, which asks a server; after ``seconds`` it fails."""
        return await_only(_within(seconds, greenlet_spawn(call, *arguments)))

    def shield(self, scope: Transaction, call: Callable[..., Any], *arguments: Any) -> None:
        """Call ``call(*arguments)``, which ends ``scope``, where no cancellation reaches it."""
        await_only(shielded(scope, greenlet_spawn(call, *arguments)))

    def stand_in_line(self, line: Line, place: Place, seconds: float) -> bool:
        """Wait for ``place``; return whether it was taken within ``seconds``."""
        return await_only(line.wait(place, seconds))

    def call_later(self, seconds: float, call: Callable[..., object], *arguments: Any) -> Timer:
        """Call ``call(*arguments)`` after ``seconds``, in a context of its own: it keeps nothing alive of who asks."""
        return asyncio.get_running_loop().call_later(seconds, call, *arguments, context=Context())

    def give_up(self, unit: Unit, task: asyncio.Task[Any]) -> None:  # noqa: ARG002  # the plain one needs it
        """End ``task``, which waits in vain for an answer."""
        task.cancel()

    def locate(self, who: object) -> str | None:
        """``file:line`` where another task waits."""
        return suspended_location(who.get_coro()) if isinstance(who, asyncio.Task) else None


async def _within(seconds: float, work: Awaitable[T]) -> T:
    async with asyncio.timeout(seconds):
        return await work


def _setting(options: dict[str, Any]) -> Callable[[Connection], None]:
    """What gives each connection of an engine its ``options``, which may ask the server."""

    # As options of the engine they would be set where a failure or a cancellation leaves the connection to the garbage
    # collector: nobody has it yet who could give it back.
    def set_options(connection: Connection) -> None:
        try:
            connection.execution_options(**options)
        except BaseException as failed:
            error = lost_between_statements(connection.dialect, failed)
            try:
                connection.invalidate(failed)
            finally:
                connection.close()
            if error is not None:
                raise error from failed
            raise

    return set_options


def _key(options: Options, *, autocommit: bool = False) -> tuple[str | None, bool]:
    isolation = AUTOCOMMIT if autocommit else options.isolation.value if options.isolation else None
    return isolation, bool(options.read_only)


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
