"""From an exception to the exceptions behind it, and to the first that a database or its driver raised.

A driver's error reaches us wrapped, and every version of every layer wraps differently: SQLAlchemy keeps it as
``orig``, its asyncpg dialect adapts it and keeps the true one as ``driver_exception`` (2.1) or ``__cause__`` (2.0), and
asyncpg itself puts the server's last words behind an error of its own.
"""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy.exc import SQLAlchemyError

from transact.errors import TransactError, TransactionLost, UnexpectedRollback

#: No honest chain is this long. It bounds the work for a chain that somebody builds on purpose.
_LIMIT = 32

_LINKS = ("orig", "driver_exception", "__cause__")

#: What only tells of another error, which is its cause.
_MESSENGERS = (UnexpectedRollback, TransactionLost)


def linked(error: BaseException) -> list[BaseException]:
    """``error`` and what was said to be behind it, nearest first: ``orig``, ``driver_exception``, ``__cause__``.

    ``__context__`` is not followed: it is whatever the program happened to be handling. A statement that is sent from
    an ``except IntegrityError`` block has that IntegrityError as its context, and nothing to do with it.
    """
    chain = [error]
    for current in chain:  # grows while it is read
        for link in _LINKS:
            other = _link(current, link)
            if other is not None and len(chain) < _LIMIT and all(other is not known for known in chain):
                chain.append(other)
    return chain


def reported(error: BaseException, drivers: frozenset[str], before: BaseException | None = None) -> list[BaseException]:
    """The chain of the nearest error of a database at or behind ``error``; contexts count. Empty if there is none.

    A program's own exception may have been raised while a database's was handled; behind a database's error no context
    counts, as ``linked`` explains. Nor does ``before`` as a context, which was being handled before all this began.
    """
    for chain in _histories(error, before):
        if any(is_told(item) or is_driver(item, drivers) for item in chain):
            return chain
    return []


def is_told(error: BaseException) -> bool:
    """Whether ``error`` is SQLAlchemy's or this library's own word about a failure, not only that something else failed."""
    return isinstance(error, (SQLAlchemyError, TransactError)) and not isinstance(error, _MESSENGERS)


def history(error: BaseException) -> Iterator[BaseException]:
    """Everything at and behind ``error``, contexts included, nearest first."""
    for chain in _histories(error):
        yield from chain


def is_driver(error: BaseException, drivers: frozenset[str]) -> bool:
    """Whether a driver raised ``error``: one of its classes is at home in one of these top-level modules."""
    return any(base.__module__.partition(".")[0] in drivers for base in type(error).__mro__)


def _histories(error: BaseException, before: BaseException | None = None) -> Iterator[list[BaseException]]:
    pending, seen = [error], set[int]()
    for root in pending:  # grows while it is read
        if id(root) in seen or len(seen) >= _LIMIT:
            continue
        chain = [item for item in linked(root) if id(item) not in seen]
        seen.update(map(id, chain))
        yield chain
        contexts = (item.__context__ for item in chain if not item.__suppress_context__)
        pending += [context for context in contexts if context is not None and context is not before]


def _link(error: BaseException, name: str) -> BaseException | None:
    try:
        other = getattr(error, name, None)
    except Exception:  # noqa: BLE001  # a property of a foreign class; SQLAlchemy's driver_exception raises ValueError
        return None
    return other if isinstance(other, BaseException) else None
