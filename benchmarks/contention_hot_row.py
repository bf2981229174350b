"""One hot row at SERIALIZABLE, 32 clients that read it and write it: what succeeds with a retry, and what fails without.

    python -m benchmarks.contention_hot_row [--url URL] [--quick]

Every request counts up one number. In the end it has to be what the clients were told: one more for each success.
"""

import statistics
from collections import defaultdict
from typing import Any

from benchmarks._command import command, say
from benchmarks._load import SUCCESS, Answers, percentile
from benchmarks._report import milliseconds, table
from benchmarks._serving import execute, machine_and, serving
from benchmarks._serving_app import GET_DB_FUNCTION, HERE, TRANSACT
from benchmarks.apps._routes import POOL_SIZE

CLIENTS = 32
ATTEMPTS = 10
VARIANTS: dict[str, dict[str, Any]] = {
    GET_DB_FUNCTION: {"variant": GET_DB_FUNCTION},
    "transact without retry": {"variant": TRANSACT},
    f"transact, Retry(attempts={ATTEMPTS})": {"variant": TRANSACT, "attempts": ATTEMPTS},
}


def report(url: str, server: str, quick: bool) -> str:  # noqa: FBT001  # every measurement is called like this
    rounds, seconds = (1, 1.0) if quick else (3, 4.0)
    measured: dict[str, list[Answers]] = defaultdict(list)
    stored: dict[str, int] = defaultdict(int)
    for number in range(rounds):
        say(f"contention_hot_row: round {number + 1}")
        for name, arguments in VARIANTS.items():
            execute(url, "DELETE FROM bench_counters", "INSERT INTO bench_counters (id, number) VALUES (1, 0)")
            with serving(HERE, url, serializable=True, **arguments) as served:
                measured[name].append(served.closed_loop("POST", "/count", CLIENTS, seconds))
            stored[name] += execute(url, "SELECT number FROM bench_counters WHERE id = 1")
    head = ("variant", "successes/s", "failed", "p50 ms", "p99 ms", "told", "stored")
    return (
        f"{CLIENTS} clients that ask again at once, also after an error; a pool of {POOL_SIZE}; medians of {rounds} alternating"
        f" rounds of {seconds:g} s. What is under way when a round ends may be stored without having been told."
        f" {machine_and(server)}\n{table(head, [(name, *_row(each), stored[name]) for name, each in measured.items()])}"
    )


def _row(each: list[Answers]) -> tuple[object, ...]:
    latencies = [latency for answers in each for latency in answers.of(SUCCESS)]
    failed = sum(answers.failed for answers in each)
    return (
        f"{statistics.median(answers.goodput for answers in each):,.0f}",
        f"{100 * failed / max(1, failed + len(latencies)):.0f} %",
        *(milliseconds(percentile(latencies, percent)) for percent in (50, 99)),
        len(latencies),
    )


if __name__ == "__main__":
    command(report, __doc__)
