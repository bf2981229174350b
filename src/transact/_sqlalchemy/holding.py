"""Who holds the connections of a pool, for how long, and with which last statement."""

from __future__ import annotations

import asyncio
import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from sqlalchemy import event
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection

from transact._core.events import ConnectionHeld, Holder
from transact._sqlalchemy.line import Line, Place
from transact._sqlalchemy.plain import AnyEngine, plain_engine

if TYPE_CHECKING:
    from transact._sqlalchemy.runtime import Runtime
    from transact._sqlalchemy.timers import Timer

LONG = 10.0
"""Seconds after which the holder of a connection is reported; then after twice as many, and so on."""
UNKNOWN = "(unknown)"
"""The label of whoever holds a connection that no unit of work knows of: it is of ``db.engine`` or ``db.session_factory``."""
PLACE = "transact_place"
"""Where a connection's ``record_info`` keeps its place in the line."""
_SHOWN = 120


class Watch:
    """Names the holders of a pool's connections, and tells of those who hold one for long.

    One timer for all of them, which rests while nobody holds anything.
    """

    def __init__(self, runtime: Runtime, line: Line) -> None:
        self._runtime = runtime
        self._line = line
        self._timer: Timer | None = None

    def holders(self) -> tuple[Holder, ...]:
        """Who holds connections now, the longest first."""
        labels = self._labels()
        return tuple(
            Holder(labels.get(place, UNKNOWN), place.seconds, shown(place.statement)) for place in self._line.taken
        )

    def new_place(self) -> Place:
        """For whoever wants a connection."""
        return Place(LONG)

    def start(self) -> None:
        """Somebody takes a connection."""
        if self._timer is None:
            self._timer = self._runtime.call_later(LONG, self._look)

    def stop(self) -> None:
        """Leave nothing behind that would be called."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None

    def _labels(self) -> dict[Place | None, str]:
        return {
            place_of(connection.connection): unit.label
            for connection, unit in list(self._runtime.units.items())
            if not connection.closed and not connection.invalidated
        }

    def _look(self) -> None:
        long = [place for place in self._line.taken if place.seconds >= place.due]
        labels = self._labels() if long else {}
        for place in long:
            seconds = place.seconds
            place.due = 2 * seconds
            self._runtime.emit(
                ConnectionHeld(self._runtime.name, labels.get(place, UNKNOWN), seconds, shown(place.statement))
            )
        left = [place.due - place.seconds for place in self._line.taken]
        self._timer = self._runtime.call_later(max(0.0, min(left)), self._look) if left else None


class LoopWatch(Watch):
    """The same where event loops come and go."""

    _loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """See ``Watch``."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:  # a timer of a loop that has stopped never comes
            self.stop()
            self._loop = loop
        if self._timer is None:
            super().start()


def note_statements(engine: AnyEngine) -> None:
    """Let the pool of ``engine`` know the last statement of each connection."""

    # Listeners of the dialect: one of the engine's connections would make SQLAlchemy prepare all their events, each time.
    def note(_cursor: object, statement: str, *arguments: Any) -> None:
        context = arguments[-1]
        place = place_of(context.root_connection.connection)
        if place is not None:
            compiled = getattr(context, "compiled", None)
            # In what is sent, values can stand that were bound to be rendered; here they never do.
            place.statement = statement if compiled is None else compiled.string

    for name in ("do_execute", "do_executemany", "do_execute_no_params"):
        event.listen(plain_engine(engine), name, note)


def place_of(connection: PoolProxiedConnection | ConnectionPoolEntry) -> Place | None:
    """The place in the line that ``connection`` was taken with."""
    info = connection.record_info
    return None if info is None else info.get(PLACE)  # none: it was detached


def shown(statement: str | None) -> str | None:
    """Enough of ``statement`` to recognise it, in one line of which nothing can be forged."""
    return None if statement is None else _shortened(statement[: 10 * _SHOWN])


@lru_cache(maxsize=256)  # under overload each request that is refused names all holders
def _shortened(statement: str) -> str:
    named = re.sub(r"__\[POSTCOMPILE_(\w+)\]", r":\1", statement)
    line = "".join(c if c.isprintable() else "?" for c in " ".join(named.split()))
    return line if len(line) <= _SHOWN else f"{line[:_SHOWN]}…"
