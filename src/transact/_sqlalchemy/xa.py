"""Two-phase commit on MariaDB: XA, whose name is given when a transaction begins.

A note, since it shapes all of this: **a prepared transaction hangs on its connection.** While that is open, only it can end
what it prepared: the others are told that there is nothing (1397), though XA RECOVER lists it. So whoever cannot end it in
place has to be rid of the connection first. Nor can such a connection do anything else, or be used again, before it has ended.
Only what InnoDB has to store survives a crash of the server: a transaction that has only read is forgotten, prepared or not.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import event, text
from sqlalchemy.engine import Connection, Dialect, Engine

from transact._core.branches import Branch, Verdict, Xid, fingerprint, group_of, verdict
from transact._sqlalchemy.branching import Listed, Part, Stage, Stock
from transact._sqlalchemy.introducing import introduced
from transact._sqlalchemy.keys import READ_ONLY, STATEMENTS
from transact._sqlalchemy.liveness import connected
from transact._sqlalchemy.modes import TOLD
from transact._sqlalchemy.mysql import begin
from transact._sqlalchemy.plain import plain_engine
from transact.errors import ConfigurationError, DatabaseError

if TYPE_CHECKING:
    from transact._sqlalchemy.runtime import Runtime

_XA = "transact_xa"
"""Set in the ``info`` of a connection while the transaction that is open on it has a name: the ``_Open``."""
_FACTS = "transact_facts"
"""Set in the ``info`` of a connection: what its server has said of itself."""
_NOT_FOUND = 1397
"""What MariaDB says of a name that nothing is prepared under, and of one that hangs on another connection."""
_CANNOT_END = frozenset({1397, 1399, 1402, 1613, 1614})
"""What it says to XA END where there is nothing to end any more: it has rolled back by itself."""
_STRANGERS = (
    "two_phase=True: when the transaction on MariaDB began, a server of the application's other databases was not there yet, "
    "so its name could not say which they are. Nothing is stored; try again"
)
_SAME_START = 3
"""Seconds by which two reports of the server's start may differ. In doubt a transaction is taken to be open."""
_SINCE = (10, 5)
"""The version from which on a prepared transaction outlives its connection (MDEV-7974)."""
_DURABLE = frozenset({1, 3})

_WHO = "@@server_id, @@hostname, @@port, DATABASE(), CURRENT_USER(), USER(), @@innodb_flush_log_at_trx_commit"
#: Unchanged by what becomes of the clock: the server takes both from the same second.
_STARTED = (
    "(SELECT UNIX_TIMESTAMP() - VARIABLE_VALUE FROM information_schema.GLOBAL_STATUS WHERE VARIABLE_NAME = 'UPTIME')"
)
#: Counts what the session has written through any engine, temporary tables included. What InnoDB itself knows of its
#: transactions is for users with the privilege PROCESS.
_WRITTEN = (
    "(SELECT SUM(VARIABLE_VALUE) FROM information_schema.SESSION_STATUS "
    "WHERE VARIABLE_NAME IN ('HANDLER_WRITE', 'HANDLER_UPDATE', 'HANDLER_DELETE'))"
)
_BEFORE = "@transact_written"
_IS_OPEN = "EXISTS(SELECT 1 FROM information_schema.PROCESSLIST WHERE ID = {})"
_LOOK = text(f"SELECT CONNECTION_ID(), {_STARTED}, {_WRITTEN} - {_BEFORE}")
_IS_VISIBLE = text(f"SELECT {_IS_OPEN.format('CONNECTION_ID()')}")
_STATUS = text(f"SELECT @@read_only, {_STARTED}, {_IS_OPEN.format(':connection')}")


class _Open:
    """An XA transaction on a connection. ``part`` is set when it is about to be prepared, and what it is then decided.

    ``among``: the fingerprints of all databases that may take part.
    """

    __slots__ = ("among", "part", "xid")

    def __init__(self, xid: Xid, among: frozenset[str]) -> None:
        self.xid = xid
        self.among = among
        self.part: Part | None = None


class _Facts(NamedTuple):
    fingerprint: str
    refusal: str | None


class XaBranching:
    """See ``Branching``."""

    decides = True
    # Interrupted, it says so of what may have been prepared; and who asks gets to know for certain.
    doubts = True

    def teach(self, runtime: Runtime) -> None:
        """See ``Branching``. Transactions of requests are begun under a name, if others may take part."""
        dialect = runtime.engine.dialect
        dialect.do_commit = _ending(dialect.do_commit, _commit)  # type: ignore[method-assign, assignment]  # this engine's own
        dialect.do_rollback = _ending(dialect.do_rollback, _roll_back)  # type: ignore[method-assign, assignment]  # as above
        event.remove(plain_engine(runtime.engine), "begin", begin)
        event.listen(plain_engine(runtime.engine), "begin", partial(_begin, runtime))

    def look(self, connection: Connection) -> Stock:
        """See ``Branching``."""
        open_: _Open | None = connection.info.get(_XA)
        facts = _facts(connection)
        if open_ is None:
            return Stock(facts.fingerprint, "0", facts.refusal or _STRANGERS)
        number, started, written = connection.execute(_LOOK).one()
        transaction = f"{number}-{int(started)}" if written else None
        # A session's clock that was set back would make the server look as if it had started again.
        strange = "two_phase=True: SET timestamp hides when the MariaDB server has started" if started <= 0 else None
        return Stock(open_.xid.decider, transaction, strange, open_.xid, open_.among)

    def prepare(self, connection: Connection, part: Part) -> None:
        """See ``Branching``."""
        connection.info[_XA].part = part  # from here on no ROLLBACK of the pool may undo it
        connection.exec_driver_sql(f"XA END {part.name}")
        connection.exec_driver_sql(f"XA PREPARE {part.name}")

    def give_up(self, connection: Connection) -> None:
        """See ``Branching``. What is known by its connection has ended for good when that is gone."""
        if connection.closed or connection.invalidated:
            return
        try:
            with contextlib.suppress(Exception):
                connection.engine.dialect.do_rollback(connection.connection)
        finally:
            connection.invalidate()

    def end_by_name(self, engine: Engine, word: str, name: str) -> bool | None:
        """See ``Branching``."""
        with connected(engine) as connection:
            try:
                connection.exec_driver_sql(f"XA {word} {name}")
            except DatabaseError as error:
                if error.errno != _NOT_FOUND:
                    raise
                return None if any(str(xid) == name for xid in _recovered(connection)) else True
        return True

    def decide(self, engine: Engine, branch: Branch | Xid) -> Verdict:
        """See ``Branching``."""
        number, _, start = (branch.transaction if isinstance(branch, Branch) else "").partition("-")
        with connected(engine) as connection:
            if _facts(connection).fingerprint != branch.decider:
                return Verdict.WAIT  # another server knows nothing, and another user may not see the connection
            read_only, started, is_there = connection.execute(_STATUS, {"connection": int(number or 0)}).one()
            if read_only:
                return Verdict.WAIT  # a replica, which may be behind
            is_open = is_there and abs(int(started) - int(start or 0)) <= _SAME_START
            # In this order: a connection that is gone prepares nothing any more.
            prepared = any(xid.global_id == branch.global_id for xid in _recovered(connection))
            return verdict(prepared=prepared, ended=bool(number) and not is_open)

    def look_at_server(self, engine: Engine) -> str:
        """See ``Branching``."""
        with connected(engine) as connection:
            facts = _facts(connection)
            if facts.refusal is None and not connection.scalar(_IS_VISIBLE):
                raise ConfigurationError(
                    "two_phase=True: the user of MariaDB cannot see its own connections; use one with a name"
                )
        if facts.refusal is not None:
            raise ConfigurationError(facts.refusal)
        return facts.fingerprint

    def listed(self, engine: Engine, global_id: str = "") -> list[Listed]:
        """See ``Branching``. XA RECOVER has no times, so they are those of the beginning."""
        with connected(engine) as connection:
            own = _facts(connection).fingerprint
            found = [
                xid for xid in _recovered(connection) if xid.decider == own and xid.global_id.startswith(global_id)
            ]
            now = connection.exec_driver_sql("SELECT UNIX_TIMESTAMP(NOW(6))").scalar_one()
        return [
            Listed(str(xid), xid, datetime.fromtimestamp(xid.began, UTC), max(0.0, float(now) - xid.began))
            for xid in sorted(found, key=lambda xid: xid.began)
        ]


def _recovered(connection: Connection) -> list[Xid]:
    """What this library has prepared on the server, in whatever database."""
    rows = connection.exec_driver_sql("XA RECOVER").all()
    return [
        xid
        for format_id, length, _, data in rows
        if (xid := Xid.parse(format_id, length, data.decode("latin-1") if isinstance(data, bytes) else data))
        is not None
    ]


def _facts(connection: Connection) -> _Facts:
    """What the server says of itself; asked once on each connection."""
    found: _Facts | None = connection.info.get(_FACTS)
    if found is None:
        *who, account, login, durable = connection.exec_driver_sql(f"SELECT {_WHO}").one()
        # Connections of others cannot be seen: only the same user can tell whether one is gone.
        user, _, _ = str(account).rpartition("@")
        hidden = user != str(login).rpartition("@")[0]
        found = _Facts(fingerprint(*map(str, who), user), _refusal(connection.dialect, int(durable), hidden=hidden))
        connection.info[_FACTS] = found
    return found


def _refusal(dialect: Dialect, durable: int, *, hidden: bool) -> str | None:
    version = dialect.server_version_info or ()
    if not getattr(dialect, "is_mariadb", False) or version < _SINCE:
        return (
            "two_phase=True is for PostgreSQL and for MariaDB from 10.5 on, and this server is "
            f"{'MariaDB' if getattr(dialect, 'is_mariadb', False) else 'MySQL'} {'.'.join(map(str, version[:2]))}"
        )
    if durable not in _DURABLE:
        return (
            f"two_phase=True: the MariaDB server has innodb_flush_log_at_trx_commit = {durable}, so a crash may lose what it "
            "has prepared. Set it to 1"
        )
    if hidden:
        return "two_phase=True: MariaDB takes the application for an anonymous user, who cannot see connections; give it one"
    return None


# What SQLAlchemy's BEGIN, COMMIT and ROLLBACK do.


def _begin(runtime: Runtime, connection: Connection) -> None:
    unit = runtime.asking.get(runtime.whoami())
    options = connection.get_execution_options()
    reads = options.get(STATEMENTS) or options.get(READ_ONLY)
    together = unit.together if unit is not None and not reads and runtime.resolver is not None else ()
    among = _among(runtime, together, _facts(connection)) if together else None
    if among is None:
        begin(connection)
        return
    own = _facts(connection).fingerprint
    xid = Xid(uuid.uuid4().hex, len(among), group_of(among), own, int(time.time()), runtime.name)
    connection.info[_XA] = _Open(xid, among)
    told = connection.info.get(TOLD)  # it reads unless it is told otherwise
    access = f"SET TRANSACTION READ {'ONLY' if told[0] else 'WRITE'}; " if told is not None else ""
    connection.exec_driver_sql(f"BEGIN NOT ATOMIC {access}XA START {xid}; SET {_BEFORE} = {_WRITTEN}; END")


def _among(runtime: Runtime, together: Iterable[Runtime], facts: _Facts) -> frozenset[str] | None:
    """Who may take part, itself included; ``None`` if that cannot be told, or it cannot itself."""
    if facts.refusal is not None:
        return None
    others = [introduced(runtime, other) for other in together if other is not runtime]
    found = [facts.fingerprint, *(other for other in others if other is not None)]
    return frozenset(found) if len(found) > len(others) else None


def _ending(plain: Callable[[Any], None], end: Callable[[Any, _Open], None]) -> Callable[[Any], None]:
    def ended(dbapi_connection: Any) -> None:
        try:
            open_: _Open | None = dbapi_connection.info.get(_XA)
        except (AttributeError, NotImplementedError):  # it is not of a pool
            open_ = None
        if open_ is None:
            plain(dbapi_connection)
        else:
            end(dbapi_connection, open_)

    return ended


def _commit(connection: Any, open_: _Open) -> None:
    # Not in one statement, though that could be: who interrupts one of several is told so also if the last has succeeded.
    if open_.part is None:
        _send(connection, f"XA END {open_.xid}")
        _send(connection, f"XA COMMIT {open_.xid} ONE PHASE")
    else:
        _send(connection, f"XA COMMIT {open_.xid}")
        open_.part.stage = Stage.ENDED
    del connection.info[_XA]


def _roll_back(connection: Any, open_: _Open) -> None:
    if open_.part is not None:
        # SQLAlchemy sends ROLLBACK after a COMMIT that failed. It is decided; and who does it by name needs this to be gone.
        connection.invalidate()
        return
    try:
        _send(connection, f"XA END {open_.xid}")
    except Exception as error:
        if not error.args or error.args[0] not in _CANNOT_END:
            raise
    _send(connection, f"XA ROLLBACK {open_.xid}")
    del connection.info[_XA]


def _send(connection: Any, statement: str) -> None:
    cursor = connection.cursor()
    try:
        cursor.execute(statement)
    finally:
        cursor.close()
