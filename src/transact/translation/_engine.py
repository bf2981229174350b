"""What the engines have in common: the shape of a table, and how a code is looked for."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from transact import errors
from transact.translation._chain import history, is_driver

#: What a code stands for.
Kind = type[errors.DatabaseError]

#: SQLSTATE class 08: the connection. Also what a driver says by itself when the server's last words are behind it.
_CONNECTION = "08"


class Code(NamedTuple):
    """What an engine calls an error.

    - ``sqlstate``: five characters (ISO/IEC 9075-2, "SQLSTATE class and subclass values"), or None.
    - ``errno``: MySQL's error number or SQLite's extended result code, or None.
    """

    sqlstate: str | None = None
    errno: int | None = None


@dataclass(frozen=True, slots=True)
class Names:
    """What an integrity error is about, as far as it is known. ``schema`` only tells tables of one name apart."""

    constraint: str | None = None
    table: str | None = None
    columns: tuple[str, ...] = ()
    schema: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """One engine's table, and how its drivers spell things.

    - ``drivers``: the top-level modules whose exceptions are this engine's.
    - ``code``: reads the code off one exception; ``Code()`` if it has none.
    - ``kind``: the class that a code stands for; None if no class but ``DatabaseError`` does.
    - ``text``: the driver's words without details that quote rows.
    - ``names``: the constraint, table and columns of an integrity error.
    - ``quotes_values``: whether the words for this code quote values between quotation marks.
    - ``hints``: a SQLSTATE -> what to do about it, where the server's words do not lead there.
    - ``hidden_by``: an error number -> the numbers of errors that it may hide, when one of them stands behind it.
    """

    drivers: frozenset[str]
    code: Callable[[BaseException], Code]
    kind: Callable[[Code, BaseException], Kind | None]
    text: Callable[[BaseException], str]
    names: Callable[[BaseException, Kind], Names]
    quotes_values: Callable[[Code, Kind], bool]
    hints: Mapping[str, str] = field(default_factory=dict)
    hidden_by: Mapping[int, frozenset[int]] = field(default_factory=dict)

    def read(self, chain: Sequence[BaseException]) -> tuple[Code, BaseException]:
        """The code that counts in ``chain``, and the exception in whose words it was said.

        A server's own code goes before a driver's 08xxx: when a server cuts a connection, asyncpg reports 08003 and
        keeps the server's 57P01 as the cause. Of several exceptions with that code the last one is the driver's own.
        """
        coded = [(code, item) for item in chain if (code := self._code(item)) != Code()]
        if not coded:
            return Code(), next((item for item in reversed(chain) if is_driver(item, self.drivers)), chain[0])
        code = next((code for code, _ in coded if not (code.sqlstate or "").startswith(_CONNECTION)), coded[0][0])
        said = next(item for other, item in reversed(coded) if other == code)
        if hidden := self.hidden_by.get(code.errno or 0):
            behind = [(other, item) for item in history(said) if (other := self._code(item)).errno in hidden]
            code, said = behind[-1] if behind else (code, said)
        return code, said

    def _code(self, error: BaseException) -> Code:
        if isinstance(error, errors.DatabaseError):  # translated already, and perhaps pickled since
            return Code(error.sqlstate, error.errno)
        return self.code(error)


def by_sqlstate(sqlstate: str | None, exact: Mapping[str, Kind], classes: Mapping[str, Kind]) -> Kind | None:
    """Look up the five characters, then the first two, which are the class."""
    if sqlstate is None:
        return None
    return exact.get(sqlstate) or classes.get(sqlstate[:2])


def without_values(text: str) -> str:
    """Cut what may be a value out of a message: from the first quotation mark to the last, and all after a colon.

    ``invalid input syntax for type integer: "x"``, ``Incorrect integer value: 'x' for column `n```, ``value "x" is out
    of range``. A value may itself contain marks, colons and words that look like the message's, so the widest cut is
    the only safe one.
    """
    masked = re.sub(r"[\"'`](?:.*[\"'`]|.*)", "…", text, flags=re.DOTALL)
    return masked.partition(": ")[0]
