"""The kit under the clients that FastAPI's users have: each runs the application in a loop of its own choice."""

import asyncio

import httpx
import pytest
from fastapi.testclient import TestClient

from tests.engines import Observer
from tests.kit.conftest import add, application, numbers


def test_a_test_client_sees_what_its_requests_commit_and_the_database_keeps_nothing(db, database, observer: Observer):
    app = application(db)
    with TestClient(app, raise_server_exceptions=False) as client:
        assert client.post("/notes/1").status_code == 201
        assert client.post("/broken/2").status_code == 500
        assert client.post("/notes/1").status_code == 409
        assert client.post("/notes/3").status_code == 201
        assert client.get("/notes").json() == [1, 3]
        assert client.get("/sneaky").status_code == 500
        assert client.get("/notes").json() == [1, 3]
    assert app.state.mailed == [1, 3]
    database.assert_no_connection_held()
    assert observer.rows("SELECT * FROM notes") == []


def test_a_test_client_without_a_lifespan_has_a_new_loop_for_each_request(db, database):
    app = application(db)
    client = TestClient(app)
    for number in range(3):
        assert client.post(f"/notes/{number}").status_code == 201
    assert client.get("/notes").json() == [0, 1, 2]


def test_a_test_may_use_its_database_in_a_loop_of_its_own_between_requests(db, database):
    with TestClient(application(db)) as client:

        async def prepare() -> None:
            async with db.transaction() as session:
                await add(session, 7)

        with asyncio.Runner() as runner:
            runner.run(prepare())
            assert client.get("/notes").json() == [7]
            client.post("/notes/8")
            assert runner.run(numbers(db)) == [7, 8]


async def test_an_asgi_transport_runs_the_application_in_the_loop_of_the_test(db, database, observer: Observer):
    transport = httpx.ASGITransport(application(db), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        assert (await client.post("/notes/1")).status_code == 201
        assert (await client.post("/broken/2")).status_code == 500
        assert (await client.get("/notes")).json() == [1]
        assert await numbers(db) == [1]
        assert (await client.get("/sneaky")).status_code == 500
    database.assert_no_connection_held()
    assert observer.rows("SELECT * FROM notes") == []


async def test_concurrent_requests_of_one_test_take_turns(db, database):
    transport = httpx.ASGITransport(application(db), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        paths = [f"/notes/{number % 15}" for number in range(20)] + [f"/broken/{number + 50}" for number in range(5)]
        answers = await asyncio.gather(*(client.post(path) for path in paths))
        assert sorted(answer.status_code for answer in answers) == [201] * 15 + [409] * 5 + [500] * 5
        assert (await client.get("/notes")).json() == list(range(15))
    database.assert_no_connection_held()


@pytest.mark.parametrize("count", [1, 2])
def test_each_test_begins_with_what_was_there_before_the_first(db, database, count):
    with TestClient(application(db)) as client:
        assert client.get("/notes").json() == []
        assert client.post("/notes/1").status_code == 201
