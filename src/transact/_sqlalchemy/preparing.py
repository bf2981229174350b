"""Two-phase commit on PostgreSQL: PREPARE TRANSACTION, whose name is given at the end.

A prepared transaction belongs to no connection any more. SQLAlchemy's COMMIT or ROLLBACK on the one that prepared it are made,
by the dialect that is taught here, those of what is prepared.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sqlalchemy import text
from sqlalchemy.engine import Connection, Engine

from transact._core.branches import PREFIX, Branch, Verdict, Xid, fingerprint, verdict
from transact._sqlalchemy.branching import Listed, Part, Stage, Stock
from transact._sqlalchemy.liveness import connected
from transact.errors import ConfigurationError, DatabaseError

if TYPE_CHECKING:
    from transact._sqlalchemy.runtime import Runtime

_PREPARED = "transact_prepared"
"""Set in the ``info`` of a connection whose transaction is prepared: the ``Part``."""
_UNDEFINED_OBJECT = "42704"
"""What PostgreSQL says of a name that nothing is prepared under."""
_NOT_SET_UP = (
    "two_phase=True: the PostgreSQL server has max_prepared_transactions = 0, so it prepares nothing. Set it to at "
    "least max_connections in postgresql.conf and restart the server"
)

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
_LIST = text(
    "SELECT gid, prepared, extract(epoch FROM clock_timestamp() - prepared)::float8 FROM pg_prepared_xacts "
    "WHERE database = current_database() AND starts_with(gid, :start) ORDER BY prepared, gid"
)


class PostgresBranching:
    """See ``Branching``."""

    decides = False
    doubts = False

    def teach(self, runtime: Runtime) -> None:
        """See ``Branching``."""
        dialect = runtime.engine.dialect
        dialect.do_commit = _ending(dialect.do_commit, "COMMIT")  # type: ignore[method-assign, assignment]  # this engine's own
        dialect.do_rollback = _ending(dialect.do_rollback, "ROLLBACK")  # type: ignore[method-assign, assignment]  # as above

    def look(self, connection: Connection) -> Stock:
        """See ``Branching``."""
        if connection.dialect.driver == "asyncpg" and not hasattr(connection.connection.driver_connection, "ends_as"):
            raise ConfigurationError(
                "two_phase=True: let transact make asyncpg's connections; engine_options makes its own"
            )
        system, database, most, xid = connection.execute(_STOCK).one()
        return Stock(fingerprint(system, database), xid, _NOT_SET_UP if most == 0 else None)

    def prepare(self, connection: Connection, part: Part) -> None:
        """See ``Branching``."""
        connection.exec_driver_sql(f"PREPARE TRANSACTION '{part.name}'")
        connection.info[_PREPARED] = part

    def give_up(self, connection: Connection) -> None:
        """See ``Branching``. The server knows the transaction by its own id."""

    def end_by_name(self, engine: Engine, word: str, name: str) -> bool | None:
        """See ``Branching``."""
        with connected(engine) as connection:
            try:
                connection.exec_driver_sql(f"{word} PREPARED '{name}'")
            except DatabaseError as error:
                if error.sqlstate != _UNDEFINED_OBJECT:
                    raise
        return True

    def decide(self, engine: Engine, branch: Branch | Xid) -> Verdict:
        """See ``Branching``."""
        assert isinstance(branch, Branch)  # noqa: S101  # an Xid is that of a MariaDB, which decides itself
        with connected(engine) as connection:
            system, database, _, standby = connection.execute(_SERVER).one()
            if standby or fingerprint(system, database) != branch.decider:
                return Verdict.WAIT  # a standby may be behind, and another server knows nothing
            last = f"{PREFIX}{branch.global_id}:{branch.of}/{branch.of}:"
            prepared = bool(connection.scalar(_IS_PREPARED, {"start": last}))
            # In this order: that it has ended without being prepared is final, that it is not prepared may change. NULL is
            # one too old to be known. If the server has crashed, "committed" may be another's who got the same id.
            status = None if prepared else connection.scalar(_STATUS, {"xid": branch.transaction})
            return verdict(prepared=prepared, ended=status in {"aborted", None})

    def look_at_server(self, engine: Engine) -> str:
        """See ``Branching``."""
        with connected(engine) as connection:
            system, database, most, _ = connection.execute(_SERVER).one()
        if most == 0:
            raise ConfigurationError(_NOT_SET_UP)
        return fingerprint(system, database)

    def listed(self, engine: Engine, global_id: str = "") -> list[Listed]:
        """See ``Branching``."""
        with connected(engine) as connection:
            rows = connection.execute(_LIST, {"start": f"{PREFIX}{global_id}"}).all()
        return [
            Listed(name, branch, since, seconds)
            for name, since, seconds in rows
            if (branch := Branch.parse(name)) is not None
        ]


# What SQLAlchemy's COMMIT and ROLLBACK do.


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
            _end_by_asyncpg(dbapi_connection, plain, part.name)
        else:
            _end_by_psycopg(dbapi_connection, f"{word} PREPARED '{part.name}'")
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
