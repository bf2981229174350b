"""Who the servers of an application's databases are: asked when it starts, or else when it first matters."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from sqlalchemy.util import await_only, greenlet_spawn

from transact._sqlalchemy.plain import plain_engine

if TYPE_CHECKING:
    from transact._sqlalchemy.runtime import Runtime

_PATIENCE = 5.0
"""Seconds in which a server has to answer, and after which one that did not is asked again."""


def introduced(runtime: Runtime, other: Runtime) -> str | None:
    """The fingerprint of another database of the application, of whatever kind; ``None`` if its server was not there yet."""
    if other.fingerprint is None and time.monotonic() >= other.introduces_itself_after:
        try:
            other.fingerprint = runtime.bounded(_PATIENCE, _ask, runtime, other)
        except Exception:  # noqa: BLE001  # whatever it is, the request may not need that database
            other.introduces_itself_after = time.monotonic() + _PATIENCE
    return other.fingerprint


def _ask(runtime: Runtime, other: Runtime) -> str:
    # In a thread of its own, since the one database may wait in an event loop, and the other must not.
    return await_only(asyncio.to_thread(_look, other)) if runtime.is_async else _look(other)


def _look(other: Runtime) -> str:
    assert other.resolver is not None  # noqa: S101  # all databases of the application have it
    assert other.branching is not None  # noqa: S101  # as above
    look, engine = other.branching.look_at_server, plain_engine(other.resolver)
    return asyncio.run(greenlet_spawn(look, engine)) if other.is_async else look(engine)
