"""HTTP clients that ask a server: some that wait for each answer, or many that come whether it can follow or not.

For what wrk cannot do: latencies by status, arrivals at a rate, clients that lose patience.
"""

import asyncio
import random
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

Address = tuple[str, int]
Request = tuple[str, str]  # method, path
SUCCESS = range(200, 300)
REFUSED = 503


@dataclass
class Answers:
    """What clients got in a time: the latencies of each status, in seconds. ``gave_up``: nothing within their patience."""

    seconds: float
    latencies: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    gave_up: int = 0

    def of(self, statuses: Sequence[int]) -> list[float]:
        return [latency for status in statuses for latency in self.latencies.get(status, ())]

    @property
    def goodput(self) -> float:
        """Successful answers per second."""
        return len(self.of(SUCCESS)) / self.seconds

    def per_second(self, status: int) -> float:
        return len(self.latencies.get(status, ())) / self.seconds

    @property
    def failed(self) -> int:
        """How many answers were none of success."""
        return sum(map(len, self.latencies.values())) - len(self.of(SUCCESS))


def percentile(values: Sequence[float], percent: float) -> float | None:
    """The value that ``percent`` of ``values`` do not exceed; ``None`` if there are none."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


class Client(asyncio.Protocol):
    """One connection that is kept alive, and made again when the server has closed it; one request at a time."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._received = b""
        self._answer: asyncio.Future[int] | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._received = b""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's own is no subclass

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        if not found or self._answer is None or self._answer.done():
            return
        length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        if len(body) >= length:
            self._received = b""
            self._answer.set_result(int(head[9:12]))

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(exc or ConnectionError("the server hung up"))

    async def ask(self, request: Request) -> int:
        """The status of the answer."""
        kept = self._transport is not None
        try:
            return await self._ask(request)
        except ConnectionError:
            if not kept:
                raise
            # After an error that no handler takes, uvicorn closes the connection; the request has met that.
            return await self._ask(request)

    async def _ask(self, request: Request) -> int:
        loop = asyncio.get_running_loop()
        if self._transport is None:
            await loop.create_connection(lambda: self, *self._address)
        assert self._transport is not None  # noqa: S101  # now there is one
        self._answer = loop.create_future()
        method, path = request
        self._transport.write(f"{method} {path} HTTP/1.1\r\nhost: bench\r\ncontent-length: 0\r\n\r\n".encode())
        return await self._answer

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()


async def ask_once(address: Address, request: Request, *, patience: float) -> int:
    """The status of the answer to one request. Raises ``TimeoutError``."""
    client = Client(address)
    try:
        async with asyncio.timeout(patience):
            return await client.ask(request)
    finally:
        client.close()


async def closed_loop(address: Address, request: Request, clients: int, seconds: float) -> Answers:
    """``clients`` that ask again as soon as they have their answer. What is under way at the end is not counted."""
    answers = Answers(seconds)

    async def ask_on(client: Client) -> None:
        while True:
            started = time.perf_counter()
            status = await client.ask(request)
            answers.latencies[status].append(time.perf_counter() - started)

    all_clients = [Client(address) for _ in range(clients)]
    try:
        async with asyncio.timeout(seconds):
            await asyncio.gather(*map(ask_on, all_clients))
    except TimeoutError:
        pass  # the end
    finally:
        for client in all_clients:
            client.close()
    return answers


async def open_loop(
    address: Address, request: Request, rate: float, seconds: float, *, patience: float, seed: int
) -> Answers:
    """Clients that come ``rate`` times a second, by chance, each once; who has no answer within ``patience`` hangs up.

    What happens in the first ``patience`` seconds is not counted: until then even a server that will drown succeeds.
    """
    answers = Answers(seconds)
    loop = asyncio.get_running_loop()
    counted = loop.time() + patience
    end = counted + seconds
    chance = random.Random(seed)  # noqa: S311  # the same arrivals for each variant
    idle: list[Client] = []

    async def ask() -> None:
        client = idle.pop() if idle else Client(address)
        started = time.perf_counter()  # uvloop's own time has milliseconds
        status = None
        try:
            async with asyncio.timeout(patience):
                status = await client.ask(request)
        except (TimeoutError, OSError):
            client.close()
        else:
            idle.append(client)
        latency = time.perf_counter() - started
        if not counted <= loop.time() < end:
            return
        if status is None:
            answers.gave_up += 1
        else:
            answers.latencies[status].append(latency)

    arrival = counted - patience
    async with asyncio.TaskGroup() as under_way:
        while (arrival := arrival + chance.expovariate(rate)) < end:
            if (early := arrival - loop.time()) > 0:
                await asyncio.sleep(early)
            under_way.create_task(ask())
    for client in idle:
        client.close()
    return answers
