"""./scripts/demo: the real program, used as a newcomer uses it."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from tests.examples.serving import ROOT, environment

needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


@dataclass
class Demo:
    """A running demo: its process, its address and the commands that it told the user to try."""

    process: "subprocess.Popen[str]"
    address: str
    curls: list[str]

    def stop(self, how: signal.Signals) -> tuple[int, str, str]:
        """End it; return its exit status and what else it printed."""
        self.process.send_signal(how)
        out, err = self.process.communicate(timeout=30)
        return self.process.returncode, out, err


def command(*arguments: str, root: Path = ROOT) -> list[str]:
    """What the shell script runs at its end."""
    return [sys.executable, str(root / "scripts/_demo.py"), *arguments]


@contextmanager
def demo(*arguments: str, root: Path = ROOT) -> Iterator[Demo]:
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command("--port", "0", *arguments, root=root), env=environment(root=root), stdout=pipe, stderr=pipe, text=True
    ) as process:
        try:
            yield _started(process)
        finally:
            process.terminate()


def _started(process: "subprocess.Popen[str]") -> Demo:
    address, curls = "", []
    for line in process.stdout or ():
        if found := re.search(r"at (http://127\.0\.0\.1:\d+)", line):
            address = found[1]
        if line.startswith("curl "):
            curls.append(line.rstrip("\n"))
        if len(curls) == 3:
            return Demo(process, address, curls)
    raise RuntimeError(f"the demo did not start: {process.stderr.read() if process.stderr else ''}")


def sh(line: str) -> object:
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=True, timeout=30)
    return json.loads(done.stdout)


def descendants(pid: int) -> set[int]:
    """The processes that came from `pid`, by a tool that every POSIX system has."""
    listed = subprocess.run(
        ["ps", "-A", "-o", "pid=", "-o", "ppid="], capture_output=True, text=True, check=True
    ).stdout
    parents = {int(child): int(parent) for child, parent in map(str.split, listed.splitlines())}
    found, grown = {pid}, True
    while grown:
        more = {child for child, parent in parents.items() if parent in found} - found
        found, grown = found | more, bool(more)
    return found - {pid}


def running(pids: set[int]) -> set[int]:
    listed = subprocess.run(
        ["ps", "-A", "-o", "pid=", "-o", "stat="], capture_output=True, text=True, check=True
    ).stdout
    alive = {int(pid) for pid, state in map(str.split, listed.splitlines()) if not state.startswith("Z")}
    return pids & alive


def is_taken(address: str) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", int(address.rpartition(":")[2]))) == 0


def check_curls(shop: Demo) -> None:
    register, search, order = (sh(line) for line in shop.curls)
    assert register.keys() == {"user_id"}
    assert register["user_id"] in [user["id"] for user in search]
    assert order.keys() == {"order_id"}


@needs_curl
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM], ids=lambda how: how.name)
def test_the_commands_that_the_demo_prints_work_and_a_signal_ends_it_cleanly(
    tmp_path: Path, how: signal.Signals
) -> None:
    with demo("--database", f"sqlite+aiosqlite:///{tmp_path}/shop.db") as shop:
        check_curls(shop)
        status, out, err = shop.stop(how)
        assert (status, out.strip(), err) == (0, "Stopped.", "")
    assert not is_taken(shop.address)


@needs_curl
def test_a_second_start_keeps_the_data_and_prints_commands_that_work_again(tmp_path: Path) -> None:
    database = f"sqlite+aiosqlite:///{tmp_path}/shop.db"
    found = []
    for _ in range(2):
        with demo("--database", database) as shop:
            check_curls(shop)
            found.append(sh(shop.curls[1]))
            assert shop.stop(signal.SIGINT)[0] == 0
    assert found[1][:1] == found[0]
    assert len(found[1]) == 2


@pytest.fixture
def checkout() -> Iterator[Path]:
    """A checkout without data; where another user may look, since PostgreSQL does not run as root."""
    with tempfile.TemporaryDirectory(prefix="transact-demo-") as folder:
        root = Path(folder)
        root.chmod(0o755)
        for part in ("scripts", "examples"):
            shutil.copytree(ROOT / part, root / part)
        yield root


@needs_curl
def test_the_demo_brings_its_own_postgresql_and_leaves_no_process_behind(checkout: Path) -> None:
    with demo("--postgres", root=checkout) as shop:
        check_curls(shop)
        processes = descendants(shop.process.pid)
        assert processes
        assert shop.stop(signal.SIGTERM)[0] == 0
    assert running(processes) == set()
    assert (checkout / ".build/postgres/PG_VERSION").exists()


@needs_curl
def test_without_a_database_the_demo_makes_a_file_in_the_checkout(checkout: Path) -> None:
    with demo(root=checkout) as shop:
        check_curls(shop)
    assert (checkout / ".build/shop.db").exists()


def refused(arguments: Sequence[str]) -> str:
    """Run a demo that cannot start; return the one line that it prints."""
    done = subprocess.run(
        command(*arguments), env=environment(), capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert "s3cret" not in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    [line] = done.stderr.splitlines()
    return line


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("postgresql+asyncpg://app:s3cret@127.0.0.1:1/shop", "onnect"),
        ("postgresql+psycopg://app:s3cret@127.0.0.1:1/shop", "onnection refused"),
        ("postgresql+asyncpg://app:s3cret@127.0.0.1:1/shop?password=s3cret&nonsense=1", "nonsense"),
        ("postgresql://app:s3cret@127.0.0.1/shop", "write postgresql+asyncpg://"),
        ("oracle://app:s3cret@127.0.0.1/shop", "the drivers are"),
        ("app:s3cret@127.0.0.1", "cannot be read"),
        ("sqlite+aiosqlite:////no/such/folder/shop.db", "unable to open database file"),
    ],
)
def test_a_database_that_cannot_be_used_is_one_line_without_the_password(url: str, said: str) -> None:
    assert said in refused(["--port", "0", "--database", url])


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
def test_a_user_who_may_not_log_in_is_one_line_without_the_password(postgres_url: str, driver: str) -> None:
    url = make_url(postgres_url)
    wrong = f"postgresql+{driver}://nobody_here:s3cret@{url.host}:{url.port}/{url.database}"
    line = refused(["--port", "0", "--database", wrong])
    assert 'role "nobody_here" does not exist' in line


def test_a_file_that_is_no_database_is_one_line_and_stays_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "letter.txt"
    file.write_text("Dear Sir or Madam, " * 100)
    assert "file is not a database" in refused(["--port", "0", "--database", f"sqlite+aiosqlite:///{file}"])
    assert file.read_text() == "Dear Sir or Madam, " * 100


@pytest.fixture
def taken_port() -> Iterator[str]:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield str(other.getsockname()[1])


def test_a_taken_port_is_one_line(taken_port: str) -> None:
    assert f"port {taken_port} is taken" in refused(["--port", taken_port])
    assert "port 99999 cannot be used" in refused(["--port", "99999"])


def test_the_shell_script_tells_how_it_is_used_before_it_installs_anything(checkout: Path) -> None:
    done = subprocess.run([checkout / "scripts/demo", "--help"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Serve the example shop: ./scripts/demo [--port N] [--database URL] [--postgres]")
    assert not (checkout / ".venv").exists()


@pytest.mark.skipif(not (ROOT / ".venv/.transact-stamp").exists(), reason="needs the .venv that ./scripts/test makes")
def test_the_shell_script_hands_its_arguments_and_its_exit_status_on(taken_port: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [ROOT / "scripts/demo", "--port", taken_port],
        cwd=tmp_path,
        env={**os.environ},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert f"port {taken_port} is taken" in done.stderr
