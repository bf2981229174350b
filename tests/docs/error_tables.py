"""The two tables of docs/errors.md, made from the code. To renew them: python -m tests.docs.error_tables"""

from transact import errors
from transact.errors import TransactError
from transact.fastapi.problems import code_of, kind_of
from transact.translation import mysql, postgresql, sqlite


def classes() -> list[type[TransactError]]:
    """Every class of the tree, in the order of the module."""
    return [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, TransactError)]


def problem_rows() -> list[list[str]]:
    """What the client reads: one row for each class of error."""
    rows = []
    for cls in classes()[1:]:  # the first is the base of all
        status, detail = kind_of(cls)[1]
        rows.append([f"`{cls.__name__}`", f"`{code_of(cls)}`", str(status), "yes" if cls.retryable else "", detail])
    return rows


def code_rows() -> list[list[str]]:
    """Which codes become which class."""
    postgres: dict[type, list[str]] = {}
    for table, suffix in ((postgresql._EXACT, ""), (postgresql._CLASSES, "xxx")):
        for code, cls in table.items():
            postgres.setdefault(cls, []).append(f"{code}{suffix}")
    lite: dict[type, list[str]] = {}
    for numbers in (sqlite._EXTENDED, sqlite._PRIMARY):
        for number, cls in numbers.items():
            lite.setdefault(cls, []).append(str(number))
    told = [cls for cls in classes() if cls in postgres or cls in mysql._NUMBERS or cls in lite]
    return [
        [
            f"`{cls.__name__}`",
            ", ".join(postgres.get(cls, [])),
            ", ".join(map(str, mysql._NUMBERS.get(cls, ()))),
            ", ".join(lite.get(cls, [])),
        ]
        for cls in told
    ]


if __name__ == "__main__":
    for rows in (problem_rows(), code_rows()):
        print("\n".join(f"| {' | '.join(row)} |" for row in rows), end="\n\n")  # noqa: T201  # a command
