"""The shop in this process on any database, and in a real process of its own."""

import importlib
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import CheckConstraint, Connection, inspect

from transact import Database

ROOT = Path(__file__).resolve().parents[2]


def import_shop(url: str, module: str) -> ModuleType:
    """Import a module of the shop with `url` in its environment; afresh if another database was there before."""
    if os.environ.get("TRANSACT_URL") != url:
        os.environ["TRANSACT_URL"] = url
        for name in [name for name in sys.modules if name.startswith("examples.shop")]:
            del sys.modules[name]
    return importlib.import_module(f"examples.shop.{module}")


def environment(url: str = "", root: Path = ROOT) -> dict[str, str]:
    """The variables of a process that is to find this checkout's code."""
    path = os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH"), str(ROOT / "src"))))
    # Measuring coverage in them costs minutes, and the library's own tests reach all that the shop reaches.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_PROCESS")}
    return {**inherited, "PYTHONPATH": path, "TRANSACT_URL": url, "PYTHONUNBUFFERED": "1"}


@contextmanager
def serve(url: str) -> Iterator[str]:
    """Migrate the database and serve the shop on it by a real uvicorn; yield its address."""
    settings: dict[str, Any] = {"cwd": ROOT, "env": environment(url)}
    subprocess.run([sys.executable, "-m", "examples.shop.migrate"], check=True, **settings)
    command = [sys.executable, "-m", "uvicorn", "examples.shop.app:app", "--port", "0", "--no-access-log"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **settings) as server:
        # Read on, or the server stops when the pipe is full.
        rest = threading.Thread(target=sys.stderr.writelines, args=(server.stderr,), daemon=True)
        try:
            address = _address(server)
            rest.start()
            yield address
        finally:
            server.terminate()
            server.wait(20)
            if rest.is_alive():
                rest.join(10)


def _address(server: "subprocess.Popen[str]") -> str:
    said = []
    for line in server.stderr or ():
        said.append(line)
        if found := re.search(r"running on (http://\S+)", line):
            return found[1]
    raise RuntimeError("the server did not start:\n" + "".join(said))


async def schema_differences(url: str) -> list[Any]:
    """What the database has and the shop's tables do not tell, and the other way round; checks by their names."""
    metadata = import_shop(url, "tables").Base.metadata

    def differences(connection: Connection) -> list[Any]:
        found = compare_metadata(MigrationContext.configure(connection), metadata)
        for table in metadata.tables.values():
            told = {str(c.name) for c in table.constraints if isinstance(c, CheckConstraint)}
            there = {c["name"] for c in inspect(connection).get_check_constraints(table.name)}
            found += sorted(told ^ there)
        return found

    async with Database(url) as db, db.engine.connect() as connection:
        return await connection.run_sync(differences)


async def tables(url: str) -> set[str]:
    """The names of the tables that are there, Alembic's own left out."""
    async with Database(url) as db, db.engine.connect() as connection:
        return set(await connection.run_sync(lambda plain: inspect(plain).get_table_names())) - {"alembic_version"}
