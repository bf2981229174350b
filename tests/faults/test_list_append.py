"""What transactions read of each other, at each level and while their connections are cut: no level shows an anomaly beyond
its own, and nothing is stored against what its caller was told."""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from itertools import product
from typing import Any, NamedTuple

import pytest
from sqlalchemy.engine import make_url

from tests.conformance.conftest import make_db  # noqa: F401  # a fixture
from tests.conformance.test_hermitage import with_snapshot_isolation
from tests.engines import Observer
from tests.faults.cycles import Findings, Outcome, check
from tests.faults.list_append import Plan, Workload, create_lists, final
from tests.faults.proxy import Fault, Proxy, proxied
from tests.faults.wire import Step
from transact import Database, Isolation

RU, RC, RR, SER = Isolation
SIZE, LONG_SIZE = 100, 1000
SEEDS, LONG_SEEDS = 8, 5
BOUND = 300  # seconds; for a run that would otherwise never end

# A deadlock is looked for after a second, which is long when transactions take milliseconds.
QUICK: dict[str, dict[str, Any]] = {
    "asyncpg": {"server_settings": {"deadlock_timeout": "10ms"}},
    "psycopg": {"options": "-c deadlock_timeout=10ms"},
}


class Level(NamedTuple):
    """``may``: the anomalies that it admits. ``shows``: those that any run shows, or the workload would be too tame."""

    isolation: Isolation
    may: frozenset[str] = frozenset()
    shows: frozenset[str] = frozenset()
    snapshot: str = "OFF"  # innodb_snapshot_isolation


WEAK = frozenset({"G-single", "G-nonadjacent", "G2"})
DIRTY = WEAK | {"G1a", "G1b", "G1c"}
SKEW = frozenset({"G2"})
# PostgreSQL has three levels and SQLite one; a lost update is a G-single, write skew a G2.
LEVELS: dict[str, tuple[Level, ...]] = {
    "postgresql": (Level(RC, WEAK, frozenset({"G-single"})), Level(RR, SKEW, SKEW), Level(SER)),
    "mysql": (
        Level(RU, DIRTY, frozenset({"G1a", "G1b"})),
        Level(RC, WEAK, frozenset({"G-single"})),
        Level(RR, WEAK, frozenset({"G-single"})),
        Level(RR, SKEW, SKEW, snapshot="ON"),
        Level(SER),
    ),
    "sqlite": (Level(SER),),
}


def engine_options(url: str, observer: Observer, snapshot: str = "OFF") -> dict[str, Any]:
    parsed = make_url(url)
    if parsed.get_backend_name() == "mysql":
        return with_snapshot_isolation(snapshot, observer)
    return {"connect_args": QUICK.get(parsed.get_driver_name(), {})}


def told(said: str, outcomes: Counter[Outcome], findings: Findings) -> None:
    counts = ", ".join(f"{outcome.value} {number}" for outcome, number in outcomes.items())
    print(f"{said}: {counts}; { ({name: len(examples) for name, examples in findings.items()}) }")  # noqa: T201  # with a failure


@pytest.mark.timeout(0)  # each run has its own bound
@pytest.mark.engines("sqlite", "pg18-asyncpg", "pg18-psycopg", "mariadb")
async def test_no_level_shows_an_anomaly_beyond_its_own_or_stores_anything_twice_or_loses_it(
    database_url: str,
    observer: Observer,
    make_db: Callable[..., Database],  # noqa: F811  # a fixture
    long: bool,  # noqa: FBT001  # a fixture
) -> None:
    size = LONG_SIZE if long else SIZE
    for level in LEVELS[make_url(database_url).get_backend_name()]:
        db = make_db(database_url, engine_options=engine_options(database_url, observer, level.snapshot))
        shown: set[str] = set()
        for seed in range(LONG_SEEDS if long else SEEDS):
            create_lists(observer, database_url, size)
            async with asyncio.timeout(BOUND):
                history = await Workload(db, level.isolation).perform(seed, size)
            findings = check(history, final(observer))
            outcomes = Counter(transaction.outcome for transaction in history)
            told(f"{level.isolation.value}, seed {seed}", outcomes, findings)
            assert {name: examples for name, examples in findings.items() if name not in level.may} == {}
            assert outcomes[Outcome.OK] > size * 0.7
            assert outcomes[Outcome.UNKNOWN] == 0
            shown |= findings.keys()
            if shown >= level.shows and not long:
                break
        assert shown >= level.shows


# Where it strikes: a statement is not heard, COMMIT is not heard, the answer to COMMIT is not heard.
CUTS = tuple(product((Step.LAST, Step.COMMIT_SENT, Step.COMMIT_ANSWERED), (Fault.RESET, Fault.CLOSE)))
EVERY = 3


def cutting(proxy: Proxy) -> Callable[[Plan], None]:
    def cut(plan: Plan) -> None:
        turn, rest = divmod(plan.number, EVERY)
        if not rest:
            proxy.set_trap(*CUTS[turn % len(CUTS)])

    return cut


class Cut(NamedTuple):
    isolation: Isolation | None
    verify_commit: bool
    may: frozenset[str] = frozenset()


CUT: dict[str, tuple[Cut, ...]] = {
    "postgresql": (Cut(SER, verify_commit=False), Cut(SER, verify_commit=True)),
    # Cannot be asked what became of a COMMIT. A level is told by one more COMMIT, and put back by another.
    "mysql": (Cut(None, verify_commit=False, may=WEAK), Cut(SER, verify_commit=False)),
}


@pytest.mark.timeout(0)  # each run has its own bound
@pytest.mark.engines("pg18-asyncpg", "pg18-psycopg", "mariadb")
async def test_while_connections_are_cut_nothing_is_stored_or_missing_against_what_was_told(
    database_url: str,
    observer: Observer,
    make_db: Callable[..., Database],  # noqa: F811
    caplog: pytest.LogCaptureFixture,
    long: bool,  # noqa: FBT001
) -> None:
    caplog.set_level(logging.CRITICAL, "transact")  # it tells of each lost connection
    size = LONG_SIZE if long else SIZE
    options = engine_options(database_url, observer)
    for row, seed in product(CUT[make_url(database_url).get_backend_name()], range(LONG_SEEDS if long else 1)):
        create_lists(observer, database_url, size)
        async with proxied(database_url) as (proxy, url), asyncio.timeout(BOUND):
            db = make_db(url, verify_commit=row.verify_commit, engine_options=options)
            history = await Workload(db, row.isolation, cutting(proxy)).perform(seed, size)
            assert db.engine.pool.checkedout() == 0
        findings = check(history, final(observer))
        outcomes = Counter(transaction.outcome for transaction in history)
        told(f"verify_commit={row.verify_commit}, seed {seed}", outcomes, findings)
        lost = proxy.passed.count(Step.COMMIT_SENT) - proxy.passed.count(Step.COMMIT_ANSWERED)
        assert lost > size / EVERY / len(CUTS)
        assert {name: examples for name, examples in findings.items() if name not in row.may} == {}
        assert outcomes[Outcome.OK] > size / 2
        # Of a transaction that wrote nothing there is nothing to verify.
        unknown = [t for t in history if t.outcome is Outcome.UNKNOWN and t.appends()]
        assert bool(unknown) != row.verify_commit
