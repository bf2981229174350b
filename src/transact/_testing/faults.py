"""Faults: what goes wrong in production, on demand and through the same doors."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from transact._testing.said import check_sayable, connection_lost, say
from transact.errors import DatabaseError, UsageError

if TYPE_CHECKING:
    from transact._testing.levels import Level
    from transact._testing.shared import SharedConnection


class Lost(NamedTuple):
    """A COMMIT whose answer is lost: ``error`` is the driver's, ``kept`` whether the server has committed."""

    error: BaseException
    kept: bool


@dataclass(eq=False)
class Fault:
    """One fault that waits for its moment. As a context manager it is taken back at the end of the block.

    ``name``: how it was asked for; ``reached``: how often it has struck.
    """

    name: str
    times: float = 1
    reached: int = 0
    kind: type[DatabaseError] | None = None
    constraint: str | None = None
    kept: bool | None = None
    skip: int = 0
    seconds: float = 0.0

    @property
    def armed(self) -> bool:
        """Whether it can still strike."""
        return self.reached < self.times

    def clear(self) -> None:
        """Take it back."""
        self.times = self.reached

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()


class Faults:
    """What is to go wrong on one database, from now on in this test.

    The errors are those that the server and the driver raise for real, and they go through the same translation, so
    handlers, retries and status codes behave as in production. A fault that was armed and never reached when the test ends
    fails the test: it has not tried what it was written for.
    """

    def __init__(self, dialect: Any, drop_idle: Callable[[], None]) -> None:
        self._dialect = dialect
        self._drop_idle = drop_idle
        self._commits: list[Fault] = []
        self._statements: list[Fault] = []
        self._refusals: list[Fault] = []
        self._delays: list[Fault] = []
        self._made: BaseException | None = None

    # What a test calls.

    def fail_commit(self, kind: type[DatabaseError], *, constraint: str | None = None, times: int = 1) -> Fault:
        """Let the next ``times`` COMMITs fail with ``kind``, a class of ``transact.errors``, and be rolled back.

        ``ForeignKeyViolation`` or ``UniqueViolation`` is what a deferred constraint says; ``constraint`` is its name.
        Raises ``UsageError`` for a class that this database has no error for.
        """
        check_sayable(kind, self._dialect)
        fault = Fault(f"fail_commit({kind.__name__})", _number(times), kind=kind, constraint=constraint)
        return _armed(self._commits, fault)

    def lose_commit(self, *, stored: bool, times: int = 1) -> Fault:
        """Let the connection be lost while the next COMMIT is under way, ``stored`` or not: ``CommitOutcomeUnknown``.

        With ``verify_commit=True`` the database finds out what became of it. Raises ``UsageError`` on SQLite, whose COMMIT
        goes over no network.
        """
        if self._dialect.name == "sqlite":
            raise UsageError("lose_commit() on SQLite: there is no connection to a server that could be lost")
        return _armed(self._commits, Fault(f"lose_commit(stored={stored})", _number(times), kept=stored))

    def fail_statement(
        self, kind: type[DatabaseError], *, nth: int = 1, constraint: str | None = None, times: int = 1
    ) -> Fault:
        """Let the ``nth`` statement from now fail with ``kind``, and those after it until ``times`` have failed.

        Savepoints, BEGIN and the like are not counted. Raises ``UsageError`` for a class that this database has no error for.
        """
        check_sayable(kind, self._dialect)
        name = f"fail_statement({kind.__name__}, nth={nth})"
        fault = Fault(name, _number(times), kind=kind, constraint=constraint, skip=_number(nth) - 1)
        return _armed(self._statements, fault)

    def refuse_connections(self) -> Fault:
        """Refuse connections, as a server that is down: ``DatabaseUnavailable``. Those that are open end with their use.

        ``with database.faults.refuse_connections():`` for as long as the block runs, otherwise until the test ends.
        """
        self._drop_idle()
        return _armed(self._refusals, Fault("refuse_connections()", float("inf")))

    def slow(self, seconds: float) -> Fault:
        """Let each statement take ``seconds`` longer, on the server where that can be, so that its time limits count."""
        if not seconds > 0:
            raise UsageError(f"slow({seconds!r}): write a number of seconds above 0")
        return _armed(self._delays, Fault(f"slow({seconds:g})", float("inf"), seconds=seconds))

    def clear(self) -> None:
        """Take back all that is armed."""
        for fault in self._all():
            fault.clear()

    @property
    def left(self) -> list[str]:
        """The faults that were armed and not reached, as they were written."""
        return [
            fault.name for fault in self._all() if fault.armed and (not fault.reached or fault.times < float("inf"))
        ]

    # What the connections ask.

    def at_statement(self, shared: SharedConnection, statement: str) -> None:
        """Raise, or wait, as is due at ``statement``."""
        if is_control(statement):
            return
        for fault in _due(self._delays):
            self._wait(shared, fault.seconds)
        for fault in self._statements:
            if fault.armed and fault.skip:
                fault.skip -= 1
            elif fault.armed:
                fault.reached += 1
                self._raise(fault, shared)

    def at_commit(self, shared: SharedConnection, _level: Level) -> Lost | None:
        """Raise, or return what is lost, as is due at a COMMIT."""
        for fault in itertools.islice(_due(self._commits), 1):
            if fault.kept is not None:
                error = connection_lost(self._dialect, shared.physical)
                self._made = error
                return Lost(error, fault.kept)
            self._raise(fault, shared)
        return None

    @contextmanager
    def at_connect(self, dialect: Any, url: Any) -> Iterator[None]:
        """Raise what the driver of ``dialect`` raises where nobody listens, if connections are to be refused."""
        for _ in _due(self._refusals):
            connect_to_nobody(dialect, url)
        yield

    def made(self, error: BaseException) -> bool:
        """Whether ``error`` is one of these faults, of which the server knows nothing."""
        return error is self._made

    def _raise(self, fault: Fault, shared: SharedConnection) -> None:
        assert fault.kind is not None  # noqa: S101  # the others do not come here
        try:
            say(fault.kind, fault.constraint, self._dialect, shared)
        except BaseException as error:
            self._made = error
            raise

    def _wait(self, shared: SharedConnection, seconds: float) -> None:
        if self._dialect.name == "postgresql":
            shared.send(f"SELECT pg_sleep({seconds})")
        elif self._dialect.name == "sqlite":
            shared.sleep(seconds)
        else:
            shared.send(f"SELECT SLEEP({seconds})")

    def _all(self) -> Iterator[Fault]:
        return itertools.chain(self._commits, self._statements, self._refusals, self._delays)


def _armed(kept: list[Fault], fault: Fault) -> Fault:
    kept.append(fault)
    return fault


def _due(faults: list[Fault]) -> Iterator[Fault]:
    for fault in faults:
        if fault.armed:
            fault.reached += 1
            yield fault


def _number(value: int) -> int:
    if not isinstance(value, int) or value < 1:
        raise UsageError(f"{value!r}: write how often, or which, as a whole number from 1")
    return value


def is_control(statement: str) -> bool:
    """Whether ``statement`` controls the transaction, or is one by which this library tells or asks the server something."""
    head = statement.lstrip().upper()
    return head.startswith(_CONTROL) or "set_config(" in statement or "pg_current_xact_id_if_assigned" in statement


_CONTROL = ("SAVEPOINT", "RELEASE", "ROLLBACK", "COMMIT", "BEGIN", "START TRANSACTION", "PRAGMA", "SET ", "SHOW ")


def connect_to_nobody(dialect: Any, url: Any) -> None:
    """Connect where nobody listens; raises what the driver says of it."""
    args, kwargs = dialect.create_connect_args(url)
    if dialect.name == "sqlite":
        dialect.connect("/nowhere/to/be/found.db")
    with socket.socket() as nobody:  # bound, but it does not listen: nobody else can, either
        nobody.bind(("127.0.0.1", 0))
        wrong = {"host": "127.0.0.1", "port": nobody.getsockname()[1]}
        dialect.connect(*args, **{**kwargs, **wrong})
