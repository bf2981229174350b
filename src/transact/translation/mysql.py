"""MySQL and MariaDB: an error number is a class; for the many others the SQLSTATE's class, where the driver keeps it.

The numbers are those of the "MySQL Server Error Message Reference" and of "MariaDB Error Codes"; 2xxx are the client's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from transact import errors
from transact.translation._engine import Code, Engine, Kind, Names, by_sqlstate

_NUMBERS: Final[Mapping[Kind, tuple[int, ...]]] = {
    errors.UniqueViolation: (1022, 1062, 1169, 1586, 1859),
    errors.ForeignKeyViolation: (1216, 1217, 1451, 1452, 1761, 1762),
    errors.NotNullViolation: (1048, 1263, 1364),
    errors.CheckViolation: (1369, 3819, 4025),  # 1369: WITH CHECK OPTION of a view
    errors.InvalidData: (
        # out of range, truncated, not of the type, too long, wrong characters
        1264, 1265, 1292, 1300, 1366, 1367, 1406, 1411, 1525, 1526, 1690, 3140, 3156, 3854,
    ),
    errors.SerializationFailure: (1020,),  # a row changed since it was read (innodb_snapshot_isolation)
    errors.DeadlockDetected: (1213, 1614),
    errors.LockTimeout: (1205, 3572),
    errors.StatementTimeout: (1317, 1969, 3024),
    errors.ConnectionLost: (2006, 2013, 2055, 4031),
    errors.ServerShutdown: (1053, 1927, 3169),
    errors.DatabaseUnavailable: (
        2002, 2003, 2005,  # no connection could be made
        1021, 1037, 1038, 1041, 1114, 1206,  # the disk, the memory, a table, the lock table is full
    ),
    errors.TooManyConnections: (1040, 1203, 1226),
    errors.ReadOnlyViolation: (1290, 1792, 1836, 1874),
    errors.PermissionDenied: (1044, 1045, 1129, 1130, 1142, 1143, 1227, 1370, 1698, 1820, 1862, 3118, 4151),
    errors.InvalidStatement: (
        # syntax; unknown or ambiguous tables, columns, databases, functions, savepoints; wrong numbers of columns
        1046, 1049, 1051, 1052, 1054, 1064, 1109, 1110, 1111, 1136, 1146, 1149, 1241, 1248, 1305, 1318, 1327,
    ),
}  # fmt: skip
_KINDS: Final = {number: kind for kind, numbers in _NUMBERS.items() for number in numbers}

#: For numbers that are not above. The classes are the standard's, "HY" says nothing.
_EXACT: Final[dict[str, Kind]] = {"40001": errors.SerializationFailure}
_CLASSES: Final[dict[str, Kind]] = {
    "08": errors.ConnectionLost,
    "22": errors.InvalidData,
    "23": errors.IntegrityViolation,
    "28": errors.PermissionDenied,
    "42": errors.InvalidStatement,
}

#: A deadlock, a changed row or a full lock table undoes the whole transaction, its savepoints with it (InnoDB's
#: convert_error_code_to_mysql). ROLLBACK TO, or RELEASE, then fails with 1305 "SAVEPOINT does not exist" while the first
#: error is handled, and hides what happened.
ENDS_TRANSACTION: Final = frozenset({1020, 1206, 1213, 1614})
#: A lock timeout undoes its statement only, unless the server runs with innodb_rollback_on_timeout.
MAY_END_TRANSACTION: Final = 1205
_HIDDEN_BY: Final = {1305: ENDS_TRANSACTION}

#: Messages that quote only names, though their kin quote values: "Data too long for column 'name' at row 1".
_NAMES_ONLY: Final = frozenset({1264, 1265, 1406})
#: A syntax error quotes the statement, into which asyncmy has already put the parameters.
_QUOTE_STATEMENTS: Final = frozenset({1064, 1149})

#: The key is quoted last: "Duplicate entry 'a' for key 'uq_users_username'"; MySQL 8 puts the table before it. Servers
#: translate the words (lc_messages) but not the marks.
_KEY: Final = re.compile(r"'(?:(?P<table>[^'.]+)\.)?(?P<name>[^']+)'$")
#: "(`shop`.`orders`, CONSTRAINT `fk` FOREIGN KEY (`user_id`) REFERENCES `users` (`id`))"
_FOREIGN_KEY: Final = re.compile(
    r"`(?P<table>(?:[^`]|``)+)`, CONSTRAINT `(?P<name>(?:[^`]|``)+)` FOREIGN KEY \((?P<columns>`.+?`)\) REFERENCES"
)
#: MariaDB: "CONSTRAINT `ck_age` failed for `shop`.`users`"; MySQL: "Check constraint 'ck_age' is violated."
_CHECK: Final = re.compile(r"[`'](?P<name>[^`']+)[`'](?:.*\.`(?P<table>[^`]+)`)?")
#: "Column 'name' cannot be null", "Field 'name' doesn't have a default value"
_COLUMN: Final = re.compile(r"'(?P<name>[^']+)'")


def _code(error: BaseException) -> Code:
    number = error.args[0] if error.args else None
    sqlstate = getattr(error, "sqlstate", None)
    if not isinstance(number, int) or not _is_mysql(error):
        return Code()
    return Code(sqlstate if isinstance(sqlstate, str) else None, number)


def _is_mysql(error: BaseException) -> bool:
    # Others have a number first as well: OSError the operating system's, KeyError(5) a key.
    return any(base.__name__ in {"MySQLError", "Error"} for base in type(error).__mro__)


def _kind(code: Code, error: BaseException) -> Kind | None:
    del error
    return _KINDS.get(code.errno or 0) or by_sqlstate(code.sqlstate, _EXACT, _CLASSES)


def _text(error: BaseException) -> str:
    return str(error.args[1]) if len(error.args) > 1 else "".join(map(str, error.args))


def _names(error: BaseException, kind: Kind) -> Names:
    # The protocol's error packet has no fields for these.
    text = _text(error)
    if issubclass(kind, errors.UniqueViolation) and (found := _KEY.search(text)):
        return Names(constraint=found["name"], table=found["table"])
    if issubclass(kind, errors.ForeignKeyViolation) and (found := _FOREIGN_KEY.search(text)):
        columns = tuple(column.strip("` ") for column in found["columns"].split(","))
        return Names(constraint=found["name"], table=found["table"], columns=columns)
    if issubclass(kind, errors.CheckViolation) and (found := _CHECK.search(text)):
        # A column's own CHECK has no name; MariaDB shows `table.column` in its place.
        unnamed = found["table"] is not None and found["name"].startswith(f"{found['table']}.")
        column = found["name"].partition(".")[2]
        return Names(constraint=None if unnamed else found["name"], table=found["table"], columns=(column,) * unnamed)
    if issubclass(kind, errors.NotNullViolation) and (found := _COLUMN.search(text)):
        return Names(columns=(found["name"],))
    return Names()


def _quotes_values(code: Code, kind: Kind) -> bool:
    if code.errno in _QUOTE_STATEMENTS:
        return True
    # Of integrity errors only a duplicate quotes a value; it stands before the key's name, which is kept apart.
    return issubclass(kind, (errors.InvalidData, errors.UniqueViolation)) and code.errno not in _NAMES_ONLY


ENGINE: Final = Engine(
    drivers=frozenset({"asyncmy", "aiomysql", "pymysql", "MySQLdb"}),
    code=_code,
    kind=_kind,
    text=_text,
    names=_names,
    quotes_values=_quotes_values,
    hidden_by=_HIDDEN_BY,
)
