"""``DatabaseUnderTest``: a ``Database`` or ``SyncDatabase`` whose every transaction is rolled back when the test ends."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Generic

from sqlalchemy.engine import URL
from typing_extensions import TypeVar  # which SQLAlchemy requires; Python's own has no default before 3.13

from transact._database import BaseDatabase
from transact._sqlalchemy.engines import DRIVERS, SYNC_DRIVERS, in_memory
from transact._sqlalchemy.plain import AnyEngine, plain_engine
from transact._sqlalchemy.pool import TransactPool
from transact._sqlalchemy.runtime import parse_url
from transact._testing.faults import Faults
from transact._testing.installing import lend
from transact._testing.portal import Portal
from transact._testing.shared import SharedConnection, physical_pool
from transact._testing.sharing import check_can_share, of_one_place, prepare_to_share
from transact._testing.watching import CapturedHooks, captured_hooks, counted_statements, held_connections
from transact.database import Database
from transact.errors import UsageError
from transact.sync import SyncDatabase

D = TypeVar("D", bound=BaseDatabase)
D_co = TypeVar("D_co", bound=BaseDatabase, default=Database, covariant=True)

PATIENCE = 5.0
"""Seconds that a statement waits for another transaction of the same test to end."""


KEPT = 4
"""The most databases whose connection is kept open for the next test."""


class TransactTestWarning(UserWarning):
    """Something in a test went another way than it does on a server, because all of it shares one connection."""


class DatabaseUnderTest(Generic[D_co]):
    """One database for the time of one test; made by the fixture ``transact_database``.

    - ``database``: the ``Database`` or ``SyncDatabase`` itself.
    - ``faults``: what is to go wrong; see ``Faults``.
    """

    def __init__(self, database: D_co, shared: SharedConnection, engines: list[AnyEngine]) -> None:
        self.database = database
        self.faults: Faults = shared.faults
        self._engines = engines

    @contextmanager
    def assert_queries(self, number: int) -> Iterator[None]:
        """Raise ``AssertionError``, with the statements, unless the block sends ``number`` of them.

        BEGIN, COMMIT, savepoints, settings and what transact sends of itself are not counted.
        """
        with counted_statements(self._engines) as sent:
            yield
        if len(sent) != number:
            lines = "".join(f"\n  {position}. {line}" for position, line in enumerate(sent, 1))
            raise AssertionError(
                f"{number} statements were expected and {len(sent)} were sent{':' * bool(sent)}{lines}"
            )

    def assert_no_connection_held(self) -> None:
        """Raise ``AssertionError``, with the holders, if a connection is out of the pool."""
        held = held_connections(self._engines)
        if held:
            raise AssertionError("connections are held:" + "".join(f"\n  {line}" for line in held))

    @contextmanager
    def capture_hooks(self, *, run: bool = True) -> Iterator[CapturedHooks]:
        """Collect the hooks that come due in the block: ``assert hooks.after_commit == ["send_mail"]``.

        With ``run=False`` they are collected and do not run. ``before_commit`` hooks always run: they are a part of the
        transaction.
        """
        with captured_hooks(self.database._runtime, run=run) as captured:
            yield captured


class Kit:
    """What lasts longer than one test: the portals, and the connections that tests use one after the other."""

    def __init__(self) -> None:
        self._portal: Portal | None = None  # of the drivers that await
        self._shared: dict[BaseDatabase, SharedConnection] = {}  # the one that was used last stands last
        self._databases: dict[str, BaseDatabase] = {}
        self._in_use: set[BaseDatabase] = set()

    @contextmanager
    def use(self) -> Iterator[Callable[..., DatabaseUnderTest[Any]]]:
        """What the fixture gives to one test; at the end all of it is rolled back."""
        with ExitStack() as stack:

            def transact_database(
                database: BaseDatabase | str | URL, *, sharing: BaseDatabase | None = None, patience: float = PATIENCE
            ) -> DatabaseUnderTest[Any]:
                found = self._database(database)
                return stack.enter_context(self._under_test(found, sharing, patience))

            yield transact_database

    def close(self) -> None:
        """Close all connections and the portals."""
        for database in list(self._shared):
            self._let_go(database)
        if self._portal is not None:
            self._portal.stop()
            self._portal = None

    def _database(self, given: BaseDatabase | str | URL) -> BaseDatabase:
        if isinstance(given, BaseDatabase):
            return given
        if not isinstance(given, str | URL):
            raise UsageError(f"transact_database({given!r}): give it the application's Database, or a URL")
        key = given if isinstance(given, str) else given.render_as_string(hide_password=False)
        if key not in self._databases:
            plain = parse_url(given).drivername in SYNC_DRIVERS.keys() - DRIVERS.keys()
            self._databases[key] = SyncDatabase(given) if plain else Database(given)
        return self._databases[key]

    @contextmanager
    def _under_test(self, database: D, sharing: BaseDatabase | None, patience: float) -> Iterator[DatabaseUnderTest[D]]:
        if database in self._in_use:
            raise UsageError(
                f"transact_database() was called twice in one test for database {database.name!r}: call it in one fixture, "
                "and let everything else use that"
            )
        with ExitStack() as undone:
            if sharing is None:
                shared = undone.enter_context(self._begun(database, patience))
            else:
                shared = self._joined(database, sharing)
            engines = _engines_of(database)
            for engine in engines:
                undone.callback(lend(engine, shared, database._runtime))
                shared.lent_by.append(engine)
            self._in_use.add(database)
            undone.callback(self._in_use.discard, database)
            # A test before may have closed it, with the lifespan of its application for one.
            undone.callback(setattr, database._runtime, "closed", database._runtime.closed)
            database._runtime.closed = False
            # What is prepared cannot be rolled back with the rest of the test.
            undone.callback(setattr, database._runtime, "resolver", database._runtime.resolver)
            database._runtime.resolver = None
            yield DatabaseUnderTest(database, shared, engines[:1])
        if sharing is None:
            _tell(shared)

    @contextmanager
    def _begun(self, database: BaseDatabase, patience: float) -> Iterator[SharedConnection]:
        beside = of_one_place(database, self._in_use)
        shared = self._shared_by(database)
        shared.patience = patience
        shared.lent_by = []
        shared.faults = Faults(database._runtime.engine.dialect, lambda: _drop_idle(shared.lent_by))
        shared.portal.run(shared.begin)
        try:
            # Neither ends before the test does: to wait for a lock of the other would never end.
            for each in [shared, *(self._shared[other] for other in beside if other in self._shared)] if beside else []:
                each.portal.run(each.bound_lock_waits)
            yield shared
        finally:
            shared.portal.run(shared.end)

    def _joined(self, database: BaseDatabase, sharing: BaseDatabase) -> SharedConnection:
        if sharing not in self._in_use or sharing not in self._shared:
            raise UsageError(
                f"transact_database(…, sharing=…): database {sharing.name!r} has no transaction of its own in this test; "
                "call transact_database() for it before"
            )
        shared = self._shared[sharing]
        check_can_share(database, sharing)
        prepare_to_share(database._runtime.engine, shared)
        return shared

    def _shared_by(self, database: BaseDatabase) -> SharedConnection:
        shared = self._shared.pop(database, None)
        if shared is None:
            engine = database._runtime.engine
            pool = physical_pool(engine, memory=in_memory(database._url))
            shared = SharedConnection(engine, pool, self._portal_for(database), PATIENCE)
        self._shared[database] = shared
        # An application that is made anew for each test brings a new database each time.
        for old in [each for each in self._shared if each not in self._in_use][:-KEPT]:
            self._let_go(old)
        return shared

    def _portal_for(self, database: BaseDatabase) -> Portal:
        if not database._runtime.is_async:
            return Portal()  # whose thread it blocks; other databases must not wait for it
        if self._portal is None:
            self._portal = Portal()
        return self._portal

    def _let_go(self, database: BaseDatabase) -> None:
        shared = self._shared.pop(database)
        shared.portal.run(shared.close)
        if shared.portal is not self._portal:
            shared.portal.stop()


def _engines_of(database: BaseDatabase) -> list[AnyEngine]:
    runtime = database._runtime
    return [runtime.engine, *([runtime.verifier] if runtime.verifier is not None else [])]


def _drop_idle(engines: list[AnyEngine]) -> None:
    for engine in engines:
        pool = plain_engine(engine).pool
        if isinstance(pool, TransactPool):
            pool.make_anew()


def _tell(shared: SharedConnection) -> None:
    for note in shared.notes:
        warnings.warn(note, TransactTestWarning, stacklevel=2)
    if left := shared.faults.left:
        raise UsageError(
            f"{', '.join(left)}: armed, and the test ended before it struck, so the test has not tried what it was written "
            "for. Let the application come that far, or take it back with faults.clear()"
        )
