"""CPU and time per request of ``def`` routes, beside ``async def`` routes on the same driver: ``get_db`` and transact.

    python -m benchmarks.sync_cpu [--url URL] [--quick]

As ``benchmarks.cpu`` measures it; the ratio is to the ``get_db`` of the same kind of route. The time of all threads counts.
"""

from dataclasses import replace

from benchmarks._command import command
from benchmarks._report import machine, table, versions
from benchmarks._urls import driven_by
from benchmarks._variants import CONTROL, TRANSACT, Variant
from benchmarks._workers import started
from benchmarks.cpu import ROUNDS, ROUTES, Costs, cell, measure

PACKAGES = ("fastapi", "starlette", "pydantic", "sqlalchemy", "psycopg")
BY_HAND = Variant("sync_get_db", '`def`, `get_db`, `scope="function"`')
SYNC_TRANSACT = Variant("sync_transact", "`def`, **transact**, `db.session()`")
ASYNC_BY_HAND = replace(CONTROL, shown='`async def`, `get_db`, `scope="function"`')
ASYNC_TRANSACT = replace(TRANSACT, shown="`async def`, **transact**, `db.session()`")
#: What each variant is compared with.
CONTROLS = {ASYNC_BY_HAND: ASYNC_BY_HAND, ASYNC_TRANSACT: ASYNC_BY_HAND, BY_HAND: BY_HAND, SYNC_TRANSACT: BY_HAND}


def report(url: str, server: str, quick: bool) -> str:  # noqa: FBT001  # every measurement is called like this
    rounds, requests = ROUNDS[quick]
    with started(driven_by("postgresql+psycopg", url), tuple(CONTROLS), {}, together=quick) as workers:
        costs = measure(workers.items(), rounds, requests, {})
    said = f"Medians of {rounds} alternating rounds of {requests} requests. {machine(versions(*PACKAGES), server)}"
    return "\n".join(
        [
            said,
            "CPU, µs and ratio:\n",
            _table(costs, "cpu"),
            "On the wall's clock, µs and ratio:\n",
            _table(costs, "wall"),
        ]
    )


def _table(costs: Costs, which: str) -> str:
    rows = [
        (variant.shown, *(cell(costs[path, variant], costs[path, control], which) for _, path, _ in ROUTES))
        for variant, control in CONTROLS.items()
    ]
    return table(("", *(name for _, _, name in ROUTES)), rows)


if __name__ == "__main__":
    command(report, __doc__)
