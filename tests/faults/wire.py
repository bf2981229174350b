"""Enough of the two wire protocols to cut a stream into messages and to know which SQL passes, and when it is answered.

PostgreSQL: manual, "Frontend/Backend Protocol", "Message Formats". MySQL and MariaDB: "Client/Server Protocol", "Packets".
"""

import asyncio
import re
from enum import Enum
from typing import NamedTuple, Protocol


class Step(Enum):
    """A place in the life of a connection and of a transaction on it."""

    CONNECT = "connect"
    BEGIN = "BEGIN"
    FIRST = "first statement"
    SAVEPOINT = "savepoint"
    LAST = "last statement"
    IDLE = "before COMMIT"
    COMMIT_SENT = "COMMIT sent"
    COMMIT_ANSWERED = "COMMIT answered"
    PREPARE_SENT = "PREPARE TRANSACTION sent"
    PREPARE_ANSWERED = "PREPARE TRANSACTION answered"
    PREPARED_COMMIT_SENT = "COMMIT PREPARED sent"
    PREPARED_COMMIT_ANSWERED = "COMMIT PREPARED answered"
    RETURNED = "connection returned"
    ROLLBACK = "ROLLBACK of the pool"
    RECEIPT = "transaction id"
    RELEASE = "RELEASE SAVEPOINT"
    ROLLBACK_TO = "ROLLBACK TO SAVEPOINT"


#: What a statement begins with, or is marked with by a comment of the test. ``SET AUTOCOMMIT`` is no COMMIT.
_STATEMENTS = (
    (Step.BEGIN, re.compile(r"\s*(BEGIN|START\s+TRANSACTION)\b", re.IGNORECASE)),
    (Step.COMMIT_SENT, re.compile(r"\s*(COMMIT\b(?!\s+PREPARED)|XA\s+COMMIT\b.*\bONE\s+PHASE)", re.IGNORECASE)),
    (Step.PREPARE_SENT, re.compile(r"\s*(PREPARE\s+TRANSACTION|XA\s+PREPARE)\b", re.IGNORECASE)),
    (Step.PREPARED_COMMIT_SENT, re.compile(r"\s*(COMMIT\s+PREPARED|XA\s+COMMIT)\b", re.IGNORECASE)),
    (Step.SAVEPOINT, re.compile(r"\s*SAVEPOINT\b", re.IGNORECASE)),
    (Step.RECEIPT, re.compile(r"\s*SELECT (pg_current_xact_id|\(SELECT system_identifier)")),
    (Step.RELEASE, re.compile(r"\s*RELEASE\b", re.IGNORECASE)),
    (Step.ROLLBACK_TO, re.compile(r"\s*ROLLBACK\s+TO\b", re.IGNORECASE)),
    (Step.ROLLBACK, re.compile(r"\s*(XA\s+)?ROLLBACK\b(?!\s+(WORK\s+|TRANSACTION\s+)?(TO|PREPARED)\b)", re.IGNORECASE)),
    (Step.FIRST, re.compile(r"\s*\w+ /\* first \*/")),
    (Step.LAST, re.compile(r"\s*\w+ /\* last \*/")),
)


#: The steps whose answer is one too.
ANSWERS = {
    Step.COMMIT_SENT: Step.COMMIT_ANSWERED,
    Step.PREPARE_SENT: Step.PREPARE_ANSWERED,
    Step.PREPARED_COMMIT_SENT: Step.PREPARED_COMMIT_ANSWERED,
}


def step_of(sql: str) -> Step | None:
    """The step that a statement is."""
    return next((step for step, pattern in _STATEMENTS if pattern.match(sql)), None)


class Message(NamedTuple):
    """One message: its bytes, the SQL that it sends if it sends any, and whether it ends the answer to a statement.

    ``asks``: the client now waits for the server: a round trip. ``parses``: the SQL is only read, to be run later.
    """

    raw: bytes
    sql: str | None = None
    answers: bool = False
    asks: bool = False
    parses: bool = False


class Wire(Protocol):
    """One connection's protocol, from its first byte on."""

    async def from_client(self, reader: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> Message:
        """The next message of the client. Raises ``IncompleteReadError`` at the end."""
        ...

    async def from_server(self, reader: asyncio.StreamReader) -> Message:
        """The next message of the server."""
        ...


class PostgresWire:
    """Simple queries (Query) and extended ones (Parse, then Bind by the statement's name)."""

    _ENCRYPT = frozenset({80877103, 80877104})  # SSLRequest, GSSENCRequest

    def __init__(self) -> None:
        self._started = False
        self._prepared: dict[bytes, str] = {}

    async def from_client(self, reader: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> Message:
        while not self._started:
            head = await reader.readexactly(8)
            if int.from_bytes(head[4:]) not in self._ENCRYPT:
                self._started = True
                return Message(head + await reader.readexactly(int.from_bytes(head[:4]) - 8))
            to_client.write(b"N")  # encrypted, nobody could read along
        head = await reader.readexactly(5)
        body = await reader.readexactly(int.from_bytes(head[1:]) - 4)
        kind = head[:1]
        return Message(head + body, self._sql(kind, body), asks=kind in {b"Q", b"S"}, parses=kind == b"P")

    def _sql(self, kind: bytes, body: bytes) -> str | None:
        if kind == b"Q":
            return body[:-1].decode()
        if kind == b"P":
            name, query, _ = body.split(b"\0", 2)
            self._prepared[name] = query.decode()
            return self._prepared[name]
        if kind == b"B":
            _portal, name, _ = body.split(b"\0", 2)
            return self._prepared.get(name)
        return None

    async def from_server(self, reader: asyncio.StreamReader) -> Message:
        head = await reader.readexactly(5)
        return Message(head + await reader.readexactly(int.from_bytes(head[1:]) - 4), answers=head[:1] == b"Z")


class MysqlWire:
    """COM_QUERY and COM_STMT_PREPARE; a command is a packet with the sequence number 0."""

    _COMMANDS = frozenset({0x03, 0x16})

    async def from_client(self, reader: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> Message:
        raw = await self._packet(reader)
        command = raw[3] == 0 and len(raw) > 4 and raw[4] in self._COMMANDS
        return Message(raw, raw[5:].decode(errors="replace") if command else None, asks=raw[3] == 0)

    async def from_server(self, reader: asyncio.StreamReader) -> Message:
        return Message(await self._packet(reader), answers=True)  # COMMIT is answered by one packet

    @staticmethod
    async def _packet(reader: asyncio.StreamReader) -> bytes:
        head = await reader.readexactly(4)
        return head + await reader.readexactly(int.from_bytes(head[:3], "little"))


def interrupted(answer: bytes) -> bytes:
    """What MySQL answers to an interrupted statement, in place of ``answer``: ERR_Packet, ER_QUERY_INTERRUPTED."""
    body = b"\xff" + (1317).to_bytes(2, "little") + b"#70100Query execution was interrupted"
    return len(body).to_bytes(3, "little") + answer[3:4] + body


WIRES: dict[str, type[PostgresWire | MysqlWire]] = {"postgresql": PostgresWire, "mysql": MysqlWire}
