"""The README's figures: CPU per request of ``get_db``, in both scopes, and of transact, on PostgreSQL and on SQLite.

python -m benchmarks.summary [--url URL] [--quick]
"""

import tempfile
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from benchmarks._command import command, say, with_tables
from benchmarks._report import ratio, table
from benchmarks._variants import CONTROL, GET_DB, TRANSACT
from benchmarks._workers import started

VARIANTS = (GET_DB, CONTROL, TRANSACT)
POSTGRESQL = (
    ("POST", "/insert", "inserts by the ORM, PostgreSQL"),
    ("GET", "/one", "reads, PostgreSQL"),
    ("GET", "/idle", "leaves its session alone"),
)
SQLITE = (
    ("POST", "/insert", "inserts by the ORM, SQLite"),
    ("GET", "/one", "reads, SQLite"),
)
Row = tuple[object, ...]


def report(url: str, _server: str, quick: bool) -> str:  # noqa: FBT001  # every measurement is called like this
    with tempfile.TemporaryDirectory() as folder:
        file = f"sqlite+aiosqlite:///{Path(folder) / 'bench.db'}"
        with with_tables(file):
            rows = [*_rows(url, POSTGRESQL, quick=quick), *_rows(file, SQLITE, quick=quick)]
    return table(("CPU per request of a route that", *(variant.shown for variant in VARIANTS)), rows)


def _rows(url: str, routes: Iterable[tuple[str, str, str]], *, quick: bool) -> list[Row]:
    rounds, requests = (1, 3) if quick else (15, 100)
    taken: dict[tuple[str, str], list[float]] = defaultdict(list)
    with started(url, VARIANTS, {}, together=quick) as workers:
        for method, path, name in routes:
            say(f"summary: {name}")
            for number in range(rounds + 1):
                for variant, worker in workers.items():
                    cost = worker.cost(method, path, requests)
                    if number:  # the first round warms up
                        taken[name, variant.name].append(cost.cpu)
    return [
        (name, *(f"{ratio(taken[name, variant.name], taken[name, GET_DB.name]):.2f}" for variant in VARIANTS))
        for _, _, name in routes
    ]


if __name__ == "__main__":
    command(report, __doc__)
