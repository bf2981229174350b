"""Handlers that use the database and then wait 200 ms for something else, 200 of them at once on a small pool.

    python -m benchmarks.slow_handlers [--url URL] [--quick]

One that has written keeps its connection until its transaction ends, in every variant: nobody may hear of a success that is not
committed. A block of its own commits before the wait; what it has stored stays stored if the handler fails afterwards.
"""

import statistics
from collections import defaultdict

from benchmarks._command import command, say
from benchmarks._load import SUCCESS, Answers, percentile
from benchmarks._report import against, milliseconds, table
from benchmarks._serving import machine_and, serving
from benchmarks._serving_app import GET_DB_FUNCTION, HERE, TRANSACT, WAIT
from benchmarks.apps._routes import POOL_SIZE

CLIENTS = 200
VARIANTS = (GET_DB_FUNCTION, TRANSACT)
CASES = {
    "reads, then waits": ("GET", "/read-and-wait"),
    "writes, then waits": ("POST", "/write-and-wait"),
    "writes in a block that commits, then waits": ("POST", "/commit-and-wait"),
}


def report(url: str, server: str, quick: bool) -> str:  # noqa: FBT001  # every measurement is called like this
    rounds, seconds = (1, 1.0) if quick else (3, 3.0)
    measured: dict[tuple[str, str], list[Answers]] = defaultdict(list)
    for case, (method, path) in CASES.items():
        say(f"slow_handlers: {case}")
        for _ in range(rounds):
            for variant in VARIANTS:
                with serving(
                    HERE, url, variant=variant
                ) as served:  # a server each time: the last round's may still wait
                    measured[case, variant].append(served.closed_loop(method, path, CLIENTS, seconds))
    rows = []
    for (case, variant), each in measured.items():
        rates = [answers.goodput for answers in each]
        latencies = [latency for answers in each for latency in answers.of(SUCCESS)]
        ratio = against(rates, [answers.goodput for answers in measured[case, GET_DB_FUNCTION]])
        p50, p99 = (milliseconds(percentile(latencies, percent)) for percent in (50, 99))
        rows.append((case, variant, f"{statistics.median(rates):,.0f}", p50, p99, ratio))
    head = ("the handler", "variant", "requests/s", "p50 ms", "p99 ms", "ratio")
    return (
        f"{CLIENTS} clients, a pool of {POOL_SIZE}, a wait of {WAIT * 1000:g} ms: a connection kept meanwhile allows"
        f" {POOL_SIZE / WAIT:g} requests/s, none kept {CLIENTS / WAIT:,.0f}. Medians of {rounds} alternating rounds of"
        f" {seconds:g} s. {machine_and(server)}\n{table(head, rows)}"
    )


if __name__ == "__main__":
    command(report, __doc__)
