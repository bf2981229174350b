"""The plain objects under SQLAlchemy's async ones: where both faces meet."""

from __future__ import annotations

from typing import Any

from sqlalchemy.engine import Engine
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

AnyEngine = AsyncEngine | Engine
AnySession = AsyncSession | Session


def plain_engine(engine: AnyEngine) -> Engine:
    """The engine that listeners are registered on."""
    return engine.sync_engine if isinstance(engine, AsyncEngine) else engine


def plain_session(session: Any) -> Session:
    """The session that does the work."""
    found: Session = session.sync_session if isinstance(session, AsyncSession) else session
    return found


def driver_connection(connection: Any) -> Any:
    """The driver's own connection under what SQLAlchemy, or its adapter for an async driver, hands out."""
    return getattr(connection, "driver_connection", connection)
