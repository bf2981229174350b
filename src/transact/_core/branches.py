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

**MariaDB** names a transaction when it begins (``XA START``), when nobody knows yet who else will write. What is named first
can say nothing of the others, and so has to be what the others speak of: a MariaDB branch is always branch ``n``, whatever the
order of the databases, and of one transaction there is one at most. The id of its transaction in the other names is the
connection that it was begun on and the time at which its server had started: it is still open as long as that connection is,
on a server that has not started again. To be asked in this order: whether the connection is gone, then whether the
transaction is prepared. What was on its way has arrived by then, or never will.

- Rolling back, its connection has to be thrown away, or others that are left would wait for as long as the pool keeps it.
- Its own name (``Xid``) cannot tell who takes part. It tells who *may*: all databases of the application. Where nothing else
  is found prepared, all of these have to be looked at before it is committed, or one that was left out would find branch ``n``
  neither prepared nor open, and be rolled back.
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
    r"transact:(?P<global_id>[0-9a-f]{32}):(?P<number>\d+)/(?P<of>\d+):(?P<transaction>\d+(?:-\d+)?)"
    r":(?P<decider>[0-9a-f]{16}):(?P<group>[0-9a-f]{16}):(?P<database>[\w.-]*)",
    re.ASCII,
)
_LONGEST = 40
XA_FORMAT = 0x74726163
"""The ``formatID`` of our XIDs: "trac"."""
_GTRID = re.compile(r"transact:(?P<global_id>[0-9a-f]{32}):(?P<group>[0-9a-f]{16}):(?P<of>\d+)", re.ASCII)
_BQUAL = re.compile(r"(?P<decider>[0-9a-f]{16}):(?P<began>\d+):(?P<database>[\w.-]*)", re.ASCII)
_XA_LONGEST = 36


@dataclass(frozen=True, slots=True)
class Branch:
    """One database's part of a transaction over several; ``str()`` of it is what the server knows it by.

    - ``global_id``: common to all branches, 32 hexadecimal digits.
    - ``number``, ``of``: this is branch ``number`` of ``of``, from 1.
    - ``transaction``: the id that the server of the last branch gave that branch's transaction; on MariaDB, which gives none,
      its connection's id and the second of the server's start.
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
        # PostgreSQL takes 199 bytes (GIDSIZE); these are at most 158.
        database = _plain(self.database)[:_LONGEST]
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


@dataclass(frozen=True, slots=True)
class Xid:
    """What MariaDB knows a transaction by, from its beginning on; ``str()`` of it is how XA statements write it.

    - ``global_id``: becomes that of the whole transaction, if it is prepared.
    - ``of``: how many databases may take part; ``group``: ``group_of`` these.
    - ``decider``: ``fingerprint`` of its own database.
    - ``began``: when it was begun, in seconds since 1970, by the clock of the program.
    - ``database``: the ``name`` of the ``Database``, for people.
    """

    global_id: str
    of: int
    group: str
    decider: str
    began: int
    database: str

    def __str__(self) -> str:
        # Each of both takes 64 bytes: https://mariadb.com/kb/en/xa-transactions/
        gtrid = f"{PREFIX}{self.global_id}:{self.group}:{self.of}"
        bqual = f"{self.decider}:{self.began}:{_plain(self.database)[:_XA_LONGEST]}"
        return f"'{gtrid}','{bqual}',{XA_FORMAT}"

    @classmethod
    def parse(cls, format_id: int, gtrid_length: int, data: str) -> Xid | None:
        """Read a row of XA RECOVER; ``None`` if it is somebody else's."""
        gtrid, bqual = _GTRID.fullmatch(data[:gtrid_length]), _BQUAL.fullmatch(data[gtrid_length:])
        if format_id != XA_FORMAT or gtrid is None or bqual is None:
            return None
        return cls(
            global_id=gtrid["global_id"],
            of=int(gtrid["of"]),
            group=gtrid["group"],
            decider=bqual["decider"],
            began=int(bqual["began"]),
            database=bqual["database"],
        )


def _plain(name: str) -> str:
    return re.sub(r"[^\w.-]", "_", name, flags=re.ASCII)


def fingerprint(*facts: str) -> str:
    """What stands for a database in names: ``facts`` are what its server says of itself."""
    return hashlib.sha256("\0".join(facts).encode()).hexdigest()[:16]


def group_of(fingerprints: Iterable[str]) -> str:
    """What stands for the databases of one transaction, in whatever order."""
    return fingerprint(*sorted(fingerprints))


def members(branch: Branch | Xid, fingerprints: Sequence[str]) -> tuple[int, ...] | None:
    """Which of the databases with these ``fingerprints`` are those of the transaction, or for an ``Xid`` may be.

    ``None`` if one is not among them.
    """
    for chosen in combinations(range(len(fingerprints)), branch.of):
        if group_of(fingerprints[i] for i in chosen) == branch.group:
            return chosen
    return None


class Verdict(enum.Enum):
    """What the last branch says of all."""

    COMMIT = enum.auto()
    ROLL_BACK = enum.auto()
    WAIT = enum.auto()


def verdict(*, prepared: bool, ended: bool) -> Verdict:
    """The rule of this module.

    ``prepared``: whether the last branch is. ``ended``: whether its transaction has ended, and not by being committed: that,
    it cannot be while others are prepared, unless somebody did it by hand.
    """
    if prepared:
        return Verdict.COMMIT
    return Verdict.ROLL_BACK if ended else Verdict.WAIT
