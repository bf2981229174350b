"""More requests than the pool can carry: how many still succeed, and how soon the others hear that they will not.

    python -m benchmarks.overload_refusals [--url URL] [--quick]

Requests come by chance at a rate, whether the server can follow or not; a client hangs up after a second. What counts is what
succeeds before that. Capacity is what as many clients as the pool has connections get when each waits for its answer.
"""

import statistics
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from benchmarks._command import command, say
from benchmarks._load import REFUSED, SUCCESS, Answers, open_loop, percentile
from benchmarks._report import milliseconds, ratio, table
from benchmarks._serving import Served, cpu_seconds, machine_and, run, serving
from benchmarks._serving_app import GET_DB_FUNCTION, HERE, TRANSACT, WORK
from benchmarks.apps._routes import POOL_SIZE

MAX_WAITING = 10
PATIENCE = 1.0
WARM_UP = 0.5
VARIANTS: dict[str, dict[str, Any]] = {
    GET_DB_FUNCTION: {"variant": GET_DB_FUNCTION},
    f"transact, max_waiting={MAX_WAITING}": {"variant": TRANSACT, "max_waiting": MAX_WAITING},
}
HEAD = (
    "times capacity", "variant", "successes/s", "of those at 1", "p50 ms", "p99 ms", "refused/s", "p99 ms of refusals",
    "gave up/s", "CPU of the server",
)  # fmt: skip


def report(url: str, server: str, quick: bool) -> str:  # noqa: FBT001  # every measurement is called like this
    loads = (1, 8) if quick else (1, 2, 4, 8)
    rounds, seconds = (1, 1.0) if quick else (3, 4.0)
    with serving(HERE, url, variant=GET_DB_FUNCTION) as served:
        capacity = served.closed_loop("POST", "/work", POOL_SIZE, seconds).goodput
    measured: dict[tuple[int, str], list[Answers]] = defaultdict(list)
    used: dict[tuple[int, str], list[float]] = defaultdict(list)
    for load in loads:
        say(f"overload_refusals: {load} times capacity")
        for number in range(rounds):
            for name, arguments in VARIANTS.items():
                with serving(HERE, url, **arguments) as served:  # a server each time: what waits in vain waits on
                    served.closed_loop("POST", "/work", POOL_SIZE, WARM_UP)  # to make connections takes time of its own
                    before = cpu_seconds(served.pid)
                    measured[load, name].append(_overload(served, load * capacity, seconds, number))
                    used[load, name].append((cpu_seconds(served.pid) - before) / (seconds + PATIENCE))
    rows = [
        (load, name, *_row(each, measured[loads[0], name]), f"{100 * statistics.median(used[load, name]):.0f} %")
        for (load, name), each in measured.items()
    ]
    return (
        f"Capacity {capacity:.0f} requests/s: a pool of {POOL_SIZE}, {WORK * 1000:g} ms of the database for each; a client"
        f" waits {PATIENCE:g} s; medians of {rounds} alternating rounds of {seconds:g} s. {machine_and(server)}\n"
        + table(HEAD, rows)
    )


def _overload(served: Served, rate: float, seconds: float, seed: int) -> Answers:
    return run(open_loop(served.address, ("POST", "/work"), rate, seconds, patience=PATIENCE, seed=seed))


def _row(each: Sequence[Answers], at_one: Sequence[Answers]) -> tuple[str, ...]:
    succeeded = [latency for answers in each for latency in answers.of(SUCCESS)]
    refused = [latency for answers in each for latency in answers.of((REFUSED,))]
    kept = ratio([answers.goodput for answers in each], [answers.goodput or 0.01 for answers in at_one])
    return (
        f"{statistics.median(answers.goodput for answers in each):,.0f}",
        f"{kept:.2f}",
        *(milliseconds(percentile(succeeded, percent)) for percent in (50, 99)),
        f"{statistics.median(answers.per_second(REFUSED) for answers in each):,.0f}",
        milliseconds(percentile(refused, 99)),
        f"{statistics.median(answers.gave_up / answers.seconds for answers in each):,.0f}",
    )


if __name__ == "__main__":
    command(report, __doc__)
