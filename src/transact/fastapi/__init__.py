"""The FastAPI face: a ``Database`` that applications install, and the problem documents of its errors."""

from transact.fastapi.database import Database
from transact.fastapi.problems import Problem
from transact.fastapi.threads import SyncDatabase

__all__ = ["Database", "Problem", "SyncDatabase"]
