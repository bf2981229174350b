"""The COMMIT that a route sends by hand is as safe from cancellation, and as honest, as one of the library's own."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated

import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from tests.engines import Observer
from tests.faults.proxy import Fault
from tests.faults.scene import Answer, Scene, scene
from tests.faults.wire import Step
from transact._sqlalchemy import shielding

pytestmark = [pytest.mark.usefixtures("impatient"), pytest.mark.engines("pg18-asyncpg", "pg18-psycopg", "mariadb")]
WRITE = text("INSERT INTO words VALUES ('word')")


async def by_commit(session: AsyncSession, place: Scene) -> None:
    await session.execute(WRITE)
    await place.proxy.reach(Step.IDLE)
    await session.commit()


async def by_a_block(session: AsyncSession, place: Scene) -> None:
    async with session.begin():
        await session.execute(WRITE)
        await place.proxy.reach(Step.IDLE)


async def by_its_transaction(session: AsyncSession, place: Scene) -> None:
    transaction = await session.begin()
    await session.execute(WRITE)
    await place.proxy.reach(Step.IDLE)
    await transaction.commit()


Work = Callable[[AsyncSession, Scene], Awaitable[None]]
EACH_WAY = pytest.mark.parametrize("work", [by_commit, by_a_block, by_its_transaction])


async def ask(place: Scene, work: Work) -> Answer:
    """A request that does its work on a manual session."""

    @place.app.post("/manual")
    async def route(session: Annotated[AsyncSession, place.db.manual_session()]) -> None:
        await work(session, place)

    place.db.listen(lambda event: place.told.append(type(event).__name__))
    transport = httpx.ASGITransport(place.app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        response = await client.post("/manual")
    return Answer(response.json()["code"] if response.is_error else "", response.status_code)


@EACH_WAY
async def test_a_commit_by_hand_that_is_cancelled_is_awaited_and_its_connection_stays_in_use(
    database_url: str, observer: Observer, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shielding, "GRACE", 5.0)
    async with scene(database_url, observer) as place:
        await place.warm()
        place.proxy.set_trap(Step.COMMIT_ANSWERED, Fault.LATENCY)
        task = asyncio.create_task(ask(place, work))
        while Step.COMMIT_SENT not in place.proxy.passed:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert Step.COMMIT_ANSWERED in place.proxy.passed
        assert place.stored() == ("word",)
        assert place.held() == 0
        await place.next_works()
        assert Step.CONNECT not in place.proxy.passed


@EACH_WAY
async def test_a_cancelled_commit_by_hand_that_gets_no_answer_is_given_up_after_the_grace_period(
    database_url: str, observer: Observer, work: Work
) -> None:
    async with scene(database_url, observer) as place:
        await place.warm()
        place.proxy.set_trap(Step.COMMIT_SENT, Fault.BLACKHOLE)
        task = asyncio.create_task(ask(place, work))
        await place.proxy.struck.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert "OutcomeUnknown" in place.told
        assert place.held() == 0
        await place.proxy.heal()
        assert place.stored() == ()
        await place.next_works()


@EACH_WAY
async def test_a_commit_by_hand_whose_answer_is_lost_is_unknown(
    database_url: str, observer: Observer, work: Work
) -> None:
    async with scene(database_url, observer) as place:
        await place.warm()
        place.proxy.set_trap(Step.COMMIT_ANSWERED, Fault.RESET)
        assert await ask(place, work) == Answer("commit-outcome-unknown", 500)
        assert place.stored() == ("word",)
        await place.next_works()


@EACH_WAY
async def test_a_connection_lost_before_a_commit_by_hand_is_known_to_have_stored_nothing(
    database_url: str, observer: Observer, work: Work
) -> None:
    async with scene(database_url, observer) as place:
        await place.warm()
        place.proxy.set_trap(Step.IDLE, Fault.CLOSE)
        assert await ask(place, work) == Answer("connection-lost", 503)
        assert place.stored() == ()
        await place.next_works()
