"""`two_phase=True` over three databases, and with somebody in another process who resolves while requests run."""

import asyncio
import sys
import textwrap
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Annotated

import pytest
from fastapi import Request
from fastapi.responses import JSONResponse
from sqlalchemy.ext.asyncio import AsyncSession

from tests.fastapi.two_phases import Place, Word, placed, urls_of
from tests.faults.proxy import Fault
from tests.faults.wire import Step
from transact import errors
from transact._core.hooks import Outcome
from transact._sqlalchemy import verifying

KINDS = {
    "postgresql": {"notes": "pg18-psycopg", "ledger": "pg18-asyncpg", "audit": "pg18-psycopg"},
    "mariadb": {"notes": "pg18-psycopg", "ledger": "mariadb", "audit": "pg18-asyncpg"},
}
ALL = ["notes", "ledger", "audit"]
REQUESTS = 40


@pytest.fixture(params=KINDS, scope="module")
def urls(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with urls_of(request.config, KINDS[request.param], tmp_path_factory.mktemp("three")) as found:
        yield found


@pytest.fixture
async def place(urls: dict[str, str]) -> AsyncIterator[Place]:
    async with placed(urls) as found:
        _routes(found)
        yield found


def _routes(place: Place) -> None:
    notes, ledger, audit = place.databases.values()

    @place.app.post("/do")
    async def do(
        one: Annotated[AsyncSession, notes.session()],
        two: Annotated[AsyncSession, ledger.session()],
        three: Annotated[AsyncSession, audit.session()],
        word: str = "a",
        after: str | None = None,
    ) -> None:
        one.add(Word(word=word))
        two.add(Word(word=word))
        three.add(Word(word=word, after=after))


def order(place: Place) -> list[str]:
    """In which the parts are prepared and committed."""
    return sorted(ALL, key=lambda name: "mysql" in place.urls[name])


async def test_what_a_request_writes_is_stored_in_all_three(place):
    for word in "ab":
        assert (await place.post(f"/do?word={word}")).status_code == 200
    assert place.stored() == {name: ["a", "b"] for name in ALL}
    assert (await place.post("/do?word=c&after=missing")).status_code == 409
    assert place.stored() == {name: ["a", "b"] for name in ALL}


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize(
    ("step", "stored"),
    [
        (Step.PREPARE_SENT, False),
        (Step.PREPARE_ANSWERED, None),  # of the last
        (Step.PREPARED_COMMIT_SENT, True),
        (Step.PREPARED_COMMIT_ANSWERED, True),
    ],
)
async def test_a_connection_that_is_lost_at_any_part_leaves_all_or_nothing(place, number, step, stored):
    place.proxies[order(place)[number]].set_trap(step, Fault.RESET)
    stored = number == 2 if stored is None else stored
    assert (await place.post()).status_code == (200 if stored else 503)
    assert place.where() == (ALL if stored else [])
    assert place.prepared() == []


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize(
    ("step", "stored"),
    [(Step.PREPARE_ANSWERED, None), (Step.PREPARED_COMMIT_SENT, True), (Step.PREPARED_COMMIT_ANSWERED, True)],
)
async def test_a_server_that_is_away_at_any_part_leaves_what_resolving_makes_all_or_nothing(
    place, monkeypatch, number, step, stored
):
    monkeypatch.setattr(verifying, "PATIENCE", 0.3)

    @place.app.exception_handler(errors.TransactError)
    def handle(request: Request, error: errors.TransactError) -> JSONResponse:
        return JSONResponse("look later", 500)

    name = order(place)[number]
    place.proxies[name].set_trap(step, Fault.DOWN)
    assert (await place.post()).status_code == 500
    stored = number == 2 if stored is None else stored
    outcome = Outcome.COMMITTED if stored else Outcome.ROLLED_BACK
    answered = step is Step.PREPARED_COMMIT_ANSWERED and number == 2  # nothing is left to be ended
    assert await place.resolve_in_time() == ([] if answered else [outcome])
    assert place.where() == (ALL if stored else [])
    await place.proxies[name].heal()


RESOLVER = textwrap.dedent(
    """
    import asyncio, sys
    import transact
    from transact.fastapi import Database

    async def main(*told):
        databases = [Database(url, two_phase=True, name=name) for name, url in zip(told[::2], told[1::2])]
        print("ready", flush=True)
        stop = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
        found = 0
        while not stop.done():
            found += len(await transact.resolve_prepared(*databases, older_than=0))
        print(found, flush=True)

    asyncio.run(main(*sys.argv[1:]))
    """
)


async def test_resolving_in_another_process_beside_requests_takes_nothing_from_them(place):
    told = [each for name in ALL for each in (place.known_as(name), place.urls[name])]
    pipes = {"stdin": asyncio.subprocess.PIPE, "stdout": asyncio.subprocess.PIPE}
    root = Path(__file__).parents[2]
    resolver = await asyncio.create_subprocess_exec(sys.executable, "-c", RESOLVER, *told, cwd=root, **pipes)
    assert resolver.stdin is not None
    assert resolver.stdout is not None
    words = [f"w{number:02}" for number in range(REQUESTS)]
    try:
        async with asyncio.timeout(60):
            assert await resolver.stdout.readline() == b"ready\n"
            for proxy in place.proxies.values():  # so that there is something to be found
                proxy.set_trap(Step.PREPARED_COMMIT_SENT, Fault.LATENCY)
            limit = asyncio.Semaphore(2)

            async def post(word: str) -> int:
                async with limit:
                    missing = "&after=missing" if word[-1] == "7" else ""
                    return (await place.post(f"/do?word={word}{missing}")).status_code

            statuses = await asyncio.gather(*map(post, words))
            resolver.stdin.close()
            found = int(await resolver.stdout.readline())
            assert await resolver.wait() == 0
    finally:
        if resolver.returncode is None:
            resolver.kill()
            await resolver.wait()
    assert found > 0
    assert statuses == [409 if word[-1] == "7" else 200 for word in words]
    assert place.stored() == {name: [word for word in words if word[-1] != "7"] for name in ALL}
    assert place.prepared() == []
