"""Database sessions and transactions for FastAPI that are right by default, on SQLAlchemy."""

from transact import errors
from transact._sqlalchemy.transaction import Transaction
from transact.database import Database
from transact.options import Isolation, Propagation, Retry

__all__ = ["Database", "Isolation", "Propagation", "Retry", "Transaction", "errors"]
