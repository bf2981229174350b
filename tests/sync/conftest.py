"""The conformance suite over the sync face: the same tests, given a `SyncDatabase` in the clothes of a `Database`."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.conftest import db, events, stored, tables
from tests.engines import Observer
from tests.sync.in_place import InPlace

__all__ = ["db", "events", "stored", "tables"]


#: Tests that ask asyncio for what threads do not have, or SQLAlchemy for an async connection over a plain one.
NOT_HERE = (
    "test_a_cancellation_swallowed_inside_a_statement_is_not_a_commit",
    "test_a_statement_on_a_connection_taken_before_the_savepoint_does_not_survive_its_rollback",
    "test_a_timeout_inside_a_savepoint_is_not_a_commit_of_the_transaction_around_it",
    "test_a_timeout_swallowed_inside_a_statement_is_not_a_commit",
    "test_a_transaction_costs_one_begin_one_commit_and_its_statements",
    "test_a_transient_failure_of_postgresql_is_tried_again",
    "test_an_error_on_a_connection_that_was_taken_from_the_session_marks_the_transaction_too",
    "test_cancellation_waits_until_the_running_hooks_are_done",
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    ours = [item for item in items if here in item.path.parents]
    # asyncpg has no sync face.
    away = [item for item in ours if "asyncpg" in item.name or item.name.startswith(NOT_HERE)]
    if away:
        config.hook.pytest_deselected(items=away)
        items[:] = [item for item in items if item not in set(away)]


@pytest.fixture
async def make_db(request: pytest.FixtureRequest) -> AsyncIterator[Callable[..., Any]]:
    """Make databases that are closed at the end; then their pools must be whole and the server must see no open transaction."""
    made: list[InPlace] = []

    def make(url: str, *, kind: object = None, **arguments: Any) -> InPlace:  # the one in clothes
        made.append(InPlace(url, **arguments))
        return made[-1]

    yield make
    taken = [db.engine.pool.checkedout() for db in made]
    units = [unit for db in made for unit in (*db._runtime.units.values(), *db._runtime.waiting)]
    idle = 0
    if "database_url" in request.fixturenames:
        observer: Observer = request.getfixturevalue("observer")
        until = time.monotonic() + 2
        while (idle := observer.idle_in_transaction()) and time.monotonic() < until:
            await asyncio.sleep(0.02)
    for each in made:
        await each.close()
    assert not any(taken), "connections were not given back to the pool"
    assert not units, "units of work that think they hold a connection, or wait for one"
    assert idle == 0, "the server sees transactions that nobody ends"
