"""Fresh interpreters: how one is started, ended, and what it said last.

Never a fork (SDK threads do not survive one), never `multiprocessing`'s spawn (it runs the user's script again). What
is started here ends with this process, whatever it is doing then: the kernel ends it when its leash is let go.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Mapping

PATIENCE = 5.0
"""Seconds that a process has to end by itself once its connection is closed."""
_LOG_LINES = 6
_LOG_BYTES = 1 << 20
"""What its log may hold, of which the last `_LOG_KEPT` bytes are kept where it is longer."""
_LOG_KEPT = 1 << 16


class Spawned:
    """A fresh interpreter that runs one function of ours, with a socket to it.

    Args:
        module: Its module; `function()` there is all that is run. It calls `connected` first.
        function: The function's name.
        env: What its environment has beside this process's.

    Raises OSError where it cannot be started.
    """

    def __init__(self, module: str, function: str, env: Mapping[str, str] | None = None) -> None:
        self._lock = threading.Lock()
        self._told: str | None = None
        with contextlib.ExitStack() as undo:
            # All closed by `end`, not here: they have to outlive this call.
            self._log = undo.enter_context(tempfile.TemporaryFile(buffering=0))
            # What it prints goes to the end, also after `trim`.
            fcntl.fcntl(self._log, fcntl.F_SETFL, fcntl.fcntl(self._log, fcntl.F_GETFL) | os.O_APPEND)
            ours, theirs = socket.socketpair()
            self.socket = undo.enter_context(ours)
            held, leash = os.pipe()
            self._leash = undo.enter_context(os.fdopen(leash, "wb", buffering=0))
            try:
                # With -P and this process's own path, a file in the current folder hides no module that is seen here.
                self.process = subprocess.Popen(
                    [sys.executable, "-P", "-c", f"from {module} import {function}; {function}()",
                     str(held), str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    stdout=self._log,
                    stderr=self._log,
                    pass_fds=(held, theirs.fileno()),
                    process_group=0,  # so that what it starts itself can be ended with it
                    env={
                        **os.environ, **(env or {}),
                        "PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path),
                    },
                )  # fmt: skip
            finally:
                os.close(held)
                theirs.close()
            undo.pop_all()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    def kill(self) -> None:
        """Ends it at once, and what it has started; from any thread and without waiting."""
        if self.process.returncode is None:  # else its number may be another's by now
            with contextlib.suppress(OSError):
                os.killpg(self.pid, signal.SIGKILL)

    def hang_up(self) -> None:
        """Ends the connection, whoever else holds an end of it: a fork of this process, or a helper of that one."""
        with self._lock, contextlib.suppress(OSError):  # not while `end` frees its number for somebody else's file
            self.socket.shutdown(socket.SHUT_RDWR)

    def end(self, kill: bool) -> None:
        """Ends it and frees what it had; by closing the connection or, where it must `kill`, at once. Twice is fine."""
        if self._log.closed:
            return
        self.hang_up()
        with self._lock:
            self.socket.close()
        if not kill:
            self._is_over(PATIENCE)
        self.kill()
        self.process.wait()
        with self._lock:
            if not self._log.closed:
                self._leash.close()
                self._log.close()

    def post_mortem(self) -> str:
        """How it ended, with its last words; of one that closed its connection and goes on, that it did. Ends it."""
        over = self._is_over(PATIENCE)
        self.kill()
        code = self.process.wait() if over else None
        with self._lock:
            if self._told is None:
                self._told = _told(_how(code), self._words())
            told = self._told
        self.end(kill=True)
        return told

    def dying(self, how: str) -> str:
        """What is told of one that said itself how it ends, with its last words; it is killed, and not waited for."""
        self.kill()
        with self._lock:
            self._told = self._told or _told(how, self._words())
            return self._told

    def has_unread(self) -> bool:
        """Whether it has not yet read all that was sent to it."""
        unread = array.array("i", [0])
        fcntl.ioctl(self.socket, termios.TIOCOUTQ, unread)
        return bool(unread[0])

    def trim(self) -> None:
        """Cuts off all but the end of what it printed, where that has become long: it may live for months."""
        with self._lock:
            if not self._log.closed and (size := os.fstat(self._log.fileno()).st_size) > _LOG_BYTES:
                last = os.pread(self._log.fileno(), _LOG_KEPT, size - _LOG_KEPT)
                self._log.truncate(0)
                self._log.write(last)

    def _is_over(self, seconds: float) -> bool:
        """Whether it ends within so long. It is not reaped: what it has started is still known by its number."""
        if self.process.returncode is not None:
            return True
        try:
            pidfd = os.pidfd_open(self.pid)
        except ProcessLookupError:  # reaped meanwhile
            return True
        try:
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            return bool(poll.poll(seconds * 1000))
        finally:
            os.close(pidfd)

    def _words(self) -> list[str]:
        if self._log.closed:
            return []
        lines = os.pread(self._log.fileno(), 2 * _LOG_BYTES, 0).decode(errors="replace").splitlines()
        return [line.strip() for line in lines if line.strip()][-_LOG_LINES:]


def connected() -> socket.socket:
    """In such a process, the first thing to be called: its end of the connection; from then on it ends with its parent.

    The kernel ends it when the last writing end of the leash is closed, which the parent alone has: also inside of a
    call that never gives the interpreter's lock back. A fork of the parent holds one too, so a thread looks as well.
    """
    held, connection = int(sys.argv[1]), int(sys.argv[2])
    for fd in (held, connection):  # what is started here must not keep the connection when this has ended
        os.set_inheritable(fd, False)
    fcntl.fcntl(held, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(held, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(held, fcntl.F_SETFL, fcntl.fcntl(held, fcntl.F_GETFL) | os.O_ASYNC)
    poll = select.poll()
    poll.register(held, 0)
    if poll.poll(0):  # it was let go before the kernel knew
        os._exit(1)
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    return socket.socket(fileno=connection)


def _end_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _how(code: int | None) -> str:
    if code is None:
        return "closed its connection"
    return f"crashed with {_signal_name(-code)}" if code < 0 else f"ended with status {code}"


def _told(how: str, words: list[str]) -> str:
    return f"the process {how}" + (f"; its last words: {' | '.join(words)}" if words else "")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
