"""Requests that no client library would send, over plain sockets to a real uvicorn that serves the shop."""

import socket
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx
import pytest

from tests.engines import Observer
from tests.examples.serving import serve

BODY = b'{"username": "%d", "email": "%d@x", "profile": {}}'
LENGTH = b"Content-Length: %d\r\n" % len(BODY % (1, 1))
JSON = b"Content-Type: application/json\r\n"
PATIENCE = 15  # seconds, where waiting for ever is the alternative


def post(head: bytes, body: bytes = b"", path: bytes = b"/register/") -> bytes:
    return b"POST " + path + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + JSON + head + b"\r\n" + body


def get(target: bytes, head: bytes = b"") -> bytes:
    return b"GET " + target + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + head + b"\r\n"


def chunked(body: bytes, size: int) -> bytes:
    parts = [body[start : start + size] for start in range(0, len(body), size)]
    return b"".join(b"%x;note=\xff\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\nX-Trailer: y\r\n\r\n"


CHUNKED = b"Transfer-Encoding: chunked\r\n"
LONG = b"Content-Length: 100\r\n"


@dataclass(frozen=True)
class Raw:
    """Bytes, and the statuses that may answer them; 0: none, since the request never ends and the client leaves."""

    data: bytes
    answers: frozenset[int]


def raw(data: bytes, *answers: int) -> Raw:
    return Raw(data, frozenset(answers))


REQUESTS = {
    "a registration": raw(post(LENGTH, BODY % (1, 1)), 201),
    "in chunks of one byte": raw(post(CHUNKED, chunked(BODY % (2, 2), 1)), 201, 400),
    "in odd chunks": raw(post(CHUNKED, chunked(BODY % (3, 3), 7).replace(b";note=\xff", b"")), 201),
    "a size that is none": raw(post(CHUNKED, b"zz\r\n{}\r\n0\r\n\r\n"), 400, 0),
    "a negative size": raw(post(CHUNKED, b"-1\r\n{}\r\n0\r\n\r\n"), 400, 0),
    "a chunk cut off": raw(post(CHUNKED, b"ff\r\n{"), 400, 0),
    "a body cut off": raw(post(LONG, BODY % (4, 4)), 400, 0),
    "two lengths": raw(post(LONG + b"Content-Length: 2\r\n", b"{}"), 400, 422),
    "a length beside chunks": raw(post(b"Content-Length: 4\r\n" + CHUNKED, b"0\r\n\r\n"), 400, 422),
    "a length that is none": raw(post(b"Content-Length: -5\r\n"), 400, 422),
    "a huge length": raw(post(b"Content-Length: 99999999999999999999\r\n", b"{}"), 400, 0),
    "a body that is announced": raw(post(b"Expect: 100-continue\r\n" + LONG), 100, 400, 0),
    "another body than told": raw(post(b"Content-Encoding: gzip\r\nContent-Length: 2\r\n", b"{}"), 422),
    "no HTTP": raw(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 9 + b"\r\n\r\n", 400, 0),
    "nothing": raw(b"", 0),
    "one letter": raw(b"G", 400, 0),
    "HTTP/0.9": raw(b"GET /users/\r\n\r\n", 400, 200, 0),
    "HTTP/9.9": raw(b"GET /users/ HTTP/9.9\r\n\r\n", 400, 505, 200),
    "HTTP/2": raw(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, 0),
    "a method in small letters": raw(get(b"/users/").replace(b"GET", b"get"), 400, 405),
    "a method of one's own": raw(get(b"/users/").replace(b"GET", b"FROB"), 400, 405),
    "NUL in the target": raw(get(b"/users/\0"), 400, 422),
    "bytes in the query": raw(get(b"/users?q=\x80\xff"), 307, 400),
    "bytes in the path": raw(get(b"/users/\x80\xff"), 400, 404, 422),
    "escaped NUL": raw(get(b"/users/%00"), 422),
    "escaped line ends": raw(get(b"/%0d%0aSet-Cookie:%20a=b/"), 404, 307),
    "escaped nonsense": raw(get(b"/users/%ff%zz?q=%ff"), 422),
    "dots": raw(get(b"/users/../../etc/passwd"), 404),
    "an absolute target": raw(get(b"http://other/users/"), 200, 404, 400),
    "a star": raw(b"OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 404, 405, 400),
    "a long target": raw(get(b"/users/?q=" + b"x" * 60_000), 400, 414, 422),
    "NUL in a header": raw(get(b"/users/", b"X-A: \0\r\n"), 400, 200),
    "bytes in a header": raw(get(b"/users/", b"X-A: \xff\xfe\r\nCookie: \xff=\xff\r\n"), 400, 200),
    "a folded header": raw(get(b"/users/", b"X-A: b\r\n c\r\n"), 400, 200),
    "a header without a name": raw(get(b"/users/", b": x\r\n"), 400, 200),
    "many headers": raw(get(b"/users/", b"".join(b"X-%d: y\r\n" % number for number in range(3000))), 200, 400, 431),
    "a long header": raw(get(b"/users/", b"X-A: " + b"y" * 200_000 + b"\r\n"), 200, 400, 431),
    "no host": raw(b"GET /users/ HTTP/1.1\r\nConnection: close\r\n\r\n", 200, 400),
    "two hosts": raw(get(b"/users", b"Host: \xff\r\n"), 307, 400),
    "an upgrade": raw(get(b"/users/", b"Upgrade: websocket\r\nConnection: upgrade\r\n"), 200, 400, 403, 404, 426),
    "a second request behind": raw(get(b"/users/") + get(b"/users/"), 200),
    "bare line feeds": raw(get(b"/users/").replace(b"\r\n", b"\n"), 200, 400),
}


@pytest.fixture
def address(database_url: str) -> Iterator[tuple[str, int]]:
    with serve(database_url) as url:
        parts = urlsplit(url)
        yield parts.hostname or "", parts.port or 0


def ask(address: tuple[str, int], data: bytes, *, ends: bool) -> bytes:
    """Send and read until the server closes; `ends`: tell it that nothing more will come."""
    with socket.create_connection(address, PATIENCE) as plain:
        try:
            plain.sendall(data)
            if ends:
                plain.shutdown(socket.SHUT_WR)
            return b"".join(iter(lambda: plain.recv(65_536), b""))
        except (ConnectionError, OSError) as error:
            if isinstance(error, TimeoutError):
                raise
            return b""  # the server closed while we were sending


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.1 ") else -len(answer)


@pytest.mark.engines("sqlite", "pg18-asyncpg")
def test_whatever_comes_over_a_socket_gets_no_5xx_and_leaves_nothing_behind(
    address: tuple[str, int], observer: Observer, capfd: pytest.CaptureFixture[str]
) -> None:
    answers = {
        name: status(ask(address, request.data, ends=0 in request.answers)) for name, request in REQUESTS.items()
    }
    assert {name: code for name, code in answers.items() if code not in REQUESTS[name].answers} == {}
    with httpx.Client(base_url=f"http://{address[0]}:{address[1]}", timeout=PATIENCE) as client:
        there = {user["username"] for user in client.get("/users/").raise_for_status().json()}
    acknowledged = sum(code == 201 for code in answers.values())
    assert len(there) == acknowledged == observer.scalar("SELECT count(*) FROM profiles")
    assert observer.idle_in_transaction() == 0
    said = capfd.readouterr()
    assert "Traceback" not in said.err + said.out


@pytest.mark.engines("sqlite")
def test_clients_that_leave_in_the_middle_of_a_request_leave_nothing_behind(
    address: tuple[str, int], observer: Observer, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = post(LENGTH, BODY % (1, 1))
    for length in range(0, len(whole), 5):
        with socket.create_connection(address, PATIENCE) as plain:
            plain.sendall(whole[:length])
    assert status(ask(address, whole, ends=False)) == 201
    assert observer.scalar("SELECT count(*) FROM users") == observer.scalar("SELECT count(*) FROM profiles") == 1
    assert observer.idle_in_transaction() == 0
    said = capfd.readouterr()
    assert "Traceback" not in said.err + said.out
