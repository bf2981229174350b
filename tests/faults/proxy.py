"""A TCP proxy between a driver and its server that breaks the connection at a chosen step of a transaction."""

import asyncio
import re
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import Enum

from sqlalchemy.engine import make_url

from tests.faults.wire import ANSWERS, WIRES, Message, Step, Wire, interrupted, step_of

LATENCY = 0.02
_PORTS = {"postgresql": 5432, "mysql": 3306}
_GONE = (OSError, asyncio.IncompleteReadError)


class Fault(Enum):
    """What happens to a connection, instead of passing on the message at which it happens."""

    LATENCY = "latency"  # passes it on, later
    RESET = "reset"  # RST to the client
    CLOSE = "close"  # FIN to the client
    BLACKHOLE = "blackhole"  # nothing comes through any more, on any connection, and nobody is told
    DOWN = "down"  # RST on every connection, and new ones are refused


@dataclass
class Trap:
    """A fault that waits for its step.

    ``server_notices``: the server learns at once that its client is gone. ``swallows_new``: what connects later gets no answer.
    """

    step: Step
    fault: Fault
    server_notices: bool = True
    swallows_new: bool = False


class Link:
    """One connection of a client, with one to the server. ``dark``: what comes is swallowed, and nobody is told of an end."""

    def __init__(self, proxy: "Proxy", reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.dark = False
        self._proxy = proxy
        self._wire: Wire = proxy.wire()
        self._client = reader, writer
        self._server: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._awaits: Step | None = None
        self._held = b""

    async def run(self) -> None:
        """Pass messages on until one side is gone."""
        try:
            if not await self._comes_to(Step.CONNECT):
                return
            self._server = await asyncio.open_connection(*self._proxy.target)
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(self._upwards(self._server[1]))
                pumps.create_task(self._downwards(self._server[0]))
        except* _GONE:
            pass
        finally:
            if not self.dark:
                self.end()

    async def _upwards(self, server: asyncio.StreamWriter) -> None:
        while True:
            message = await self._wire.from_client(*self._client)
            self._proxy.round_trips += message.asks
            step = step_of(message.sql) if message.sql is not None else None
            if step is not None and not await self._comes_to(step):
                continue
            if step is not None and not message.parses:
                self._awaits = self._awaits or ANSWERS.get(step)
            await self._pass(self._proxy.garbled(step, message.raw), server)

    async def _downwards(self, server: asyncio.StreamReader) -> None:
        while True:
            message = await self._wire.from_server(server)
            raw = await self._answer(message, self._awaits) if self._awaits else message.raw
            await self._pass(raw, self._client[1])

    async def _answer(self, message: Message, step: Step) -> bytes:
        """What may be passed on of an answer to COMMIT or its like: nothing before it is complete."""
        self._held += message.raw
        if not message.answers:
            return b""
        self._awaits = None
        held, self._held = self._held, b""
        return self._proxy.denied(step, held) if await self._comes_to(step) else b""

    async def _pass(self, raw: bytes, to: asyncio.StreamWriter) -> None:
        if raw and not self.dark:
            to.write(raw)
            await to.drain()

    async def _comes_to(self, step: Step) -> bool:
        """Whether the connection goes on after this step."""
        if self.dark:
            return False
        trap = self._proxy.spring(step)
        if trap is not None:
            await self._proxy.let_happen(trap, [self])
        if trap is None or trap.fault is Fault.LATENCY:
            self._proxy.passed.append(step)
            return True
        return False

    def cut(self, trap: Trap) -> None:
        """Break the client's side, and the server's if it notices."""
        self.dark = self.dark or not trap.server_notices
        _hang_up(self._client[1], reset=trap.fault is not Fault.CLOSE)
        if trap.server_notices:
            self.end()

    def end(self) -> None:
        """Close both sides."""
        _hang_up(self._client[1], reset=False)
        if self._server is not None:
            _hang_up(self._server[1], reset=False)

    async def closed(self) -> None:
        """Wait until the operating system has closed the client's side."""
        await asyncio.gather(self._client[1].wait_closed(), return_exceptions=True)


def _hang_up(writer: asyncio.StreamWriter, *, reset: bool) -> None:
    if writer.is_closing():
        return
    if reset:  # to close with a linger of 0 s sends RST (socket(7), SO_LINGER)
        plain = writer.get_extra_info("socket")
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
    else:
        writer.close()


class Proxy:
    """``passed`` is what came through, in its order; ``struck`` tells that the trap has sprung.

    ``round_trips``: how often a client has waited for an answer.
    """

    def __init__(self, target: tuple[str, int], wire: Callable[[], Wire]) -> None:
        self.target = target
        self.wire = wire
        self.struck = asyncio.Event()
        self.passed: list[object] = []
        self.round_trips = 0
        self._trap: Trap | None = None
        self._garbles: Step | None = None
        self._denies: Step | None = None
        self._dark = False
        self._links: dict[Link, asyncio.Task[None] | None] = {}
        self._server: asyncio.Server | None = None
        # Keeps the port while nobody listens: connections are then refused, and nobody else gets it.
        self._port = socket.socket()
        self._port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._port.bind(("127.0.0.1", 0))

    @property
    def address(self) -> tuple[str, int]:
        """Where the proxy listens."""
        host, port = self._port.getsockname()
        return host, port

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._links)

    def set_trap(self, step: Step, fault: Fault, *, server_notices: bool = True, swallows_new: bool = False) -> None:
        """Let ``fault`` happen, once, to the next connection that comes to ``step``."""
        self.struck.clear()
        self._trap = Trap(step, fault, server_notices, swallows_new)
        if step is Step.CONNECT and fault is Fault.DOWN:
            self.refuse()
            self.struck.set()

    def spring(self, step: Step) -> Trap | None:
        """Take the trap if it waits for ``step``."""
        if self._trap is None or self._trap.step is not step:
            return None
        trap, self._trap = self._trap, None
        return trap

    def garble(self, step: Step) -> None:
        """Let the server refuse the next COMMIT or PREPARE of ``step``, which it cannot read; the connection stays."""
        self.struck.clear()
        self._garbles = step

    def deny(self, step: Step) -> None:
        """Let the client of MySQL be told that the statement of ``step`` was interrupted, when it has succeeded."""
        self.struck.clear()
        self._denies = step

    def denied(self, step: Step, raw: bytes) -> bytes:
        """What the client gets of an answer."""
        if step is not self._denies:
            return raw
        self._denies = None
        self.struck.set()
        return interrupted(raw)

    def garbled(self, step: Step | None, raw: bytes) -> bytes:
        """What the server gets of a statement."""
        if step is None or step is not self._garbles:
            return raw
        self._garbles = None
        self.struck.set()
        return re.sub(rb"(COMMI|PREPAR)[TE]", rb"\1X", raw, count=1)

    async def reach(self, step: Step) -> None:
        """The test itself has come to a step: what is trapped there happens to every connection."""
        if trap := self.spring(step):
            links = list(self._links)
            await self.let_happen(trap, links)
            if trap.fault not in {Fault.LATENCY, Fault.BLACKHOLE}:
                await asyncio.gather(*(link.closed() for link in links))

    async def strike(self, fault: Fault) -> None:
        """Let a fault happen to every connection, now."""
        self.set_trap(Step.RETURNED, fault)
        await self.reach(Step.RETURNED)

    async def let_happen(self, trap: Trap, links: list[Link]) -> None:
        """Let a fault happen to ``links``, or to all of them if it is the network's or the server's."""
        match trap.fault:
            case Fault.LATENCY:
                await asyncio.sleep(LATENCY)
            case Fault.BLACKHOLE:
                self._dark = True
                for link in self._links:
                    link.dark = True
            case Fault.DOWN:
                self.refuse()
                links = list(self._links)
        if trap.fault in {Fault.RESET, Fault.CLOSE, Fault.DOWN}:
            self._dark = self._dark or trap.swallows_new
            for link in links:
                link.cut(trap)
        self.struck.set()

    def refuse(self) -> None:
        """Refuse new connections."""
        if self._server is not None:
            self._server.close()
            self._server = None

    async def heal(self) -> None:
        """Take connections again, and let each side know if the other has gone. What was swallowed stays lost."""
        self._trap, self._dark = None, False
        if self._server is None:
            self._server = await asyncio.start_server(self._accept, *self.address)
        ended = [link for link in self._links if link.dark]
        for link in ended:
            link.end()
            if self._links[link] is None:
                del self._links[link]
        await asyncio.gather(*(link.closed() for link in ended))

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = Link(self, reader, writer)
        link.dark = self._dark
        self._links[link] = asyncio.current_task()
        try:
            await link.run()
        finally:
            if link.dark:
                self._links[link] = None
            else:
                self._links.pop(link, None)

    async def close(self) -> None:
        """End every connection, and forget the port."""
        self.refuse()
        tasks = [task for task in self._links.values() if task is not None]
        for link in self._links:
            link.end()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._port.close()


@asynccontextmanager
async def proxied(url: str) -> AsyncIterator[tuple[Proxy, str]]:
    """A proxy in front of the server of ``url``, and the URL that leads through it."""
    parsed = make_url(url)
    backend = parsed.get_backend_name()
    proxy = Proxy((parsed.host or "127.0.0.1", parsed.port or _PORTS[backend]), WIRES[backend])
    await proxy.heal()
    host, port = proxy.address
    try:
        yield proxy, parsed.set(host=host, port=port).render_as_string(hide_password=False)
    finally:
        await proxy.close()
