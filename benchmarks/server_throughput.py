"""Requests per second of a real uvicorn, also with 1 and 10 ms more for each round trip to the database.

    python -m benchmarks.server_throughput [--url URL] [--quick]

The clients are those of wrk (https://github.com/wg/wrk, Debian package wrk), which keep their connections and ask again at
once; without wrk they are our own, and the report says so. CPU is the server's, for one request: where it is all of the time
between two requests, it is what limits them.
"""

import asyncio
import json
import shutil
import statistics
import subprocess
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import asyncpg

from benchmarks._command import command, say
from benchmarks._load import SUCCESS, percentile
from benchmarks._report import against, milliseconds, table
from benchmarks._serving import Served, cpu_seconds, delaying, machine_and, run, serving
from benchmarks._urls import driven_by
from benchmarks.apps._routes import POOL_SIZE

CONTROL = 'get_db, scope="function"'
VARIANTS = {CONTROL: "benchmarks.apps.get_db_function", "transact": "benchmarks.apps.transact"}
ROUTES = (("GET", "/one"), ("POST", "/insert"))
DELAYS = {0.001: ROUTES, 0.01: ROUTES[:1]}  # seconds for each round trip
PERCENTILES = (50, 90, 99)
# wrk prints percentiles in units of its choice; a script gets them in microseconds.
SCRIPT = """
wrk.method = "{method}"
done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format('\\n{{"requests": %d, "microseconds": %d, "failed": %d, "latencies": [%d, %d, %d]}}\\n',
    summary.requests, summary.duration, e.connect + e.read + e.write + e.status + e.timeout,
    latency:percentile(50), latency:percentile(90), latency:percentile(99)))
end
"""


@dataclass(frozen=True)
class Measured:
    """One round: requests per second, the latency's percentiles and the CPU of a request in seconds, requests that failed."""

    rate: float
    latencies: tuple[float, ...]
    cpu: float
    failed: int


def report(url: str, server: str, quick: bool) -> str:  # noqa: FBT001  # every measurement is called like this
    levels = (16,) if quick else (1, 16, 64, 256)
    rounds, seconds = (1, 1) if quick else (3, 2)
    clients = "wrk" if shutil.which("wrk") else "our own clients, for want of wrk"
    said = (
        f"uvicorn with uvloop and httptools, one process, a pool of {POOL_SIZE}; {clients}; medians of {rounds} alternating"
        f" rounds of {seconds} s. {machine_and(server)}"
    )
    parts = [said, _table(url, ROUTES, levels, rounds, seconds)]
    for delay, routes in DELAYS.items():
        with delaying(url, delay) as (delayed, pid):
            limit = run(_limit(delayed, pid, seconds))
            added = run(_round_trip(delayed)) - run(_round_trip(url))
            parts.append(
                f"With {milliseconds(added)} ms more for each round trip to the database, added by a proxy in a process of its"
                f" own, which could pass on {limit:,.0f} statements per second:\n"
            )
            parts.append(_table(delayed, routes, levels, rounds, seconds))
    return "\n".join(parts)


def _table(url: str, routes: Sequence[tuple[str, str]], levels: Sequence[int], rounds: int, seconds: int) -> str:
    measured: dict[tuple[str, int, str], list[Measured]] = defaultdict(list)
    with ExitStack() as stack:
        servers = {name: stack.enter_context(serving(module, url)) for name, module in VARIANTS.items()}
        for method, path in routes:
            for level in levels:
                say(f"server_throughput: {method} {path}, {level} connections")
                for _ in range(rounds):
                    for name, served in servers.items():
                        measured[f"{method} {path}", level, name].append(_measure(served, method, path, level, seconds))
    head = (
        "route",
        "connections",
        "variant",
        "requests/s",
        *(f"p{p} ms" for p in PERCENTILES),
        "CPU ms",
        "failed",
        "ratio",
    )
    return table(head, [(*key, *_row(each, measured[*key[:2], CONTROL])) for key, each in measured.items()])


def _row(each: Sequence[Measured], control: Sequence[Measured]) -> tuple[object, ...]:
    rates = [one.rate for one in each]
    latencies = [
        milliseconds(statistics.median(column)) for column in zip(*(one.latencies for one in each), strict=True)
    ]
    cpu = f"{statistics.median(one.cpu for one in each) * 1000:.2f}"
    ratio = against(rates, [one.rate for one in control])
    return f"{statistics.median(rates):,.0f}", *latencies, cpu, sum(one.failed for one in each), ratio


def _measure(served: Served, method: str, path: str, connections: int, seconds: int) -> Measured:
    used = cpu_seconds(served.pid)
    program = shutil.which("wrk")
    if program is None:
        answers = served.closed_loop(method, path, connections, seconds)
        latencies = tuple(percentile(answers.of(SUCCESS), percent) or 0.0 for percent in PERCENTILES)
        used = cpu_seconds(served.pid) - used
        return Measured(answers.goodput, latencies, used / max(1.0, answers.goodput * seconds), answers.failed)
    told = _wrk(program, served, method, path, f"-c{connections}", f"-d{seconds}s")
    used = cpu_seconds(served.pid) - used
    rate = told["requests"] / (told["microseconds"] / 1e6)
    latencies = tuple(latency / 1e6 for latency in told["latencies"])
    return Measured(rate, latencies, used / max(1, told["requests"]), told["failed"])


def _wrk(program: str, served: Served, method: str, path: str, *words: str) -> dict[str, Any]:
    """What the script tells of one run of wrk."""
    with tempfile.NamedTemporaryFile("w", suffix=".lua", encoding="utf-8") as script:
        script.write(SCRIPT.format(method=method))
        script.flush()
        host, port = served.address
        command = [program, "-t1", *words, "-s", script.name, f"http://{host}:{port}{path}"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


async def _round_trip(url: str) -> float:
    """Seconds of a statement by the bare driver."""
    connection = await asyncpg.connect(driven_by("postgresql", url))
    taken = []
    for _ in range(100):
        started = time.perf_counter()
        await connection.fetchval("SELECT 1")
        taken.append(time.perf_counter() - started)
    await connection.close()
    return statistics.median(taken)


async def _limit(url: str, pid: int, seconds: float) -> float:
    """Statements per second that the proxy could pass on, by what it needs of a processor for those of a full pool."""
    connections = [await asyncpg.connect(driven_by("postgresql", url)) for _ in range(POOL_SIZE)]
    end = time.perf_counter() + seconds

    async def ask(connection: "asyncpg.Connection[asyncpg.Record]") -> int:
        count = 0
        while time.perf_counter() < end:
            await connection.fetchval("SELECT 1")
            count += 1
        return count

    used = cpu_seconds(pid)
    done = sum(await asyncio.gather(*map(ask, connections)))
    used = cpu_seconds(pid) - used
    for connection in connections:
        await connection.close()
    return done / max(used, 0.01)


if __name__ == "__main__":
    command(report, __doc__)
