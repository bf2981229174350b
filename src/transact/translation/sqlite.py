"""SQLite: an extended result code is a class.

The codes are those of https://www.sqlite.org/rescode.html. The low byte of an extended code is the primary one.
"""

from __future__ import annotations

import re
from typing import Final

from transact import errors
from transact.translation._engine import Code, Engine, Kind, Names

_EXTENDED: Final[dict[int, Kind]] = {
    275: errors.CheckViolation,
    517: errors.SerializationFailure,  # BUSY_SNAPSHOT: a reader cannot become a writer, its snapshot is old
    787: errors.ForeignKeyViolation,
    1299: errors.NotNullViolation,
    1555: errors.UniqueViolation,  # PRIMARYKEY
    2067: errors.UniqueViolation,
    2579: errors.UniqueViolation,  # ROWID
    3091: errors.InvalidData,  # CONSTRAINT_DATATYPE: a STRICT table's column has another type
}

_PRIMARY: Final[dict[int, Kind]] = {
    1: errors.InvalidStatement,  # ERROR: SQLite's word for every mistake in a statement
    3: errors.PermissionDenied,
    5: errors.LockTimeout,  # BUSY: another connection holds the file
    6: errors.LockTimeout,  # LOCKED: the same, inside one shared cache
    7: errors.DatabaseUnavailable,  # NOMEM
    8: errors.ReadOnlyViolation,
    9: errors.StatementTimeout,  # INTERRUPT
    13: errors.DatabaseUnavailable,  # FULL
    14: errors.DatabaseUnavailable,  # CANTOPEN
    18: errors.InvalidData,  # TOOBIG
    19: errors.IntegrityViolation,
    20: errors.InvalidData,  # MISMATCH
    23: errors.PermissionDenied,  # AUTH
}

_PRIMARY_MASK: Final = 0xFF

#: "UNIQUE constraint failed: users.username, users.tenant", "NOT NULL constraint failed: users.username"
_COLUMNS: Final = re.compile(r"^(?:UNIQUE|NOT NULL) constraint failed: (?!index ')(?P<columns>.+)$", re.DOTALL)
#: "UNIQUE constraint failed: index 'uq_lower_name'": an index over expressions has no columns to tell.
_INDEX: Final = re.compile(r"^UNIQUE constraint failed: index '(?P<name>.+)'$", re.DOTALL)
#: "CHECK constraint failed: ck_age"; an unnamed one is told by its expression, which is not a name.
_CHECK: Final = re.compile(r"^CHECK constraint failed: (?P<name>\w+)$")


def _code(error: BaseException) -> Code:
    value = getattr(error, "sqlite_errorcode", None)
    return Code(errno=value) if isinstance(value, int) else Code()


def _kind(code: Code, error: BaseException) -> Kind | None:
    del error
    if code.errno is None:
        return None
    return _EXTENDED.get(code.errno) or _PRIMARY.get(code.errno & _PRIMARY_MASK)


def _text(error: BaseException) -> str:
    return str(error.args[0]) if error.args else ""


def _names(error: BaseException, kind: Kind) -> Names:
    # SQLite has no fields for these, and says nothing at all for a foreign key.
    text = _text(error)
    if issubclass(kind, errors.CheckViolation) and (found := _CHECK.match(text)):
        return Names(constraint=found["name"])
    if found := _INDEX.match(text):
        return Names(constraint=found["name"])
    if found := _COLUMNS.match(text):
        table, columns = "", []
        for qualified in found["columns"].split(", "):
            table, _, column = qualified.partition(".")
            columns.append(column)
        return Names(table=table, columns=tuple(columns))
    return Names()


def _quotes_values(code: Code, kind: Kind) -> bool:
    del code
    return issubclass(kind, errors.InvalidData)


ENGINE: Final = Engine(
    drivers=frozenset({"sqlite3", "aiosqlite"}),
    code=_code,
    kind=_kind,
    text=_text,
    names=_names,
    quotes_values=_quotes_values,
)
