"""What the measurements of a real server share: uvicorn and a delaying proxy in processes of their own, and their report.

python -m benchmarks._serving FD MODULE ARGUMENTS    serves MODULE.make_app(**ARGUMENTS) on an inherited socket
"""

import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Coroutine, Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import asyncpg
import uvicorn
import uvloop
from sqlalchemy.engine import make_url

from benchmarks._environments import ROOT
from benchmarks._load import Answers, ask_once, closed_loop
from benchmarks._report import machine, versions
from benchmarks._urls import driven_by

PACKAGES = ("fastapi", "sqlalchemy", "asyncpg", "uvicorn", "uvloop", "httptools")
START_SECONDS = 60
STOP_SECONDS = 10
WARM_UP_SECONDS = 0.3
WARM_UP_CLIENTS = 10  # as many as the pools have connections

T = TypeVar("T")


class ServerError(Exception):
    """A server did not serve; the message is what it wrote."""


class Served(NamedTuple):
    """One application behind uvicorn."""

    address: tuple[str, int]
    pid: int

    def closed_loop(self, method: str, path: str, clients: int, seconds: float) -> Answers:
        """What ``clients`` get that ask again as soon as they have their answer."""
        return run(closed_loop(self.address, (method, path), clients, seconds))


def run(load: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on uvloop: the clients must not be what is measured."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(load)


def execute(url: str, *statements: str) -> Any:
    """Run statements by the bare driver; return the first value of the last one."""

    async def run_all() -> Any:
        connection = await asyncpg.connect(driven_by("postgresql", url))
        try:
            for statement in statements[:-1]:
                await connection.execute(statement)
            return await connection.fetchval(statements[-1])
        finally:
            await connection.close()

    return run(run_all())


@contextmanager
def serving(module: str, url: str, **arguments: Any) -> Iterator[Served]:
    """Serve ``make_app(url, **arguments)`` of a module by uvicorn (uvloop, httptools) for the length of the block."""
    words = [module, json.dumps({"url": url, **arguments})]
    with _child("benchmarks._serving", words) as (pid, address):
        served = Served(address, pid)
        # The first request waits in the socket's queue until the server is there; the others open the pool's connections.
        run(ask_once(address, ("GET", "/one"), patience=START_SECONDS))
        served.closed_loop("GET", "/one", WARM_UP_CLIENTS, WARM_UP_SECONDS)
        yield served


@contextmanager
def delaying(url: str, seconds: float) -> Iterator[tuple[str, int]]:
    """A proxy in front of the database that adds ``seconds`` to each round trip: the URL through it, and its process."""
    target = make_url(url)
    words = [target.host or "127.0.0.1", str(target.port or 5432), str(seconds)]
    with _child("benchmarks._proxy", words) as (pid, (host, port)):
        yield target.set(host=host, port=port).render_as_string(hide_password=False), pid


@contextmanager
def _child(module: str, words: Iterable[str]) -> Iterator[tuple[int, tuple[str, int]]]:
    """Run ``module`` on a socket that listens already, so that nobody has to wait for it or to guess its port."""
    # What it writes goes into a file, as a server's log does: to write it is part of what a request costs.
    with tempfile.TemporaryFile("w+", encoding="utf-8") as log, socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
        descriptor = listener.fileno()
        command = [sys.executable, "-m", module, str(descriptor), *words]
        with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stderr=log, pass_fds=[descriptor]) as process:
            listener.close()  # or requests to a server that could not start would wait for ever
            try:
                yield process.pid, address
            except OSError as error:
                log.seek(0)
                raise ServerError(f"{module} did not serve: {error}\n{log.read()[-2000:]}") from error
            finally:
                process.kill()  # it has nothing to lose, and connections that are open would let it linger
                process.wait(STOP_SECONDS)


def cpu_seconds(pid: int) -> float:
    """CPU time that a process has used: proc(5), fields 14 and 15 of stat."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def machine_and(server: str) -> str:
    """Where and with what the figures were made."""
    return machine(versions(*PACKAGES), server, "the database and the clients")


def main() -> None:
    # When the process that started this one has gone, its end of the pipe is closed.
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(1)), daemon=True).start()
    descriptor, module, arguments = sys.argv[1:]
    app = import_module(module).make_app(**json.loads(arguments))
    config = uvicorn.Config(app, loop="uvloop", http="httptools", log_level="error", access_log=False)
    with socket.socket(fileno=int(descriptor)) as listener:
        uvicorn.Server(config).run([listener])


if __name__ == "__main__":
    main()
