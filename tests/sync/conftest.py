"""The conformance suite over the sync face: the same tests, given a `SyncDatabase` in the clothes of a `Database`."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.conftest import db, events, stored, tables
from tests.engines import Observer, chosen
from tests.sync.in_place import InPlace

__all__ = ["db", "events", "stored", "tables"]


#: Tests that ask for what threads do not have. By the reason:
CANCELLED = (  # nobody can cancel a thread in a statement, a COMMIT or a hook; asyncio.timeout() cancels too
    "test_a_cancellation_swallowed_inside_a_statement_is_not_a_commit",
    "test_a_cancellation_while_a_connection_is_made_leaves_nothing_behind",
    "test_a_cancellation_while_commit_is_under_way_lets_it_finish_and_then_goes_on",
    "test_a_timeout_around_a_block_whose_commit_is_under_way_does_not_undo_it",
    "test_a_timeout_inside_a_savepoint_is_not_a_commit_of_the_transaction_around_it",
    "test_a_timeout_swallowed_inside_a_statement_is_not_a_commit",
    "test_cancellation_waits_until_the_running_hooks_are_done",
    "test_cancelling_a_statement_with_a_deadline_leaves_nothing",
    "test_who_is_cancelled_or_served_while_it_waits_for_a_connection_leaves_nothing",
)
BESIDE = (  # two tasks go on beside each other, and in place only one does: with threads, in test_sync_threads
    "test_a_connection_that_is_lost_during_commit_leaves_an_outcome_that_is_said_to_be_unknown",
    "test_a_wait_that_was_served_is_told_too",
    "test_who_gets_the_lock_in_time_goes_on",
)
OTHER_WORDS = (  # other things are refused, or other classes taken: in test_sync_verbs
    "test_a_session_class_of_ones_own_keeps_its_methods",
    "test_the_session_of_sqlmodel_is_guarded_with_its_own_methods",
    "test_what_cannot_be_decorated_says_why",
)
NOT_HERE = (*CANCELLED, *BESIDE, *OTHER_WORDS)
#: Parameters: the first is cancelled, the second makes an async engine of its own, without this library.
NOR_WITH = ("is_cancelled_in_a_statement", "a deadlock that 1305 hides")
#: Modules full of waits: of each law and case only one engine, in turn, since the async face shows all of them.
IN_TURN = {"test_sync_isolation", "test_sync_lock_timeouts", "test_sync_timeout_options"} | {
    f"test_sync_timeouts{part}" for part in ("", "_joined", "_leave_nothing")
}


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    # asyncpg has no sync face; psycopg stands for it.
    marker = metafunc.definition.get_closest_marker("engines")
    asked = chosen(marker.args if marker else ())
    found = dict.fromkeys("pg18-psycopg" if "asyncpg" in engine else engine for engine in asked)
    metafunc.definition.add_marker(pytest.mark.engines(*found), append=False)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    ours = [item for item in items if here in item.path.parents and isinstance(item, pytest.Function)]
    away = [item for item in ours if is_not_here(item)]
    away += all_but_one_engine([item for item in ours if item.path.stem in IN_TURN and item not in away])
    if away:
        config.hook.pytest_deselected(items=away)
        items[:] = [item for item in items if item not in set(away)]


def all_but_one_engine(items: list[pytest.Function]) -> list[pytest.Function]:
    cases: dict[str, list[pytest.Function]] = {}
    for item in items:
        callspec = getattr(item, "callspec", None)
        engine = callspec.params.get("database_url", "") if callspec else ""
        cases.setdefault(item.nodeid.replace(engine, "*"), []).append(item)
    return [item for n, case in enumerate(cases.values()) for at, item in enumerate(case) if at != n % len(case)]


def is_not_here(item: pytest.Function) -> bool:
    if item.function.__module__ == item.module.__name__:  # it is the sync face's own
        return False
    return item.name.startswith(NOT_HERE) or any(parameter in item.name for parameter in NOR_WITH)


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
