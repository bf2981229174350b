"""Errors that somebody swallowed, rendered or raised; clients that leave; tasks that are cancelled."""

import json

import pytest

from tests.fastapi.conftest import Site


def test_a_swallowed_database_error_is_a_problem_and_nothing_is_stored(site: Site) -> None:
    site.client.post("/people", params={"name": "ann"})
    answer = site.raw("POST", "/swallow?name=ann")
    assert answer.status == 500
    assert json.loads(answer.body)["code"] == "unexpected-rollback"
    assert b"all is well" not in answer.raw
    assert site.names() == ["ann"]
    assert "UniqueViolation" in site.logged()  # the first cause


def test_a_route_that_sets_rollback_only_itself_is_rolled_back_quietly(site: Site) -> None:
    answer = site.raw("POST", "/quiet?name=ann")
    assert (answer.status, json.loads(answer.body)) == (202, "only looking")
    assert site.names() == []
    assert site.logged() == ""


@pytest.mark.parametrize("when", ["statement", "commit"])
def test_a_database_error_that_a_handler_renders_as_success_is_neither_stored_nor_sent(site: Site, when: str) -> None:
    answer = site.raw("POST", f"/rendered/{when}?name=ann")
    assert answer.status == 500
    assert json.loads(answer.body)["code"] == "unexpected-rollback"
    assert b"all is well" not in answer.raw
    assert site.names() == []


def test_an_error_without_a_handler_is_a_500_and_rolls_back(site: Site) -> None:
    answer = site.raw("POST", "/raises?name=ann")
    assert (answer.status, answer.body) == (500, b"Internal Server Error")
    assert site.names() == []


def test_a_base_exception_rolls_back(site: Site) -> None:
    site.raw("POST", "/raises?name=ann&base=1")
    assert site.names() == []
    assert site.client.get("/people/count").json() == 0


def test_a_client_that_leaves_before_the_commit_does_not_stop_its_request(site: Site) -> None:
    plain = site.connect("POST", "/people?name=ann&started=leaver&task=left")
    assert site.outcome("leaver") == "flushed"
    plain.close()
    site.client.get("/_go", params={"key": "leaver"})
    assert site.outcome("left") == "ran"
    assert site.names() == ["ann"]


def test_a_request_that_is_cancelled_before_its_commit_rolls_back(site: Site) -> None:
    plain = site.connect("POST", "/people?name=ann&started=cancelled&cancel=1&key=end1")
    assert site.outcome("cancelled") == "flushed"
    plain.close()
    assert site.outcome("end1") == "cancelled"
    assert site.names() == []


@pytest.mark.engines("postgresql")
def test_a_commit_in_flight_survives_the_cancellation_of_its_request(site: Site) -> None:
    plain = site.connect("POST", "/people?name=ann&slow=1&cancel=1&key=end2")
    site.wait_for_commit()
    plain.close()
    assert site.outcome("end2") == "cancelled"
    assert site.names() == ["ann"]
