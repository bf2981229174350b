"""A request as it came, kept while the application may have to be given it again."""

from __future__ import annotations

from collections import deque

from starlette.types import Message, Receive, Scope

LIMIT = 1024 * 1024
"""Bytes of a body that are kept. A request with more is not tried again: it would cost every server its memory."""
_PIECE = 64 * 1024  # what servers hand out at a time, so that a replayed body is never there twice


class Replay:
    """Passes the server's messages on and remembers the body that they bring.

    Only the bytes are kept, not the messages: a client decides how many of those its body comes in, and each has a price.
    ``whole``: whether everything that was read can be read again.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._kept = bytearray()
        self._complete = False
        self.whole = True

    async def receive(self) -> Message:
        """The server's next message."""
        message = await self._receive()
        if self.whole and message["type"] == "http.request":
            body = message.get("body", b"")
            if len(self._kept) + len(body) > LIMIT:
                self.forget()
            else:
                self._kept += body
                self._complete = not message.get("more_body", False)
        return message

    def again(self) -> Receive:
        """A ``receive`` that begins with what was read before and goes on with what was not."""
        kept, read, complete = self._kept, len(self._kept), self._complete  # forgotten here when they are read again
        pieces = deque(range(0, read, _PIECE) if read or not complete else [0])

        async def receive() -> Message:
            if not pieces:
                return await self.receive()
            start = pieces.popleft()
            body = bytes(kept[start : min(start + _PIECE, read)])
            return {"type": "http.request", "body": body, "more_body": bool(pieces) or not complete}

        return receive

    def forget(self) -> None:
        """Free the memory; there is no going back from here."""
        self.whole = False
        self._kept = bytearray()


class Pristine:
    """A scope as it came. What one attempt puts into it, the next must not find.

    Its dicts and lists, the request's state for one, are emptied and filled again, not replaced: a middleware around this
    one may hold them.
    """

    def __init__(self, scope: Scope) -> None:
        self._items = {
            key: (value, value.copy() if isinstance(value, dict | list) else None) for key, value in scope.items()
        }

    def restore(self, scope: Scope) -> None:
        """Make ``scope`` what it was."""
        scope.clear()
        for key, (value, content) in self._items.items():
            if content is not None:
                value.clear()
                (value.update if isinstance(value, dict) else value.extend)(content)
            scope[key] = value
