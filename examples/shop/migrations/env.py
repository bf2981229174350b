"""How Alembic reaches the database: by a connection that is handed over, or by the environment's, on any driver."""

import asyncio

from alembic import context
from sqlalchemy import Connection

from examples.shop.tables import Base
from transact import Database


def run(connection: Connection) -> None:
    """Run the migrations that the command asks for."""
    # SQLite cannot alter most of a table; batch mode copies it instead.
    batch = connection.dialect.name == "sqlite"
    context.configure(connection=connection, target_metadata=Base.metadata, render_as_batch=batch)
    with context.begin_transaction():
        context.run_migrations()


async def run_on_environment() -> None:
    """Run them on the database that the application's own settings name."""
    async with Database.from_env() as db, db.engine.begin() as connection:
        await connection.run_sync(run)


handed_over = context.config.attributes.get("connection")
if handed_over is not None:
    run(handed_over)
else:
    asyncio.run(run_on_environment())
