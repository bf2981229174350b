"""A database that is closed while something is under way, or while its server does not answer."""

import asyncio

import pytest

from tests.engines import Observer
from tests.faults.proxy import Fault
from tests.faults.scene import WORDS, Answer, scene
from tests.faults.wire import Step
from transact._sqlalchemy import shielding

pytestmark = [pytest.mark.usefixtures("impatient"), pytest.mark.engines("pg18-asyncpg", "pg18-psycopg", "mariadb")]


async def test_closing_waits_for_the_answer_to_a_commit_that_is_under_way(
    database_url: str, observer: Observer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shielding, "GRACE", 5.0)
    async with scene(database_url, observer) as place:
        await place.warm()
        place.proxy.set_trap(Step.COMMIT_ANSWERED, Fault.LATENCY)
        task = asyncio.create_task(place.block())
        while Step.COMMIT_SENT not in place.proxy.passed:
            await asyncio.sleep(0)
        task.cancel()
        await place.db.close()
        assert place.told == ["after_commit", "committed"]
        assert place.stored() == WORDS
        await asyncio.wait([task])
        await place.db.open()
        await place.next_works()


async def test_closing_waits_for_a_commit_that_gets_no_answer_only_for_the_grace_period(
    database_url: str, observer: Observer
) -> None:
    async with scene(database_url, observer) as place:
        await place.warm()
        place.proxy.set_trap(Step.COMMIT_SENT, Fault.BLACKHOLE)
        task = asyncio.create_task(place.block())
        await place.proxy.struck.wait()
        await place.db.close()
        assert not task.done()
        await place.proxy.heal()
        assert await task == Answer("CommitOutcomeUnknown")


async def test_a_hook_that_closes_the_database_does_not_wait_for_itself(
    database_url: str, observer: Observer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shielding, "GRACE", 3600.0)
    async with scene(database_url, observer) as place:
        async with asyncio.timeout(60):
            async with place.db.transaction():
                place.db.after_commit(place.db.close)
        assert place.held() == 0


async def test_closing_connections_to_a_server_that_does_not_answer_is_bounded_for_all_of_them_together(
    database_url: str, observer: Observer
) -> None:
    async with scene(database_url, observer) as place:
        await place.warm()
        await place.proxy.strike(Fault.BLACKHOLE)
        async with asyncio.timeout(10):
            await place.db.close()
        assert place.held() == 0
