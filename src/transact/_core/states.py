"""The states of a transaction and the legal moves between them; what marks it as one that can only be rolled back."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from types import MappingProxyType


class State(enum.Enum):
    """Where a transaction, a savepoint or a joined block stands."""

    READY = "ready"
    """Nobody has asked for its session yet; it does not count as open."""
    ACTIVE = "active"
    ROLLBACK_ONLY = "rollback only"
    """Open, but every later statement is refused and its end can only be a rollback."""
    ENDING = "ending"
    """COMMIT or ROLLBACK is on its way."""
    COMMITTED = "committed"
    ROLLED_BACK = "rolled back"
    UNKNOWN = "unknown"
    """COMMIT was sent and its answer was lost."""

    __hash__ = (
        object.__hash__
    )  # each is one object; enum's own hash is written in Python, and states are looked up often


MOVES = MappingProxyType(
    {
        State.READY: frozenset({State.ACTIVE, State.ROLLED_BACK}),
        State.ACTIVE: frozenset({State.ROLLBACK_ONLY, State.ENDING}),
        State.ROLLBACK_ONLY: frozenset({State.ENDING}),
        # A COMMIT that is refused while it is prepared (a hook that fails, a failing flush) becomes a rollback.
        State.ENDING: frozenset({State.COMMITTED, State.ROLLED_BACK, State.UNKNOWN}),
        State.COMMITTED: frozenset[State](),
        State.ROLLED_BACK: frozenset[State](),
        State.UNKNOWN: frozenset[State](),
    }
)

OPEN = frozenset({State.ACTIVE, State.ROLLBACK_ONLY})
ENDED = frozenset({State.COMMITTED, State.ROLLED_BACK, State.UNKNOWN})


def move(now: State, then: State) -> State:
    """Return ``then``, or raise ``AssertionError`` if the move is not legal: that would be a fault of this library."""
    if then not in MOVES[now]:
        raise AssertionError(f"a transaction cannot go from {now.value!r} to {then.value!r}")
    return then


class Marker(enum.Enum):
    """Who made a transaction rollback-only."""

    REQUEST = "set_rollback_only() was called"
    PARTICIPANT = "a joined block failed"
    DATABASE = "a statement failed"
    LOST = "the server rolled the whole transaction back"
    TIMEOUT = "its time was over"
    CONNECTION = "the connection was lost or thrown away"
    BY_HAND = "its SessionTransaction was ended by hand"


@dataclass(frozen=True, slots=True)
class Mark:
    """One reason why a transaction can only be rolled back.

    ``by`` is the label of the block that marked, ``own`` whether that block is the boundary (the transaction or savepoint)
    itself and not one that joined it, ``where`` its ``file:line``.
    """

    marker: Marker
    by: str
    own: bool
    where: str | None = None
    reason: str | None = None
    cause: BaseException | None = None

    def note(self) -> str:
        """One line for a person: what marked the transaction, who, where."""
        parts = [f"{self.marker.value} in {self.by!r}"]
        if self.where:
            parts.append(f"at {self.where}")
        if self.reason:
            parts.append(f"({self.reason})")
        elif self.cause is not None:
            parts.append(f"({type(self.cause).__name__})")
        return " ".join(parts)


def is_quiet(marks: list[Mark]) -> bool:
    """Whether a rollback at a normal exit surprises nobody: the block that ends asked for it itself."""
    return any(mark.own and mark.marker is Marker.REQUEST for mark in marks)


def lost_to(marks: list[Mark]) -> Mark | None:
    """The mark that says that the server has ended the transaction already, savepoints and all."""
    return next((mark for mark in marks if mark.marker is Marker.LOST), None)


def first_cause(marks: list[Mark]) -> BaseException | None:
    """The exception behind the earliest mark that has one."""
    return next((mark.cause for mark in marks if mark.cause is not None), None)
