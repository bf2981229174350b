"""How figures are shown: tables in Markdown, medians, ratios, and where they were made."""

import os
import platform
import statistics
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines) + "\n"


def microseconds(seconds: Iterable[float]) -> str:
    """The median."""
    return f"{statistics.median(seconds) * 1e6:,.0f}"


def milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:,.1f}"


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median of the rounds' ratios, which takes out what the machine did meanwhile."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def against(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """How many times theirs ours is, or that there is nothing to compare with."""
    if not all(theirs):
        return "they starve" if all(ours) else "-"
    return f"{ratio(ours, theirs):.2f}"


def versions(*packages: str) -> dict[str, str]:
    """Of this Python, and of those ``packages`` that are installed."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def machine(found: Mapping[str, str], database: str, shared_with: str = "the database") -> str:
    """Where and with what figures were made; ``found`` as ``versions`` tells them."""
    packages = ", ".join(f"{name} {number}" for name, number in found.items() if name != "python")
    return f"Python {found['python']}, {packages}, {database}; {_processors()}, shared with {shared_with}.\n"


def _processors() -> str:
    model = platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text(encoding="utf-8").splitlines()
                 if line.startswith("model name")]  # fmt: skip
        model = names[0] if names else model
    return f"{os.cpu_count()} processors ({model})"
