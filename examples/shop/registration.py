"""Decorator mode: each call of a service function is one transaction, whoever calls it: a route, a worker, a test.

Called where a transaction is open already, it joins that one.
"""

from fastapi import APIRouter
from sqlalchemy.ext.asyncio import AsyncSession

from .database import db
from .problems import answers
from .schemas import NewAccount, Registered
from .tables import Profile, User


@db.transactional
async def register_account(session: AsyncSession, account: NewAccount) -> int:
    """Store a user and the profile, both or neither, and return the user's id.

    Raises ``UniqueViolation`` if the name or the address is taken; ``app.py`` says what the client is told then.
    """
    user = User(username=account.username, email=account.email)
    session.add(user)
    await session.flush()  # sends the INSERT, which is what gives the user an id
    session.add(Profile(user_id=user.id, full_name=account.profile.full_name, bio=account.profile.bio))
    return user.id


router = APIRouter(prefix="/register", tags=["registration: decorator mode"])


# transact finds the problems of routes that ask for a session; of this one it cannot know that it uses the database.
@router.post("/", status_code=201, responses=answers(400, 500, 503, 504))
async def register(account: NewAccount) -> Registered:
    """Register a user with a profile. The caller of a decorated function leaves the session out."""
    return Registered(user_id=await register_account(account))
