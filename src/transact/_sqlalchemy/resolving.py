"""What a crash left prepared: to list it, and to end it by the rule of ``_core.branches``."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple, Protocol, TypeVar

from sqlalchemy.engine import Engine
from sqlalchemy.util import greenlet_spawn

from transact._core.branches import Branch, Verdict, Xid, members
from transact._core.hooks import Outcome
from transact._sqlalchemy.branching import Branching, Listed
from transact._sqlalchemy.plain import plain_engine
from transact._sqlalchemy.runtime import Runtime
from transact.errors import DatabaseError, UsageError

T = TypeVar("T")
_PATIENCE = 5.0
"""Seconds in which a server has to answer an application that starts; else it starts without having asked."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """One database's part of a transaction over several, prepared and not yet ended. It keeps its locks until it is.

    - ``name``: what the server knows it by, as in ``pg_prepared_xacts`` and for ``COMMIT PREPARED``, or for ``XA COMMIT``.
    - ``global_id``: common to all parts; ``branch``, ``of``: this is part ``branch`` of ``of``, from 1. On MariaDB, which
      always is the last part, both are the number of databases that might have taken part.
    - ``database``: the name of the ``Database`` that prepared it.
    - ``prepared_at``, ``seconds``: since when and for how long, by the server's clock. MariaDB does not say: there it is since
      when the transaction was begun, by the clock of the program that began it.
    """

    name: str
    global_id: str
    branch: int
    of: int
    database: str
    prepared_at: datetime
    seconds: float


@dataclass(frozen=True, slots=True)
class Resolved:
    """What ``resolve_prepared`` did with one transaction.

    - ``outcome``: ``Outcome.COMMITTED`` or ``ROLLED_BACK``; ``UNKNOWN`` if it was left as it is, and ``why``.
    - ``names``: what was found prepared of it.
    """

    global_id: str
    outcome: Outcome
    names: tuple[str, ...]
    why: str = ""


class HasRuntime(Protocol):
    """A ``Database`` or a ``SyncDatabase``."""

    @property
    def _runtime(self) -> Runtime: ...


class _Place(NamedTuple):
    runtime: Runtime
    fingerprint: str

    @property
    def branching(self) -> Branching:
        """What its engine does."""
        return branching_of(self.runtime)

    async def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call ``function(engine, *arguments)``, which waits for the server."""
        engine = engine_of(self.runtime)
        if self.runtime.is_async:
            return await greenlet_spawn(function, engine, *arguments)
        return await asyncio.to_thread(function, engine, *arguments)

    async def introduce(self) -> str:
        """Ask who the server is."""
        found = self.runtime.fingerprint = await self.call(self.branching.look_at_server)
        return found


def branching_of(runtime: Runtime) -> Branching:
    """How the engine of the database prepares. Raises ``UsageError`` if it prepares nothing."""
    if runtime.branching is None:
        raise UsageError(f"database {runtime.name!r} prepares nothing: it was made without two_phase=True")
    return runtime.branching


def engine_of(runtime: Runtime) -> Engine:
    """The engine that ends what is prepared. Raises ``UsageError`` if the database prepares nothing."""
    if runtime.resolver is None:
        raise UsageError(f"database {runtime.name!r} prepares nothing: it was made without two_phase=True")
    return plain_engine(runtime.resolver)


async def check_server(runtime: Runtime) -> None:
    """Raise ``ConfigurationError`` if the server of a database with ``two_phase=True`` prepares nothing.

    One that cannot be reached now says so to the requests.
    """
    if runtime.resolver is not None:
        with contextlib.suppress(DatabaseError, TimeoutError):
            async with asyncio.timeout(_PATIENCE):
                await _Place(runtime, "").introduce()


def list_prepared(runtime: Runtime) -> list[Prepared]:
    """What this library has prepared in a database, whatever program did it; the oldest first."""
    found = branching_of(runtime).listed(engine_of(runtime))
    return [
        Prepared(name, branch.global_id, _number(branch), branch.of, branch.database, since, seconds)
        for name, branch, since, seconds in found
    ]


def _number(branch: Branch | Xid) -> int:
    return branch.number if isinstance(branch, Branch) else branch.of


async def resolve_prepared(*databases: HasRuntime, older_than: float = 60.0) -> list[Resolved]:
    """End what crashes left prepared in ``databases``: commit it if all of it was prepared, else roll it back.

    Pass all databases of the application, of both kinds. A transaction is left as it is (``Outcome.UNKNOWN``) if one of its
    databases was not passed or does not answer, if it was prepared less than ``older_than`` seconds ago, or if a part of it
    may still be prepared. Running requests are safe at any ``older_than``: what is prepared everywhere they commit too, and
    what is not is left alone while its transaction is open. But a request that ends in the usual way needs no help.

    It may run in several processes at once, and again after a crash of its own. Returns one ``Resolved`` for each
    transaction that it found. Raises ``UsageError`` for a database without ``two_phase=True``, and what keeps it from
    listing one.
    """
    places = []
    for database in databases:
        place = _Place(database._runtime, "")
        places.append(place._replace(fingerprint=await place.introduce()))
    found: dict[str, dict[str, Listed]] = {}
    for place in places:
        for each in await place.call(place.branching.listed):
            found.setdefault(each.branch.global_id, {})[each.name] = each  # two of the databases may be one
    return [await _resolve(places, parts, older_than) for parts in found.values()]


async def _resolve(places: Sequence[_Place], parts: Mapping[str, Listed], older_than: float) -> Resolved:
    branch = _best_informed(parts.values())
    together = _together(places, branch)
    last = next((place for place in together if place.fingerprint == branch.decider), None)
    outcome, why = Outcome.UNKNOWN, ""
    if last is None:
        why = f"not all of its {branch.of} databases were passed"
    elif min(part.seconds for part in parts.values()) < older_than:
        why = f"it was prepared less than {older_than:g} s ago"
    else:
        try:
            outcome, why = await _apply(together, last, branch)
        except DatabaseError as error:
            why = f"{type(error).__name__}: {error.orig or error}"
    return Resolved(branch.global_id, outcome, tuple(sorted(parts)), why)


def _best_informed(parts: Iterable[Listed]) -> Branch | Xid:
    """A ``Branch``, which knows who takes part, or else the ``Xid``, which knows who may."""
    return min((part.branch for part in parts), key=lambda branch: isinstance(branch, Xid))


def _together(places: Sequence[_Place], branch: Branch | Xid) -> Sequence[_Place]:
    """Where the transaction may have parts; nowhere if not all of it was passed."""
    if isinstance(branch, Xid):
        return places if members(branch, list({place.fingerprint for place in places})) is not None else ()
    chosen = members(branch, [place.fingerprint for place in places])
    return [places[i] for i in chosen or ()]


async def _apply(places: Sequence[_Place], last: _Place, branch: Branch | Xid) -> tuple[Outcome, str]:
    found = await last.call(last.branching.decide, branch)
    if found is Verdict.WAIT:
        return Outcome.UNKNOWN, "its last part is neither prepared nor known to have ended"
    # Listed anew: now that the last is known to be prepared, or never to be, none can follow.
    parts = {
        part.name: (part, place)
        for place in places
        for part in await place.call(place.branching.listed, branch.global_id)
    }
    word = "COMMIT" if found is Verdict.COMMIT else "ROLLBACK"
    # The last one last.
    for part, place in sorted(parts.values(), key=lambda listed: _number(listed[0].branch)):
        if not await place.call(place.branching.end_by_name, word, part.name):
            return Outcome.UNKNOWN, f"the connection that prepared it on {part.branch.database!r} is still open"
    return Outcome.COMMITTED if found is Verdict.COMMIT else Outcome.ROLLED_BACK, ""
