"""Database sessions and transactions for FastAPI that are right by default, on SQLAlchemy."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transact import errors
    from transact._sqlalchemy.resolving import Prepared, Resolved, resolve_prepared
    from transact._sqlalchemy.together import after_all_commits
    from transact._sqlalchemy.transaction import Transaction
    from transact.database import Database
    from transact.options import Isolation, Propagation, Retry
    from transact.sync import SyncDatabase

__all__ = [
    "Database",
    "Isolation",
    "Prepared",
    "Propagation",
    "Resolved",
    "Retry",
    "SyncDatabase",
    "Transaction",
    "after_all_commits",
    "errors",
    "resolve_prepared",
]

#: Loaded when first asked for: pytest imports this package in every run, for its plugin, also where no test uses it.
_HOMES = {
    "Database": "transact.database",
    "Isolation": "transact.options",
    "Prepared": "transact._sqlalchemy.resolving",
    "Propagation": "transact.options",
    "Resolved": "transact._sqlalchemy.resolving",
    "Retry": "transact.options",
    "SyncDatabase": "transact.sync",
    "Transaction": "transact._sqlalchemy.transaction",
    "after_all_commits": "transact._sqlalchemy.together",
    "resolve_prepared": "transact._sqlalchemy.resolving",
}


def __getattr__(name: str) -> Any:
    if name == "errors":
        return import_module("transact.errors")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
