"""A session that is made when it is first used: many a request asks for one and has no use for it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, cast

from sqlalchemy.ext.asyncio import AsyncSession


@functools.cache
def lazily_made(base: type[Any]) -> Callable[[Callable[[AsyncSession], None]], AsyncSession] | None:
    """Return what makes a ``base`` without its plain session; ``None`` if ``base`` has a say in how it is made.

    It takes a function that calls the session's real ``__init__``, and calls that when something of the session is used
    that is not there yet.
    """
    if base.__init__ is not AsyncSession.__init__ or hasattr(base, "__getattr__"):
        return None

    def keep(self: Any, make: Callable[[AsyncSession], None]) -> None:
        self.__dict__["_transact_make"] = make

    def make_now(self: Any, name: str) -> Any:
        make = self.__dict__.pop("_transact_make", None)
        if make is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self)
        make(self)
        return getattr(self, name)

    body = {"__init__": keep, "__getattr__": make_now, "__doc__": base.__doc__, "__module__": base.__module__}
    made: Any = type(base.__name__, (base,), body)
    return cast("Callable[[Callable[[AsyncSession], None]], AsyncSession]", made)
