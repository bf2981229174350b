"""Time limits of a unit of work: checked here before each statement and before COMMIT, and enforced by the server."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from sqlalchemy import event
from sqlalchemy.engine import Connection

from transact._core.limits import Limits, Told
from transact._core.rules import rolls_back
from transact._core.states import Marker
from transact._sqlalchemy.liveness import hang_up
from transact._sqlalchemy.plain import plain_engine
from transact.errors import TransactionTimeout
from transact.options import Options

if TYPE_CHECKING:
    from transact._sqlalchemy.transaction import Transaction
    from transact._sqlalchemy.unit import Unit


GRACE = 5.0
"""Seconds after the deadline in which the server's answer has to arrive; then the network is taken for broken."""


def limits_of(options: Options) -> Limits | None:
    """The limits of a block that begins now; ``None`` if it has none."""
    if options.timeout is None and options.lock_timeout is None:
        return None  # as most, who need no clock
    return Limits.of(options, time.monotonic())


def shorten(unit: Unit, options: Options) -> Limits | None:
    """Let ``options`` of a block that joins limit the unit too; return what the block gives to ``lengthen`` when it ends."""
    asked = limits_of(options)
    if asked is not None:
        unit.joined_limits.append(asked)
        _put_in_force(unit)
        if unit.connection is not None and not unit.enforced:
            enforce(unit, unit.connection)
        elif unit.connection is None and unit.session is not None and not unit.reads_alone:
            unit.session.bind = plain_engine(unit.runtime.engine_of(unit))
    return asked


def lengthen(unit: Unit, asked: Limits | None) -> None:
    """A block that joined ends, and with it what it asked for; others may still be in force."""
    if asked is not None:
        unit.joined_limits.remove(asked)
        _put_in_force(unit)


def _put_in_force(unit: Unit) -> None:
    limits = unit.own_limits
    for asked in unit.joined_limits:
        limits = limits.shortened(asked) if limits is not None else asked
    unit.limits = limits


def is_over(unit: Unit | None) -> bool:
    """Whether the deadline of ``unit`` has passed."""
    return unit is not None and unit.limits is not None and unit.limits.is_over(time.monotonic())


def time_left(unit: Unit | None) -> float | None:
    """Seconds until the deadline of ``unit``; ``None`` if it has none."""
    return None if unit is None or unit.limits is None else unit.limits.remaining(time.monotonic())


def check_deadline(unit: Unit | None) -> None:
    """Raise ``TransactionTimeout`` if the unit's time is over; then what it did can only be rolled back."""
    if unit is not None and is_over(unit):
        error = timed_out(unit)
        if unit.root.is_open:
            mark_late(unit, error)
        raise error


def fail_if_late(scope: Transaction, asked: Limits | None, error: BaseException | None) -> TransactionTimeout | None:
    """What to raise at the end of a block that joined, if its time is over: like a transaction, it is not kept then."""
    unit = scope._unit
    # What joined without a limit of its own leaves this to the end of the transaction; a savepoint has to be released.
    bound = asked if scope._kind == "joined" else unit.limits
    if (
        bound is None
        or not bound.is_over(time.monotonic())
        or unit.connection is None
        or not scope.is_open
        or unit.root.marks
        or scope.marks
        or (error is not None and rolls_back(scope.options, error))
    ):
        return None
    late = timed_out(unit)
    mark_late(unit, late, scope)
    return late


def timed_out(unit: Unit) -> TransactionTimeout:
    """The error of a unit whose time is over."""
    seconds = unit.limits.timeout if unit.limits is not None else None
    return TransactionTimeout(f"{unit.label!r} took longer than its timeout of {seconds} s, so nothing of it is stored")


def mark_late(unit: Unit, error: BaseException, scope: Transaction | None = None) -> None:
    """Mark all of the transaction, or only ``scope`` (by default the innermost) if the transaction's own time is left."""
    if unit.own_limits is not None and unit.own_limits.is_over(time.monotonic()):
        unit.root.mark(Marker.TIMEOUT, cause=error)
    elif scope is not None:
        scope.mark(Marker.TIMEOUT, cause=error)
    else:
        unit.mark_innermost(Marker.TIMEOUT, error)


def enforce(unit: Unit, connection: Connection) -> None:
    """Check the deadline before each statement on ``connection``, and keep the server's own limits in step."""
    unit.enforced = True
    event.listen(connection, "before_cursor_execute", _Enforcement(unit))
    if unit.own_limits is not None and (left := unit.own_limits.remaining(time.monotonic())) is not None:
        driver = connection.connection.driver_connection
        unit.deadline_timer = unit.runtime.call_later(left + GRACE, _hang_up, unit, connection, driver)


def _hang_up(unit: Unit, connection: Connection, driver: object) -> None:
    # Nothing but a ROLLBACK is sent after the deadline, and the server ends at the deadline what was sent before: who still
    # waits for an answer is not reached by any.
    if unit.runtime.units.get(connection) is unit and unit.busy is not None:
        hang_up(driver)


class _Enforcement:
    """The listener of one connection."""

    def __init__(self, unit: Unit) -> None:
        self._unit = unit
        self._told = Told()
        self._telling = False

    def __call__(self, connection: Connection, _cursor: object, statement: str, *_: object) -> None:
        unit = self._unit
        if self._telling or unit.closing:
            return
        if statement.startswith("ROLLBACK TO SAVEPOINT"):
            self._told = self._told.taken_back()
            return
        check_deadline(unit)
        limits, now = unit.limits or Limits(), time.monotonic()
        wanted = self._told.next(limits, now)
        if wanted is None or statement.startswith("RELEASE SAVEPOINT"):
            return
        self._telling = True
        try:
            unit.runtime.tell_limits(unit, connection, self._told, wanted)
        finally:
            self._telling = False
        self._told = wanted
