"""What scripts/bench does: runs each measurement as a command, and puts what it prints into the pages."""

import argparse
import subprocess
import sys
from pathlib import Path

from benchmarks._command import database, say
from benchmarks._environments import ROOT, install_peers
from scripts._postgres import PostgresError

FOLDER = Path(__file__).resolve().parent
PAGES = tuple(ROOT / page for page in ("docs/performance.md", "docs/sync.md", "docs/testing.md", "README.md"))


def main() -> int:
    """Make the measurements that are asked for; 0 if all of them could be made."""
    there = measurements()
    parser = argparse.ArgumentParser(prog="scripts/bench", allow_abbrev=False)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(there)}")
    parser.add_argument("--quick", action="store_true", help="each in its smallest form; writes nothing")
    given = parser.parse_args()
    if unknown := set(given.names) - set(there):
        parser.error(f"no such measurement: {', '.join(sorted(unknown))}; there are {', '.join(there)}")
    if not given.quick:
        install_peers()
    with database() as url:
        failed = [name for name in given.names or there if not _make(name, url, quick=given.quick)]
    if failed:
        say(f"FAILED: {', '.join(failed)}")
    return 1 if failed else 0


def measurements() -> list[str]:
    """The names of all measurements: in the order of the pages, then those that they do not have."""
    page = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    names = [path.stem for path in FOLDER.glob("[!_]*.py")]
    return sorted(names, key=lambda name: (page.find(_marks(name)[0]) % (len(page) + 1), name))


def _make(name: str, url: str, *, quick: bool) -> bool:
    print(f"\n== {name}\n", flush=True)
    command = [sys.executable, "-m", f"benchmarks.{name}", "--url", url, *(["--quick"] if quick else [])]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            printed, _ = process.communicate()
        except BaseException:
            process.terminate()
            raise
    print(printed, flush=True)
    if process.returncode == 0 and not quick:
        for page in PAGES:
            page.write_text(filled(page.read_text(encoding="utf-8"), name, printed), encoding="utf-8")
    return process.returncode == 0


def filled(page: str, name: str, printed: str) -> str:
    """The page with what a measurement has printed between its marks; unchanged if it has none."""
    begin, end = _marks(name)
    before, found, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    return f"{before}{begin}\n\n{printed.strip()}\n\n{end}{after}" if found and closed else page


def _marks(name: str) -> tuple[str, str]:
    return f"<!-- bench: {name} -->", f"<!-- end: {name} -->"


if __name__ == "__main__":
    try:
        sys.exit(main())
    except PostgresError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit(130)
