"""From the name of a constraint to its table and columns, and back, by the application's MetaData."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Final

from sqlalchemy import (
    CheckConstraint,
    Constraint,
    ForeignKeyConstraint,
    Index,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    UniqueConstraint,
)
from sqlalchemy.engine.interfaces import Dialect
from sqlalchemy.exc import IdentifierError

from transact import errors
from transact.translation._engine import Kind, Names

_Rule = Constraint | Index

_FORMS: Final[dict[Kind, tuple[type[_Rule], ...]]] = {
    errors.UniqueViolation: (PrimaryKeyConstraint, UniqueConstraint, Index),
    errors.ForeignKeyViolation: (ForeignKeyConstraint,),
    errors.CheckViolation: (CheckConstraint,),
    errors.NotNullViolation: (),  # SQLAlchemy's NOT NULL is a column's, not a constraint with a name
}

#: What PostgreSQL calls a constraint without a name: table, columns, and one of these (its ``ChooseConstraintName``).
_SUFFIXES: Final[dict[type[_Rule], str]] = {
    UniqueConstraint: "key",
    ForeignKeyConstraint: "fkey",
    CheckConstraint: "check",
}

#: Every primary key of MySQL has this name, and MariaDB does not say of which table it is.
_ANY_PRIMARY_KEY: Final = Names(constraint="PRIMARY")


def resolve(names: Names, kind: Kind, metadata: MetaData, dialect: str) -> Names:
    """Fill in what ``names`` lacks and ``metadata`` knows. What is ambiguous, or unknown to it, stays as it was."""
    if names == _ANY_PRIMARY_KEY:
        return names
    known = [(table, rule) for table in _tables(names, metadata) for rule in _rules(table, kind)]
    if names.constraint is not None:
        found = [pair for pair in known if _is_called(pair[1], pair[0], names.constraint, dialect)]
    elif names.table is not None and names.columns:
        found = [pair for pair in known if _columns(pair[1]) == names.columns]
    else:
        found = []
    if len({table for table, _ in found}) == 1:
        # A table may have two rules over the same columns. The named one is the one that somebody wants to hear of.
        found = [pair for pair in found if pair[1].name] or found
    if len(found) != 1:
        return names
    table, rule = found[0]
    return replace(
        names,
        constraint=_name(rule, dialect) or names.constraint,
        table=names.table or table.name,
        columns=names.columns or _columns(rule),
    )


def _tables(names: Names, metadata: MetaData) -> list[Table]:
    tables = list(metadata.tables.values())
    if names.table is None:
        return tables
    tables = [table for table in tables if table.name == names.table]
    # A table without a schema lives wherever the search path says, so it is the second choice only.
    return (
        [table for table in tables if table.schema == names.schema] or [t for t in tables if t.schema is None] or tables
    )


def _rules(table: Table, kind: Kind) -> Iterator[_Rule]:
    forms = _FORMS.get(kind, (Constraint, Index))
    yield from (rule for rule in table.constraints if isinstance(rule, forms) and not _is_empty_key(rule))
    yield from (index for index in table.indexes if isinstance(index, forms) and index.unique)


def _is_empty_key(rule: _Rule) -> bool:
    return isinstance(rule, PrimaryKeyConstraint) and not rule.columns


def _columns(rule: _Rule) -> tuple[str, ...]:
    columns = getattr(rule, "columns", ())
    return tuple(column.name for column in columns)


def _is_called(rule: _Rule, table: Table, reported: str, dialect: str) -> bool:
    if dialect in {"mysql", "mariadb"} and isinstance(rule, PrimaryKeyConstraint):
        return reported == "PRIMARY"  # whatever name it was given
    name = _name(rule, dialect)
    return reported == (_default_name(rule, table, dialect) if name is None else name)


def _default_name(rule: _Rule, table: Table, dialect: str) -> str | None:
    if dialect in {"mysql", "mariadb"}:
        return _columns(rule)[0] if isinstance(rule, UniqueConstraint) else None
    if dialect != "postgresql":
        return None
    if isinstance(rule, PrimaryKeyConstraint):
        return f"{table.name}_pkey"
    suffix = next((suffix for form, suffix in _SUFFIXES.items() if isinstance(rule, form)), None)
    return "_".join((table.name, *_columns(rule), suffix)) if suffix else None


def _name(rule: _Rule, dialect: str) -> str | None:
    """The name as the engine knows it: a naming convention applied, and cut to the engine's length as DDL cuts it."""
    if rule.name is None:
        return None
    preparer = _dialect(dialect).identifier_preparer
    try:
        quoted = preparer.format_constraint(rule)
    except IdentifierError:  # longer than the engine takes, so SQLAlchemy did not make it there
        return str(rule.name)
    if quoted is None or not quoted.startswith(preparer.initial_quote):
        return quoted
    return quoted[1:-1].replace(preparer.escape_quote * 2, preparer.escape_quote)


@cache
def _dialect(name: str) -> Dialect:
    # Loads no driver: a dialect asks for one when an engine is made.
    module = importlib.import_module(f"sqlalchemy.dialects.{'mysql' if name == 'mariadb' else name}")
    dialect: Dialect = module.dialect()
    return dialect
