"""Instructions per request, counted by valgrind's callgrind: what a clock shows of a quiet machine, without the clock.

    python -m benchmarks.instructions [--url URL] [--quick]

The count is of the application's process, C code included, and without the operating system's. It is the same within a few
thousandths each time, whatever else the machine does, so that differences can be seen here that drown in the noise of a
clock. Needs Debian's ``valgrind``.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

from benchmarks._command import command, say
from benchmarks._environments import installed_peers
from benchmarks._report import machine, table
from benchmarks._variants import ASYNCPG, CONTROL, OURS, Variant
from benchmarks._workers import Process
from benchmarks.cpu import ROUTES

AT_ONCE = 2
Counts = dict[str, int]


def report(url: str, server: str, quick: bool) -> str:  # noqa: FBT001  # every measurement is called like this
    if shutil.which("callgrind_control") is None:
        sys.exit("instructions are counted by valgrind, which is not installed")
    requests = 40 if quick else 200
    variants = (ASYNCPG, CONTROL) if quick else (*OURS, *installed_peers()[0])
    routes = ROUTES[2:3] if quick else ROUTES

    def counted(variant: Variant) -> tuple[dict[str, str], Counts]:
        say(f"instructions: {variant.shown}")
        return _count(url, variant, requests, [route for route in routes if variant.serves(route[1])])

    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = dict(zip(variants, pool.map(counted, variants), strict=True))
    here = found[CONTROL][0]
    said = f"Instructions per request, in thousands, of {requests} requests, and the ratio. {machine(here, server)}"
    rows = [
        (variant.shown, *(_cell(counts.get(path), found[CONTROL][1][path]) for _, path, _ in routes))
        for variant, (versions, counts) in found.items()
        # What runs with other versions would be compared with another FastAPI.
        if all(versions[package] == number for package, number in here.items())
    ]
    return f"{said}\n{table(('', *(name for *_, name in routes)), rows)}"


def _count(
    url: str, variant: Variant, requests: int, routes: Sequence[tuple[str, str, str]]
) -> tuple[dict[str, str], Counts]:
    """The versions that a variant runs with, and what a request of each of the routes takes."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "counted"
        under = ("valgrind", "--tool=callgrind", f"--callgrind-out-file={out}")
        with closing(Process([variant], url, variant, under)) as process:
            versions: dict[str, str] = process.answer()[variant.name]
            counts = {}
            for number, (method, path, _) in enumerate(routes, 1):
                ask = {"do": "repeat", "name": variant.name, "method": method, "path": path}
                process.ask(**ask, requests=requests // 2)  # what is cached is cached by then
                _tell(process, "--zero")
                process.ask(**ask, requests=requests)
                _tell(process, "--dump")
                counts[path] = _total(out.with_name(f"{out.name}.{number}")) // requests
    return versions, counts


def _tell(process: Process, what: str) -> None:
    tell = ["callgrind_control", what, str(process.pid)]
    subprocess.run(tell, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _total(dump: Path) -> int:
    lines = dump.read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith("summary:")).split()[1])


def _cell(count: int | None, control: int) -> str:
    return "" if count is None else f"{count / 1000:,.0f} · {count / control:.2f}"


if __name__ == "__main__":
    os.environ["PYTHONHASHSEED"] = "0"  # or dictionaries collide in another way each time
    command(report, __doc__)
