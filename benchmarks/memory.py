"""Resident memory after many requests, and how much each of the second half of them adds.

    python -m benchmarks.memory [--url URL] [--quick]

Half of the requests insert by the ORM, half read. Each variant has a fresh process; they run at the same time.
"""

from concurrent.futures import ThreadPoolExecutor

from benchmarks._command import command, say
from benchmarks._report import machine, table
from benchmarks._variants import CONTROL, TRANSACT
from benchmarks._workers import Worker, started

MIB = 1 << 20


def report(url: str, server: str, quick: bool) -> str:  # noqa: FBT001  # every measurement is called like this
    requests = 100 if quick else 100_000
    with started(url, (CONTROL, TRANSACT), {}, together=quick) as workers:
        say(f"memory: {requests} requests")
        here = workers[CONTROL].versions
        with ThreadPoolExecutor() as threads:
            sizes = list(threads.map(lambda worker: _sizes(worker, requests), workers.values()))
    rows = [(variant.shown, *found) for variant, found in zip(workers, sizes, strict=True)]
    head = (
        "", "MiB at first", f"after {requests // 2:,}", f"after {requests:,}",
        "bytes per request, second half", "Python's blocks per request",
    )  # fmt: skip
    return f"{machine(here, server)}\n{table(head, rows)}"


def _sizes(worker: Worker, requests: int) -> tuple[str, ...]:
    first = worker.memory(requests // 50)  # what every process needs once is there after these
    half = worker.memory(requests // 2)
    whole = worker.memory(requests - requests // 2)
    growth = [(whole[what] - half[what]) / (requests - requests // 2) for what in ("rss", "blocks")]
    return (*(f"{size['rss'] / MIB:.1f}" for size in (first, half, whole)), f"{growth[0]:.1f}", f"{growth[1]:.3f}")


if __name__ == "__main__":
    command(report, __doc__)
