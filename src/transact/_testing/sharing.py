"""Two databases over one server, a ``Database`` and a ``SyncDatabase``, that share one transaction in a test."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy.util import greenlet_spawn

from transact._database import BaseDatabase
from transact._sqlalchemy.engines import in_memory
from transact._sqlalchemy.plain import AnyEngine
from transact._testing.rules import RULES
from transact._testing.shared import SharedConnection, physical_pool
from transact.errors import UsageError


def check_can_share(database: BaseDatabase, sharing: BaseDatabase) -> None:
    """Raise ``UsageError`` unless what ``database`` sends can be sent on the connection of ``sharing``."""
    ours: Any = database._runtime.engine.dialect
    theirs: Any = sharing._runtime.engine.dialect
    names = f"{database._url.drivername} and {sharing._url.drivername}"
    if not sharing._runtime.is_async:
        raise UsageError(
            "transact_database(…, sharing=…): the connection has to be that of a Database, not of a SyncDatabase"
        )
    if _place(database) != _place(sharing):
        raise UsageError("transact_database(…, sharing=…): these are two databases; put each under test by itself")
    if _style(ours) != _style(theirs):
        raise UsageError(
            f"transact_database(…, sharing=…): {names} write their statements in different ways, so they cannot share a "
            "connection; with postgresql+psycopg for both they can"
        )


def of_one_place(database: BaseDatabase, others: Iterable[BaseDatabase]) -> list[BaseDatabase]:
    """Those of ``others`` that are the same database on the same server.

    Raises ``UsageError`` if the transaction of one of them keeps that of ``database`` from beginning: SQLite has one writer.
    """
    if in_memory(database._url):
        return []
    found = [other for other in others if _place(other) == _place(database)]
    if found and database._runtime.single_writer:
        raise UsageError(
            f"two databases over {database._url.database} are under test, and SQLite lets only one of them write; "
            "let them share a transaction: transact_database(the_sync_one, sharing=the_async_one)"
        )
    return found


def _place(database: BaseDatabase) -> tuple[object, ...]:
    url = database._url
    return RULES[database._runtime.engine.dialect.name], url.host, url.port, url.database


def _style(dialect: Any) -> str:
    """How parameters stand in a statement; a driver that reads ``%(name)s`` reads ``%s``, too."""
    return str(dialect.paramstyle).removeprefix("py")


def prepare_to_share(engine: AnyEngine, shared: SharedConnection) -> None:
    """Let the dialect of ``engine`` learn what it asks a server once, on a connection of its own."""
    if getattr(engine.dialect, "default_isolation_level", None) is not None:
        return

    def connect() -> None:
        physical_pool(engine, memory=False).connect().invalidate()

    shared.portal.run(lambda: greenlet_spawn(connect))
