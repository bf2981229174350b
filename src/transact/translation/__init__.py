"""A driver's error -> one of ``transact.errors``, judged by its code, never by its words.

One table per engine (``postgresql``, ``mysql``, ``sqlite``), and one logic for all of them, here. No driver is
imported: what an exception has is read off it.

What comes out is also the SQLAlchemy class that it would have been without transact, with all its attributes, and
``orig`` is the driver's exception, untouched. Its text is fit for a log: the driver's words without the values of rows,
the code, the statement with placeholders, and the parameters only if the engine was made to show them.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import MetaData, exc

from transact import errors
from transact.translation import mysql, postgresql, sqlite
from transact.translation._chain import is_driver, is_told, linked, reported
from transact.translation._engine import Code, Engine, Kind, Names, without_values
from transact.translation._join import join
from transact.translation._metadata import resolve

_ENGINES: Final[dict[str, Engine]] = {
    "postgresql": postgresql.ENGINE,
    "mysql": mysql.ENGINE,
    "mariadb": mysql.ENGINE,
    "sqlite": sqlite.ENGINE,
}

#: The judgements that a failed connect overrules: there is no connection that could be lost, and no statement that
#: could be wrong (MySQL counts an unknown database as one).
_NO_CONNECTION: Final = frozenset({None, errors.DatabaseError, errors.ConnectionLost, errors.InvalidStatement})

#: How a server ends what takes too long; PostgreSQL also ends the session of a program that does nothing.
_ENDED_BY_DEADLINES: Final = frozenset({errors.StatementTimeout, errors.LockTimeout, errors.ConnectionLost})

#: What drivers let through when a value cannot be put on the wire: sqlite3 an integer over 64 bits, all of them text
#: with a lone surrogate.
_UNSENDABLE: Final = (OverflowError, UnicodeEncodeError)


def translate(
    error: BaseException,
    dialect: str,
    *,
    wrapped: exc.StatementError | None = None,
    connecting: bool = False,
    disconnected: bool = False,
    late: bool = False,
    metadata: MetaData | None = None,
) -> errors.DatabaseError | None:
    """Return the error to raise in place of ``error``, or None if it is not a database's and should go on as it is.

    Call it with what came out of a call of the driver, and with nothing else: a ``TimeoutError`` of the program's own
    would pass for a driver's.

    - ``error``: what the driver raised, adapted by SQLAlchemy or not.
    - ``dialect``: ``postgresql``, ``mysql``, ``mariadb`` or ``sqlite``.
    - ``wrapped``: what SQLAlchemy would raise in its place. None if it would let ``error`` through; the result is then
      a ``sqlalchemy.exc.DataError`` if it is ``InvalidData``, and a ``sqlalchemy.exc.OperationalError`` otherwise.
    - ``connecting``: there was no connection yet.
    - ``disconnected``: SQLAlchemy judged the connection to be gone.
    - ``late``: the transaction's deadline has passed, so that is what a statement, or the wait for a lock, ran into, or why
      the connection is gone.
    - ``metadata``: resolves the names of constraints to tables and columns and back.
    """
    if not isinstance(error, Exception) or isinstance(error, errors.TransactError):
        return None
    if wrapped is None and isinstance(error, exc.StatementError):
        wrapped, error = error, error.orig or error
    engine = _ENGINES[dialect]
    chain = linked(error)
    code, said = engine.read(chain)
    kind = engine.kind(code, said) or _kind_without_code(engine, chain, connecting=connecting)
    if connecting and kind in _NO_CONNECTION and (_is_database(engine, chain, wrapped) or isinstance(error, OSError)):
        kind = errors.DatabaseUnavailable
    if kind is None and (disconnected or isinstance(error, (ConnectionError, EOFError))):
        kind = errors.ConnectionLost
    if kind is None and (code != Code() or _is_database(engine, chain, wrapped)):
        kind = errors.DatabaseError
    if kind is None:
        return None
    if late and kind in _ENDED_BY_DEADLINES:
        kind = errors.TransactionTimeout
    if wrapped is None:
        theirs = exc.DataError if issubclass(kind, errors.InvalidData) else exc.OperationalError
        wrapped = theirs(None, None, error, connection_invalidated=disconnected)
    names = engine.names(said, kind) if issubclass(kind, errors.IntegrityViolation) else None
    if names is not None and metadata is not None:
        names = resolve(names, kind, metadata, dialect)
    joined = join(kind, wrapped, _text(engine, kind, code, said, type(wrapped.orig)), **_fields(code, names))
    return _with_hint(joined, engine.hints.get(code.sqlstate or ""))


def codes(error: BaseException, dialect: str) -> Code:
    """The SQLSTATE and error number of the nearest database error at or behind ``error``; each None if there is none.

    Looks along ``orig``, ``driver_exception`` and ``__cause__``, and along ``__context__`` while what it has found is
    the program's own: ``raise OutOfStock`` while a serialization failure was handled is a serialization failure. Behind
    an error of a database no context counts, since that may be any earlier one.
    """
    engine = _ENGINES[dialect]
    chain = reported(error, engine.drivers)
    return engine.read(chain)[0] if chain else Code()


def judged(
    error: BaseException, dialect: str, before: BaseException | None = None
) -> tuple[type[errors.TransactError] | None, list[BaseException]]:
    """The class of the nearest database error at or behind ``error``, found as ``codes`` finds it, and all that was seen.

    ``None`` if there is none. An error of this library that is not the database's counts as itself. ``before`` was being
    handled before the work began that failed with ``error``; all that was raised since has it as a context.
    """
    engine = _ENGINES[dialect]
    seen = linked(error)
    chain = reported(error, engine.drivers, before)
    seen += [item for item in chain if all(item is not known for known in seen)]
    for item in chain:
        if isinstance(item, errors.TransactError) and is_told(item):
            return type(item), seen
    kind = (engine.kind(*engine.read(chain)) or _kind_without_code(engine, chain, connecting=False)) if chain else None
    return kind or next((type(item) for item in seen if isinstance(item, errors.TransactError)), None), seen


def _is_database(engine: Engine, chain: list[BaseException], wrapped: exc.StatementError | None) -> bool:
    return isinstance(wrapped, exc.DBAPIError) or any(is_driver(item, engine.drivers) for item in chain)


def _kind_without_code(engine: Engine, chain: list[BaseException], *, connecting: bool) -> Kind | None:
    """What an error is that never came from a server."""
    for item in chain:
        # psycopg refuses NUL in text by itself, with the class that PEP 249 has for it.
        refused = is_driver(item, engine.drivers) and any(base.__name__ == "DataError" for base in type(item).__mro__)
        if refused or isinstance(item, _UNSENDABLE):
            return errors.InvalidData
    # asyncpg's command_timeout: the driver gave up, and had the server cancel the statement.
    return errors.StatementTimeout if isinstance(chain[0], TimeoutError) and not connecting else None


def _text(engine: Engine, kind: Kind, code: Code, said: BaseException, origin: type) -> str:
    """What SQLAlchemy would write, without what quotes a row's values."""
    if isinstance(said, UnicodeEncodeError):  # carries the whole text that it could not encode
        words = f"text that {said.encoding} cannot encode ({said.reason})"
    else:
        words = engine.text(said) if is_driver(said, engine.drivers) else str(said)
        if engine.quotes_values(code, kind):
            words = without_values(words)
    told = [f"{name} {value}" for name, value in (("SQLSTATE", code.sqlstate), ("error", code.errno)) if value]
    return " ".join(
        filter(None, [f"({origin.__module__}.{origin.__name__})", words, f"[{', '.join(told)}]" * bool(told)])
    )


def _with_hint(error: errors.DatabaseError, hint: str | None) -> errors.DatabaseError:
    if hint is not None:
        error.add_note(hint)
    return error


def _fields(code: Code, names: Names | None) -> dict[str, object]:
    fields: dict[str, object] = {"sqlstate": code.sqlstate, "errno": code.errno}
    if names is not None:
        fields |= {"constraint": names.constraint, "table": names.table, "columns": names.columns}
    return fields


__all__ = ["Code", "codes", "judged", "translate"]
