"""What can be around a block: a transaction, a savepoint, a request, … or nothing that is open."""

from collections.abc import Awaitable, Callable
from typing import Annotated

import httpx
from fastapi import FastAPI
from sqlalchemy.ext.asyncio import AsyncSession

from transact import Propagation, errors
from transact.fastapi import Database
from transact.fastapi.problems import code_of

Body = Callable[[AsyncSession], Awaitable[None]]
Call = Callable[[], Awaitable[None]]
Around = Callable[[Database, Body], Awaitable[None]]
AroundCall = Callable[[Database, Call], Awaitable[None]]
CLASSES = {code_of(cls): cls for cls in vars(errors).values() if isinstance(cls, type)}


async def in_a_request(db: Database, route: Callable[..., Awaitable[None]]) -> None:
    """Run `route` as a request, in a real application that is asked without a network; raise what it raised, or the class of the problem that was the answer."""
    app = FastAPI()
    db.install(app)
    app.post("/")(route)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        answer = await client.post("/")
    if answer.status_code != 200:
        document = answer.json()
        error: Exception = CLASSES[document["code"]](document["detail"])
        raise error


# One is open.


async def in_a_transaction(db: Database, body: Body) -> None:
    async with db.transaction() as session:
        await body(session)


async def in_a_savepoint(db: Database, body: Body) -> None:
    async with db.transaction(), db.savepoint() as session:
        await body(session)


async def in_a_savepoint_of_the_sessions_own(db: Database, body: Body) -> None:
    async with db.transaction() as session, session.begin_nested():
        await body(session)


async def in_a_joined_block(db: Database, body: Body) -> None:
    async with db.transaction(), db.transaction() as session:
        await body(session)


async def in_the_transaction_of_a_request(db: Database, body: Body) -> None:
    async def route(session: Annotated[AsyncSession, db.session()]) -> None:
        await body(session)

    await in_a_request(db, route)


OPEN: list[Around] = [
    in_a_transaction,
    in_a_savepoint,
    in_a_savepoint_of_the_sessions_own,
    in_a_joined_block,
    in_the_transaction_of_a_request,
]


# None is open.


async def anywhere(_db: Database, call: Call) -> None:
    await call()


async def in_autocommit(db: Database, call: Call) -> None:
    async with db.transaction(propagation=Propagation.SUPPORTS):
        await call()


async def in_an_after_commit_hook(db: Database, call: Call) -> None:
    async with db.transaction():
        db.after_commit(call, critical=True)


async def in_a_request_that_has_asked_for_no_session(db: Database, call: Call) -> None:
    async def route() -> None:
        await call()

    await in_a_request(db, route)


async def in_a_request_with_a_manual_session(db: Database, call: Call) -> None:
    async def route(session: Annotated[AsyncSession, db.manual_session()]) -> None:
        await call()

    await in_a_request(db, route)


NOT_OPEN: list[AroundCall] = [
    anywhere,
    in_autocommit,
    in_an_after_commit_hook,
    in_a_request_that_has_asked_for_no_session,
    in_a_request_with_a_manual_session,
]
