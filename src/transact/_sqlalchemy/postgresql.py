"""What PostgreSQL needs: to be told a transaction's time limits, for this transaction only."""

from __future__ import annotations

import functools
import math
import re
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from sqlalchemy import TextClause, text
from sqlalchemy.engine import Connection

from transact._core.limits import Told

if TYPE_CHECKING:
    from transact._sqlalchemy.unit import Unit

#: The version that can end a session whose transaction takes too long; those before can end one that stands idle.
_TRANSACTION_TIMEOUT = (17,)
#: Seconds after the deadline at which it does. A statement that is under way ends at the deadline, by an error that can
#: be told from a lost connection.
_GRACE = 1.0
_MOST = 2**31 - 1
_OWN = "transact_own_limits"
_CAME_WITH = "transact_came_with"
_SETTING = re.compile(r"(\d+)(\w*)")
_UNITS = {"": 1, "ms": 1, "s": 1000, "min": 60_000, "h": 3_600_000, "d": 86_400_000}


def tell_limits(unit: Unit, connection: Connection, before: Told, told: Told) -> None:
    """Tell the server how long a statement may run and wait, and when a transaction that stands idle is to be ended."""
    wanted = {"statement_timeout": (before.statement, told.statement), "lock_timeout": (before.lock, told.lock)}
    # What was never told is left alone: the application may have set it by hand.
    new = tuple(name for name, (old, new) in wanted.items() if old is None and new is not None)
    again = tuple(name for name, (old, new) in wanted.items() if old is not None and new is not None)
    back = tuple(name for name, (old, new) in wanted.items() if old is not None and new is None)
    own: dict[str, str] = connection.info.setdefault(_OWN, {})
    left = unit.own_limits.remaining(time.monotonic()) if unit.own_limits is not None else None
    idle = _idle_setting(connection)
    if not again and not back and _has_one_snapshot(connection):
        first = {name: seconds for name in new if (seconds := wanted[name][1]) is not None}
        own.update(_set_without_query(unit, connection, first if left is None else {**first, idle: left + _GRACE}))
        return
    values = {name: _milliseconds(seconds) for name, (_, seconds) in wanted.items() if seconds is not None}
    values |= {f"own_{name}": own[name] for name in again + back if name in back or name != "lock_timeout"}
    if left is not None:
        values[idle] = _milliseconds(left + _GRACE)
    row = connection.execute(_set_local(new, again, back, None if left is None else idle), values).one()
    own.update(zip(new, row, strict=False))


def _idle_setting(connection: Connection) -> str:
    newer = (connection.dialect.server_version_info or ()) >= _TRANSACTION_TIMEOUT
    return "transaction_timeout" if newer else "idle_in_transaction_session_timeout"


def _has_one_snapshot(connection: Connection) -> bool:
    level = connection.get_execution_options().get("isolation_level") or connection.default_isolation_level
    return level in {"REPEATABLE READ", "SERIALIZABLE"}


def _set_without_query(unit: Unit, connection: Connection, wanted: Mapping[str, float]) -> Mapping[str, str]:
    """Tell the server by statements that take no snapshot; return the session's own values.

    A query would take that of the whole transaction, and a LOCK TABLE that follows would come too late for it (manual,
    13.4.2). These are more round trips, so what a connection came with is asked once.
    """
    # Inside a transaction that had no limits, the values may be those of a SET LOCAL by hand.
    own: dict[str, str] = {} if unit.joined_limits else connection.info.setdefault(_CAME_WITH, {})
    for name, seconds in wanted.items():
        if name not in own:
            own[name] = connection.exec_driver_sql(f"SHOW {name}").scalar_one()
        number, unit_of_time = _SETTING.findall(own[name])[0]
        milliseconds = int(_milliseconds(seconds))
        if name != "lock_timeout" and int(number):
            milliseconds = min(milliseconds, int(number) * _UNITS[unit_of_time])
        connection.exec_driver_sql(f"SET LOCAL {name} = {milliseconds}")
    return own


@functools.cache
def _set_local(new: tuple[str, ...], again: tuple[str, ...], back: tuple[str, ...], idle: str | None) -> TextClause:
    """The query: first what the session's own values of ``new`` are, so that they can be kept to and put back."""
    # One round trip, in the scope of SET LOCAL: nothing is left for whoever gets the connection next, behind PgBouncer too.
    columns = [f"current_setting('{name}')" for name in new]
    columns += [_set(name, f"current_setting('{name}')") for name in new]
    columns += [_set(name, f":own_{name}") for name in again]
    columns += [f"set_config('{name}', :own_{name}, true)" for name in back]
    if idle is not None:
        columns.append(_set(idle, f"current_setting('{idle}')"))
    return text("SELECT " + ", ".join(columns))


def _set(name: str, own: str) -> str:
    if name == "lock_timeout":  # asked for by name: whoever asks for more gets more
        return "set_config('lock_timeout', :lock_timeout, true)"
    # A tighter limit that the session came with stays in force; 0 is none.
    milliseconds = f"extract(epoch FROM CAST(CAST({own} AS text) AS interval)) * 1000"
    tighter = f"least(nullif({milliseconds}, 0), CAST(CAST(:{name} AS text) AS bigint))"
    return f"set_config('{name}', CAST(CAST({tighter} AS bigint) AS text), true)"


def _milliseconds(seconds: float) -> str:
    return str(min(_MOST, max(1, math.ceil(seconds * 1000))))
