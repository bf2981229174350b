"""Decorator mode, and what the client is told when things go wrong that no test could bring about otherwise."""

import pytest
from fastapi.testclient import TestClient

from transact import errors
from transact.pytest_plugin import DatabaseUnderTest

ADA = {"username": "ada", "email": "ada@example.com", "profile": {"full_name": "Ada Lovelace"}}


def test_a_user_is_stored_with_a_profile(shop: TestClient) -> None:
    answer = shop.post("/register/", json=ADA)
    assert answer.status_code == 201
    stored = shop.get(f"/users/{answer.json()['user_id']}").json()
    assert stored["username"] == "ada"
    assert stored["profile"]["full_name"] == "Ada Lovelace"


def test_the_test_before_has_left_nothing(shop: TestClient) -> None:
    assert shop.get("/users/").json() == []


def test_a_name_is_taken_once(shop: TestClient) -> None:
    assert shop.post("/register/", json=ADA).status_code == 201
    answer = shop.post("/register/", json={**ADA, "email": "other@example.com"})
    assert answer.status_code == 400
    assert answer.json()["detail"] == "Username already exists"
    assert len(shop.get("/users/").json()) == 1


def test_a_commit_that_loses_against_another_is_to_be_tried_again(
    shop: TestClient, database: DatabaseUnderTest
) -> None:
    database.faults.fail_commit(errors.SerializationFailure)
    answer = shop.post("/register/", json=ADA)
    assert answer.status_code == 503
    assert "retry-after" in answer.headers
    assert shop.get("/users/").json() == []


def test_a_database_that_is_down_is_told(shop: TestClient, database: DatabaseUnderTest) -> None:
    with database.faults.refuse_connections():
        assert shop.post("/register/", json=ADA).json()["code"] == "database-unavailable"
    assert shop.post("/register/", json=ADA).status_code == 201


def test_a_user_and_the_profile_are_two_statements(shop: TestClient, database: DatabaseUnderTest) -> None:
    with database.assert_queries(2):
        shop.post("/register/", json=ADA)
    with pytest.raises(AssertionError, match="1 were sent"), database.assert_queries(5):
        shop.get("/users/")
