"""What is stored when the client hears of it: the commit comes before the first byte, or the response does not come."""

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import fastapi
import pytest

from tests.fastapi.conftest import Site

# From 0.106 to 0.117 FastAPI ran the exit code of yield dependencies before the response, and after it ever since.
exits_after_the_response = pytest.mark.skipif(
    tuple(map(int, fastapi.__version__.split(".")[:2])) < (0, 118),
    reason="this FastAPI runs the exit code of yield dependencies before the response",
)

# MySQL and MariaDB check nothing at COMMIT.
AT_COMMIT = pytest.mark.engines("sqlite", "postgresql")


def test_the_row_is_visible_to_another_connection_when_the_first_byte_arrives(site: Site) -> None:
    slow = "" if site.is_sqlite else "&slow=1"
    with site.connect("POST", f"/people?name=ann{slow}") as plain:
        assert plain.recv(1)
        assert site.names() == ["ann"]


@exits_after_the_response
@pytest.mark.engines("postgresql")
def test_a_handwritten_yield_dependency_commits_after_the_first_byte(site: Site) -> None:
    with site.connect("POST", "/handwritten?name=ann") as plain:
        assert plain.recv(1)
        assert site.names() == []
        assert site.outcome("get_db ann") == "committed"
    assert site.names() == ["ann"]


@exits_after_the_response
@pytest.mark.engines("sqlite", "pg18-asyncpg")
def test_a_handwritten_yield_dependency_tells_success_for_a_commit_that_fails(site: Site) -> None:
    told = site.raw("POST", "/handwritten?name=bob&boss=9")
    assert site.outcome("get_db bob") == "failed"
    assert told.status == 201
    assert site.names() == []


@AT_COMMIT
def test_a_commit_that_fails_is_one_problem_document_and_nothing_is_stored(site: Site) -> None:
    answer = site.raw("POST", "/people?name=bob&boss=9&task=never")
    assert answer.status == 409
    assert b"application/problem+json" in answer.raw
    assert json.loads(answer.body)["code"] == "foreign-key-violation"
    assert site.names() == []
    assert "never" not in site.client.get("/_done").json()


@AT_COMMIT
def test_the_connection_of_a_commit_that_failed_serves_the_next_request(site: Site) -> None:
    site.client.get("/_cold")
    for name in ("ann", "bob"):
        assert site.client.post("/people", params={"name": "x", "boss": 9}).status_code == 409
        assert site.client.post("/people", params={"name": name}).status_code == 201
    assert site.names() == ["ann", "bob"]


@pytest.mark.engines("postgresql")
def test_a_deferred_unique_constraint_that_fails_at_commit_is_one_problem_document(site: Site) -> None:
    assert site.raw("POST", "/people?name=ann&nick=al").status == 201
    answer = site.raw("POST", "/people?name=bob&nick=al")
    assert answer.status == 409
    assert json.loads(answer.body)["code"] == "unique-violation"
    assert site.names() == ["ann"]


@pytest.mark.parametrize("status", [400, 404, 409, 422, 500, 503])
@pytest.mark.parametrize("how", ["raised", "returned"])
@pytest.mark.engines("sqlite", "pg18-asyncpg", "mariadb")
def test_an_error_status_rolls_back_raised_or_returned(site: Site, status: int, how: str) -> None:
    assert site.raw("POST", f"/people?name=ann&{how}={status}").status == status
    assert site.names() == []


@pytest.mark.parametrize("status", [200, 204, 303, 307, 399])
@pytest.mark.engines("sqlite", "pg18-asyncpg", "mariadb")
def test_a_status_below_400_commits(site: Site, status: int) -> None:
    assert site.raw("POST", f"/people?name=ann&returned={status}").status == status
    assert site.names() == ["ann"]


def test_what_was_added_and_not_flushed_is_stored_too(site: Site) -> None:
    assert site.raw("POST", "/people/unflushed?name=ann").status == 201
    assert site.names() == ["ann"]


def test_a_flush_that_fails_at_the_end_drops_the_response(site: Site) -> None:
    assert site.raw("POST", "/people/unflushed?name=ann").status == 201
    answer = site.raw("POST", "/people/unflushed?name=ann")
    assert answer.status == 400
    assert json.loads(answer.body)["detail"] == "Name taken"
    assert site.names() == ["ann"]


def test_an_application_says_more_about_its_constraints_on_every_engine(site: Site) -> None:
    site.raw("POST", "/people?name=ann")
    answer = site.raw("POST", "/people?name=ann")
    assert answer.status == 400
    assert json.loads(answer.body) == {
        "type": "urn:transact:problem:unique-violation",
        "title": "Bad Request",
        "status": 400,
        "detail": "Name taken",
        "code": "unique-violation",
        "retryable": False,
        "fields": ["name"],
    }


def test_a_response_that_does_not_fit_its_model_rolls_back(site: Site) -> None:
    assert site.raw("POST", "/people/invalid?name=ann").status == 500
    assert site.names() == []
    assert "session.flush()" not in site.logged()


def test_an_object_that_was_not_flushed_and_so_has_no_id_is_explained_in_the_log(site: Site) -> None:
    assert site.raw("POST", "/people/orm?name=ann").status == 500
    assert site.names() == []
    assert "POST /people/orm: the route returned" in site.logged()
    assert "`await session.flush()`" in site.logged()


def test_background_tasks_of_a_response_that_was_sent_run(site: Site) -> None:
    assert site.raw("POST", "/people?name=ann&task=sent").status == 201
    assert site.outcome("sent") == "ran"


def test_fifty_concurrent_requests_over_a_pool_of_five_are_all_right(site: Site) -> None:
    with ThreadPoolExecutor(25) as threads:
        statuses = list(threads.map(lambda n: site.raw("POST", f"/people?name=p{n % 40}").status, range(50)))
    assert Counter(statuses) == {201: 40, 400: 10}
    assert len(site.names()) == 40
