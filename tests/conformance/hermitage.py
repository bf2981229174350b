"""The scenarios of Hermitage (https://github.com/ept/hermitage) as tables: who does what, and what each level makes of it.

A row is a step: the transaction that takes it, its SQL, and what comes of it in each of COLUMNS. Without cells: it is just
done, everywhere. Each step is told when the one before it is done or waits; what a waiting transaction is told, it does later.

    ok, 10,20, none     done; the values it read, in order
    wait …              it waits for a lock until another transaction ends; then …
    serial, dead        it fails: SerializationFailure, DeadlockDetected
    -                   the transaction has failed before

The last row is what is stored in the end. MariaDB with innodb_snapshot_isolation off, which is the default before 11.6.2:
a statement that writes at REPEATABLE READ acts on what is committed and not on what the transaction has read.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from transact import Isolation, errors

RU, RC, RR, SER = Isolation
SET_UP = (
    "DROP TABLE IF EXISTS test",
    "CREATE TABLE test (id INTEGER PRIMARY KEY, value INTEGER NOT NULL)",
    "INSERT INTO test (id, value) VALUES (1, 10), (2, 20)",
)
FAILURES = {errors.SerializationFailure: "serial", errors.DeadlockDetected: "dead", errors.LockTimeout: "lock"}
COMMIT, ROLLBACK = "COMMIT", "ROLLBACK"

# PostgreSQL's READ UNCOMMITTED is READ COMMITTED. SQLite has one level; its writers queue, its readers have a snapshot.
COLUMNS = ("pg RC", "pg RR", "pg SER", "maria RU", "maria RC", "maria RR", "maria SER", "sqlite", "sqlite ro")

# What each level lets happen, as the manuals have it. PMP-write is none at READ UNCOMMITTED: it deletes what it has read.
WEAK = frozenset({"PMP", "PMP-write", "P4", "G-single", "G-single-write", "G2-item", "G2", "G2-reader"})
HAPPENS: Mapping[str, frozenset[str]] = {
    "pg RC": WEAK,
    "pg RR": frozenset({"G2-item", "G2", "G2-reader"}),
    "pg SER": frozenset(),
    "maria RU": WEAK - {"PMP-write"} | {"G1a", "G1b", "G1c", "OTV"},
    "maria RC": WEAK,
    "maria RR": WEAK - {"PMP", "G-single"},
    "maria SER": frozenset(),
    "sqlite": frozenset(),
    "sqlite ro": frozenset(),
}


def column(dialect: str, level: Isolation, *, read_only: bool) -> str:
    """The column of a transaction's level; ``read_only``: those that only read are read-only transactions."""
    if dialect == "sqlite":
        return "sqlite ro" if read_only else "sqlite"
    if read_only and level is RU:  # it reads statement by statement, and only what is committed
        level = RC
    word = "".join(part[0] for part in level.name.split("_")) if level is not SER else "SER"
    if dialect == "postgresql":
        return f"pg {word.replace('RU', 'RC')}"
    return f"maria {word}"


@dataclass(frozen=True)
class Step:
    actor: str
    sql: str
    cells: Mapping[str, str]


@dataclass(frozen=True)
class Scenario:
    """``happens``: the cells that the anomaly shows in, by row; it has happened if each of them is one of those."""

    name: str
    anomaly: str
    steps: tuple[Step, ...]
    stored: Mapping[str, str]
    happens: Mapping[int, set[str]]

    @property
    def readers(self) -> frozenset[str]:
        """The transactions that only read."""
        writers = {s.actor for s in self.steps if not s.sql.startswith(("SELECT", COMMIT))}
        return frozenset({s.actor for s in self.steps} - writers)

    def expected(self, name: str) -> list[str]:
        """One column from top to bottom."""
        return [*(step.cells[name] for step in self.steps), self.stored[name]]

    def has_happened(self, cells: list[str]) -> bool:
        return all(cells[row] in shows for row, shows in self.happens.items())


def _scenario(name: str, anomaly: str, happens: Mapping[int, set[str]], table: str) -> Scenario:
    steps: list[Step] = []
    for line in table.strip().splitlines():
        told, *cells = (part.strip() for part in line.split("|"))
        cells = cells or ["ok"] * len(COLUMNS)
        actor, _, sql = told.partition(" ")
        steps.append(Step(actor, sql, dict(zip(COLUMNS, cells, strict=True))))
    return Scenario(name, anomaly, tuple(steps[:-1]), steps[-1].cells, happens)


SCENARIOS = (
    _scenario(
        "G0",
        "dirty write",
        {-1: {"11,22", "12,21"}},
        """
        1 UPDATE test SET value = 11 WHERE id = 1 | ok      | ok          | ok          | ok      | ok      | ok      | ok      | ok      |
        2 UPDATE test SET value = 12 WHERE id = 1 | wait ok | wait serial | wait serial | wait ok | wait ok | wait ok | wait ok | wait ok |
        1 UPDATE test SET value = 21 WHERE id = 2 | ok      | ok          | ok          | ok      | ok      | ok      | ok      | ok      |
        1 COMMIT                                  | ok      | ok          | ok          | ok      | ok      | ok      | ok      | ok      |
        2 UPDATE test SET value = 22 WHERE id = 2 | ok      | -           | -           | ok      | ok      | ok      | ok      | ok      |
        2 COMMIT                                  | ok      | -           | -           | ok      | ok      | ok      | ok      | ok      |
        stored                                    | 12,22   | 11,21       | 11,21       | 12,22   | 12,22   | 12,22   | 12,22   | 12,22   |
        """,
    ),
    _scenario(
        "G1a",
        "read of what is rolled back",
        {1: {"101,20"}},
        """
        1 UPDATE test SET value = 101 WHERE id = 1
        2 SELECT value FROM test ORDER BY id       | 10,20 | 10,20 | 10,20 | 101,20 | 10,20 | 10,20 | wait 10,20 | wait 10,20 | 10,20
        1 ROLLBACK
        2 SELECT value FROM test ORDER BY id       | 10,20 | 10,20 | 10,20 | 10,20  | 10,20 | 10,20 | 10,20      | 10,20      | 10,20
        2 COMMIT
        stored                                     | 10,20 | 10,20 | 10,20 | 10,20  | 10,20 | 10,20 | 10,20      | 10,20      | 10,20
        """,
    ),
    _scenario(
        "G1b",
        "read of an intermediate value",
        {1: {"101,20"}},
        """
        1 UPDATE test SET value = 101 WHERE id = 1
        2 SELECT value FROM test ORDER BY id       | 10,20 | 10,20 | 10,20 | 101,20 | 10,20 | 10,20 | wait 11,20 | wait 11,20 | 10,20
        1 UPDATE test SET value = 11 WHERE id = 1
        1 COMMIT
        2 SELECT value FROM test ORDER BY id       | 11,20 | 10,20 | 10,20 | 11,20  | 11,20 | 10,20 | 11,20      | 11,20      | 10,20
        2 COMMIT
        stored                                     | 11,20 | 11,20 | 11,20 | 11,20  | 11,20 | 11,20 | 11,20      | 11,20      | 11,20
        """,
    ),
    _scenario(
        "G1c",
        "two transactions that read of each other",
        {2: {"22"}, 3: {"11"}},
        """
        1 UPDATE test SET value = 11 WHERE id = 1 | ok    | ok    | ok     | ok    | ok    | ok    | ok      | ok      |
        2 UPDATE test SET value = 22 WHERE id = 2 | ok    | ok    | ok     | ok    | ok    | ok    | ok      | wait ok |
        1 SELECT value FROM test WHERE id = 2     | 20    | 20    | 20     | 22    | 20    | 20    | wait 20 | 20      |
        2 SELECT value FROM test WHERE id = 1     | 10    | 10    | 10     | 11    | 10    | 10    | dead    | 11      |
        1 COMMIT                                  | ok    | ok    | ok     | ok    | ok    | ok    | ok      | ok      |
        2 COMMIT                                  | ok    | ok    | serial | ok    | ok    | ok    | -       | ok      |
        stored                                    | 11,22 | 11,22 | 11,20  | 11,22 | 11,22 | 11,22 | 11,20   | 11,22   |
        """,
    ),
    _scenario(
        "OTV",
        "a transaction that is seen and then vanishes",
        {4: {"11,19", "12,19"}, 6: {"12,19", "12,18"}},
        """
        1 UPDATE test SET value = 11 WHERE id = 1
        1 UPDATE test SET value = 19 WHERE id = 2
        2 UPDATE test SET value = 12 WHERE id = 1 | wait ok | wait serial | wait serial | wait ok | wait ok | wait ok | wait ok    | wait ok    | wait ok
        1 COMMIT
        3 SELECT value FROM test ORDER BY id      | 11,19   | 11,19       | 11,19       | 12,19   | 11,19   | 11,19   | wait 12,18 | wait 12,18 | 11,19
        2 UPDATE test SET value = 18 WHERE id = 2 | ok      | -           | -           | ok      | ok      | ok      | ok         | ok         | ok
        3 SELECT value FROM test ORDER BY id      | 11,19   | 11,19       | 11,19       | 12,18   | 11,19   | 11,19   | 12,18      | 12,18      | 11,19
        2 COMMIT                                  | ok      | -           | -           | ok      | ok      | ok      | ok         | ok         | ok
        3 SELECT value FROM test ORDER BY id      | 12,18   | 11,19       | 11,19       | 12,18   | 12,18   | 11,19   | 12,18      | 12,18      | 11,19
        3 COMMIT
        stored                                    | 12,18   | 11,19       | 11,19       | 12,18   | 12,18   | 12,18   | 12,18      | 12,18      | 12,18
        """,
    ),
    _scenario(
        "PMP",
        "a condition that another transaction's rows come to meet",
        {0: {"none"}, 3: {"3"}},
        """
        1 SELECT id FROM test WHERE value % 3 = 0     | none     | none     | none     | none     | none     | none     | none     | none     | none
        2 INSERT INTO test (id, value) VALUES (3, 30) | ok       | ok       | ok       | ok       | ok       | ok       | wait ok  | wait ok  | ok
        2 COMMIT
        1 SELECT id FROM test WHERE value % 3 = 0     | 3        | none     | none     | 3        | 3        | none     | none     | none     | none
        1 COMMIT
        stored                                        | 10,20,30 | 10,20,30 | 10,20,30 | 10,20,30 | 10,20,30 | 10,20,30 | 10,20,30 | 10,20,30 | 10,20,30
        """,
    ),
    _scenario(
        "PMP-write",
        "the same, and it deletes what meets the condition",
        {1: {"2"}, 5: {"ok"}, -1: {"20,30", "30"}},
        """
        1 UPDATE test SET value = value + 10   | ok      | ok          | ok          | ok      | ok      | ok      | ok     | ok     |
        2 SELECT id FROM test WHERE value = 20 | 2       | 2           | 2           | 1       | 2       | 2       | wait 1 | wait 1 |
        2 DELETE FROM test WHERE value = 20    | wait ok | wait serial | wait serial | wait ok | wait ok | wait ok | ok     | ok     |
        1 COMMIT                               | ok      | ok          | ok          | ok      | ok      | ok      | ok     | ok     |
        2 SELECT id FROM test WHERE value = 20 | 1       | -           | -           | none    | none    | 2       | none   | none   |
        2 COMMIT                               | ok      | -           | -           | ok      | ok      | ok      | ok     | ok     |
        stored                                 | 20,30   | 20,30       | 20,30       | 30      | 30      | 30      | 30     | 30     |
        """,
    ),
    _scenario(
        "P4",
        "lost update",
        {0: {"10"}, 1: {"10"}, 4: {"ok"}, 5: {"ok"}},
        """
        1 SELECT value FROM test WHERE id = 1     | 10      | 10          | 10          | 10      | 10      | 10      | 10      | 10      |
        2 SELECT value FROM test WHERE id = 1     | 10      | 10          | 10          | 10      | 10      | 10      | 10      | wait 11 |
        1 UPDATE test SET value = 11 WHERE id = 1 | ok      | ok          | ok          | ok      | ok      | ok      | wait ok | ok      |
        2 UPDATE test SET value = 12 WHERE id = 1 | wait ok | wait serial | wait serial | wait ok | wait ok | wait ok | dead    | ok      |
        1 COMMIT                                  | ok      | ok          | ok          | ok      | ok      | ok      | ok      | ok      |
        2 COMMIT                                  | ok      | -           | -           | ok      | ok      | ok      | -       | ok      |
        stored                                    | 12,20   | 11,20       | 11,20       | 12,20   | 12,20   | 12,20   | 11,20   | 12,20   |
        """,
    ),
    _scenario(
        "G-single",
        "read skew",
        {0: {"10"}, 5: {"18"}},
        """
        1 SELECT value FROM test WHERE id = 1     | 10    | 10    | 10    | 10    | 10    | 10    | 10      | 10         | 10
        2 SELECT value FROM test ORDER BY id      | 10,20 | 10,20 | 10,20 | 10,20 | 10,20 | 10,20 | 10,20   | wait 10,20 | 10,20
        2 UPDATE test SET value = 12 WHERE id = 1 | ok    | ok    | ok    | ok    | ok    | ok    | wait ok | ok         | ok
        2 UPDATE test SET value = 18 WHERE id = 2
        2 COMMIT
        1 SELECT value FROM test WHERE id = 2     | 18    | 20    | 20    | 18    | 18    | 20    | 20      | 20         | 20
        1 COMMIT
        stored                                    | 12,18 | 12,18 | 12,18 | 12,18 | 12,18 | 12,18 | 12,18   | 12,18      | 12,18
        """,
    ),
    _scenario(
        "G-single-write",
        "read skew, and it deletes what it has not read",
        {0: {"10"}, 4: {"ok"}, 5: {"ok"}, 7: {"ok"}, -1: {"12,18"}},
        """
        1 SELECT value FROM test WHERE id = 1     | 10    | 10     | 10     | 10    | 10    | 10    | 10      | 10      |
        2 SELECT value FROM test ORDER BY id      | 10,20 | 10,20  | 10,20  | 10,20 | 10,20 | 10,20 | 10,20   | wait 10 |
        2 UPDATE test SET value = 12 WHERE id = 1 | ok    | ok     | ok     | ok    | ok    | ok    | wait ok | ok      |
        2 UPDATE test SET value = 18 WHERE id = 2 | ok    | ok     | ok     | ok    | ok    | ok    | ok      | ok      |
        2 COMMIT                                  | ok    | ok     | ok     | ok    | ok    | ok    | ok      | ok      |
        1 DELETE FROM test WHERE value = 20       | ok    | serial | serial | ok    | ok    | ok    | dead    | ok      |
        1 SELECT value FROM test ORDER BY id      | 12,18 | -      | -      | 12,18 | 12,18 | 10,20 | -       | 10      |
        1 COMMIT                                  | ok    | -      | -      | ok    | ok    | ok    | -       | ok      |
        stored                                    | 12,18 | 12,18  | 12,18  | 12,18 | 12,18 | 12,18 | 12,18   | 12      |
        """,
    ),
    _scenario(
        "G2-item",
        "write skew",
        {0: {"10,20"}, 1: {"10,20"}, 4: {"ok"}, 5: {"ok"}},
        """
        1 SELECT value FROM test ORDER BY id      | 10,20 | 10,20 | 10,20  | 10,20 | 10,20 | 10,20 | 10,20   | 10,20      |
        2 SELECT value FROM test ORDER BY id      | 10,20 | 10,20 | 10,20  | 10,20 | 10,20 | 10,20 | 10,20   | wait 11,20 |
        1 UPDATE test SET value = 11 WHERE id = 1 | ok    | ok    | ok     | ok    | ok    | ok    | wait ok | ok         |
        2 UPDATE test SET value = 21 WHERE id = 2 | ok    | ok    | ok     | ok    | ok    | ok    | dead    | ok         |
        1 COMMIT                                  | ok    | ok    | ok     | ok    | ok    | ok    | ok      | ok         |
        2 COMMIT                                  | ok    | ok    | serial | ok    | ok    | ok    | -       | ok         |
        stored                                    | 11,21 | 11,21 | 11,20  | 11,21 | 11,21 | 11,21 | 11,20   | 11,21      |
        """,
    ),
    _scenario(
        "G2",
        "write skew over a condition",
        {0: {"none"}, 1: {"none"}, 4: {"ok"}, 5: {"ok"}},
        """
        1 SELECT id FROM test WHERE value % 3 = 0     | none        | none        | none     | none        | none        | none        | none     | none        |
        2 SELECT id FROM test WHERE value % 3 = 0     | none        | none        | none     | none        | none        | none        | none     | wait 3      |
        1 INSERT INTO test (id, value) VALUES (3, 30) | ok          | ok          | ok       | ok          | ok          | ok          | wait ok  | ok          |
        2 INSERT INTO test (id, value) VALUES (4, 42) | ok          | ok          | ok       | ok          | ok          | ok          | dead     | ok          |
        1 COMMIT                                      | ok          | ok          | ok       | ok          | ok          | ok          | ok       | ok          |
        2 COMMIT                                      | ok          | ok          | serial   | ok          | ok          | ok          | -        | ok          |
        stored                                        | 10,20,30,42 | 10,20,30,42 | 10,20,30 | 10,20,30,42 | 10,20,30,42 | 10,20,30,42 | 10,20,30 | 10,20,30,42 |
        """,
    ),
    _scenario(
        "G2-reader",
        "write skew that only a third transaction, a reader, can see",
        {4: {"10,25"}, 7: {"ok"}},
        """
        1 SELECT value FROM test ORDER BY id             | 10,20 | 10,20 | 10,20  | 10,20 | 10,20 | 10,20 | 10,20      | 10,20   | 10,20
        2 UPDATE test SET value = value + 5 WHERE id = 2 | ok    | ok    | ok     | ok    | ok    | ok    | wait dead  | wait ok | wait ok
        2 COMMIT                                         | ok    | ok    | ok     | ok    | ok    | ok    | -          | ok      | ok
        3 SELECT value FROM test WHERE id = 1            | 10    | 10    | 10     | 10    | 10    | 10    | 10         | wait 0  | 10
        3 SELECT value FROM test ORDER BY id             | 10,25 | 10,25 | 10,25  | 10,25 | 10,25 | 10,25 | wait 10,20 | 0,25    | 10,20
        3 COMMIT
        1 UPDATE test SET value = 0 WHERE id = 1         | ok    | ok    | serial | ok    | ok    | ok    | ok         | ok      | ok
        1 COMMIT                                         | ok    | ok    | -      | ok    | ok    | ok    | ok         | ok      | ok
        stored                                           | 0,25  | 0,25  | 10,25  | 0,25  | 0,25  | 0,25  | 0,20       | 0,25    | 0,25
        """,
    ),
)
