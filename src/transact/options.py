"""What a caller may ask of a transaction: propagation, isolation, rollback rules, retry."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, fields
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
        if self.attempts < 1:
            raise UsageError(f"Retry(attempts={self.attempts}) would never run; write a number from 1 up")
        if self.base < 0 or self.max_delay < 0 or (self.deadline is not None and self.deadline <= 0):
            raise UsageError("Retry: base and max_delay are seconds from 0 up, deadline is above 0 or None")


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
    """The options of one block, checked. ``None`` for ``isolation`` and ``read_only`` means: not asked for."""

    propagation: Propagation = Propagation.REQUIRED
    isolation: Isolation | None = None
    read_only: bool | None = None
    rollback_for: tuple[type[BaseException], ...] = ()
    no_rollback_for: tuple[type[BaseException], ...] = ()
    label: str | None = None


_LATER = ("timeout", "lock_timeout", "retry")


def parse_options(given: Mapping[str, Any]) -> Options:
    """Check the keyword options of a verb once, where they are written.

    Raises ``UsageError`` for an unknown name, a value of the wrong kind, and for an option that this version does not
    carry out: an option that is silently ignored is a promise that is silently broken.
    """
    known = {field.name for field in fields(Options)}
    for name, value in given.items():
        if name in _LATER:
            if value is not None:
                raise UsageError(f"{name}= is not supported by this version of transact; leave it out")
        elif name not in known:
            raise UsageError(f"{name}= is no option of a transaction; the options are {', '.join(sorted(known))}")
    values = {name: value for name, value in given.items() if name in known}
    for name in ("rollback_for", "no_rollback_for"):
        values[name] = _classes(name, values.get(name, ()))
    options = Options(**values)
    if not isinstance(options.propagation, Propagation):
        raise UsageError(
            f"propagation={options.propagation!r}: write a member of Propagation, such as Propagation.NESTED"
        )
    if options.isolation is not None and not isinstance(options.isolation, Isolation):
        raise UsageError(
            f"isolation={options.isolation!r}: write a member of Isolation, such as Isolation.SERIALIZABLE"
        )
    if options.read_only is not None and not isinstance(options.read_only, bool):
        raise UsageError(f"read_only={options.read_only!r}: write True or False")
    return options


def _classes(name: str, value: object) -> tuple[type[BaseException], ...]:
    classes: list[type[BaseException]] = []
    for cls in value if isinstance(value, tuple) else (value,):
        if not (isinstance(cls, type) and issubclass(cls, BaseException)):
            raise UsageError(f"{name}={value!r}: write an exception class or a tuple of them")
        classes.append(cls)
    return tuple(classes)
