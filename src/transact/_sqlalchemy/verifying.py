"""What became of a COMMIT whose answer was lost: PostgreSQL keeps the status of transactions and can be asked."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from sqlalchemy import text
from sqlalchemy.engine import Connection, Engine

from transact._core.hooks import Outcome
from transact._sqlalchemy.plain import AnyEngine, plain_engine

if TYPE_CHECKING:
    from transact._sqlalchemy.runtime import Runtime

T = TypeVar("T")

PATIENCE = 15.0
"""Seconds in which a server that restarts, or a standby that takes over, has to answer."""
_PAUSE = 0.1

_TIMELINE = "left(pg_walfile_name(pg_current_wal_insert_lsn()), 8)"
#: The id that the transaction got with its first write, if it wrote; where the server's log was then; and how the server came
#: to that log: its timeline, which changes when a standby takes over, and where the replay ended with which the server began
#: its life, after a crash or as a standby (manual, "Recovery Control Functions"; NULL after a start in order).
_RECEIPT = text(
    f"SELECT pg_current_xact_id_if_assigned()::text, {_TIMELINE}, pg_current_wal_insert_lsn()::text, "
    "pg_last_wal_replay_lsn()::text, current_setting('transaction_isolation') = 'serializable'"
)
_SERVER = text(
    f"SELECT CASE WHEN pg_is_in_recovery() THEN NULL ELSE {_TIMELINE} END, pg_last_wal_replay_lsn()::text, "
    "pg_last_wal_replay_lsn() >= CAST(CAST(:lsn AS text) AS pg_lsn)"
)
_STATUS = text("SELECT pg_xact_status(CAST(CAST(:xid AS text) AS xid8))")
_OUTCOMES = {"committed": Outcome.COMMITTED, "aborted": Outcome.ROLLED_BACK}


class Receipt(NamedTuple):
    """What to ask for later. ``xid`` is ``None`` where nothing was written."""

    xid: str | None
    timeline: str
    lsn: str
    replayed: str | None
    serializable: bool


def take_receipt(connection: Connection) -> Receipt:
    """The receipt of a transaction that is about to be committed."""
    return Receipt(*connection.execute(_RECEIPT).one())


def ask(runtime: Runtime, engine: AnyEngine, receipt: Receipt) -> Outcome:
    """Ask the primary, on a new connection, until it knows. ``UNKNOWN`` if that takes longer than ``PATIENCE``."""
    if receipt.xid is None:
        # There was nothing to store; but what a serializable transaction read is not true before its COMMIT succeeds.
        return Outcome.ROLLED_BACK if receipt.serializable else Outcome.COMMITTED
    return until_known(runtime, _ask_once, plain_engine(engine), receipt) or Outcome.UNKNOWN


def until_known(runtime: Runtime, call: Callable[..., T | None], *arguments: Any) -> T | None:
    """Call ``call``, which asks a server, until it returns something; ``None`` if that takes longer than ``PATIENCE``."""
    deadline = time.monotonic() + PATIENCE
    while (left := deadline - time.monotonic()) > 0:
        try:
            found = runtime.bounded(left, call, *arguments)
        except Exception:  # noqa: BLE001  # refused, cut, too many connections, still starting: whatever it is may pass
            found = None
        if found is not None:
            return found
        runtime.sleep(_PAUSE)
    return None


def _ask_once(engine: Engine, receipt: Receipt) -> Outcome | None:
    """``None`` if it may be known later."""
    with engine.connect() as connection:
        timeline, replayed, reaches = connection.execute(_SERVER, {"lsn": receipt.lsn}).one()
        if timeline is None:  # a standby, which may be behind
            return None
        same = timeline == receipt.timeline
        if not reaches and not (same and replayed in {None, receipt.replayed}):
            # A crash or another server, and a log that ends before the receipt: the server may never have heard of the
            # transaction, and have given the same id to somebody else's.
            return Outcome.UNKNOWN
        status = connection.scalar(_STATUS, {"xid": receipt.xid})
        if status == "in progress":  # the server has yet to notice that its client is gone
            return None
        outcome = _OUTCOMES.get(status, Outcome.UNKNOWN)
        if same or (outcome is Outcome.COMMITTED and _follows(timeline, receipt.timeline)):
            return outcome
        # The server that took over never heard of the COMMIT; the one before may have stored it, and may come back.
        return Outcome.UNKNOWN


def _follows(timeline: str, other: str) -> bool:
    """Whether one timeline begins where the other was left, with no other in between whose log may be another."""
    return int(timeline, 16) == int(other, 16) + 1
