"""``DatabaseUnderTest``: a ``Database`` whose every transaction is rolled back when the test ends."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from sqlalchemy.engine import URL

from transact._sqlalchemy.engines import in_memory
from transact._sqlalchemy.pool import TransactPool
from transact._testing.faults import Faults
from transact._testing.installing import lend
from transact._testing.portal import Portal
from transact._testing.shared import SharedConnection, physical_pool
from transact._testing.watching import CapturedHooks, captured_hooks, counted_statements, held_connections
from transact.database import Database
from transact.errors import UsageError

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

PATIENCE = 5.0
"""Seconds that a statement waits for another transaction of the same test to end."""


KEPT = 4
"""The most databases whose connection is kept open for the next test."""


class TransactTestWarning(UserWarning):
    """Something in a test went another way than it does on a server, because all of it shares one connection."""


class DatabaseUnderTest:
    """One database for the time of one test; made by the fixture ``transact_database``.

    - ``database``: the ``Database`` itself.
    - ``faults``: what is to go wrong; see ``Faults``.
    """

    def __init__(self, database: Database, shared: SharedConnection, engines: list[AsyncEngine]) -> None:
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
    """What lasts longer than one test: the portal, and the connections that tests use one after the other."""

    def __init__(self) -> None:
        self._portal: Portal | None = None
        self._shared: dict[Database, SharedConnection] = {}  # the one that was used last stands last
        self._databases: dict[str, Database] = {}
        self._in_use: set[Database] = set()

    @contextmanager
    def use(self) -> Iterator[Callable[..., DatabaseUnderTest]]:
        """What the fixture gives to one test; at the end all of it is rolled back."""
        with ExitStack() as stack:

            def transact_database(database: Database | str | URL, *, patience: float = PATIENCE) -> DatabaseUnderTest:
                return stack.enter_context(self._under_test(self._database(database), patience))

            yield transact_database

    def close(self) -> None:
        """Close all connections and the portal."""
        if self._portal is None:
            return
        for shared in self._shared.values():
            self._portal.run(shared.close)
        self._shared.clear()
        self._portal.stop()
        self._portal = None

    def _database(self, given: Database | str | URL) -> Database:
        if isinstance(given, Database):
            return given
        if not isinstance(given, str | URL):
            raise UsageError(f"transact_database({given!r}): give it the application's Database, or a URL")
        key = given if isinstance(given, str) else given.render_as_string(hide_password=False)
        if key not in self._databases:
            self._databases[key] = Database(given)
        return self._databases[key]

    @contextmanager
    def _under_test(self, database: Database, patience: float) -> Iterator[DatabaseUnderTest]:
        if database in self._in_use:
            raise UsageError(
                f"transact_database() was called twice in one test for database {database.name!r}: call it in one fixture, "
                "and let everything else use that"
            )
        if self._portal is None:
            self._portal = Portal()
        portal, shared = self._portal, self._shared_by(database, self._portal)
        engines = _engines_of(database)
        shared.patience = patience
        shared.faults = Faults(database.engine.dialect, lambda: _drop_idle(engines))
        with ExitStack() as undone:
            portal.run(shared.begin)
            undone.callback(portal.run, shared.end)
            for engine in engines:
                undone.callback(lend(engine, shared, portal, database._runtime))
            self._in_use.add(database)
            undone.callback(self._in_use.discard, database)
            # A test before may have closed it, with the lifespan of its application for one.
            undone.callback(setattr, database, "_closed", database._closed)
            database._closed = False
            yield DatabaseUnderTest(database, shared, engines[:1])
        _tell(shared)

    def _shared_by(self, database: Database, portal: Portal) -> SharedConnection:
        shared = self._shared.pop(database, None)
        if shared is None:
            pool = physical_pool(database.engine, memory=in_memory(database._url))
            shared = SharedConnection(database.engine, pool, PATIENCE)
        self._shared[database] = shared
        # An application that is made anew for each test brings a new database each time.
        for old in [each for each in self._shared if each not in self._in_use][:-KEPT]:
            portal.run(self._shared.pop(old).close)
        return shared


def _engines_of(database: Database) -> list[AsyncEngine]:
    runtime = database._runtime
    return [runtime.engine, *([runtime.verifier] if runtime.verifier is not None else [])]


def _drop_idle(engines: list[AsyncEngine]) -> None:
    for engine in engines:
        pool = engine.sync_engine.pool
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
