"""One request by the ASGI specification itself: no client that would correct what is odd about it."""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

Message = dict[str, Any]
HTTP = {"type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "scheme": "http"}
PATIENCE = 20  # seconds, where waiting for ever is the alternative


@dataclass
class Exchange:
    """What a server hands to the application, and what it gets back. Not a server: it checks nothing before."""

    messages: list[Message]
    sent: list[Message] = field(default_factory=list)
    received: int = 0

    async def receive(self) -> Message:
        self.received += 1
        if self.messages:
            return self.messages.pop(0)
        await asyncio.Event().wait()  # the client says nothing more, and stays
        raise AssertionError

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    @property
    def status(self) -> int:
        return self.sent[0]["status"]

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent[1:])

    def check(self) -> None:
        """One whole response, as the specification has it."""
        assert [message["type"] for message in self.sent[:1]] == ["http.response.start"]
        assert {message["type"] for message in self.sent[1:]} == {"http.response.body"}
        more = [message.get("more_body", False) for message in self.sent[1:]]
        assert more == [True] * (len(more) - 1) + [False]
        for name, value in self.sent[0].get("headers", []):
            assert isinstance(name, bytes)
            assert isinstance(value, bytes)
            assert not {b"\r", b"\n", b"\0"} & {bytes([byte]) for byte in name + value}


def body_messages(pieces: Iterable[bytes], *, ends: bool = True) -> list[Message]:
    """A body in these pieces; one that does not end is followed by the client's leaving."""
    messages = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    if not ends:
        return [*messages, {"type": "http.disconnect"}, {"type": "http.disconnect"}]
    if not messages:
        return [{"type": "http.request"}]
    messages[-1]["more_body"] = False
    return messages


async def exchange(app: Any, messages: list[Message], **scope: Any) -> Exchange:
    """Call the application as a server would. Raises what the application raises."""
    path = scope.get("path", "/")
    full = HTTP | {"method": "GET", "path": path, "raw_path": path.encode("utf-8", "surrogatepass"), "root_path": ""}
    full |= {"query_string": b"", "headers": [], "client": ("192.0.2.1", 1), "server": ("test", 80), "state": {}}
    made = Exchange(messages)
    async with asyncio.timeout(PATIENCE):
        await app(full | scope, made.receive, made.send)
    return made
