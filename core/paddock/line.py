"""The process of an isolated session, seen from the deployment: one call at a time, and whether it is still there.

Forms of requests are told once and known by number from then on, so that a request is: its arrays copied into the
shared memory, one message there, one back, and the outputs copied out.
"""

from __future__ import annotations

import os
import pickle
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from paddock import wire
from paddock.attendant import Request
from paddock.errors import PaddockError, RunFailed
from paddock.shared import Array, Place, Shared, carried, packed
from paddock.spawned import PATIENCE, Spawned
from paddock.spi import Arrays, Session

_LAYOUTS = 64
"""How many forms of requests are known at once; with one more all are told anew."""

Outputs = dict[str, Array]


class Gone(Exception):
    """The process ended, hung or ran out of memory while it had a request; says how."""

    remedy = 'name who answers such requests in "rescue"'


class Late(Gone):
    """It did not answer in time."""

    remedy = f'raise "timeout" where it only needs longer, or {Gone.remedy}'


class Untouched(Exception):
    """The process had ended before it took the request: nothing was lost."""


class Foreign(Exception):
    """An exception of an SDK's own class, in the other process. Those raised here have that class's name."""


@dataclass
class _Layout:
    number: int
    feeds: list[tuple[str, Array]]
    """The inputs' places."""
    pickled: list[str]
    """Inputs that no array of numbers holds."""
    outputs: list[tuple[str, Array]]
    """The outputs' places, once they are known."""


class Line:
    """One process with one session.

    Args:
        process: Started with `paddock.attendant.attend`.
        shared: The memory for its requests; no other process uses it now.
        seconds: How long it may take for one request.
    """

    def __init__(self, process: Spawned, shared: Shared, seconds: float) -> None:
        self.process = process
        self.turn = threading.Lock()
        """Held by whoever makes a call."""
        self.busy = False
        """Whether it has a request."""
        self.answered = False
        """Whether it has answered one."""
        self.fate = ""
        """How it ended, where it did; set by whoever holds the turn."""
        self.pidfd = os.pidfd_open(process.pid)
        """Readable once it has ended."""
        self._shared = shared
        self._seconds = seconds
        self._layouts: dict[Any, _Layout] = {}
        self._sent = 0

    def load(self, load: Callable[[], Session], seconds: float) -> None:
        """Has it load its session; raises what that raises, `Gone` and `Untouched`."""
        connection = self.process.socket
        connection.settimeout(seconds)
        self._send(wire.LOAD, 0, pickle.dumps(load))
        try:
            socket.send_fds(connection, [b"."], [self._shared.fd])
        except OSError as error:
            raise self._lost(error) from None
        self._opened(self._answer())
        connection.settimeout(self._seconds)

    def run(self, feeds: Arrays, outputs: Sequence[str] | None) -> Any:
        """`Session.run` there, the answer in arrays of its own."""
        outputs = None if outputs is None else tuple(outputs)
        layout = self._asked(feeds, outputs, None)
        kind, payload = self._exchange(layout, feeds)
        if kind == wire.SAME:
            return {name: place.copy() for name, place in layout.outputs}
        found = self._opened((kind, payload))
        if kind == wire.OTHER:
            return found
        places, rest = found
        layout.outputs = [(place.name, self._shared.view(place)) for place in places]
        return {**{name: place.copy() for name, place in layout.outputs}, **rest}

    def run_into(self, feeds: Arrays, into: Arrays) -> None:
        """`Session.run_into` there, what it wrote copied into these arrays."""
        layout = self._asked(feeds, None, into)
        self._opened(self._exchange(layout, feeds))
        for name, place in layout.outputs:
            np.copyto(into[name], place)

    def ask(self, kind: int) -> Any:
        """What it answers to a message without more."""
        self.busy = True
        self._send(kind, 0, b"")
        return self._opened(self._answer())

    def close(self) -> None:
        """Closes the session there in `PATIENCE` seconds, and ends the process; raises as `ask` does."""
        try:
            self.process.socket.settimeout(PATIENCE)
            self.ask(wire.CLOSE)
            self.process.end(kill=False)
        finally:
            self.fate = self.fate or "it is closed"
            self.process.end(kill=True)

    def _asked(self, feeds: Arrays, outputs: tuple[str, ...] | None, into: Arrays | None) -> _Layout:
        """The form of a request, told to the process where it is new."""
        key: list[Any] = [outputs]
        for name, array in feeds.items():
            key.append((name, array.dtype, array.shape) if carried(array) else name)
        if into is not None:
            key.append(None)
            key.extend((name, array.dtype, array.shape) for name, array in into.items())
        known = self._layouts.get(tuple(key))
        return known if known is not None else self._defined(tuple(key), feeds, outputs, into)

    def _defined(self, key: Any, feeds: Arrays, outputs: tuple[str, ...] | None, into: Arrays | None) -> _Layout:
        places, end = packed(((name, array) for name, array in feeds.items() if carried(array)), 0)
        receivers: tuple[Place, ...] | None = None
        if into is not None:
            receivers, end = packed(into.items(), end)
        if end > self._shared.size or not self._shared.size:
            self._grow(end)
        if len(self._layouts) == _LAYOUTS:
            self._layouts.clear()
        layout = _Layout(
            len(self._layouts),
            [(place.name, self._shared.view(place)) for place in places],
            [name for name, array in feeds.items() if not carried(array)],
            [(place.name, self._shared.view(place)) for place in receivers or ()],
        )
        request = pickle.dumps(Request(places, outputs, receivers, end))
        self._send(wire.DEFINE, layout.number, pickle.dumps((self._shared.size, request)))
        self._layouts[key] = layout
        return layout

    def _grow(self, size: int) -> None:
        try:
            self._shared.grow(size)
        except OSError as error:
            raise RunFailed(
                f"no memory to share {size} bytes with the process of a session: {error.strerror}"
            ) from None
        self._layouts.clear()

    def _exchange(self, layout: _Layout, feeds: Arrays) -> tuple[int, bytes]:
        for name, place in layout.feeds:
            np.copyto(place, feeds[name])
        rest = b"" if not layout.pickled else pickle.dumps({name: feeds[name] for name in layout.pickled})
        self.busy = True
        self._send(wire.RUN, layout.number, rest)
        answer = self._answer()
        self.answered = True
        return answer

    def _send(self, kind: int, number: int, payload: bytes) -> None:
        self._sent = wire.following(self._sent)
        try:
            wire.send(self.process.socket, kind, number, payload)
        except OSError as error:
            raise self._lost(error) from None

    def _answer(self) -> tuple[int, bytes]:
        """Its answer, with the memory made larger where it needs that for it."""
        begun = False
        while True:
            try:
                kind, number, payload = wire.receive(self.process.socket)
            except wire.Crashed as crashed:
                raise self._crashed(str(crashed), begun) from None
            except (OSError, EOFError) as error:
                raise self._lost(error, begun) from None
            if number != self._sent:
                self.process.end(kill=True)
                self.fate = "the process answered another request than it was asked, and was ended"
                raise Gone(self.fate)
            if kind != wire.NEED:
                self.busy = False
                return kind, payload
            begun = True
            try:
                self._grow(pickle.loads(payload))
            except RunFailed:
                self._send(wire.GIVE_UP, 0, b"")
                self.busy = False
                raise
            self._send(wire.GROWN, 0, pickle.dumps(self._shared.size))

    def _lost(self, error: Exception, begun: bool = False) -> Exception:
        """What to raise where the process did not answer: it is ended, whatever it does."""
        if isinstance(error, TimeoutError):
            self.process.kill()
            limit = self.process.socket.gettimeout()
            self.process.end(kill=True)
            self.fate = f"the process did not answer within {limit:g} s and was ended"
            return Late(self.fate)
        self.fate = self.process.post_mortem()
        # A connection is reset, and not just at its end, where what was sent was never read.
        untouched = isinstance(error, (BrokenPipeError, ConnectionResetError)) and not begun
        return Untouched(self.fate) if untouched else Gone(self.fate)

    def _crashed(self, signal_name: str, begun: bool) -> Exception:
        """The same where it told of its crash itself: whoever waits is told before it is over."""
        untouched = self.process.has_unread() and not begun
        self.fate = self.process.dying(f"crashed with {signal_name}")
        return Untouched(self.fate) if untouched else Gone(self.fate)

    def _opened(self, answer: tuple[int, bytes]) -> Any:
        """What an answer says; raises what it says was raised."""
        kind, payload = answer
        found: Any = None
        try:
            found = pickle.loads(payload) if payload else None
        except Exception as error:
            raise RunFailed(f"its answer cannot pass between processes: {type(error).__name__}: {error}") from None
        if kind == wire.RAISED:
            raise found if isinstance(found, PaddockError) else RunFailed("raised what is no error of Paddock's")
        if kind == wire.FOREIGN:
            name, text, trace = found
            foreign = type(name, (Foreign,), {})(text)
            foreign.add_note(trace)
            raise foreign
        if kind == wire.EXHAUSTED:
            name, text, _ = found
            self.process.end(kill=True)
            self.fate = f"the process ran out of memory ({name}: {text}) and was ended"
            raise Gone(self.fate)
        return found
