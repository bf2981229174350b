"""Clients that take 1 kB/s of a large response: what they leave to everybody else.

    python -m benchmarks.slow_clients [--url URL] [--quick]

The response is streamed, in megabytes, so that the buffers of the sockets are full long before it is sent. (One that is not
streamed keeps no connection in any variant: uvicorn takes it whole, into memory.)
"""

import socket
import statistics
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

from benchmarks._command import command, say
from benchmarks._load import Answers, percentile
from benchmarks._report import against, milliseconds, table
from benchmarks._serving import Served, machine_and, serving
from benchmarks._serving_app import GET_DB, GET_DB_FUNCTION, HERE, TRANSACT
from benchmarks.apps._routes import POOL_SIZE

OTHERS = 16
MEGABYTES = 8
BYTES_PER_SECOND = 1000
START_SECONDS = 2
VARIANTS = (GET_DB, GET_DB_FUNCTION, TRANSACT)


def report(url: str, server: str, quick: bool) -> str:  # noqa: FBT001  # every measurement is called like this
    counts = (POOL_SIZE,) if quick else (0, POOL_SIZE // 2, POOL_SIZE, 2 * POOL_SIZE)
    rounds, seconds = (1, 0.5) if quick else (2, 2.0)
    measured: dict[tuple[int, str], list[Answers]] = defaultdict(list)
    begun: dict[tuple[int, str], int] = {}
    for count in counts:
        say(f"slow_clients: {count} slow readers")
        for _ in range(rounds):
            for variant in VARIANTS:
                # A server each time: one does not notice at once that those who read its responses have gone.
                with serving(HERE, url, variant=variant) as served, _readers(served, count) as begun[count, variant]:
                    measured[count, variant].append(served.closed_loop("GET", "/one", OTHERS, seconds))
    rows = []
    for (count, variant), each in measured.items():
        rates = [answers.goodput for answers in each]
        p99 = percentile([latency for answers in each for latency in answers.of((200,))], 99)
        ratio = against(rates, [answers.goodput for answers in measured[count, GET_DB]])
        rows.append(
            (count, begun[count, variant], variant, f"{statistics.median(rates):,.0f}", milliseconds(p99), ratio)
        )
    head = ("slow readers", "of them served", "variant", "requests/s of the others", "p99 ms", "ratio")
    return (
        f"Responses of {MEGABYTES} MB, read at {BYTES_PER_SECOND / 1000:g} kB/s; {OTHERS} other clients; a pool of {POOL_SIZE};"
        f" medians of {rounds} alternating rounds of {seconds:g} s. {machine_and(server)}\n{table(head, rows)}"
    )


@contextmanager
def _readers(served: Served, count: int) -> Iterator[int]:
    """``count`` clients that read slowly until the block ends; yields how many of their responses have begun."""
    with ExitStack() as stack:
        readers = [stack.enter_context(_reader(served)) for _ in range(count)]
        begun = sum(_has_begun(reader) for reader in readers)
        over = threading.Event()
        thread = threading.Thread(target=_read_on, args=(readers, over))
        thread.start()
        try:
            yield begun
        finally:
            over.set()
            thread.join()


def _reader(served: Served) -> socket.socket:
    reader = socket.socket()
    reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    reader.connect(served.address)
    reader.sendall(f"GET /export?megabytes={MEGABYTES} HTTP/1.1\r\nhost: bench\r\n\r\n".encode())
    return reader


def _has_begun(reader: socket.socket) -> bool:
    # Those that wait for a connection get nothing for as long as the others read.
    reader.settimeout(START_SECONDS)
    try:
        return reader.recv(1) != b""
    except TimeoutError:
        return False


def _read_on(readers: list[socket.socket], over: threading.Event) -> None:
    for reader in readers:
        reader.setblocking(False)
    while not over.wait(1):
        for reader in readers:
            with suppress(BlockingIOError):
                reader.recv(BYTES_PER_SECOND)


if __name__ == "__main__":
    command(report, __doc__)
