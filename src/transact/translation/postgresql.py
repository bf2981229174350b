"""PostgreSQL: a SQLSTATE is a class.

The codes are those of the manual's appendix A, "PostgreSQL Error Codes"; asyncpg and psycopg hand out the fields of the
protocol's ErrorResponse (manual, "Error and Notice Message Fields") under different names.
"""

from __future__ import annotations

from typing import Any, Final

from transact import errors
from transact.translation._engine import Code, Engine, Kind, Names, by_sqlstate

_EXACT: Final[dict[str, Kind]] = {
    # 08007 and 40003 say that nobody knows what became of the transaction: nothing that may be tried again.
    "08007": errors.DatabaseError,
    "40003": errors.DatabaseError,
    "23001": errors.ForeignKeyViolation,  # ON DELETE RESTRICT; PostgreSQL up to 17 says 23503 for it
    "23502": errors.NotNullViolation,
    "23503": errors.ForeignKeyViolation,
    "23505": errors.UniqueViolation,
    "23514": errors.CheckViolation,
    "23P01": errors.ExclusionViolation,
    "44000": errors.CheckViolation,  # WITH CHECK OPTION of a view
    "25006": errors.ReadOnlyViolation,
    "25P03": errors.TransactionTimeout,  # idle_in_transaction_session_timeout: the program was slow, not the network
    "25P04": errors.TransactionTimeout,
    "3F000": errors.InvalidStatement,  # an unknown schema, as 42P01 is an unknown table
    "40001": errors.SerializationFailure,
    "40P01": errors.DeadlockDetected,
    "42501": errors.PermissionDenied,
    "53300": errors.TooManyConnections,
    "54000": errors.InvalidData,  # a value too long for an index or a tsvector
    "55P03": errors.LockTimeout,
    "57014": errors.StatementTimeout,
    "57P01": errors.ServerShutdown,
    "57P02": errors.ServerShutdown,
    "57P03": errors.DatabaseUnavailable,
    "57P05": errors.ConnectionLost,  # idle_session_timeout
}

_CLASSES: Final[dict[str, Kind]] = {
    "08": errors.ConnectionLost,
    "22": errors.InvalidData,
    "23": errors.IntegrityViolation,
    "28": errors.PermissionDenied,
    "42": errors.InvalidStatement,
    "53": errors.DatabaseUnavailable,
}

#: A prepared statement's plan became stale when the schema changed: 0A000, which has a hundred other meanings, raised
#: by this routine of the server. asyncpg judges by the same field, since message texts are translated.
_STALE_PLAN: Final = ("0A000", "RevalidateCachedQuery")

#: A statement was prepared on another session than it is run on, or is there already.
_POOLER: Final = (
    "Is there a pooler in transaction mode, such as PgBouncer, in between? Then prepare nothing: "
    'Database(…, engine_options={"connect_args": …}) with {"statement_cache_size": 0, "prepared_statement_cache_size": 0} '
    'for asyncpg, {"prepare_threshold": None} for psycopg'
)
_HINTS: Final = {"26000": _POOLER, "42P05": _POOLER}

_SQLSTATE_LENGTH: Final = 5


def _code(error: BaseException) -> Code:
    for name in ("sqlstate", "pgcode"):
        value = getattr(error, name, None)
        if isinstance(value, str) and len(value) == _SQLSTATE_LENGTH:
            return Code(sqlstate=value)
    return Code()


def _field(error: BaseException, psycopg: str, asyncpg: str) -> str | None:
    diag: Any = getattr(error, "diag", None)
    value = getattr(error, asyncpg, None) if diag is None else getattr(diag, psycopg, None)
    return value if isinstance(value, str) else None


def _kind(code: Code, error: BaseException) -> Kind | None:
    if (code.sqlstate, _field(error, "source_function", "server_source_function")) == _STALE_PLAN:
        return errors.TransientError
    # asyncpg's own word for a composite type that changed under it; it has reloaded its cache when it says so.
    if type(error).__name__ == "OutdatedSchemaCacheError":
        return errors.TransientError
    return by_sqlstate(code.sqlstate, _EXACT, _CLASSES)


def _text(error: BaseException) -> str:
    # The primary message only: DETAIL quotes the row ("Key (email)=(x) already exists"), CONTEXT may quote parameters.
    return _field(error, "message_primary", "message") or (str(error.args[0]) if error.args else "")


def _names(error: BaseException, kind: Kind) -> Names:
    del kind
    column = _field(error, "column_name", "column_name")
    return Names(
        constraint=_field(error, "constraint_name", "constraint_name"),
        table=_field(error, "table_name", "table_name"),
        columns=(column,) if column else (),
        schema=_field(error, "schema_name", "schema_name"),
    )


def _quotes_values(code: Code, kind: Kind) -> bool:
    del code
    return issubclass(kind, errors.InvalidData)


ENGINE: Final = Engine(
    drivers=frozenset({"asyncpg", "psycopg", "psycopg2", "pg8000"}),
    code=_code,
    kind=_kind,
    text=_text,
    names=_names,
    quotes_values=_quotes_values,
    hints=_HINTS,
)
