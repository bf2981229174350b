"""Classes that are both one of ``transact.errors`` and one of ``sqlalchemy.exc``."""

from __future__ import annotations

from functools import cache
from typing import Any, cast

from sqlalchemy.exc import SQLAlchemyError

from transact import errors

_Ours = type[errors.DatabaseError]
_Theirs = type[SQLAlchemyError]


class _Joined:
    """What every joined class has: it pickles by its two parents, since it has no name of its own to be found by."""

    _parents: tuple[_Ours, _Theirs]

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (*self._parents, cast("BaseException", self).args, dict(self.__dict__))


def join(ours: _Ours, wrapped: SQLAlchemyError, text: str, **fields: object) -> errors.DatabaseError:
    """``wrapped`` again, with all that it knows, as an ``ours`` too; ``text`` replaces its message.

    No constructor runs: SQLAlchemy's would put the driver's whole text, row values and all, into the message.
    """
    state = {**wrapped.__dict__, **fields}
    return _rebuild(ours, type(wrapped), (text,), state)


def _rebuild(ours: _Ours, theirs: _Theirs, args: tuple[object, ...], state: dict[str, Any]) -> errors.DatabaseError:
    joined = _class((ours, theirs))
    error = joined.__new__(joined)
    error.args = args
    error.__dict__.update(state)
    return error


@cache
def _class(parents: tuple[_Ours, _Theirs]) -> _Ours:
    ours, theirs = parents
    # Tracebacks and logs show the name that the program can import and catch.
    namespace = {
        "__module__": ours.__module__,
        "__qualname__": ours.__qualname__,
        "__doc__": ours.__doc__,
        "_parents": parents,
    }
    return cast("_Ours", type(ours.__name__, (_Joined, ours, theirs), namespace))
