"""Two-phase commit: what one database does of it, whatever its engine. The rule that holds it together: ``_core.branches``.

A unit of work that is prepared keeps its connection, and ends by SQLAlchemy's own COMMIT or ROLLBACK: the dialect, taught by
its ``Branching``, makes them those of what is prepared. If that fails, the same is done by name, on a new connection.
"""

from __future__ import annotations

import contextlib

from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine

from transact._core import events
from transact._core.branches import Branch, Verdict
from transact._core.states import State
from transact._sqlalchemy.branching import Branching, Part, Stage
from transact._sqlalchemy.ending import answer_is_lost, end_committed, end_rolled_back
from transact._sqlalchemy.ending import roll_back as roll_back_open
from transact._sqlalchemy.plain import plain_engine
from transact._sqlalchemy.session import unguarded
from transact._sqlalchemy.verifying import until_known
from transact.errors import UsageError

_PATIENCE = 5.0
"""Seconds for the ROLLBACK of what was prepared on a connection that is lost; the rule does it later."""


def look(part: Part) -> None:
    """Ask whether the unit has written, and where. Raises what the database says, or ``ConcurrentUse``."""
    unit = part.unit
    connection = unit.connection
    assert connection is not None  # noqa: S101  # its transaction is open
    # From here on nobody else can use the session: what is written later would not be counted.
    if (refused := unit.claim_end()) is not None:
        raise refused
    try:
        with unit.awaiting("receipt"):
            part.stock = part.branching.look(connection)
    finally:
        unit.busy = None


def prepare(part: Part) -> None:
    """Prepare it. Raises what the database says: then it has rolled back, unless ``stage`` says that nobody knows."""
    unit = part.unit
    connection = unit.connection
    assert connection is not None  # noqa: S101  # its transaction is open
    unit.busy = (unit.runtime.whoami(), "commit", None)
    try:
        unit.plain.flush()
        unit.root.move_to(State.ENDING)
        with unit.awaiting("PREPARE"):
            part.branching.prepare(connection, part)
    except BaseException as failed:
        if unit.root.state is State.ENDING:  # and not the flush has failed
            doubtful = part.branching.doubts or answer_is_lost(unit, failed)
            part.stage = Stage.IN_DOUBT if doubtful else Stage.ENDED
            if doubtful:
                _throw_away(connection, failed)  # what it may still be doing has an end, and it is known when that is
        raise
    finally:
        unit.busy = None
    part.stage = Stage.PREPARED
    part.held = True
    event.listen(connection, "before_cursor_execute", _refuse)


def _refuse(_connection: Connection, _cursor: object, statement: str, *_: object) -> None:
    # What was added to the session too late to be flushed would be stored by itself.
    raise UsageError(f"the transaction is prepared, and takes no more statements: {statement[:60]}")


def find_out(part: Part) -> None:
    """Ask, on a new connection, what became of the PREPARE of the last branch, until it is known or takes too long."""
    match until_known(part.unit.runtime, _decided, part.branching, _resolver(part), part.branch):
        case Verdict.COMMIT:
            part.stage = Stage.PREPARED
        case Verdict.ROLL_BACK:
            part.stage = Stage.ENDED


def commit(part: Part) -> None:
    """COMMIT what is prepared; if that fails, by name, on new connections, until it is done. Raises if it takes too long."""
    unit = part.unit
    failed: BaseException | None = None
    if part.held:
        session = unit.plain
        unit.busy = (unit.runtime.whoami(), "commit", None)
        try:
            with unit.awaiting("COMMIT"):
                unguarded(session).commit(session)
        except BaseException as error:  # noqa: BLE001  # raised below, unless it can be done after all
            failed = error
            if part.stage is not Stage.ENDED and unit.connection is not None:
                _throw_away(unit.connection, error)  # on MariaDB nobody else can end it while that is open
        finally:
            unit.busy = None
    in_place = part.stage is Stage.ENDED
    by_name = part.branching.end_by_name
    if not in_place and until_known(unit.runtime, by_name, _resolver(part), "COMMIT", part.name):
        part.stage = Stage.ENDED
    if part.stage is Stage.ENDED:
        end_committed(unit, throw_away=failed is not None or not in_place)
    elif failed is not None:
        raise failed


def roll_back(part: Part, error: BaseException | None) -> None:
    """Roll back, also what is prepared. Raises nothing: what is left after a failure, the rule rolls back."""
    unit = part.unit
    if part.stage is Stage.OPEN:
        if unit.connection is not None:
            with unit.awaiting("ROLLBACK"):
                part.branching.give_up(unit.connection)
        roll_back_open(unit, error)
        return
    part.goes_back = True
    end_rolled_back(unit, error)
    if part.stage is not Stage.ENDED:
        with contextlib.suppress(Exception):
            unit.runtime.bounded(_PATIENCE, part.branching.end_by_name, _resolver(part), "ROLLBACK", part.name)
            part.stage = Stage.ENDED


def leave(part: Part, failed: BaseException) -> None:
    """Leave it prepared: whoever applies the rule will commit it, or has to find out first."""
    unit = part.unit
    unit.close(State.UNKNOWN, throw_away=True)
    unit.emit(events.OutcomeUnknown, seconds=unit.seconds, cause=failed)


def _throw_away(connection: Connection, failed: BaseException) -> None:
    if not (connection.closed or connection.invalidated):
        connection.invalidate(failed)


def _resolver(part: Part) -> Engine:
    resolver = part.unit.runtime.resolver
    assert resolver is not None  # noqa: S101  # without it nothing is prepared
    return plain_engine(resolver)


def _decided(branching: Branching, engine: Engine, branch: Branch) -> Verdict | None:
    found = branching.decide(engine, branch)
    return None if found is Verdict.WAIT else found
