"""Bring the tables up to date: ``python -m examples.shop.migrate``, or ``alembic -c examples/shop/alembic.ini``."""

import asyncio
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection

from transact import Database

CONFIG = Path(__file__).with_name("alembic.ini")


def _on(connection: Connection) -> Config:
    config = Config(CONFIG)
    config.attributes["connection"] = connection  # migrations/env.py uses it instead of making its own
    return config


async def upgrade(db: Database, revision: str = "head") -> None:
    """Run the migrations up to ``revision`` in one transaction."""
    async with db.engine.begin() as connection:
        await connection.run_sync(lambda plain: command.upgrade(_on(plain), revision))


async def downgrade(db: Database, revision: str) -> None:
    """Undo the migrations after ``revision``; ``base`` undoes all of them."""
    async with db.engine.begin() as connection:
        await connection.run_sync(lambda plain: command.downgrade(_on(plain), revision))


async def _main() -> None:
    async with Database.from_env() as db:
        await upgrade(db)


if __name__ == "__main__":
    asyncio.run(_main())
