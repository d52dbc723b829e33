"""Messages between a deployment and the process of an isolated session: a header, and a payload that is mostly empty.

Arrays never pass here, but through memory that both map (`paddock.shared`); what no array of numbers holds is pickled.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import pickle
import signal
import socket
import struct
from signal import SIGABRT, SIGBUS, SIGFPE, SIGILL, SIGSEGV

from paddock.errors import BuildFailed, PaddockError

HEADER = struct.Struct("<BxxxIQ")
"""What it is, a number, and the bytes of its payload. An answer's number is that of the message it belongs to."""

# What the deployment asks; the number is a layout's where there is one. DEFINE alone is not answered.
PREPARE, LOAD, DEFINE, RUN, OBSERVE, CLOSE, GROWN, GIVE_UP = range(8)
# What the other side answers.
DONE, ANSWERED, SAME, OTHER, NEED, RAISED, FOREIGN, EXHAUSTED = range(8, 16)
_REPORT = b"Fatal Python error: "
"""What it begins with where `report_crashes` was called: more than a header, and its first byte is no kind of these."""
_FATAL = {signal.strsignal(fatal): fatal.name for fatal in (SIGSEGV, SIGFPE, SIGABRT, SIGBUS, SIGILL)}

Message = tuple[int, int, bytes]


class Crashed(Exception):
    """The other side says that it crashes; its message is the signal's name."""


def following(number: int) -> int:
    """The number of the next message."""
    return (number + 1) & 0xFFFFFFFF


def report_crashes(connection: socket.socket) -> None:
    """From now on a crash of this process is told there at once, whatever handlers an SDK has installed until now.

    What it takes a process to die is not waited for: Paddle's handler prints a trace, and much memory is given back.
    """
    faulthandler.disable()
    faulthandler.enable(connection, all_threads=False)
    os.register_at_fork(after_in_child=faulthandler.disable)  # a fork's crash is not this process's


def send(connection: socket.socket, kind: int, number: int = 0, payload: bytes = b"") -> None:
    """Sends one message; raises OSError where nobody reads it, TimeoutError by the connection's own timeout."""
    connection.sendall(HEADER.pack(kind, number, len(payload)) + payload)


def receive(connection: socket.socket) -> Message:
    """The next message; raises EOFError where the other side has ended, TimeoutError by the connection's timeout.

    ConnectionResetError says that it ended without having read what was sent to it, `Crashed` that it is about to end.
    """
    header = _exactly(connection, HEADER.size)
    kind, number, length = HEADER.unpack(header)
    if kind == _REPORT[0]:
        raise Crashed(_crash(connection, header))
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


def _crash(connection: socket.socket, report: bytes) -> str:
    """The signal's name in a report that begins so."""
    with contextlib.suppress(OSError, EOFError):  # it is over before it has said all
        while b"\n" not in report:
            report += _exactly(connection, 1)
    said = report.removeprefix(_REPORT).decode(errors="replace").strip()
    return _FATAL.get(said, said or "a signal")


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
