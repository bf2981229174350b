"""Statements and round trips per request, counted between the application and PostgreSQL.

    python -m benchmarks.round_trips [--url URL] [--quick]

A round trip is a wait of the application: what it sends while an answer is still on its way costs none. Counted after a few
requests of each kind, when connections are open and statements prepared.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from sqlalchemy.engine import make_url

from benchmarks._command import command, say
from benchmarks._environments import installed_peers
from benchmarks._report import machine, table
from benchmarks._variants import CONTROL, EMPTY, OURS, TRANSACT
from benchmarks._workers import Worker, WorkerError, started
from tests.faults.wire import PostgresWire

ROUTES = (
    ("POST", "/insert", "INSERT, ORM"),
    ("GET", "/one", "one SELECT"),
    ("GET", "/idle", "session not used"),
)
SHORT = 30  # characters of a statement
_GONE = (OSError, asyncio.IncompleteReadError)


@dataclass
class Counter:
    """What has passed: the statements, in their order, and how often the client had to wait."""

    statements: list[str] = field(default_factory=list)
    trips: int = 0


class CountingProxy:
    """Passes every message on. PostgreSQL: manual, "Frontend/Backend Protocol", "Message Flow"."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self.counter = Counter()

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection until one side ends it."""
        wire, unanswered = PostgresWire(), 0
        from_server, to_server = await asyncio.open_connection(*self._target)

        async def upwards() -> None:
            nonlocal unanswered
            while True:
                message = await wire.from_client(reader, writer)
                kind = message.raw[:1]
                if message.sql is not None and kind != b"P":  # Parse only prepares; Bind and Query run
                    self.counter.statements.append(message.sql)
                if kind in {b"S", b"Q"}:  # each Sync and each Query is answered by one ReadyForQuery
                    self.counter.trips += not unanswered
                    unanswered += 1
                to_server.write(message.raw)

        async def downwards() -> None:
            nonlocal unanswered
            while True:
                message = await wire.from_server(from_server)
                unanswered = max(0, unanswered - message.answers)  # the first one ends the log-in, which nobody counts
                writer.write(message.raw)

        try:
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(upwards())
                pumps.create_task(downwards())
        except* _GONE:
            pass
        finally:
            writer.close()
            to_server.close()


@asynccontextmanager
async def counting(url: str) -> AsyncIterator[tuple[CountingProxy, str]]:
    """A proxy in front of the server of ``url``, and the URL that leads through it."""
    parsed = make_url(url)
    proxy = CountingProxy((parsed.host or "127.0.0.1", parsed.port or 5432))
    server = await asyncio.start_server(proxy.accept, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    try:
        yield proxy, parsed.set(host=host, port=port).render_as_string(hide_password=False)
    finally:
        server.close()


def report(url: str, server: str, quick: bool) -> str:  # noqa: FBT001  # every measurement is called like this
    return asyncio.run(_report(url, server, quick))


async def _report(url: str, server: str, quick: bool) -> str:  # noqa: FBT001
    async with counting(url) as (proxy, through):
        return await asyncio.to_thread(
            _count, proxy, through, server, quick
        )  # the proxy runs on the event loop meanwhile


def _count(proxy: CountingProxy, url: str, server: str, quick: bool) -> str:  # noqa: FBT001
    requests = 3 if quick else 20
    peers, failed = ([], {}) if quick else installed_peers()
    variants = [CONTROL, TRANSACT] if quick else [variant for variant in (*OURS, *peers) if variant is not EMPTY]
    rows = []
    with started(url, variants, failed, together=quick) as workers:
        here = workers[CONTROL].versions
        for variant, worker in workers.items():
            say(f"round trips: {variant.name}")
            try:
                cells = [_trips(worker, proxy, method, path, requests) for method, path, _ in ROUTES]
            except WorkerError as error:
                failed[variant] = f"fails: {error}"
            else:
                rows.append((variant.shown, *cells))
    left = [f"- {variant.shown}: not measured, {reason}." for variant, reason in failed.items()]
    return "\n".join([machine(here, server), table(("", *(name for _, _, name in ROUTES)), rows), *left])


def _trips(worker: Worker, proxy: CountingProxy, method: str, path: str, requests: int) -> str:
    worker.cost(method, path, requests)
    proxy.counter = Counter()
    worker.cost(method, path, requests)
    counted = proxy.counter
    if not counted.statements:
        return "0"
    last = counted.statements[-(len(counted.statements) // requests or 1) :]
    return f"{counted.trips / requests:g}: {', '.join(map(_short, last))}"


def _short(sql: str) -> str:
    """Enough to know a statement by: those of a transaction in full, of others the first word."""
    parts = [" ".join(part.split()) for part in sql.split(";") if part.strip()]
    plain = [part if part.startswith(("BEGIN", "SET", "COMMIT", "ROLLBACK")) else part.split()[0] for part in parts]
    return "; ".join(plain)[:SHORT]


if __name__ == "__main__":
    command(report, __doc__)
