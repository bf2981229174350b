"""Every error that transact raises.

::

    TransactError
    ├── ConfigurationError
    ├── UsageError                       a mistake in the program; do not catch
    │   ├── NoTransaction, TransactionExists, TransactionEnded
    │   └── ConcurrentUse, OptionsConflict, PoolSelfDeadlock
    ├── UnexpectedRollback               a block ended normally, but its transaction could only be rolled back
    ├── TransactionLost                  the server had already rolled back the whole transaction
    ├── CommitOutcomeUnknown             COMMIT was sent and its answer lost
    ├── RetriesExhausted
    ├── AfterCommitError                 (ExceptionGroup) the data is stored, hooks failed
    ├── PartialCommit                    of several databases some have committed, one has not
    └── DatabaseError                    what the database or the way to it said
        ├── IntegrityViolation           constraint, table, columns
        │   ├── UniqueViolation, ForeignKeyViolation, NotNullViolation
        │   └── CheckViolation, ExclusionViolation
        ├── InvalidData                  too long, out of range, not of the type
        ├── TransientError               may be tried again
        │   ├── SerializationFailure, DeadlockDetected, LockTimeout
        │   └── ConnectionLost, ServerShutdown
        ├── StatementTimeout, TransactionTimeout
        ├── PoolTimeout, DatabaseUnavailable, TooManyConnections
        └── ReadOnlyViolation, PermissionDenied, InvalidStatement

An error that began as a driver's is *also* the SQLAlchemy class that it would have been without transact, so
``except sqlalchemy.exc.IntegrityError`` and ``except errors.UniqueViolation`` both catch it. The driver's own exception is
its ``orig``.

Nothing here names SQLAlchemy, a driver or a framework: the classes are plain, and ``transact.translation`` mixes in what
the driver's error was.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar


class TransactError(Exception):
    """The base of every error of this library. Catch it only at an edge, to log or to render.

    ``retryable``: whether the same work, run again, may well succeed.
    """

    retryable: ClassVar[bool] = False


class ConfigurationError(TransactError):
    """A ``Database`` or an application was set up in a way that cannot work.

    Raised while the program starts; the text says what to write instead. Do not catch it: correct the set-up. A password
    never appears in the text.
    """


class UsageError(TransactError):
    """The program asked for something that has no correct meaning at that place. Do not catch it: correct the program."""


class NoTransaction(UsageError):
    """A transaction must be open here, and none is. Open one with ``async with db.transaction()``."""


class TransactionExists(UsageError):
    """No transaction may be open here (``Propagation.NEVER``), and one is."""


class TransactionEnded(UsageError):
    """A session or connection was used after its transaction had ended.

    Typical places: a background task, the body of a streaming response, a task that outlives its request. The use did
    nothing and took no connection. Work that comes later opens its own transaction: ``async with db.transaction()``.
    """


class ConcurrentUse(UsageError):
    """Two tasks used one session at the same time, as ``asyncio.gather`` over one session does.

    The second use was refused before it touched anything; the first goes on undisturbed and the session stays usable. Run
    the statements one after the other, or give each task a transaction of its own.
    """


class OptionsConflict(UsageError):
    """A block joined an open transaction and asked for options that the open one does not have."""


class PoolSelfDeadlock(UsageError):
    """A task that holds every connection of the pool asked for one more, and would have waited for itself."""


class UnexpectedRollback(TransactError):
    """A block ended normally, but its transaction could only be rolled back; nothing of it is stored.

    Why: a statement failed and the error was swallowed, a joined block failed and its caller went on, or a joined block
    called ``set_rollback_only()``. ``__cause__`` is the first error, the notes tell who marked the transaction, where.
    What to do: wrap what may fail in ``async with db.savepoint()``. Catch it only to tell the user that nothing was stored.
    """


class TransactionLost(TransactError):
    """The server had already rolled back the whole transaction (a deadlock on MySQL, an error on SQLite that ends it).

    ``__cause__`` is the error that did it. In place of that error this leaves a savepoint's block, which could not be rolled
    back to; every later statement raises it too, and so does the end of every block up to the transaction's own. Nothing is
    sent any more. The transaction may be run again as a whole, not continued.
    """

    retryable: ClassVar[bool] = True


class CommitOutcomeUnknown(TransactError):
    """COMMIT was sent and its answer was lost: the data may be stored or not.

    Never repeat such a transaction blindly; look whether the data is there. ``__cause__`` is what happened to the
    connection. ``prepared``: with ``two_phase=True``, the names under which servers hold what ``resolve_prepared`` will end.
    """

    prepared: tuple[str, ...] = ()


class RetriesExhausted(TransactError):
    """Every attempt failed with a transient error. ``__cause__`` is the last one, ``attempts`` their number."""

    retryable: ClassVar[bool] = True

    def __init__(self, message: str, *, attempts: int = 0) -> None:
        super().__init__(message)
        self.attempts = attempts


class AfterCommitError(TransactError, ExceptionGroup[Exception]):
    """The transaction is committed, and critical ``after_commit`` hooks failed: the exceptions of this group.

    Never treat it as a failed transaction: ``committed`` is always true.
    """

    committed: ClassVar[bool] = True

    def derive(self, excs: Sequence[Exception]) -> AfterCommitError:  # type: ignore[override]  # narrower, as the docs allow
        """Keep the class when ``except*`` splits the group."""
        return AfterCommitError(self.message, list(excs))


class PartialCommit(TransactError):
    """Of the databases that a request used, some have committed, and then the COMMIT of another one failed.

    What is committed cannot be undone; what had not been committed was rolled back. Never repeat such a request blindly:
    look which part is missing and store that. ``__cause__`` is the failure of the COMMIT.

    - ``committed``: the names of the databases that have committed, in their order; never empty.
    - ``unknown``: that of the one whose COMMIT was sent and not answered, if it was that.
    - ``rolled_back``: those of the databases where nothing is stored.
    """

    def __init__(
        self,
        message: str,
        *,
        committed: tuple[str, ...] = (),
        unknown: tuple[str, ...] = (),
        rolled_back: tuple[str, ...] = (),
    ) -> None:
        super().__init__(message)
        self.committed = committed
        self.unknown = unknown
        self.rolled_back = rolled_back


class DatabaseError(TransactError):
    """What the database, or the way to it, said. Also raised itself, for codes that no subclass stands for.

    - ``sqlstate``: five characters (SQL:2016, part 2, section 24), where the engine sends one.
    - ``errno``: the engine's own number: MySQL's error number, SQLite's extended result code.
    - ``orig``: the driver's exception.
    """

    sqlstate: str | None = None
    errno: int | None = None
    orig: BaseException | None = None


class IntegrityViolation(DatabaseError):
    """A row broke a rule of the schema. Catch the subclass that you can answer for; all others are faults.

    - ``constraint``: its name, where the engine tells it or ``Database(metadata=…)`` resolves it.
    - ``table``: the table's name, under the same conditions.
    - ``columns``: the columns that the constraint is about, possibly empty.
    """

    constraint: str | None = None
    table: str | None = None
    columns: tuple[str, ...] = ()


class UniqueViolation(IntegrityViolation):
    """A row with this key exists already (SQLSTATE 23505)."""


class ForeignKeyViolation(IntegrityViolation):
    """A referenced row does not exist, or a row is still referenced (SQLSTATE 23503, 23001)."""


class NotNullViolation(IntegrityViolation):
    """A column that needs a value got none (SQLSTATE 23502)."""


class CheckViolation(IntegrityViolation):
    """A value breaks a CHECK constraint (SQLSTATE 23514)."""


class ExclusionViolation(IntegrityViolation):
    """A row conflicts with another under an EXCLUDE constraint of PostgreSQL (SQLSTATE 23P01)."""


class InvalidData(DatabaseError):
    """A value is too long, out of range or not of the column's type (SQLSTATE class 22). Answer it as bad input.

    Also what a driver refuses to send: text that UTF-8 cannot encode, NUL in text, an integer over 64 bits.
    """


class TransientError(DatabaseError):
    """Chance was against it: the same transaction, run again as a whole, may well succeed."""

    retryable: ClassVar[bool] = True


class SerializationFailure(TransientError):
    """Concurrent transactions could not be put into an order (SQLSTATE 40001, SQLite BUSY_SNAPSHOT)."""


class DeadlockDetected(TransientError):
    """The engine chose this transaction to end a deadlock (SQLSTATE 40P01, MySQL 1213)."""


class LockTimeout(TransientError):
    """A lock was not granted in time (SQLSTATE 55P03, MySQL 1205 and 3572, SQLite BUSY and LOCKED)."""


class ConnectionLost(TransientError):
    """The connection broke while a statement ran, before COMMIT was sent (SQLSTATE class 08, or none at all)."""


class ServerShutdown(TransientError):
    """The server is stopping or cut this connection (SQLSTATE 57P01, 57P02, MySQL 1053, 1927)."""


class StatementTimeout(DatabaseError):
    """The server cancelled a statement: it ran too long, or somebody asked (SQLSTATE 57014, MySQL 1317, 3024, 1969)."""


class TransactionTimeout(DatabaseError):
    """The transaction ran longer, or stood idle longer, than it may (SQLSTATE 25P04, 25P03, or the library's deadline)."""


class PoolTimeout(DatabaseError):
    """No connection became free within ``pool_timeout``, or more than ``max_waiting`` would have waited for one.

    The database itself may be well. ``holders``: who held the connections then (``transact.events.Holder``: label, seconds,
    last statement without its values); the log tells it too. Shorter transactions help more than a larger pool. Do not catch
    it, unless there is an answer without the database: it becomes a 503 with Retry-After.
    """

    retryable: ClassVar[bool] = True
    holders: tuple[Any, ...] = ()


class DatabaseUnavailable(DatabaseError):
    """No connection could be made, or the server lacks a resource (SQLSTATE 57P03, class 53, SQLite FULL)."""

    retryable: ClassVar[bool] = True


class TooManyConnections(DatabaseError):
    """The server takes no more connections (SQLSTATE 53300, MySQL 1040, 1203, 1226)."""

    retryable: ClassVar[bool] = True


class ReadOnlyViolation(DatabaseError):
    """Something wrote in a read-only transaction or on a read-only server (SQLSTATE 25006, MySQL 1290, 1792, 1836)."""


class PermissionDenied(DatabaseError):
    """The database user may not do this, or may not log in (SQLSTATE 42501, class 28)."""


class InvalidStatement(DatabaseError):
    """The statement itself is wrong: syntax, an unknown table or column (SQLSTATE class 42)."""


__all__ = [
    "AfterCommitError",
    "CheckViolation",
    "CommitOutcomeUnknown",
    "ConcurrentUse",
    "ConfigurationError",
    "ConnectionLost",
    "DatabaseError",
    "DatabaseUnavailable",
    "DeadlockDetected",
    "ExclusionViolation",
    "ForeignKeyViolation",
    "IntegrityViolation",
    "InvalidData",
    "InvalidStatement",
    "LockTimeout",
    "NoTransaction",
    "NotNullViolation",
    "OptionsConflict",
    "PartialCommit",
    "PermissionDenied",
    "PoolSelfDeadlock",
    "PoolTimeout",
    "ReadOnlyViolation",
    "RetriesExhausted",
    "SerializationFailure",
    "ServerShutdown",
    "StatementTimeout",
    "TooManyConnections",
    "TransactError",
    "TransactionEnded",
    "TransactionExists",
    "TransactionLost",
    "TransactionTimeout",
    "TransientError",
    "UnexpectedRollback",
    "UniqueViolation",
    "UsageError",
]
