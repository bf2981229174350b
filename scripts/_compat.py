"""What scripts/compat does: one virtual environment for each Python and each end of the range of dependencies.

`oldest` takes the floors that pyproject.toml names, `newest` whatever is newest today; the rest is up to the installer.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".venv-compat"
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
ENDS = ("oldest", "newest")
SHOWN = ("fastapi", "starlette", "sqlalchemy", "pydantic", "asyncpg", "psycopg", "aiosqlite", "asyncmy")
MAIN = {
    "fastapi",
    "sqlalchemy",
    "pydantic-settings",
    "tenacity",
}  # the others with a floor are drivers, which come as binaries
NOT_FOR_TESTS = {"ruff", "mypy", "pyright", "asyncpg-stubs", "types-pymysql", "types-tqdm"}
SOURCES = ("src", "tests", "examples", "docs", "scripts", "README.md", "pyproject.toml", "requirements-dev.in")
MOST_SECONDS = 30 * 60  # of one run of the tests


@dataclass
class Outcome:
    """What came of one combination; `versions` are those really installed."""

    python: str
    end: str
    result: str
    passed: bool = False
    versions: dict[str, str] = field(default_factory=dict)
    key: str = ""


class InstallError(Exception):
    """The packages of a combination do not install."""


def main() -> int:
    """Run what is asked for and print the table; 0 if everything that could run has passed."""
    parser = argparse.ArgumentParser(prog="scripts/compat", allow_abbrev=False)
    parser.add_argument("--quick", action="store_true", help="SQLite alone")
    parser.add_argument("--only", default="", help="only combinations whose name contains this, such as 3.12 or oldest")
    parser.add_argument("--again", action="store_true", help="also what has passed with this state of the checkout")
    options, arguments = parser.parse_known_args()
    if options.quick:
        arguments += ["-k", "not pg15 and not pg18 and not postgres and not mariadb"]
    chosen = [(version, end) for version in PYTHONS for end in ENDS if options.only in f"{version}-{end}"]
    outcomes = [_combination(version, end, arguments, again=options.again) for version, end in chosen]
    print()
    print("\n".join(_table(outcomes)))
    return 0 if any(o.passed for o in outcomes) and all(o.passed or not o.key for o in outcomes) else 1


def _combination(version: str, end: str, arguments: list[str], *, again: bool) -> Outcome:
    python = find_python(version)
    if python is None:
        return Outcome(version, end, "not on this machine")
    folder = FOLDER / f"{version}-{end}"
    record = folder / "outcome.json"
    key = _checksum([*arguments, str(python)])
    if record.exists() and not again:
        before = Outcome(**json.loads(record.read_text(encoding="utf-8")))
        if before.passed and before.key == key:
            print(f"{folder.name}: {before.result} (before)", flush=True)
            return before
    outcome = Outcome(version, end, "does not install", key=key)
    print(f"{folder.name}: installing", flush=True)
    try:
        inner = _install(folder, python, end)
    except InstallError:
        print(f"{folder.name}: {outcome.result}, see {folder / 'install.log'}", flush=True)
        return outcome
    outcome.versions = _versions(inner)
    print(f"{folder.name}: testing, see {folder / 'test.log'}", flush=True)
    # The pages quote the words of the pinned versions; what they say of the library is tested elsewhere too.
    # The benchmarks are about one set of versions.
    pages = ["--ignore=tests/benchmarks", *(["--ignore=tests/docs"] if end == "oldest" else [])]
    outcome.passed, outcome.result = _test(inner, folder / "test.log", [*arguments, *pages])
    print(f"{folder.name}: {outcome.result}", flush=True)
    record.write_text(json.dumps(asdict(outcome)), encoding="utf-8")
    return outcome


def find_python(version: str) -> Path | None:
    """Find e.g. Python 3.12: on the PATH, or the newest 3.12 of pyenv, whose PATH has only the chosen ones."""
    candidates = [Path(found)] if (found := shutil.which(f"python{version}")) else []
    if shutil.which("pyenv"):
        top = subprocess.run(["pyenv", "root"], capture_output=True, text=True, check=False).stdout.strip()
        patches = (Path(top) / "versions").glob(f"{version}.*/bin/python")
        candidates += sorted(
            patches, key=lambda path: [int(n) for n in re.findall(r"\d+", path.parts[-3])], reverse=True
        )
    code = "import ensurepip, sys, venv; print('%d.%d' % sys.version_info[:2])"
    for candidate in candidates:
        done = subprocess.run([candidate, "-c", code], capture_output=True, text=True, check=False)
        if done.returncode == 0 and done.stdout.strip() == version:
            return candidate
    return None


def _install(folder: Path, python: Path, end: str) -> Path:
    """Make the environment and return its Python. What is there is used again, so that a second run is quick."""
    inner = folder / "bin/python"
    probe = [str(inner), "-m", "pip", "--version"]
    if not inner.exists() or subprocess.run(probe, capture_output=True, check=False).returncode:
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([python, "-m", "venv", folder], check=True)
    with (folder / "install.log").open("wb") as log:
        pip = [str(inner), "-m", "pip", "install", "--disable-pip-version-check"]
        requirements = [*_tools(), *(_floors_that_install(pip) if end == "oldest" else [])]
        wanted = folder / "wanted.txt"
        wanted.write_text("\n".join(requirements) + "\n", encoding="utf-8")
        install = [*pip, "--upgrade", "--upgrade-strategy=eager", "-r", str(wanted)]
        if subprocess.run(install, stdout=log, stderr=log, check=False).returncode:
            raise InstallError
        editable = [*pip, "--no-deps", "--no-build-isolation", "-e", str(ROOT)]
        if subprocess.run(editable, stdout=log, stderr=log, check=False).returncode:
            raise InstallError
    return inner


def _tools() -> list[str]:
    """Return what the tests need: the tools as they are pinned, and free what the range of versions is about."""
    asked = [line.strip() for line in (ROOT / "requirements-dev.in").read_text(encoding="utf-8").splitlines()]
    asked = [line for line in asked if line and not line.startswith("#") and _name(line) not in NOT_FOR_TESTS]
    pins = (ROOT / "requirements-dev.txt").read_text(encoding="utf-8").splitlines()
    pinned = {_name(line): line.partition("==")[2].partition(";")[0].strip() for line in pins if "==" in line}
    free = {_name(line) for line in _floors()} | {*SHOWN, "greenlet"}
    return [line if _name(line) in free else f"{line}=={pinned[_name(line)]}" for line in asked]


def _floors() -> list[str]:
    """Return every dependency of pyproject.toml at the lowest version that it allows, such as fastapi==0.115."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    found = [re.match(r"([^<>=!~;\s]+)\s*>=\s*([\w.]+)", line) for line in lines]
    return [f"{floor[1]}=={floor[2]}" for floor in found if floor]


def _floors_that_install(pip: list[str]) -> Iterator[str]:
    """Yield the floors; of a driver only if that version has a binary for this Python, else it is left at its newest."""
    for floor in _floors():
        trial = [*pip, "--quiet", "--dry-run", "--ignore-installed", "--only-binary=:all:", floor]
        if _name(floor) in MAIN or subprocess.run(trial, capture_output=True, check=False).returncode == 0:
            yield floor


def _name(requirement: str) -> str:
    """Return the name of a requirement, normalised as the packaging specification says (Names and normalization)."""
    return re.sub(r"[-_.]+", "-", re.split(r"[\s\[<>=!~;]", requirement, maxsplit=1)[0]).lower()


def _versions(inner: Path) -> dict[str, str]:
    code = "import importlib.metadata as m, json, sys; print(json.dumps({n: m.version(n) for n in sys.argv[1:]}))"
    done = subprocess.run([inner, "-c", code, *SHOWN], capture_output=True, text=True, check=True)
    versions: dict[str, str] = json.loads(done.stdout)
    return versions


def _test(inner: Path, log: Path, arguments: list[str]) -> tuple[bool, str]:
    command = [str(inner), "-m", "pytest", "-p", "no:cacheprovider", *arguments]
    # COLUMNS: the log is read by people; no bytecode of one version in the way of another's
    environment = {**os.environ, "COLUMNS": "120", "PYTHONDONTWRITEBYTECODE": "1"}
    start = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, cwd=ROOT, env=environment)
        try:
            status = process.wait(MOST_SECONDS)
        except subprocess.TimeoutExpired:
            return False, f"FAILED: not done after {MOST_SECONDS} s"
        finally:
            if process.poll() is None:
                process.terminate()  # pytest ends as by Ctrl-C and drops its databases
                process.wait()
    closing = re.findall(
        r"^=* ?(\d+ (?:passed|failed|skipped|error)[^=\n]*?) in [\d.]+s", log.read_text(errors="replace"), re.MULTILINE
    )
    counts = closing[-1] if closing else "no test ran"
    return status == 0, f"{'' if status == 0 else 'FAILED: '}{counts} in {time.monotonic() - start:.0f} s"


def _checksum(arguments: list[str]) -> str:
    """Return what the outcome depends on, as far as this checkout goes."""
    digest = hashlib.sha256(json.dumps(arguments).encode())
    for source in SOURCES:
        top = ROOT / source
        for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
            if path.is_file() and "__pycache__" not in path.parts:
                digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _table(outcomes: list[Outcome]) -> Iterator[str]:
    """Yield the lines of a Markdown table."""
    yield f"| Python | dependencies | {' | '.join(SHOWN)} | result |"
    yield f"|---|---{'|---' * len(SHOWN)}|---|"
    for outcome in outcomes:
        versions = [outcome.versions.get(name, "") for name in SHOWN]
        yield f"| {' | '.join([outcome.python, outcome.end, *versions, outcome.result])} |"


if __name__ == "__main__":
    sys.exit(main())
