"""Automatic mode: a route asks for a session, and its request is one transaction.

COMMIT has happened when the client gets the first byte; an error, raised or returned, rolls back. There is nothing to
write for either.
"""

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, HTTPException, Path, Query
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncSession

from .database import db
from .problems import answers
from .schemas import Id, Name, Number, SearchTerm, Status, StoredUser
from .tables import User

Session = Annotated[AsyncSession, db.session()]
ReadSession = Annotated[AsyncSession, db.session(read_only=True)]

router = APIRouter(prefix="/users", tags=["users: automatic mode"])


@router.post("/", status_code=201)
async def create_user(name: Annotated[Name, Query()], session: Session) -> Status:
    """Create a user by a statement of one's own. Values travel as parameters, never inside the text."""
    await session.execute(text("INSERT INTO users (username) VALUES (:name)"), {"name": name})
    return Status(status="created")


@router.get("/", response_model=list[StoredUser])
async def search_users(
    session: ReadSession,
    q: Annotated[SearchTerm, Query(description="Part of a user name; % and _ mean themselves.")] = "",
    after: Annotated[Number, Query(description="The last id of the page before.")] = 0,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> Sequence[User]:
    """Search users, in the order of their ids. A page begins after a key, so no page repeats or skips anybody."""
    found = select(User).where(User.id > after).order_by(User.id).limit(limit)
    if q:
        found = found.where(User.username.icontains(q, autoescape=True))
    return (await session.scalars(found)).all()


@router.get("/{id}", response_model=StoredUser, responses=answers(404))
async def read_user(id: Annotated[Id, Path()], session: ReadSession) -> User:  # noqa: A002  # the name in the path
    """Read one user and the profile."""
    user = await session.get(User, id)
    if user is None:
        raise HTTPException(404, "User not found")
    return user
