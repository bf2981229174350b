"""Two-phase commit on PostgreSQL: what one database does of it. The rule that holds it together: ``_core.branches``.

A unit of work that is prepared keeps its connection, and ends by SQLAlchemy's own COMMIT or ROLLBACK: the dialect, taught
here, makes them those of what is prepared. If that fails, the same is done by name, on a new connection.
"""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import event, text
from sqlalchemy.engine import Connection, Engine

from transact._core import events
from transact._core.branches import PREFIX, Branch, Verdict, fingerprint, verdict
from transact._core.states import State
from transact._sqlalchemy.ending import answer_is_lost, end_committed, end_rolled_back
from transact._sqlalchemy.ending import roll_back as roll_back_open
from transact._sqlalchemy.liveness import connected
from transact._sqlalchemy.plain import AnyEngine, plain_engine
from transact._sqlalchemy.session import unguarded
from transact._sqlalchemy.verifying import until_known
from transact.errors import ConfigurationError, DatabaseError, UsageError

if TYPE_CHECKING:
    from transact._sqlalchemy.unit import Unit

_PREPARED = "transact_prepared"
"""Set in the ``info`` of a connection whose transaction is prepared: the ``Part``."""
_PATIENCE = 5.0
"""Seconds for the ROLLBACK of what was prepared on a connection that is lost; the rule does it later."""
_UNDEFINED_OBJECT = "42704"
"""What PostgreSQL says of a name that nothing is prepared under."""

#: Who the server is does not change with a failover; two databases have the same fingerprint only if they are one.
_WHO = (
    "(SELECT system_identifier FROM pg_control_system())::text, "
    "(SELECT oid FROM pg_database WHERE datname = current_database())::text, "
    "current_setting('max_prepared_transactions')::int"
)
_STOCK = text(f"SELECT {_WHO}, pg_current_xact_id_if_assigned()::text")
_SERVER = text(f"SELECT {_WHO}, pg_is_in_recovery()")
_IS_PREPARED = text(
    "SELECT EXISTS (SELECT FROM pg_prepared_xacts WHERE database = current_database() AND starts_with(gid, :start))"
)
_STATUS = text("SELECT pg_xact_status(CAST(CAST(:xid AS text) AS xid8))")


class Stage(enum.Enum):
    """Where one part of a transaction over several databases stands."""

    OPEN = enum.auto()
    PREPARED = enum.auto()
    IN_DOUBT = enum.auto()
    """PREPARE was sent, and its answer lost."""
    ENDED = enum.auto()
    """Committed or rolled back, on the server."""


class Stock(NamedTuple):
    """What the server says of an open transaction. ``xid`` is ``None`` where nothing was written."""

    fingerprint: str
    possible: bool
    xid: str | None


class Part:
    """One unit of work on its way through two phases. ``branch`` is set before it is prepared.

    ``held``: whether the connection that it was prepared on can end it. ``goes_back``: whether it is to be rolled back.
    """

    __slots__ = ("branch", "goes_back", "held", "stage", "stock", "unit")

    def __init__(self, unit: Unit) -> None:
        self.unit = unit
        self.stage = Stage.OPEN
        self.held = False
        self.goes_back = False
        self.stock: Stock
        self.branch: Branch


def look(part: Part) -> None:
    """Ask whether the unit has written, and where: one round trip. Raises what the database says."""
    unit = part.unit
    connection = unit.connection
    assert connection is not None  # noqa: S101  # its transaction is open
    if connection.dialect.driver == "asyncpg" and not hasattr(connection.connection.driver_connection, "ends_as"):
        raise ConfigurationError(
            "two_phase=True: let transact make asyncpg's connections; engine_options makes its own"
        )
    unit.closing = True  # from here on nobody else can use the session: what is written later would not be counted
    unit.busy = (unit.runtime.whoami(), "commit", None)
    try:
        with unit.awaiting("receipt"):
            system, database, most, xid = connection.execute(_STOCK).one()
    finally:
        unit.busy = None
    part.stock = Stock(fingerprint(system, database), most > 0, xid)


def prepare(part: Part) -> None:
    """PREPARE TRANSACTION. Raises what the database says: then it has rolled back, unless the answer was lost."""
    unit = part.unit
    connection = unit.connection
    assert connection is not None  # noqa: S101  # its transaction is open
    unit.busy = (unit.runtime.whoami(), "commit", None)
    try:
        unit.plain.flush()
        unit.root.move_to(State.ENDING)
        with unit.awaiting("PREPARE"):
            connection.exec_driver_sql(f"PREPARE TRANSACTION '{part.branch}'")
    except BaseException as failed:
        if unit.root.state is State.ENDING:  # and not the flush has failed
            part.stage = Stage.IN_DOUBT if answer_is_lost(unit, failed) else Stage.ENDED
        raise
    finally:
        unit.busy = None
    part.stage = Stage.PREPARED
    part.held = True
    connection.info[_PREPARED] = part
    event.listen(connection, "before_cursor_execute", _refuse)


def _refuse(_connection: Connection, _cursor: object, statement: str, *_: object) -> None:
    # What was added to the session too late to be flushed would be stored by itself.
    raise UsageError(f"the transaction is prepared, and takes no more statements: {statement[:60]}")


def find_out(part: Part) -> None:
    """Ask, on a new connection, what became of the PREPARE of the last branch, until it is known or takes too long."""
    match until_known(part.unit.runtime, _decided, _resolver(part), part.branch):
        case Verdict.COMMIT:
            part.stage = Stage.PREPARED
        case Verdict.ROLL_BACK:
            part.stage = Stage.ENDED


def commit(part: Part) -> None:
    """COMMIT PREPARED; if that fails, by name, on new connections, until it is done. Raises if it takes too long."""
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
        finally:
            unit.busy = None
    in_place = part.stage is Stage.ENDED
    if not in_place and until_known(unit.runtime, end_by_name, _resolver(part), "COMMIT", str(part.branch)):
        part.stage = Stage.ENDED
    if part.stage is Stage.ENDED:
        end_committed(unit, throw_away=failed is not None or not in_place)
    elif failed is not None:
        raise failed


def roll_back(part: Part, error: BaseException | None) -> None:
    """Roll back, also what is prepared. Raises nothing: what is left after a failure, the rule rolls back."""
    if part.stage is Stage.OPEN:
        roll_back_open(part.unit, error)
        return
    part.goes_back = True
    end_rolled_back(part.unit, error)
    if part.stage is not Stage.ENDED:
        with contextlib.suppress(Exception):
            part.unit.runtime.bounded(_PATIENCE, end_by_name, _resolver(part), "ROLLBACK", str(part.branch))
            part.stage = Stage.ENDED


def leave(part: Part, failed: BaseException) -> None:
    """Leave it prepared: whoever applies the rule will commit it, or has to find out first."""
    unit = part.unit
    unit.close(State.UNKNOWN, throw_away=True)
    unit.emit(events.OutcomeUnknown, seconds=unit.seconds, cause=failed)


def _resolver(part: Part) -> Engine:
    resolver = part.unit.runtime.resolver
    assert resolver is not None  # noqa: S101  # without it nothing is prepared
    return plain_engine(resolver)


# By name, on a connection of its own.


def end_by_name(engine: Engine, word: str, name: str) -> bool:
    """COMMIT or ROLLBACK what is prepared under ``name``. That nothing is, counts as done. Raises what the database says."""
    with connected(engine) as connection:
        try:
            connection.exec_driver_sql(f"{word} PREPARED '{name}'")
        except DatabaseError as error:
            if error.sqlstate != _UNDEFINED_OBJECT:
                raise
    return True


def decide(engine: Engine, branch: Branch) -> Verdict:
    """Apply the rule: ask the database of the last branch. Raises what it says."""
    with connected(engine) as connection:
        system, database, _, standby = connection.execute(_SERVER).one()
        if standby or fingerprint(system, database) != branch.decider:
            return Verdict.WAIT  # a standby may be behind, and another server knows nothing
        last = f"{PREFIX}{branch.global_id}:{branch.of}/{branch.of}:"
        prepared = connection.scalar(_IS_PREPARED, {"start": last})
        # In this order: that it has ended without being prepared is final, that it is not prepared may change.
        status = None if prepared else connection.scalar(_STATUS, {"xid": branch.transaction})
        return verdict(prepared=bool(prepared), status=status)


def _decided(engine: Engine, branch: Branch) -> Verdict | None:
    found = decide(engine, branch)
    return None if found is Verdict.WAIT else found


def look_at_server(engine: Engine) -> str:
    """The fingerprint of a database. Raises ``ConfigurationError`` if its server prepares nothing."""
    with connected(engine) as connection:
        system, database, most, _ = connection.execute(_SERVER).one()
    if most == 0:
        raise cannot_prepare()
    return fingerprint(system, database)


def cannot_prepare() -> ConfigurationError:
    """The error of a server that is not set up for it."""
    return ConfigurationError(
        "two_phase=True: the PostgreSQL server has max_prepared_transactions = 0, so it prepares nothing. Set it to at "
        "least max_connections in postgresql.conf and restart the server"
    )


# What SQLAlchemy's COMMIT and ROLLBACK do.


def end_what_is_prepared(engine: AnyEngine) -> None:
    """Let COMMIT and ROLLBACK of this engine's connections end what is prepared, where something is."""
    dialect = engine.dialect
    dialect.do_commit = _ending(dialect.do_commit, "COMMIT")  # type: ignore[method-assign, assignment]  # this engine's own dialect
    dialect.do_rollback = _ending(dialect.do_rollback, "ROLLBACK")  # type: ignore[method-assign, assignment]  # as above


def _ending(plain: Callable[[Any], None], word: str) -> Callable[[Any], None]:
    def end(dbapi_connection: Any) -> None:
        try:
            # Taken away: what fails is not tried again by the pool's ROLLBACK, which would undo what was to be committed.
            part: Part | None = dbapi_connection.info.pop(_PREPARED, None)
        except (AttributeError, NotImplementedError):  # it is not of a pool
            part = None
        if part is None or part.goes_back is not (word == "ROLLBACK"):
            # SQLAlchemy also sends ROLLBACK after a COMMIT that it could not send; what is decided stays prepared then.
            plain(dbapi_connection)
            return
        if hasattr(dbapi_connection.driver_connection, "ends_as"):
            _end_by_asyncpg(dbapi_connection, plain, str(part.branch))
        else:
            _end_by_psycopg(dbapi_connection, f"{word} PREPARED '{part.branch}'")
        part.stage = Stage.ENDED

    return end


def _end_by_asyncpg(connection: Any, plain: Callable[[Any], None], name: str) -> None:
    # It keeps a record of its transaction, which only its own COMMIT or ROLLBACK ends.
    driver = connection.driver_connection
    driver.ends_as = name
    try:
        plain(connection)
        if driver.ends_as is not None:
            raise RuntimeError("asyncpg has ended a transaction in a way of its own")
    finally:
        driver.ends_as = None


def _end_by_psycopg(connection: Any, statement: str) -> None:
    # It would begin a transaction for the statement, which must run outside of any.
    driver = connection.dbapi_connection
    driver.autocommit = True
    try:
        cursor = driver.cursor()
        cursor.execute(statement)
        cursor.close()
    finally:
        driver.autocommit = False
