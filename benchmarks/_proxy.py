"""A TCP proxy that makes each round trip longer by a fixed time.

    python -m benchmarks._proxy FD HOST PORT SECONDS

It listens on an inherited socket. What the client sends is passed on SECONDS later, in order; what the server answers, at once.
One plain loop over select(2), whose time-out has microseconds, where those of epoll and uvloop have milliseconds; for as many
connections as a pool has. Messages are small, so sending never waits.
"""

import select
import socket
import sys
import time
from collections import deque


class Proxy:
    def __init__(self, listener: socket.socket, target: tuple[str, int], delay: float) -> None:
        self._listener = listener
        self._target = target
        self._delay = delay
        self._other: dict[socket.socket, socket.socket] = {}
        self._clients: set[socket.socket] = set()
        self._due: deque[tuple[float, socket.socket, bytes]] = deque()  # one delay for all: in order of time

    def run(self) -> None:
        """Pass messages on until standard input ends, which it does when the parent process is gone."""
        while True:
            wait = max(0.0, self._due[0][0] - time.monotonic()) if self._due else None
            ready, _, _ = select.select([sys.stdin, self._listener, *self._other], [], [], wait)
            for source in ready:
                if source is sys.stdin:
                    return
                if source is self._listener:
                    self._accept()
                elif source in self._other:  # its other side may have ended it a moment ago
                    self._receive(source)
            now = time.monotonic()
            while self._due and self._due[0][0] <= now:
                _, to, data = self._due.popleft()
                self._send(to, data)

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        server = socket.create_connection(self._target)
        for one, other in ((client, server), (server, client)):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._other[one] = other
        self._clients.add(client)

    def _receive(self, source: socket.socket) -> None:
        try:
            data = source.recv(1 << 16)
        except OSError:
            data = b""
        if not data:
            self._end(source)
        elif source in self._clients and self._delay:
            self._due.append((time.monotonic() + self._delay, self._other[source], data))
        else:
            self._send(self._other[source], data)

    def _send(self, to: socket.socket, data: bytes) -> None:
        if to in self._other:
            try:
                to.sendall(data)
            except OSError:
                self._end(to)

    def _end(self, one: socket.socket) -> None:
        for side in (one, self._other[one]):
            del self._other[side]
            self._clients.discard(side)
            side.close()


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as inherited:
        Proxy(inherited, (sys.argv[2], int(sys.argv[3])), float(sys.argv[4])).run()
