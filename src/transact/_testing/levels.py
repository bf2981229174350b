"""The application's transactions as the test's connection knows them: a stack of savepoints."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transact._testing.lent import LentConnection
    from transact._testing.rules import Rules, Send

_USERS_SAVEPOINT = re.compile(r"((?:ROLLBACK TO |RELEASE )?SAVEPOINT )(sa_savepoint_\d+)")


@dataclass(eq=False, slots=True)
class Call:
    """Who asks: the task or the thread, the connections of the blocks around it, and the label of the innermost one.

    ``abandoned``: nobody waits for the answer any more.
    """

    task: object
    around: frozenset[object]
    label: str
    abandoned: bool = False


@dataclass(eq=False, slots=True)
class Level:
    """One of the application's transactions: a savepoint.

    ``task``: whoever asks from there is inside of it; ``wrote``: it may have written; ``failed``: a statement of it failed,
    and PostgreSQL refuses the rest; ``kept``: the labels of transactions that were committed inside of it; ``settings``: what
    SET LOCAL has to be put back to.
    """

    lent: LentConnection
    task: object
    label: str
    name: str
    read_only: bool
    wrote: bool = False
    failed: bool = False
    defers: bool = False
    kept: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)


class Levels:
    """The transactions that are open, the innermost last.

    ``notes``: what went differently than on a server, to be told when the test is over.
    """

    def __init__(self, rules: Rules, send: Send) -> None:
        self.notes: list[str] = []
        self._rules = rules
        self._send = send
        self._open: list[Level] = []

    @property
    def top(self) -> Level | None:
        """The innermost one."""
        return self._open[-1] if self._open else None

    @property
    def label(self) -> str | None:
        """Of the innermost one."""
        return self._open[-1].label if self._open else None

    def push(self, lent: LentConnection, call: Call, *, read_only: bool) -> Level:
        """Begin one inside of those that are open."""
        name = f"transact_test_{len(self._open) + 1}"
        level = Level(lent, lent.known_by(call), call.label, name, read_only)
        self._send(f"SAVEPOINT {name}")
        self._open.append(level)
        lent.level = level
        self._rules.enter(level, self._send)
        return level

    def release(self, level: Level) -> None:
        """Keep what ``level`` has done, as a part of the one around it."""
        self._send(f"RELEASE SAVEPOINT {level.name}")
        self._drop(level)
        if self._open:
            self._open[-1].kept += [*level.kept, *([level.label] if level.wrote else [])]
        self._rules.released(level, self._send)

    def undo(self, level: Level, *, gone: bool) -> None:
        """Roll back ``level`` and all that was begun in it; ``gone``: the server has done so, and is not asked again."""
        if level not in self._open:
            return
        dropped = self._drop(level)
        if gone:
            return
        kept = [label for each in dropped for label in each.kept]
        harmless = not any(each.wrote or each.failed for each in dropped)
        if kept and not harmless:
            self.notes.append(
                f"the rollback of {level.label!r} took with it what {', '.join(map(repr, kept))} had committed inside of it. "
                "On a server that would have stayed: in a test all transactions share one connection"
            )
        if not (kept and harmless):
            self._send(f"ROLLBACK TO SAVEPOINT {level.name}")
        self._send(f"RELEASE SAVEPOINT {level.name}")
        if kept and harmless and self._open:
            self._open[-1].kept += kept

    def forget(self) -> None:
        """Let nobody have a transaction any more: the outer one ends."""
        if self._open:
            self._drop(self._open[0])

    def _drop(self, level: Level) -> list[Level]:
        at = self._open.index(level)
        dropped = self._open[at:]
        del self._open[at:]
        for each in dropped:
            each.lent.level = None
        return dropped


def renamed(statement: str, number: int) -> str:
    """The application's own savepoints under names that no other of its connections uses.

    MySQL forgets a savepoint when another one of the same name is set.
    """
    return _USERS_SAVEPOINT.sub(rf"\1\2_of_{number}", statement)
