"""What bounds a transaction in time: its deadline, and how long it waits for a lock."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from transact.options import Options


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits in force; ``None`` is no limit.

    - ``deadline``: when the transaction has to be over, on the clock that ``now`` is read from.
    - ``timeout``: the seconds that were asked for, to be named in errors.
    - ``lock_timeout``: seconds to wait for any lock.
    """

    deadline: float | None = None
    timeout: float | None = None
    lock_timeout: float | None = None

    @classmethod
    def of(cls, options: Options, now: float) -> Limits:
        """The limits of a block that begins now with ``options``."""
        return cls(None if options.timeout is None else now + options.timeout, options.timeout, options.lock_timeout)

    def shortened(self, asked: Limits) -> Limits:
        """These limits, and those of ``asked`` where they are tighter: nobody who joins can extend them."""
        deadline, timeout, lock_timeout = self.deadline, self.timeout, self.lock_timeout
        if asked.deadline is not None and (deadline is None or asked.deadline < deadline):
            deadline, timeout = asked.deadline, asked.timeout
        if asked.lock_timeout is not None and (lock_timeout is None or asked.lock_timeout < lock_timeout):
            lock_timeout = asked.lock_timeout
        return Limits(deadline, timeout, lock_timeout)

    def remaining(self, now: float) -> float | None:
        """Seconds until the deadline, not below 0."""
        return None if self.deadline is None else max(0.0, self.deadline - now)

    def is_over(self, now: float) -> bool:
        """Whether the deadline has passed."""
        return self.deadline is not None and now >= self.deadline

    def longest_wait(self, usual: float, now: float) -> float:
        """Seconds to wait for a lock where ``usual`` is the engine's own limit."""
        return min(s for s in (usual, self.lock_timeout, self.remaining(now)) if s is not None)


@dataclass(frozen=True, slots=True)
class Told:
    """What the server was told to enforce: seconds for a statement, seconds for a lock; ``None`` is its own setting."""

    statement: float | None = None
    lock: float | None = None

    def next(self, limits: Limits, now: float) -> Told | None:
        """What to tell the server before the next statement; ``None`` if what it knows will do.

        The time that is left shrinks with each statement. To tell that every time would double the round trips, so a
        statement may end later than the deadline by a twentieth of the timeout; a COMMIT never does.
        """
        wanted = Told(limits.remaining(now), limits.lock_timeout)
        if self.lock != wanted.lock or (self.statement is None) is not (wanted.statement is None):
            return wanted
        if self.statement is None or wanted.statement is None or limits.timeout is None:
            return None
        return None if 0 <= self.statement - wanted.statement <= limits.timeout / 20 else wanted

    def taken_back(self) -> Told:
        """What is known after the server took back, by ROLLBACK TO SAVEPOINT, what it may have been told since."""
        return Told(None if self.statement is None else inf, None if self.lock is None else inf)
