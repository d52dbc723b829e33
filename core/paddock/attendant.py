"""The process of an isolated session, seen from within: it loads one session and answers for it until it is let go.

Everything happens on one thread, so that a session that is bound to its thread is content. Inputs are read where the
deployment wrote them; outputs are written where it reads them.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import socket
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from paddock import wire
from paddock.errors import BuildFailed, Exhausted, OtherShape, PaddockError
from paddock.shared import Array, Place, Shared, carried, packed
from paddock.spawned import connected
from paddock.spi import Session
from paddock.wire import pickled, said

_EXHAUSTED = ("bad_alloc", "bad allocation", "out of memory", "failed to allocate", "cannot allocate memory")
"""What libraries say in errors of their own classes, in small letters, where memory ran out."""


def attend() -> None:
    """All that such a process does; it ends with its connection."""
    connection = connected()
    # Who stops the deployment by Ctrl-C may want its last requests answered: it decides when this ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    attendant = _Attendant(connection)
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            attendant.answer(*attendant.receive())
    sys.stdout.flush()
    # Not through the interpreter's exit: SDKs crash in their destructors there, and nothing is left to save.
    os._exit(0)


@dataclass(frozen=True)
class Request:
    """The form of a request, as both sides know it by number: what is in the shared memory, and what is asked for."""

    feeds: tuple[Place, ...]
    outputs: Sequence[str] | None
    into: tuple[Place, ...] | None
    """Where the outputs go of a request that says where; else they go behind `end`, and their places are answered."""
    end: int


@dataclass
class _Layout:
    request: Request
    feeds: dict[str, Array]
    places: tuple[Place, ...] = ()
    """The outputs', where all of them have one."""
    arrays: dict[str, Array] = field(default_factory=dict)
    """These places as arrays."""
    fixed: bool = True
    """Whether the outputs have had the same shapes each time."""
    spoilt: bool = False


class _Attendant:
    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._received = 0
        self._layouts: dict[int, _Layout | Exception] = {}
        self._shared: Shared | None = None
        self._session: Session | None = None
        self._writes = False

    def receive(self) -> wire.Message:
        """The next message; they are counted from the one that loads, so that answers say to which they belong."""
        message = wire.receive(self._connection)
        self._received = 1 if message[0] == wire.LOAD else wire.following(self._received)
        return message

    def answer(self, kind: int, number: int, payload: bytes) -> None:
        """Does what one message asks for; what goes wrong is the answer. Raises where nobody reads it any more."""
        try:
            if kind == wire.RUN:
                self._run(number, payload)
            elif kind == wire.DEFINE:
                self._define(number, payload)
            elif kind == wire.PREPARE:
                with contextlib.suppress(Exception):  # whoever loads is told what is wrong
                    pickle.loads(payload)()
            elif kind == wire.LOAD:
                self._load(payload)
            else:
                assert self._session is not None
                found = self._session.observed() if kind == wire.OBSERVE else self._session.close()
                self._send(wire.DONE, pickle.dumps(found))
        except Exception as error:
            told = (type(error).__name__, said(error), traceback.format_exc())
            if _is_exhausted(error):
                self._send(wire.EXHAUSTED, pickle.dumps(told))
            elif isinstance(error, PaddockError):
                self._send(wire.RAISED, pickled(error))
            else:
                self._send(wire.FOREIGN, pickle.dumps(told))

    def _load(self, payload: bytes) -> None:
        _, (passed, *_), _, _ = socket.recv_fds(self._connection, 1, 1)
        self._shared = Shared(passed)
        session = pickle.loads(payload)()
        if not isinstance(session, Session):
            raise BuildFailed(f"load() returned a {type(session).__name__}, not a Session")
        self._session = session
        self._writes = getattr(session.run_into, "__func__", None) is not Session.run_into
        wire.report_crashes(self._connection)
        self._send(wire.DONE)

    def _define(self, number: int, payload: bytes) -> None:
        """Notes the form of requests to come. Nothing is answered: what goes wrong is told when one of them comes."""
        assert self._shared is not None
        try:
            size, told = pickle.loads(payload)
            self._remap(size)
            request: Request = pickle.loads(told)  # which may fail: what memory there is has to be known all the same
            layout = _Layout(request, {p.name: self._shared.view(p, writable=False) for p in request.feeds})
            self._place(layout, request.into or ())
        except Exception as error:
            self._layouts[number] = error
        else:
            self._layouts[number] = layout

    def _place(self, layout: _Layout, places: tuple[Place, ...]) -> None:
        assert self._shared is not None
        layout.places = places
        layout.arrays = {place.name: self._shared.view(place) for place in places}

    def _run(self, number: int, payload: bytes) -> None:
        assert self._session is not None
        layout = self._layouts[number]
        if isinstance(layout, Exception):
            raise layout
        feeds: dict[str, Any] = {**layout.feeds, **(pickle.loads(payload) if payload else {})}
        if layout.request.into is not None:
            self._write(layout, feeds)
            self._send(wire.DONE)
            return
        if self._writes and layout.places and layout.fixed:
            try:
                self._write(layout, feeds)
            except OtherShape:
                layout.fixed = False
            else:
                self._send(wire.SAME)
                return
        self._give(layout, self._session.run(feeds, layout.request.outputs))

    def _write(self, layout: _Layout, feeds: dict[str, Any]) -> None:
        assert self._session is not None and self._shared is not None
        if not layout.spoilt:  # an answer of before must not be taken for one that the session forgot to write
            self._shared.spoil(layout.places)
            layout.spoilt = True
        self._session.run_into(feeds, dict(layout.arrays))

    def _give(self, layout: _Layout, found: object) -> None:
        """Answers what `run` returned: numbers in the shared memory, all else pickled."""
        assert self._shared is not None
        if type(found) is not dict or not all(type(name) is str for name in found):
            self._send(wire.OTHER, pickle.dumps(found))  # whoever asked says what is wrong with it
            return
        if _alike(found, layout.arrays):
            for name, array in found.items():
                layout.arrays[name][...] = array
            self._send(wire.SAME)
            return
        plain = {name: array for name, array in found.items() if carried(array)}
        rest = {name: value for name, value in found.items() if name not in plain}
        places, end = packed(plain.items(), layout.request.end)
        answer = pickle.dumps((places, rest))
        if end > self._shared.size and not self._grown(end):
            return
        self._place(layout, places)
        for name, array in plain.items():
            layout.arrays[name][...] = array
        if rest:  # these have no place: the next answer is pickled as well
            self._place(layout, ())
        self._send(wire.ANSWERED, answer)

    def _grown(self, size: int) -> bool:
        """Whether the owner made the memory hold so many bytes; where not, it knows why, and wants no answer."""
        self._send(wire.NEED, pickle.dumps(size))
        kind, _, payload = self.receive()
        if kind == wire.GROWN:
            self._remap(pickle.loads(payload))
        return kind == wire.GROWN

    def _remap(self, size: int) -> None:
        assert self._shared is not None
        if size != self._shared.size:
            self._shared.mapped(size)
            self._layouts.clear()

    def _send(self, kind: int, payload: bytes = b"") -> None:
        wire.send(self._connection, kind, self._received, payload)


def _is_exhausted(error: Exception) -> bool:
    if isinstance(error, PaddockError):
        return isinstance(error, Exhausted)
    text = "".join(traceback.format_exception_only(error)).lower()
    return isinstance(error, MemoryError) or any(word in text for word in _EXHAUSTED)


def _alike(found: dict[str, Any], places: dict[str, Array]) -> bool:
    """Whether every output is an array just as large as its place."""
    if found.keys() != places.keys():
        return False
    for name, array in found.items():
        place = places[name]
        if not carried(array) or array.dtype != place.dtype or array.shape != place.shape:
            return False
    return bool(places)
