"""The demo: migrate a database, serve the shop on it, and end without leaving anything behind."""

import argparse
import asyncio
import errno
import json
import os
import re
import shlex
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from _postgres import PostgresError, _owner, _reachable, embedded_postgres
from sqlalchemy import func, select
from sqlalchemy.engine import URL, make_url
from sqlalchemy.ext.asyncio import AsyncSession

from transact.errors import TransactError

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / ".build"
CONNECT_SECONDS = 10  # the drivers' own patience is a minute or two
GRACE_SECONDS = 5  # for requests that run when the demo is ended


class DemoError(Exception):
    """The demo cannot start; the message is the one line that says why."""


def main() -> int:
    """Run the command and return its exit status: 0 also after Ctrl-C or SIGTERM, which are how it is meant to end."""
    # Everything ends the same way for both: asyncio knows how to unwind for SIGINT alone.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        _run(_arguments())
    except KeyboardInterrupt:
        pass
    except (DemoError, PostgresError, TransactError, OSError) as error:
        print(f"demo: {_one_line(error)}", file=sys.stderr)
        return 1
    print("Stopped.")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./scripts/demo", description="Serve the example shop.")
    parser.add_argument("--port", type=int, default=8000, help="port on 127.0.0.1 (default: 8000; 0 takes a free one)")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--database", metavar="URL", help="default: the SQLite file .build/shop.db")
    where.add_argument("--postgres", action="store_true", help="start a PostgreSQL and stop it at the end")
    return parser.parse_args()


def _run(arguments: argparse.Namespace) -> None:
    # The port first: nothing is worth starting without it.
    with _listen(arguments.port) as listener, _database(arguments) as url:
        os.environ["TRANSACT_URL"] = url
        curls = asyncio.run(_prepare(f"http://127.0.0.1:{listener.getsockname()[1]}"))
        config = uvicorn.Config("examples.shop.app:app", log_level="warning", timeout_graceful_shutdown=GRACE_SECONDS)
        server = Server(config, curls)
        with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
            runner.run(server.serve(sockets=[listener]))
        if not server.started:
            raise DemoError("the shop did not start: see above")


def _listen(port: int) -> socket.socket:
    listener = socket.socket()
    try:
        # Without it, a port is not free for a minute after its last use.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen()
    except (OSError, OverflowError) as error:
        listener.close()
        if getattr(error, "errno", None) == errno.EADDRINUSE:
            raise DemoError(f"port {port} is taken: choose another one with --port") from None
        raise DemoError(f"port {port} cannot be used: {getattr(error, 'strerror', None) or error}") from None
    return listener


@contextmanager
def _database(arguments: argparse.Namespace) -> Iterator[str]:
    """The URL of the database, which is there as long as the block."""
    if arguments.postgres:
        print("Starting PostgreSQL", flush=True)
        with embedded_postgres(fsync=True, data=_cluster()) as url:
            yield make_url(url).set(drivername="postgresql+asyncpg").render_as_string(hide_password=False)
    elif arguments.database is not None:
        yield arguments.database
    else:
        BUILD.mkdir(exist_ok=True)
        yield f"sqlite+aiosqlite:///{BUILD / 'shop.db'}"


def _cluster() -> Path:
    """The folder of the PostgreSQL cluster: in the checkout, or in /var/tmp if the server's user cannot go there."""
    BUILD.mkdir(exist_ok=True)
    if _reachable(BUILD, _owner()):
        return BUILD / "postgres"
    return Path("/var/tmp") / f"transact-demo-{ROOT.stat().st_ino}"  # noqa: S108  # initdb makes it private, PostgreSQL checks


async def _prepare(address: str) -> list[str]:
    """Migrate, put something into the shop if it is empty, and return three commands that work on it."""
    # Only now: it reads the environment, like the application itself.
    from examples.shop.database import db  # noqa: PLC0415
    from examples.shop.migrate import upgrade  # noqa: PLC0415

    try:
        async with db:
            async with asyncio.timeout(CONNECT_SECONDS):
                await db.ping()
            await upgrade(db)
            customer, product, name = await db.run(_fill)
    except TimeoutError:
        raise DemoError(f"{_told(db.engine.url)} does not answer") from None
    except Exception as error:  # a driver raises whatever it likes for what a URL says
        await asyncio.to_thread(_let_aiosqlite_end)
        raise DemoError(f"{_told(db.engine.url)} cannot be used: {_one_line(error)}") from error
    person = {"username": name, "email": f"{name}@example.com", "profile": {"full_name": "Ada Lovelace", "bio": "Hi!"}}
    return [
        _post(f"{address}/register/", person),
        f"curl {shlex.quote(f'{address}/users/?q=ada&limit=10')}",
        _post(f"{address}/orders/?user_id={customer}", {"lines": [{"product_id": product, "quantity": 2}]}),
    ]


def _let_aiosqlite_end() -> None:
    # The thread of a connection that could not be opened reports to the event loop once more. If that is closed by then,
    # the report becomes a traceback.
    for thread in threading.enumerate():
        if "_connection_worker_thread" in thread.name:
            thread.join(CONNECT_SECONDS)


async def _fill(session: AsyncSession) -> tuple[int, int, str]:
    """Make sure of a customer and a product; return their ids and a user name that is not taken."""
    from examples.shop.tables import Product, Profile, User  # noqa: PLC0415  # on the path by ./scripts/demo

    customer = await session.scalar(select(User).order_by(User.id).limit(1))
    if customer is None:
        customer = User(username="grace", email="grace@example.com", profile=Profile(full_name="Grace Hopper", bio=""))
        session.add(customer)
    product = await session.scalar(select(Product).where(Product.stock > 1).order_by(Product.id).limit(1))
    if product is None:
        product = Product(name="Umbrella", stock=1_000_000)
        session.add(product)
    await session.flush()
    newest = await session.scalar(select(func.max(User.id)))
    return customer.id, product.id, f"ada{newest}"


def _told(url: URL) -> str:
    """What may be shown of a URL; the options behind a question mark may hold secrets, too."""
    return f"the database {url.set(query={}).render_as_string(hide_password=True)}"


def _post(url: str, body: object) -> str:
    return f"curl {shlex.quote(url)} -H 'Content-Type: application/json' -d {shlex.quote(json.dumps(body))}"


class Server(uvicorn.Server):
    """uvicorn, telling the user what to do once it answers."""

    def __init__(self, config: uvicorn.Config, curls: list[str]) -> None:
        super().__init__(config)
        self._curls = curls

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and print the address."""
        await super().startup(sockets)
        if self.started and sockets:
            address = f"http://127.0.0.1:{sockets[0].getsockname()[1]}"
            print(f"The shop is at {address} (Ctrl-C ends it). Try:\n")
            print(*self._curls, sep="\n\n", end="\n\n", flush=True)


def _one_line(error: Exception) -> str:
    """The error's words: without the class and the links that SQLAlchemy puts around them, and without line breaks."""
    text = str(error).partition("\n[SQL")[0].partition("\n(Background")[0]
    return " ".join(re.sub(r"^\([\w.]+\) ", "", text).split()) or type(error).__name__
