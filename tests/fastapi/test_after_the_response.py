"""When the response has begun, the request's session has ended; what comes later has to bring its own transaction."""

import time
from pathlib import Path

import pytest

from tests.fastapi.conftest import Site

REFUSED = "TransactionEnded | said what to do | TransactionEnded"


@pytest.mark.parametrize("place", ["task", "stream"])
def test_a_session_that_has_ended_is_refused_with_what_to_do_instead(site: Site, place: str) -> None:
    answer = site.raw("POST", f"/after/{place}?key={place}&name=ann")
    assert answer.status == 200
    assert site.outcome(place) == REFUSED
    assert site.names() == ["ann", f"own {place}"]


def test_a_stream_body_goes_on_after_its_session_was_refused(site: Site) -> None:
    answer = site.raw("POST", "/after/stream?key=whole&name=ann")
    assert b"first" in answer.raw
    assert b"last" in answer.raw


def test_a_task_that_outlives_its_request_is_refused(site: Site) -> None:
    assert site.raw("POST", "/after/late?key=late&name=ann").status == 200
    site.client.get("/_go", params={"key": "late"})
    assert site.outcome("late") == REFUSED
    assert site.names() == ["ann", "own late"]


def test_a_route_that_never_uses_its_session_sends_no_statement_and_takes_no_connection(site: Site) -> None:
    before = site.counts()
    assert site.client.get("/unused").json() == "nothing"
    assert site.counts() == before
    site.client.get("/people/count")
    assert site.counts() != before


def test_readers_that_stall_in_a_long_response_hold_no_connection(site: Site) -> None:
    stalled = [site.connect("GET", "/big", receive_buffer=4096) for _ in range(2)]
    try:
        for plain in stalled:
            assert plain.recv(512).startswith(b"HTTP/1.1 200")
        started = time.monotonic()
        assert site.client.get("/small").json() == 1
        assert time.monotonic() - started < 2  # the pool of two gives up after 3 s
        assert site.counts()["streaming"] == 2
    finally:
        for plain in stalled:
            plain.close()


@pytest.mark.parametrize("write", [False, True], ids=["reads", "writes"])
@pytest.mark.parametrize("pool", ["warm", "cold"])
@pytest.mark.parametrize("begun", [False, True], ids=["unbegun", "begun"])
def test_two_tasks_in_one_session_are_refused_with_the_same_plain_message(
    site: Site, *, write: bool, pool: str, begun: bool
) -> None:
    if pool == "cold":
        site.client.get("/_cold")
    answer = site.client.post("/gather", params={"write": write, "warm": begun})
    assert answer.status_code == 500
    assert answer.json()["code"] == "concurrent-use"
    assert "two tasks use the session of 'POST /gather' at once" in site.logged()
    assert "asyncio.gather on one session cannot work" in site.logged()
    assert site.names() == []


@pytest.mark.engines("sqlite", "pg18-asyncpg", "mariadb")
def test_the_refusal_of_two_tasks_names_both_uses(site: Site) -> None:
    assert site.client.post("/gather", params={"wait": True}).status_code == 500
    assert "session.execute(SELECT person.id" in site.logged()
    assert f"{Path(__file__).with_name('app.py')}:" in site.logged()
