"""Who waits for a connection while others wait for it: what can never be served is refused at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from transact.errors import PoolSelfDeadlock

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

    from transact._sqlalchemy.runtime import Runtime
    from transact._sqlalchemy.unit import Unit


def check_second_connection(unit: Unit, *, may_write: bool) -> None:
    """Before a use of a unit that suspends another. Raises ``PoolSelfDeadlock`` where it would wait for itself for ever.

    ``may_write``: whether SQLite could make it wait for its one write lock.
    """
    runtime = unit.runtime
    holding = list(_suspended(unit))
    if unit.connection is None:
        if runtime.capacity is not None and len(holding) >= runtime.capacity:
            raise PoolSelfDeadlock(
                f"{unit.label!r} needs a connection of its own, and the transactions that wait for it hold all "
                f"{runtime.capacity} of the pool: it would wait for itself. Make the pool larger, or end the outer "
                "transaction before"
            )
        if holding:
            runtime.waiting.add(unit)
    if not runtime.single_writer or not may_write or unit.root.options.read_only:
        return
    writer = next((u for u in holding if not u.root.options.read_only and not u.autocommit), None)
    if writer is not None:
        runtime.waiting.discard(unit)
        raise PoolSelfDeadlock(
            f"{unit.label!r} would wait for {writer.label!r}, which waits for it: SQLite has one writer at a time. "
            "End the outer transaction before, or use Propagation.NESTED"
        )


def nobody_can_proceed(runtime: Runtime) -> bool:
    """Whether each connection of the pool is held by a transaction that waits until another one gets a connection."""
    held: set[Connection | None] = {
        unit.connection for waiting in list(runtime.waiting) for unit in _suspended(waiting)
    }
    return runtime.capacity is not None and len(held) >= runtime.capacity


def _suspended(unit: Unit) -> Iterator[Unit]:
    # Those that hold a connection now; one that has ended no longer does.
    outer = unit.suspended
    while outer is not None:
        if outer.connection is not None and outer.runtime.units.get(outer.connection) is outer:
            yield outer
        outer = outer.suspended
