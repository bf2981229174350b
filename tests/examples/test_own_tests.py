"""The shop's own tests pass on every engine, and leave nothing there."""

import subprocess
import sys

import pytest

from tests.engines import Observer
from tests.examples.serving import ROOT, environment


@pytest.mark.timeout(300)
@pytest.mark.engines("sqlite", "pg18-asyncpg", "mariadb")
def test_the_shops_own_tests_pass_and_leave_nothing(database_url: str, observer: Observer):
    # Options by hand: those of this project's own tests are not the shop's.
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-c",
        "/dev/null",
        "--rootdir",
        str(ROOT),
        "-p",
        "no:cacheprovider",
    ]
    command += ["-p", "transact.pytest_plugin", "--import-mode=importlib", str(ROOT / "examples/shop/tests")]
    done = subprocess.run(command, env=environment(database_url), cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert observer.rows("SELECT id FROM users") == observer.rows("SELECT id FROM products") == []
