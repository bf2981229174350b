"""What the measurements of a server are made with: the clients, and the proxy that makes round trips longer."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
from fastapi import FastAPI, Response

from benchmarks._load import Answers, closed_loop, open_loop, percentile
from benchmarks._serving import ServerError, delaying, serving
from benchmarks._urls import driven_by
from tests.fastapi.serving import serving as in_this_process


@pytest.fixture
async def address() -> AsyncIterator[tuple[str, int]]:
    """Where an application listens that answers with the status that it is asked for."""
    app = FastAPI()

    @app.get("/status/{status}")
    async def answer(status: int) -> Response:
        return Response(status_code=status)

    @app.get("/error")
    async def fail() -> None:
        raise RuntimeError("no handler takes this")

    @app.get("/slow")
    async def slow() -> None:
        await asyncio.sleep(1)

    async with in_this_process(app) as client:
        yield client.base_url.host, client.base_url.port


def counts(answers: Answers) -> dict[int, int]:
    return {status: len(latencies) for status, latencies in answers.latencies.items()}


@pytest.mark.parametrize("status", [200, 503])
async def test_clients_count_answers_by_status_and_only_success_is_goodput(address: Any, status: int) -> None:
    answers = await closed_loop(address, ("GET", f"/status/{status}"), 2, 0.5)
    assert list(counts(answers)) == [status]
    assert bool(answers.goodput) == (status == 200)
    assert bool(answers.failed) == (status != 200)
    assert all(0 < latency <= 0.5 for latency in answers.of((status,)))


async def test_a_client_asks_on_after_an_error_that_made_the_server_hang_up(address: Any) -> None:
    answers = await closed_loop(address, ("GET", "/error"), 1, 1.0)
    assert counts(answers)[500] > 1


async def test_a_server_that_starves_its_clients_has_answered_none(address: Any) -> None:
    answers = await closed_loop(address, ("GET", "/slow"), 2, 0.1)
    assert counts(answers) == {}
    assert answers.goodput == 0


async def test_who_has_no_answer_within_his_patience_gives_up(address: Any) -> None:
    answers = await open_loop(address, ("GET", "/slow"), 100, 0.5, patience=0.1, seed=1)
    assert answers.gave_up > 0
    assert counts(answers) == {}


async def test_clients_that_come_at_a_rate_come_at_that_rate(address: Any) -> None:
    answers = await open_loop(address, ("GET", "/status/200"), 100, 2.0, patience=1.0, seed=1)
    assert 120 < counts(answers)[200] + answers.gave_up < 280  # 200 are expected, 14 the standard deviation


def test_a_percentile_is_a_value_that_was_measured() -> None:
    assert percentile([], 99) is None
    assert [percentile([3, 1, 2], percent) for percent in (0, 50, 99)] == [1, 2, 3]


async def test_the_proxy_makes_each_round_trip_longer_by_its_delay(postgres_url: str) -> None:
    with delaying(postgres_url, 0.05) as (through, _):
        connections = [await asyncpg.connect(driven_by("postgresql", through)) for _ in range(3)]
        for connection in connections:
            await connection.fetchval("SELECT 1")  # prepares it
            started = time.perf_counter()
            assert await connection.fetchval("SELECT 1") == 1
            assert time.perf_counter() - started >= 0.05
        assert await connections[0].fetchval("SELECT repeat('x', 1000000)") == "x" * 1000000
        for connection in connections:
            await connection.close()


def test_a_server_that_does_not_start_says_why(postgres_url: str) -> None:
    with pytest.raises(ServerError, match="no_such_module"), serving("benchmarks.apps.no_such_module", postgres_url):
        pass
