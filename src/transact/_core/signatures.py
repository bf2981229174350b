"""Which functions can be decorated, and where they take the session."""

from __future__ import annotations

import inspect
from typing import Any

from transact.errors import UsageError


def session_position(f: Any, *, is_async: bool = True) -> int:
    """Where ``f`` takes the session: its first parameter, or the second of a method. Raises ``UsageError`` otherwise."""
    name = getattr(f, "__qualname__", repr(f))
    if inspect.isasyncgenfunction(f):
        raise UsageError(f"{name} is an async generator: its transaction would stay open between items; return a list")
    if is_async and not inspect.iscoroutinefunction(f):
        raise UsageError(
            f"{name} is not an `async def` function; a transaction of this database is awaited (a SyncDatabase's is not)"
        )
    if not is_async and (inspect.iscoroutinefunction(f) or inspect.isgeneratorfunction(f)):
        raise UsageError(
            f"{name} is an `async def` function or a generator; a SyncDatabase runs a plain `def` in a transaction"
        )
    parameters = [
        p for p in inspect.signature(f).parameters.values() if p.kind in {p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD}
    ]
    at = 1 if parameters and parameters[0].name in {"self", "cls"} else 0
    if len(parameters) <= at:
        raise UsageError(f"{name} has no parameter for the session; write it first: {f.__name__}(session, …)")
    return at
