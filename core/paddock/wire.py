"""Messages between a deployment and the process of an isolated session: a header, and a payload that is mostly empty.

Arrays never pass here, but through memory that both map (`paddock.shared`); what no array of numbers holds is pickled.
"""

from __future__ import annotations

import pickle
import socket
import struct

from paddock.errors import BuildFailed, PaddockError

HEADER = struct.Struct("<BxxxIQ")
"""What it is, a number, and the bytes of its payload. An answer's number is that of the message it belongs to."""

# What the deployment asks; the number is a layout's where there is one. DEFINE alone is not answered.
PREPARE, LOAD, DEFINE, RUN, OBSERVE, CLOSE, GROWN, GIVE_UP = range(8)
# What the other side answers.
DONE, ANSWERED, SAME, OTHER, NEED, RAISED, FOREIGN, EXHAUSTED = range(8, 16)

Message = tuple[int, int, bytes]


def following(turn: int) -> int:
    """The number of the next message."""
    return (turn + 1) & 0xFFFFFFFF


def send(connection: socket.socket, kind: int, number: int = 0, payload: bytes = b"") -> None:
    """Sends one message; raises OSError where nobody reads it, TimeoutError by the connection's own timeout."""
    connection.sendall(HEADER.pack(kind, number, len(payload)) + payload)


def receive(connection: socket.socket) -> Message:
    """The next message; raises EOFError where the other side has ended, TimeoutError by the connection's timeout.

    ConnectionResetError says that it ended without having read what was sent to it.
    """
    kind, number, length = HEADER.unpack(_exactly(connection, HEADER.size))
    return kind, number, _exactly(connection, length) if length else b""


def _exactly(connection: socket.socket, count: int) -> bytes:
    found = connection.recv(count)
    if len(found) == count:
        return found
    parts, missing = [found], count - len(found)
    while missing:
        if not parts[-1]:
            raise EOFError("the connection is closed")
        parts.append(connection.recv(min(missing, 1 << 20)))
        missing -= len(parts[-1])
    return b"".join(parts)


def pickled(error: PaddockError) -> bytes:
    """An error as another process can load it."""
    try:
        return pickle.dumps(error)
    except Exception:
        # It carries something that does not pickle; what it says must arrive all the same.
        plain = BuildFailed(error.problem, where=error.where, candidates=error.candidates, remedy=error.remedy)
        return pickle.dumps(plain)


def said(error: Exception) -> str:
    """The first line of a foreign error's message."""
    try:
        return next(iter(str(error).strip().splitlines()), "")
    except Exception:
        return "(its message cannot be printed)"
