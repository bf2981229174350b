"""Two-phase commit: the names of what is prepared, and the rule that ends it after a crash, without a log.

A note, since everything rests on it: **the last branch decides.** One transaction over ``n`` databases has ``n`` branches.
They are prepared in the order 1 … n and committed in that order; if one cannot be prepared, all are rolled back. So
whoever comes later, and finds some of them prepared, looks for branch ``n``:

- It is prepared: then all were, since it was the last. What is missing is committed already. Commit the rest, ``n`` last, so
  that the next one who looks after another crash finds the same.
- It is not, and its transaction has ended: it was never prepared, or was rolled back, since it is committed only when no
  other is prepared any more. Roll back the rest.
- It is not, and its transaction is still open: its PREPARE may be on the way. Wait; nothing may be decided.

The third line needs the id of that transaction, which therefore is a part of every name. Crash by crash:

============================================  ===================  =============================================
the process ends                              branch n             what is left
============================================  ===================  =============================================
before the first PREPARE                      open, then aborted   nothing: servers roll back what is not prepared
between PREPARE k and n                       open, then aborted   1 … k, to be rolled back
PREPARE n sent, not arrived                   open, then aborted   1 … n-1, to be rolled back
PREPARE n under way                           open, then prepared  1 … n, to be committed; until then nobody decides
after PREPARE n                               prepared             1 … n, to be committed
after COMMIT PREPARED k                       prepared             k+1 … n, to be committed
after COMMIT PREPARED n                       committed            nothing
while rolling back, before n                  open, then aborted   some of 1 … n-1, to be rolled back
============================================  ===================  =============================================

While rolling back, ``n`` is never prepared: whoever has prepared it, commits.
"""

from __future__ import annotations

import enum
import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

PREFIX = "transact:"
_NAME = re.compile(
    r"transact:(?P<global_id>[0-9a-f]{32}):(?P<number>\d+)/(?P<of>\d+):(?P<transaction>\d+)"
    r":(?P<decider>[0-9a-f]{16}):(?P<group>[0-9a-f]{16}):(?P<database>[\w.-]*)",
    re.ASCII,
)
_LONGEST = 40


@dataclass(frozen=True, slots=True)
class Branch:
    """One database's part of a transaction over several; ``str()`` of it is what the server knows it by.

    - ``global_id``: common to all branches, 32 hexadecimal digits.
    - ``number``, ``of``: this is branch ``number`` of ``of``, from 1.
    - ``transaction``: the id that the server of the last branch gave that branch's transaction.
    - ``decider``: ``fingerprint`` of the last branch's database; ``group``: ``group_of`` all of them.
    - ``database``: the ``name`` of the ``Database``, for people.
    """

    global_id: str
    number: int
    of: int
    transaction: str
    decider: str
    group: str
    database: str

    def __str__(self) -> str:
        # PostgreSQL takes 199 bytes (GIDSIZE); these are at most 146.
        database = re.sub(r"[^\w.-]", "_", self.database, flags=re.ASCII)[:_LONGEST]
        return f"{PREFIX}{self.global_id}:{self.number}/{self.of}:{self.transaction}:{self.decider}:{self.group}:{database}"

    @classmethod
    def parse(cls, name: str) -> Branch | None:
        """Read a name; ``None`` if it is somebody else's."""
        found = _NAME.fullmatch(name)
        if found is None:
            return None
        return cls(
            global_id=found["global_id"],
            number=int(found["number"]),
            of=int(found["of"]),
            transaction=found["transaction"],
            decider=found["decider"],
            group=found["group"],
            database=found["database"],
        )


def fingerprint(*facts: str) -> str:
    """What stands for a database in names: ``facts`` are what its server says of itself."""
    return hashlib.sha256("\0".join(facts).encode()).hexdigest()[:16]


def group_of(fingerprints: Iterable[str]) -> str:
    """What stands for the databases of one transaction, in whatever order."""
    return fingerprint(*sorted(fingerprints))


def members(branch: Branch, fingerprints: Sequence[str]) -> tuple[int, ...] | None:
    """Which of the databases with these ``fingerprints`` are those of the transaction; ``None`` if one is not among them."""
    for chosen in combinations(range(len(fingerprints)), branch.of):
        if group_of(fingerprints[i] for i in chosen) == branch.group:
            return chosen
    return None


class Verdict(enum.Enum):
    """What the last branch says of all."""

    COMMIT = enum.auto()
    ROLL_BACK = enum.auto()
    WAIT = enum.auto()


def verdict(*, prepared: bool, status: str | None) -> Verdict:
    """The rule of this module.

    ``prepared``: whether the last branch is. ``status``: what its server says of its transaction, asked after that:
    PostgreSQL's ``pg_xact_status``, ``None`` where it is too old to be known, and so has ended.
    """
    if prepared:
        return Verdict.COMMIT
    # "committed" cannot be while others are prepared, unless somebody did it by hand, or the server has crashed and has
    # given the id to another transaction since.
    return Verdict.ROLL_BACK if status in {"aborted", None} else Verdict.WAIT
