"""A thread that runs one call at a time for whoever asks: what a session bound to its thread needs."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from typing import Any


class OwnThread:
    """One thread; `call` runs a function there and gives its answer.

    A pipe wakes the other side, and neither a Future nor a lock: a thread that releases a lock still holds the GIL, so
    that whoever waits for the lock wakes twice. `os.write` gives the GIL up first: 10 microseconds there and back where
    a ThreadPoolExecutor takes 41.
    """

    def __init__(self, name: str) -> None:
        self._turn = threading.Lock()
        self._desk = _Desk()
        self._thread = threading.Thread(target=self._desk.serve, name=name, daemon=True)
        self._thread.start()
        # Ends the thread when this is collected, and at the interpreter's exit, before daemon threads are cut off.
        self._end = weakref.finalize(self, _end, self._desk, self._thread)

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """`function(*arguments)` on the thread; raises what it raises, and `RuntimeError` once this is closed."""
        with self._turn:
            if not self._end.alive:
                raise RuntimeError("the thread has ended")
            return self._desk.ask(function, arguments)

    def shutdown(self) -> None:
        """Ends the thread after the call inside; twice is fine."""
        with self._turn:
            self._end()


class _Desk:
    """What the two sides share. The caller's side is for one thread at a time."""

    def __init__(self) -> None:
        self._asked, self._ask = os.pipe()
        self._answered, self._answer = os.pipe()
        self._job: tuple[Callable[..., Any], tuple[Any, ...]] | None = None
        self._result: Any = None
        self._error: BaseException | None = None
        self._owed = False

    def ask(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        self._settle()
        self._result = self._error = None
        self._job = (function, arguments)
        self._owed = True
        os.write(self._ask, b".")
        self._settle()
        result, error = self._result, self._error
        self._result = self._error = None
        if error is not None:
            try:
                raise error
            finally:
                del error  # its traceback holds this frame
        return result

    def leave(self, thread: threading.Thread) -> None:
        self._settle()
        self._job = None
        os.write(self._ask, b".")
        if thread is not threading.current_thread():
            thread.join()
            for end in (self._asked, self._ask, self._answered, self._answer):
                os.close(end)

    def serve(self) -> None:
        while True:
            os.read(self._asked, 1)
            job, self._job = self._job, None
            if job is None:
                return
            function, arguments = job
            try:
                self._result = function(*arguments)
            except BaseException as error:
                self._error = error
            del job, function, arguments
            os.write(self._answer, b".")

    def _settle(self) -> None:
        """Waits for the answer under way, which a KeyboardInterrupt may have left behind."""
        if self._owed:
            os.read(self._answered, 1)
            self._owed = False


def _end(desk: _Desk, thread: threading.Thread) -> None:
    if thread.is_alive():  # not in a process forked off, which has no such thread
        desk.leave(thread)
