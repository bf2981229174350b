"""The table of docs/reliability.md. ``python -m tests.faults.table`` runs every row on every engine and writes what it saw."""

import asyncio
import logging
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path

from tests.engines import BY_ID, Engines, chosen, observe
from tests.faults.outcomes import ROWS, Outcome, observed
from tests.faults.proxy import Fault
from tests.faults.scene import scene
from tests.faults.wire import Step
from transact._sqlalchemy import shielding

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
HEADING = "The outcomes"
_ALL = frozenset(chosen(["postgresql", "mariadb"]))
_FAMILIES = {frozenset(chosen(["postgresql"])): "PostgreSQL", frozenset(chosen(["mariadb"])): "MariaDB"}
_STORED = {0: "nothing", 3: "all"}

Seen = dict[tuple[Step, Fault, str], Outcome]


def expected() -> Seen:
    """What the tests insist on."""
    return {(row.step, row.fault, engine): row.outcome for row in ROWS for engine in chosen(row.engines)}


def rows(seen: Seen) -> list[list[str]]:
    """The cells: one row for each outcome at a step, with the faults and engines that lead to it."""
    found = []
    for step in dict.fromkeys(step for step, _, _ in seen):
        here = {(fault, engine): outcome for (at, fault, engine), outcome in seen.items() if at is step}
        for outcome in dict.fromkeys(here.values()):
            faults = dict.fromkeys(fault for (fault, _), other in here.items() if other == outcome)
            engines = frozenset(engine for (_, engine), other in here.items() if other == outcome)
            found.append([_place(step, engines), ", ".join(fault.value for fault in faults), *_cells(outcome)])
    return found


def _place(step: Step, engines: frozenset[str]) -> str:
    where = "" if engines == _ALL else f" ({_FAMILIES.get(engines) or ', '.join(sorted(engines))})"
    return step.value + where


def _cells(outcome: Outcome) -> Iterable[str]:
    yield f"`{outcome.error}`" if outcome.error else "success"
    yield str(outcome.status or "")
    yield _STORED.get(len(outcome.stored), "a part")
    yield ", ".join(outcome.hooks)
    yield str(outcome.held)
    yield str(outcome.idle)


async def run() -> Seen:
    """Run every row, as a request."""
    shielding.GRACE = 0.05
    engines = Engines()
    found: Seen = {}
    with tempfile.TemporaryDirectory() as folder, engines.stack:
        for step, fault, engine in expected():
            url = engines.empty_database(BY_ID[engine], Path(folder))
            with observe(url) as observer:
                async with scene(url, observer) as place:
                    found[step, fault, engine] = await observed(place, step, fault, "request")
    return found


def write(seen: Seen) -> None:
    """Replace the rows of the page's table."""
    body = "\n".join(f"| {' | '.join(cells)} |" for cells in rows(seen))
    text = PAGE.read_text(encoding="utf-8")
    pattern = rf"(## {HEADING}\n.*?\n\|[-|]+\|\n).*?(\n\n|\Z)"
    PAGE.write_text(re.sub(pattern, lambda m: m[1] + body + m[2], text, count=1, flags=re.DOTALL), encoding="utf-8")


if __name__ == "__main__":
    logging.disable()  # every row is an error
    write(asyncio.run(run()))
