"""Names under which connections carry what the listeners of an engine have to know."""

from __future__ import annotations

AUTOCOMMIT = "AUTOCOMMIT"
"""The isolation level that is none: each statement is a transaction."""
READ_ONLY = "transact_read_only"
"""The execution option of a read-only transaction, where SQLAlchemy has none."""
QUEUED = "transact_queued"
"""The execution option of a SQLite connection that is given back when its transaction ends."""
UNIT = "transact_unit"
"""The execution option by which SQLite's BEGIN finds the unit of work whose time limits it has to keep."""
LIMITED = "transact_limited"
"""Set in a connection's ``info`` while it is told limits that its next user must not find."""
STATEMENTS = "transact_statements"
"""The execution option of a connection on which each statement is a transaction of its own, and reads."""
