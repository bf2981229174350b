"""What two-phase commit asks of an engine: how a branch of a transaction is prepared, found again, and ended by its name.

The rule that holds the branches together: ``_core.branches``. PostgreSQL: ``preparing``. MariaDB: ``xa``.
"""

from __future__ import annotations

import enum
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple, Protocol

from sqlalchemy.engine import Connection, Engine

from transact._core.branches import Branch, Verdict, Xid

if TYPE_CHECKING:
    from transact._sqlalchemy.runtime import Runtime
    from transact._sqlalchemy.unit import Unit


class Stage(enum.Enum):
    """Where one part of a transaction over several databases stands."""

    OPEN = enum.auto()
    PREPARED = enum.auto()
    IN_DOUBT = enum.auto()
    """PREPARE was sent, and its answer lost."""
    ENDED = enum.auto()
    """Committed or rolled back, on the server."""


class Stock(NamedTuple):
    """What the server says of an open transaction.

    ``transaction`` is what the other branches will know it by, ``None`` where nothing was written. ``refusal``: why it cannot
    be prepared. ``xid``: the name that it was begun under, where it has one since then, and ``among`` the fingerprints of all
    that this says may take part.
    """

    fingerprint: str
    transaction: str | None
    refusal: str | None = None
    xid: Xid | None = None
    among: frozenset[str] = frozenset()


class Part:
    """One unit of work on its way through two phases. ``branch`` is set before it is prepared.

    ``held``: whether the connection that it was prepared on can end it. ``goes_back``: whether it is to be rolled back.
    """

    __slots__ = ("branch", "goes_back", "held", "stage", "stock", "unit")

    def __init__(self, unit: Unit) -> None:
        self.unit = unit
        self.stage = Stage.OPEN
        self.held = False
        self.goes_back = False
        self.stock: Stock
        self.branch: Branch

    @property
    def branching(self) -> Branching:
        """What its engine does."""
        found = self.unit.runtime.branching
        assert found is not None  # noqa: S101  # without it nothing comes here
        return found

    @property
    def name(self) -> str:
        """What the server knows it by, once it is prepared."""
        return str(self.stock.xid or self.branch)


class Listed(NamedTuple):
    """What a server says of something that is prepared: its name, whose it is, since when, and for how many seconds."""

    name: str
    branch: Branch | Xid
    since: datetime
    seconds: float


class Branching(Protocol):
    """How one engine does its part. All of it raises what the database says."""

    #: Whether its branch can only be the last one, which decides.
    decides: bool
    #: Whether a PREPARE that was refused leaves it open what became of the transaction, as one whose answer was lost does.
    doubts: bool

    def teach(self, runtime: Runtime) -> None:
        """Let COMMIT and ROLLBACK of the engine's connections end what is prepared, where something is."""
        ...

    def look(self, connection: Connection) -> Stock:
        """Ask whether an open transaction has written, and where: one round trip."""
        ...

    def prepare(self, connection: Connection, part: Part) -> None:
        """Prepare it, and let the connection know."""
        ...

    def give_up(self, connection: Connection) -> None:
        """Roll back what is open, so that all who ask will know it for good: others may be left prepared."""
        ...

    def end_by_name(self, engine: Engine, word: str, name: str) -> bool | None:
        """COMMIT or ROLLBACK what is prepared, on a connection of its own; ``None`` if that can be done only later.

        That nothing is prepared under ``name`` counts as done.
        """
        ...

    def decide(self, engine: Engine, branch: Branch | Xid) -> Verdict:
        """Apply the rule: ask the database of the last branch."""
        ...

    def look_at_server(self, engine: Engine) -> str:
        """The fingerprint of a database. Raises ``ConfigurationError`` if its server prepares nothing."""
        ...

    def listed(self, engine: Engine, global_id: str = "") -> list[Listed]:
        """What this library has prepared in the database, whatever program did it; the oldest first."""
        ...
