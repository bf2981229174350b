"""What a caller may ask of a transaction: propagation, isolation, rollback rules, retry."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, TypedDict

from transact.errors import UsageError


class Propagation(enum.Enum):
    """What a transactional block does about a transaction that is already open."""

    REQUIRED = "required"
    """Join the open one, or begin one. The default."""
    REQUIRES_NEW = "requires_new"
    """Begin one of its own, on a session and a connection of its own; the open one waits."""
    NESTED = "nested"
    """Set a savepoint in the open one, or begin one."""
    SUPPORTS = "supports"
    """Join the open one, or run without one, in autocommit."""
    NOT_SUPPORTED = "not_supported"
    """Run without one, in autocommit, on a connection of its own; the open one waits."""
    MANDATORY = "mandatory"
    """Join the open one; raise ``NoTransaction`` if there is none."""
    NEVER = "never"
    """Run without one, in autocommit; raise ``TransactionExists`` if one is open."""


class Isolation(enum.Enum):
    """The isolation levels of SQL:2016, part 2, section 4.41.4. An engine may offer fewer or give more than was asked."""

    READ_UNCOMMITTED = "READ UNCOMMITTED"
    READ_COMMITTED = "READ COMMITTED"
    REPEATABLE_READ = "REPEATABLE READ"
    SERIALIZABLE = "SERIALIZABLE"


def is_seconds(value: object) -> bool:
    """Whether ``value`` is a number of seconds that can be waited: from 0 up, and finite."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf")


@dataclass(frozen=True, slots=True)
class Retry:
    """How often and how fast a transaction is tried again after a transient failure.

    - ``attempts``: the most runs, the first one included.
    - ``base``: the upper bound of the first pause, in seconds; it doubles with each attempt (full jitter).
    - ``max_delay``: the longest pause, in seconds.
    - ``deadline``: the longest time for all attempts together, in seconds; ``None`` means no bound.
    - ``on``: exception classes to retry besides those that the library knows to be transient.
    """

    attempts: int = 3
    base: float = 0.02
    max_delay: float = 1.0
    deadline: float | None = None
    on: tuple[type[Exception], ...] = ()

    def __post_init__(self) -> None:
        """Refuse values that would never run or never end; raises ``UsageError``."""
        if not isinstance(self.attempts, int) or isinstance(self.attempts, bool) or self.attempts < 1:
            raise UsageError(f"Retry(attempts={self.attempts!r}) would never run; write a number from 1 up")
        for name in ("base", "max_delay"):
            if not is_seconds(getattr(self, name)):
                raise UsageError(f"Retry({name}={getattr(self, name)!r}): write seconds from 0 up")
        if self.deadline is not None and not (is_seconds(self.deadline) and self.deadline > 0):
            raise UsageError(f"Retry(deadline={self.deadline!r}): write seconds above 0, or None")
        if not isinstance(self.on, tuple) or not all(isinstance(c, type) and issubclass(c, Exception) for c in self.on):
            raise UsageError(f"Retry(on={self.on!r}): write a tuple of exception classes, such as (UniqueViolation,)")


ExceptionClasses = type[BaseException] | tuple[type[BaseException], ...]


class TransactionOptions(TypedDict, total=False):
    """The keyword options of every verb that opens a transaction."""

    propagation: Propagation
    isolation: Isolation | None
    read_only: bool
    timeout: float | None
    lock_timeout: float | None
    retry: Retry | None
    rollback_for: ExceptionClasses
    no_rollback_for: ExceptionClasses
    label: str | None


@dataclass(frozen=True, slots=True)
class Options:
    """The options of one block, checked. ``None`` means: not asked for. ``timeout`` and ``lock_timeout`` are seconds."""

    propagation: Propagation = Propagation.REQUIRED
    isolation: Isolation | None = None
    read_only: bool | None = None
    timeout: float | None = None
    lock_timeout: float | None = None
    retry: Retry | None = None
    rollback_for: tuple[type[BaseException], ...] = ()
    no_rollback_for: tuple[type[BaseException], ...] = ()
    label: str | None = None

    def or_else(self, defaults: Options) -> Options:
        """These options, with those of ``defaults`` where a transaction's own are not asked for."""
        if defaults is _NONE:
            return self
        return replace(
            self,
            isolation=self.isolation or defaults.isolation,
            timeout=self.timeout or defaults.timeout,
            retry=self.retry or defaults.retry,
        )


_NONE = Options()


def defaults(*, isolation: Isolation | None, timeout: float | None, retry: Retry | None) -> Options:
    """What the transactions of a database have that ask for nothing else."""
    found = Options(isolation=isolation, timeout=timeout, retry=retry)
    return _NONE if found == _NONE else found


def _is_timeout(value: object) -> bool:
    return is_seconds(value) and bool(value)


#: What an option has to be, and what to write instead.
_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "isolation": (lambda value: isinstance(value, Isolation), "a member of Isolation, such as Isolation.SERIALIZABLE"),
    "read_only": (lambda value: isinstance(value, bool), "True or False"),
    "timeout": (_is_timeout, "seconds above 0, or leave it out"),
    "lock_timeout": (_is_timeout, "seconds above 0, or leave it out"),
    "retry": (lambda value: isinstance(value, Retry), "a Retry, such as Retry(attempts=5)"),
    "label": (lambda value: isinstance(value, str), "a string"),
}


def parse_options(given: Mapping[str, Any]) -> Options:
    """Check the keyword options of a verb once, where they are written.

    Raises ``UsageError`` for an unknown name and for a value of the wrong kind.
    """
    if not given:
        return _NONE
    known = {field.name for field in fields(Options)}
    for name, value in given.items():
        if name not in known:
            raise UsageError(f"{name}= is no option of a transaction; the options are {', '.join(sorted(known))}")
        if name in _CHECKS and value is not None and not _CHECKS[name][0](value):
            raise UsageError(f"{name}={value!r}: write {_CHECKS[name][1]}")
    propagation = given.get("propagation", Propagation.REQUIRED)
    if not isinstance(propagation, Propagation):
        raise UsageError(f"propagation={propagation!r}: write a member of Propagation, such as Propagation.NESTED")
    classes = {name: _classes(name, given.get(name, ())) for name in ("rollback_for", "no_rollback_for")}
    return Options(**{**given, **classes})


def _classes(name: str, value: object) -> tuple[type[BaseException], ...]:
    classes: list[type[BaseException]] = []
    for cls in value if isinstance(value, tuple) else (value,):
        if not (isinstance(cls, type) and issubclass(cls, BaseException)):
            raise UsageError(f"{name}={value!r}: write an exception class or a tuple of them")
        classes.append(cls)
    return tuple(classes)
