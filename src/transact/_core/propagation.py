"""What a block does about the transaction that is open: one table, and nobody else decides."""

from __future__ import annotations

import enum
from types import MappingProxyType

from transact.errors import NoTransaction, OptionsConflict, TransactionExists, UsageError
from transact.options import Options, Propagation


class Action(enum.Enum):
    """What carrying out a propagation comes to."""

    BEGIN = enum.auto()
    JOIN = enum.auto()
    SAVEPOINT = enum.auto()
    SUSPEND_AND_BEGIN = enum.auto()
    AUTOCOMMIT = enum.auto()
    SUSPEND_AND_AUTOCOMMIT = enum.auto()
    REFUSE_NONE_OPEN = enum.auto()
    REFUSE_OPEN = enum.auto()


#               asked for                  none is open             one is open
TABLE = MappingProxyType(
    {
        Propagation.REQUIRED: (Action.BEGIN, Action.JOIN),
        Propagation.REQUIRES_NEW: (Action.BEGIN, Action.SUSPEND_AND_BEGIN),
        Propagation.NESTED: (Action.BEGIN, Action.SAVEPOINT),
        Propagation.SUPPORTS: (Action.AUTOCOMMIT, Action.JOIN),
        Propagation.NOT_SUPPORTED: (Action.AUTOCOMMIT, Action.SUSPEND_AND_AUTOCOMMIT),
        Propagation.MANDATORY: (Action.REFUSE_NONE_OPEN, Action.JOIN),
        Propagation.NEVER: (Action.AUTOCOMMIT, Action.REFUSE_OPEN),
    }
)

_JOINING = frozenset({Action.JOIN, Action.SAVEPOINT})
_OF_TRANSACTIONS = ("isolation", "read_only", "timeout", "lock_timeout", "retry")
_WITHOUT = frozenset({Action.AUTOCOMMIT, Action.SUSPEND_AND_AUTOCOMMIT})


def decide(asked: Options, open_: Options | None) -> Action:
    """Return what to do for ``asked`` when ``open_`` are the options of the open transaction (``None``: none is open).

    Raises ``NoTransaction``, ``TransactionExists``, ``OptionsConflict`` or ``UsageError`` before anything has happened, so
    that the open transaction stays usable.
    """
    action = TABLE[asked.propagation][open_ is not None]
    name = asked.propagation.name
    if action is Action.REFUSE_NONE_OPEN:
        raise NoTransaction(f"Propagation.{name} needs an open transaction, and none is open; call it inside one")
    if action is Action.REFUSE_OPEN:
        raise TransactionExists(f"Propagation.{name} must not run inside a transaction, and one is open")
    if open_ is not None and asked.retry is not None:
        raise UsageError(
            "retry= was asked for inside an open transaction, of which one part cannot be run again alone; ask for it "
            "where the outermost transaction begins, or on the request: db.session(retry=…)"
        )
    if action in _WITHOUT and (wanted := [option for option in _OF_TRANSACTIONS if getattr(asked, option)]):
        raise OptionsConflict(f"Propagation.{name} runs without a transaction here, so it cannot have {wanted[0]}=")
    if open_ is not None and action in _JOINING:
        check_compatible(asked, open_)
    return action


def check_compatible(asked: Options, open_: Options) -> None:
    """Raise ``OptionsConflict`` if a block that asks for ``asked`` cannot join a transaction that has ``open_``."""
    # The level and the access mode of a transaction are fixed by its first statement: to join with others would be to
    # ignore what the caller asked for.
    if asked.isolation is not None and asked.isolation is not open_.isolation:
        had = open_.isolation.name if open_.isolation else "the engine's default"
        raise OptionsConflict(f"isolation={asked.isolation.name} was asked for inside a transaction that has {had}")
    if asked.read_only is False and open_.read_only:
        raise OptionsConflict("read_only=False was asked for inside a read-only transaction")
