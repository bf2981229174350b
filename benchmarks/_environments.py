"""A virtual environment for each peer, under ``.build/bench``: two libraries never share one."""

import hashlib
import json
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks._variants import PEERS, Peer, Variant
from scripts._compat import find_python

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".build/bench"
PINS = ROOT / "requirements-dev.txt"
#: What the peers leave to the application, at the versions that transact is developed with.
COMMON = ("fastapi", "sqlalchemy[asyncio]", "asyncpg")
NEWER = ("3.12", "3.13", "3.14")


class InstallError(Exception):
    """A peer cannot be installed here; the message is the reason."""


def python_of(variant: Variant) -> Path:
    """The Python that has the variant's library: this one, or that of a peer's environment."""
    return _folder(variant) / "bin/python" if variant.peer else Path(sys.executable)


def install_peers() -> None:
    """Install every peer that is not there yet. One that does not install is recorded with its reason."""
    for variant in PEERS:
        key = _key(variant)
        if _outcome(variant) == {"key": key, "reason": None}:
            continue
        print(f"Installing {variant.shown} into {_folder(variant).relative_to(ROOT)}", file=sys.stderr, flush=True)
        reason = None
        try:
            _install(variant, variant.peer or Peer(""))
        except InstallError as error:
            reason = str(error)
        _record(variant).write_text(json.dumps({"key": key, "reason": reason}), encoding="utf-8")


def installed_peers() -> tuple[list[Variant], dict[Variant, str]]:
    """The peers that can be measured, and why each of the others cannot."""
    missing = {variant: _outcome(variant).get("reason", "not installed") for variant in PEERS}
    return (
        [variant for variant, reason in missing.items() if reason is None],
        {variant: reason for variant, reason in missing.items() if reason is not None},
    )


def _folder(variant: Variant) -> Path:
    return FOLDER / variant.name


def _record(variant: Variant) -> Path:
    return FOLDER / f"{variant.name}.json"


def _outcome(variant: Variant) -> dict[str, str | None]:
    try:
        outcome: dict[str, str | None] = json.loads(_record(variant).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return outcome


def _key(variant: Variant) -> str:
    """What an environment depends on; a virtual environment also knows its own path."""
    asked = f"{variant} {COMMON} {_folder(variant)} {platform.python_version()}".encode()
    return hashlib.sha256(asked + PINS.read_bytes()).hexdigest()


def _install(variant: Variant, peer: Peer) -> None:
    folder = _folder(variant)
    shutil.rmtree(folder, ignore_errors=True)
    FOLDER.mkdir(parents=True, exist_ok=True)
    subprocess.run([_python_for(peer), "-m", "venv", folder], check=True)
    pins = [
        line for line in PINS.read_text(encoding="utf-8").splitlines() if line.partition("==")[0] not in peer.refuses
    ]
    constraints = folder / "constraints.txt"
    constraints.write_text("\n".join(pins) + "\n", encoding="utf-8")
    pip: list[str | Path] = [folder / "bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run(
        [*pip, "-c", constraints, peer.requirement, *COMMON], capture_output=True, text=True, check=False
    )
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
        raise InstallError((errors or ["pip failed"])[-1].removeprefix("ERROR: "))


def _python_for(peer: Peer) -> Path:
    """This Python if the peer takes it, so that as little as possible differs; else the first that it takes."""
    if peer.python is None or sys.version_info[:2] >= _number(peer.python):
        return Path(sys.executable)
    for version in NEWER:
        if _number(version) >= _number(peer.python) and (found := find_python(version)):
            return found
    raise InstallError(f"needs Python {peer.python} or newer, and this machine has none")


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
