"""What happened, as frozen facts. A listener is any callable that takes one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Event:
    """The base of all events. ``database`` is the ``name`` of the ``Database``, ``label`` that of the block or route."""

    database: str
    label: str


@dataclass(frozen=True, slots=True)
class Began(Event):
    """The first statement took a connection and sent BEGIN."""


@dataclass(frozen=True, slots=True)
class Committed(Event):
    """COMMIT succeeded; ``seconds`` since BEGIN."""

    seconds: float


@dataclass(frozen=True, slots=True)
class RolledBack(Event):
    """The transaction was rolled back; ``seconds`` since BEGIN; ``cause`` is the exception that did it, if there was one."""

    seconds: float
    cause: BaseException | None


@dataclass(frozen=True, slots=True)
class OutcomeUnknown(Event):
    """COMMIT was sent and its answer lost."""

    seconds: float
    cause: BaseException


@dataclass(frozen=True, slots=True)
class SavepointRolledBack(Event):
    """A savepoint was rolled back; the transaction around it goes on."""

    cause: BaseException | None


@dataclass(frozen=True, slots=True)
class MarkedRollbackOnly(Event):
    """The transaction, or a savepoint in it, can only be rolled back; ``note`` says who marked it and where."""

    note: str


@dataclass(frozen=True, slots=True)
class RollbackFailed(Event):
    """ROLLBACK itself failed; the connection was thrown away, so the server rolls back when it notices."""

    cause: BaseException


@dataclass(frozen=True, slots=True)
class HookFailed(Event):
    """A hook that runs after the end of a transaction raised ``cause``; the transaction's outcome stands."""

    phase: str
    cause: BaseException


@dataclass(frozen=True, slots=True)
class Retried(Event):
    """Attempt number ``attempt`` failed with ``cause`` and was rolled back; the next one begins after ``delay`` seconds."""

    attempt: int
    delay: float
    cause: BaseException


@dataclass(frozen=True, slots=True)
class Holder:
    """Who held a connection, and for how long.

    ``statement``: the last one that was sent on it, shortened and without its values; ``None`` if none was.
    """

    label: str
    seconds: float
    statement: str | None


@dataclass(frozen=True, slots=True)
class WaitedForConnection(Event):
    """A connection was asked for while none was free; ``seconds`` until one came, or until the wait was given up.

    ``holders``: if none came, who held the connections then, the longest first.
    """

    seconds: float
    served: bool
    holders: tuple[Holder, ...] = ()


@dataclass(frozen=True, slots=True)
class ConnectionHeld(Event):
    """A connection has been held for long, and is so still: told after 10 seconds, then after 20, 40 and so on.

    ``statement``: the last one that was sent on it, shortened and without its values; ``None`` if none was.
    """

    seconds: float
    statement: str | None


@dataclass(frozen=True, slots=True)
class ChangesDiscarded(Event):
    """A manual session was left with uncommitted changes when a successful response began; they are rolled back."""


Listener = Callable[[Event], None]
