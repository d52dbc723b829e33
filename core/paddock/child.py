"""Calls that may abort, hang or pollute this process, made in a child process instead.

`Child.call(function, *args)` runs a module-level function in a fresh interpreter (`paddock.spawned`). Arguments and
results are pickled over a socket pair. A crash, a hang and a foreign exception each come back as an error that says so.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import shutil
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from contextvars import ContextVar, Token
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any, TypeVar

from paddock.errors import BuildFailed, ChildFailed, PaddockError
from paddock.spawned import Spawned, connected
from paddock.wire import pickled, said

T = TypeVar("T")

DEFAULT_SECONDS = 300.0


class Crew:
    """All children that are made in a `with` block of it, by whatever is called there: for work in the background.

    Their temporary files lie in one folder, which is removed at the end of the block: who is killed removes none.

    Args:
        niceness: Added to that of their processes, so that they leave the cores to others.
    """

    def __init__(self, niceness: int = 0) -> None:
        self.niceness = niceness
        self.ended = False
        self.folder = ""
        self._members: list[Child] = []
        self._before: Token[Crew | None] | None = None

    def join(self, child: Child) -> None:
        """Makes it one of them."""
        self._members.append(child)

    def end(self) -> None:
        """Ends their processes at once, also inside of calls, which raise `ChildFailed`, as all later ones do.

        From any thread, and without waiting for a lock: this may be called while garbage is collected.
        """
        self.ended = True
        for child in tuple(self._members):
            child.kill()

    def __enter__(self) -> Crew:
        self.folder = tempfile.mkdtemp(prefix="paddock-crew-")
        self._before = _CREW.set(self)
        return self

    def __exit__(self, *error: object) -> None:
        assert self._before is not None
        _CREW.reset(self._before)
        shutil.rmtree(self.folder, ignore_errors=True)


_CREW: ContextVar[Crew | None] = ContextVar("crew", default=None)


def is_called_off() -> bool:
    """Whether the children of the work that this is part of were ended: that they failed says nothing then."""
    crew = _CREW.get()
    return crew is not None and crew.ended


class Child:
    """One worker process, started at the first call and again after a crash; one call at a time.

    Args:
        label: What it is for; errors name it.
    """

    def __init__(self, label: str) -> None:
        self.label = label
        self._crew = _CREW.get()
        if self._crew is not None:
            self._crew.join(self)
        self._lock = threading.Lock()
        self._process: Spawned | None = None
        self._connection: Connection | None = None

    def call(
        self,
        function: Callable[..., T],
        *args: Any,
        seconds: float = DEFAULT_SECONDS,
        hear: Callable[[str], None] | None = None,
    ) -> T:
        """`function(*args)` in the child; `hear` gets what it says meanwhile by `tell`.

        Raises the child's own `PaddockError`; `BuildFailed` for any other exception there, and where arguments or
        answer do not pickle; `ChildFailed` when it could not be started, crashed, or took longer than `seconds` (it
        is then killed).
        """
        message = self._pickling("what it is to work on", lambda: pickle.dumps((function, args)))
        with self._lock:
            kind, payload = self._exchange(message, seconds, hear)
        if kind == "foreign":
            name, text, trace = payload
            failed = BuildFailed(f"{name}: {text}" if text else name, where=self.label)
            failed.add_note(trace)
            raise failed
        answer = self._pickling("its answer", lambda: pickle.loads(payload))
        if kind == "raised":
            raise answer
        result: T = answer
        return result

    def close(self) -> None:
        """Ends the process; fine to call twice."""
        with self._lock:
            self._stop(kill=False)

    def kill(self) -> None:
        """Ends the process, also while a call is inside; that one raises `ChildFailed`."""
        process = self._process
        if process is not None:
            process.kill()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _pickling(self, what: str, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except Exception as error:
            problem = f"{what} cannot pass between processes: {type(error).__name__}: {error}"
            raise BuildFailed(problem, where=self.label) from error

    def _exchange(self, message: bytes, seconds: float, hear: Callable[[str], None] | None) -> Any:
        if self._process is None:
            self._start()
        until = time.monotonic() + seconds
        try:
            found = self._next(until, message)
            while found is not None and found[0] == _TOLD:
                if hear is not None:
                    hear(found[1])  # what it raises is its own affair, and not the process's
                found = self._next(until)
        except BaseException:
            # Interrupted: the answer that is still to come must not be taken for the next call's.
            self._stop(kill=True)
            raise
        if found is None:
            self._stop(kill=True)
            raise ChildFailed(f"did not answer within {seconds:g} s and was ended", where=self.label)
        return found

    def _next(self, until: float, message: bytes | None = None) -> Any:
        """What it says next, once it is sent `message`; None where that takes longer than `until` (`time.monotonic`).

        Raises `ChildFailed` where it has ended.
        """
        assert self._connection is not None
        try:
            if message is not None:
                self._connection.send_bytes(message)
            if self._answers(self._connection, max(0.0, until - time.monotonic())):
                return self._connection.recv()
        except (EOFError, OSError) as error:
            raise self._ended() from error
        return None

    def _answers(self, connection: Connection, seconds: float) -> bool:
        """Whether there is an answer in time; raises EOFError where it has ended, whoever else has its end by now."""
        assert self._process is not None
        try:
            pidfd = os.pidfd_open(self._process.pid)
        except ProcessLookupError:  # it was ended by `kill`, and reaped
            raise EOFError from None
        try:
            ready = wait([connection, pidfd], seconds)
        finally:
            os.close(pidfd)
        if ready and not connection.poll():
            raise EOFError
        return bool(ready)

    def _start(self) -> None:
        crew = self._crew
        self._check(crew)
        own = {} if crew is None else {"TMPDIR": crew.folder}
        try:
            self._process = Spawned("paddock.child", "serve", own)
            self._connection = Connection(os.dup(self._process.socket.fileno()))
        except OSError as error:
            self._stop(kill=True)
            raise ChildFailed(f"the process could not be started: {error}", where=self.label) from error
        self._check(crew)  # again: who ended the crew before now could not see the process
        if crew is not None and crew.niceness:
            with contextlib.suppress(OSError):  # it is gone already: the call will tell
                # Its threads will be as nice as its first one is now.
                pid = self._process.pid
                os.setpriority(os.PRIO_PROCESS, pid, os.getpriority(os.PRIO_PROCESS, pid) + crew.niceness)

    def _check(self, crew: Crew | None) -> None:
        if crew is not None and crew.ended:
            self._stop(kill=True)
            raise ChildFailed("it was ended with what it is for", where=self.label)

    def _stop(self, kill: bool) -> None:
        if self._connection is not None:
            self._connection.close()
        if self._process is not None:
            self._process.end(kill)
        self._process = self._connection = None

    def _ended(self) -> ChildFailed:
        assert self._process is not None
        failed = ChildFailed(self._process.post_mortem(), where=self.label)
        failed.code = self._process.process.returncode
        self._stop(kill=True)
        return failed


def call_in_child(label: str, function: Callable[..., T], *args: Any, seconds: float = DEFAULT_SECONDS) -> T:
    """One call in a child of its own; see `Child.call`."""
    with Child(label) as child:
        return child.call(function, *args, seconds=seconds)


_TOLD = "told"
_SENDING = threading.Lock()
_PARENT: list[Connection] = []
"""In a child: the connection to who made it."""


def tell(message: str) -> None:
    """In a child, says something to whoever waits for the call that is inside, from any thread; elsewhere to nobody."""
    with _SENDING, contextlib.suppress(OSError):  # nobody waits any more: the call's own answer will find out
        for connection in _PARENT:
            connection.send((_TOLD, message))


def serve() -> None:
    """The child's side: answers calls until its connection closes."""
    connection = Connection(connected().detach())
    _PARENT.append(connection)
    with contextlib.suppress(EOFError, KeyboardInterrupt, ConnectionError):
        while True:
            _answer(connection)
    sys.stdout.flush()
    # Not through the interpreter's exit: SDKs crash in their destructors there, and nothing is left to save.
    os._exit(0)


def _answer(connection: Connection) -> None:
    message = connection.recv_bytes()
    try:
        function, args = pickle.loads(message)
        answer: tuple[str, Any] = ("returned", pickle.dumps(function(*args)))
    except PaddockError as error:
        answer = ("raised", pickled(error))
    except Exception as error:
        answer = ("foreign", (type(error).__name__, said(error), traceback.format_exc()))
    with _SENDING:
        connection.send(answer)


class Children:
    """Children by label, each started at its first call; for work that makes several calls of one kind."""

    def __init__(self) -> None:
        self._children: dict[str, Child] = {}
        self._lock = threading.Lock()

    def get(self, label: str) -> Child:
        """The child for this label."""
        with self._lock:
            return self._children.setdefault(label, Child(label))

    def close(self) -> None:
        """Ends them all."""
        with self._lock:
            for child in self._children.values():
                child.close()
            self._children.clear()

    def __enter__(self) -> Children:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
