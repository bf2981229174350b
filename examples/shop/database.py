"""The database of the shop, described by the environment: ``TRANSACT_URL``, and ``TRANSACT_POOL_SIZE`` and so on."""

from transact.fastapi import Database

from .tables import Base

# With the metadata, an error names the broken constraint on every engine. SQLite by itself names only the columns.
db = Database.from_env(metadata=Base.metadata)
