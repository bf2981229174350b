"""pytest's fixtures for applications that use transact: each test in one transaction that is rolled back at its end.

pytest finds this module by itself. It does nothing, and imports nothing but pytest, before a test asks for
``transact_database``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol, overload

import pytest

if TYPE_CHECKING:
    from sqlalchemy.engine import URL

    from transact._database import BaseDatabase
    from transact._testing.database import D, DatabaseUnderTest, Kit, TransactTestWarning
    from transact._testing.faults import Fault, Faults
    from transact._testing.watching import CapturedHook, CapturedHooks

__all__ = [
    "CapturedHook",
    "CapturedHooks",
    "DatabaseUnderTest",
    "Fault",
    "Faults",
    "TransactDatabase",
    "TransactTestWarning",
    "transact_database",
]
_HOMES = {
    "CapturedHook": "watching",
    "CapturedHooks": "watching",
    "DatabaseUnderTest": "database",
    "Fault": "faults",
    "Faults": "faults",
    "TransactTestWarning": "database",
}


class TransactDatabase(Protocol):
    """What the fixture ``transact_database`` is: call it once in a test for each database that the test uses."""

    @overload
    def __call__(
        self, database: D, *, sharing: BaseDatabase | None = None, patience: float = 5.0
    ) -> DatabaseUnderTest[D]: ...

    @overload
    def __call__(
        self, database: str | URL, *, sharing: BaseDatabase | None = None, patience: float = 5.0
    ) -> DatabaseUnderTest[Any]: ...

    def __call__(
        self, database: Any, *, sharing: BaseDatabase | None = None, patience: float = 5.0
    ) -> DatabaseUnderTest[Any]:
        """Put ``database``, or a new one for a URL, into one transaction that is rolled back when the test ends.

        - ``database``: a ``Database`` or a ``SyncDatabase``; for a URL whose driver both have, a ``Database`` is made.
        - ``sharing``: a ``Database`` over the same server that is under test already: use its transaction, so that both
          see the same data. Their ``faults`` and ``patience`` are one, too.
        - ``patience``: seconds that a statement waits for another transaction of this test to end.

        Raises ``ConfigurationError`` for a bad URL, ``UsageError`` for a database that is under test already or whose driver
        cannot share, and what stands in the way of a connection.
        """
        ...


@pytest.fixture(scope="session")
def _transact_kit() -> Iterator[Kit]:
    from transact._testing.database import Kit  # noqa: PLC0415  # nobody pays for it who has no database

    kit = Kit()
    yield kit
    kit.close()


@pytest.fixture
def transact_database(_transact_kit: Kit) -> Iterator[TransactDatabase]:
    """Put a database into a transaction that is rolled back when the test ends: ``transact_database(db)``."""
    with _transact_kit.use() as use:
        yield use


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        from importlib import import_module  # noqa: PLC0415  # as above

        return getattr(import_module(f"transact._testing.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
