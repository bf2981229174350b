"""The hooks of a transaction: four phases, and what a savepoint that is rolled back takes with it."""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from itertools import chain


class Outcome(enum.Enum):
    """How a transaction ended; the argument of ``after_completion`` hooks."""

    COMMITTED = "committed"
    ROLLED_BACK = "rolled back"
    UNKNOWN = "unknown"


Hook = Callable[..., Awaitable[object] | object]


@dataclass(frozen=True, slots=True)
class AfterCommit:
    """One ``after_commit`` hook; a critical one makes its failure the caller's."""

    call: Hook
    critical: bool = False


@dataclass(slots=True)
class Hooks:
    """The hooks that belong to one scope: a transaction or a savepoint.

    ``undo_deeper``: the ``after_rollback`` hooks of savepoints that were released in it, one list for each level.
    """

    before_commit: deque[Hook] = field(default_factory=deque)
    after_commit: list[AfterCommit] = field(default_factory=list)
    after_rollback: list[Hook] = field(default_factory=list)
    after_completion: list[Hook] = field(default_factory=list)
    undo_deeper: list[list[Hook]] = field(default_factory=list)

    @property
    def undo(self) -> list[Hook]:
        """All ``after_rollback`` hooks: deepest first, and first in, first out on each level."""
        return [*chain.from_iterable(reversed(self.undo_deeper)), *self.after_rollback]

    @property
    def come_after(self) -> bool:
        """Whether any runs after the end of the scope."""
        return bool(self.after_commit or self.after_rollback or self.after_completion or self.undo_deeper)

    def release_to(self, parent: Hooks) -> None:
        """Hand everything to the scope around: the savepoint was released, its work shares the parent's fate."""
        parent.before_commit.extend(self.before_commit)
        parent.after_commit.extend(self.after_commit)
        levels = [self.after_rollback, *self.undo_deeper]
        parent.undo_deeper += [[] for _ in levels[len(parent.undo_deeper) :]]
        for deeper, level in zip(parent.undo_deeper, levels, strict=False):
            deeper.extend(level)
        parent.after_completion.extend(self.after_completion)

    def roll_back_to(self, parent: Hooks) -> list[Hook]:
        """Drop what was meant for a commit; return the ``after_rollback`` hooks to run now.

        ``after_completion`` goes to the scope around: it always runs, once the transaction has ended.
        """
        parent.after_completion.extend(self.after_completion)
        return self.undo
