"""How figures are shown: tables in Markdown, medians, ratios, and where they were made."""

import os
import platform
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines) + "\n"


def microseconds(seconds: Iterable[float]) -> str:
    """The median."""
    return f"{statistics.median(seconds) * 1e6:,.0f}"


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median of the rounds' ratios, which takes out what the machine did meanwhile."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def machine(versions: Mapping[str, str], database: str) -> str:
    """Where and with what figures were made; ``versions`` as a worker tells them."""
    packages = ", ".join(f"{name} {number}" for name, number in versions.items() if name != "python")
    return f"Python {versions['python']}, {packages}, {database}; {_processors()}.\n"


def _processors() -> str:
    model = platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text(encoding="utf-8").splitlines()
                 if line.startswith("model name")]  # fmt: skip
        model = names[0] if names else model
    return f"{os.cpu_count()} processors ({model}), shared with the database"
