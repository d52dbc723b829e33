"""A session in a process of its own: what goes wrong there ends that process, which is started anew, and nothing else.

`Ward` is what a host runs. A `_Keeper` has one thread that starts the process, waits for its end, and starts the next.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from paddock import wire
from paddock.errors import BuildFailed, ChildFailed, ChildLost, PaddockError, RunFailed
from paddock.guard import Guard
from paddock.line import Gone, Late, Line, Outputs, Untouched
from paddock.shared import Shared
from paddock.spawned import Spawned
from paddock.spi import Arrays, Observed, Session

TIMEOUT = 300.0
"""Seconds for one request where the config states none."""
LOADING = 600.0
"""Seconds that loading a session may take."""
TRIES = 3
"""How often in a row a process is started that does not come up, or ends by itself within `_SETTLING` seconds."""
_SETTLING = 5.0
_PAUSE = 1.0
"""Seconds between two such tries."""
_TRIM = 60.0
"""Seconds between two looks at how much a process has printed."""


class Spares:
    """An interpreter that stands ready for whichever of several sessions loses its process first.

    Args:
        prepare: What it does in advance, such as importing a runtime; pickles.
    """

    def __init__(self, prepare: Callable[[], object]) -> None:
        self._prepare = pickle.dumps(prepare)
        self._lock = threading.Lock()
        self._users = 0
        self._ready: Spawned | None = None

    def join(self) -> None:
        """One more session may need it."""
        with self._lock:
            self._users += 1

    def leave(self) -> None:
        """One session fewer; with the last one it ends."""
        with self._lock:
            self._users -= 1
            last, self._ready = (None, self._ready) if self._users else (self._ready, None)
        if last is not None:
            last.end(kill=True)

    def take(self) -> Spawned:
        """A process for a session: the one that stands ready, or a new one; raises OSError."""
        with self._lock:
            ready, self._ready = self._ready, None
        if ready is not None and ready.process.poll() is None:
            return ready
        if ready is not None:
            ready.end(kill=True)
        return Spawned("paddock.attendant", "attend")

    def refill(self) -> None:
        """Starts one where none stands ready; that it cannot be is told by whoever needs it then."""
        with self._lock, contextlib.suppress(OSError):
            if self._users and self._ready is None:
                fresh = Spawned("paddock.attendant", "attend")
                self._ready = fresh
                wire.send(fresh.socket, wire.PREPARE, 0, self._prepare)


class Ward(Session):
    """A session of a process of its own.

    Args:
        name: The adapter's, or the segment's; errors carry it.
        load: Makes the session, in that process; pickles.
        guard: Told what happens.
        spares: Where processes come from.
        seconds: How long one request may take there, or wait for a process to be back.

    Raises what `load` does, and `ChildFailed` where the process could not be started, crashed or hung meanwhile.
    """

    def __init__(
        self, name: str, load: Callable[[], Session], guard: Guard, spares: Spares, seconds: float = TIMEOUT
    ) -> None:
        self._name = name
        self._seconds = seconds
        self._closing = threading.Lock()
        self._keeper = _Keeper(name, load, guard, spares, seconds)
        # Where it is dropped without `close`, or the interpreter ends, nobody waits.
        self._dropped = weakref.finalize(self, self._keeper.abandon)
        try:
            self._keeper.start()
        except BaseException:
            self._dropped.detach()
            self._keeper.close()
            raise

    def run(self, feeds: Arrays, outputs: Sequence[str] | None = None) -> Outputs:
        """See `Session.run`; raises `ChildLost` where the process ends, hangs or runs out of memory meanwhile."""
        found: Outputs = self._inside(lambda line: line.run(feeds, outputs))
        return found

    def run_into(self, feeds: Arrays, into: Arrays) -> None:
        """See `Session.run_into`."""
        self._inside(lambda line: line.run_into(feeds, into))

    def observed(self) -> Observed:
        """What the session there tells, and that it is isolated."""
        found: Observed = self._inside(lambda line: line.ask(wire.OBSERVE))
        return replace(found, settings={**found.settings, "isolation": "process"})

    def close(self) -> None:
        """Closes the session there, and ends its process."""
        with self._closing:  # who was interrupted here can go on with closing
            if self._dropped.alive:
                self._keeper.close()
                self._dropped.detach()

    def _inside(self, action: Callable[[Line], Any]) -> Any:
        """`action` with the process, waiting for it where it is being started anew."""
        until, untouched = time.monotonic() + self._seconds, 0
        while untouched < TRIES:
            line = self._keeper.line or self._keeper.wait(until)
            with line.turn:
                if line.fate:
                    self._keeper.noticed(line)
                    continue
                try:
                    return action(line)
                except Untouched:  # it ended before: this request goes to the next one
                    self._keeper.noticed(line)
                    untouched += 1
                except Gone as gone:
                    self._keeper.noticed(line)
                    raise ChildLost(f"{self._name}: {line.fate}", remedy=gone.remedy) from None
                finally:
                    if line.busy and not line.fate:
                        # Interrupted: the answer that is still to come must not be taken for the next call's.
                        line.fate = "the process was ended with the call that was interrupted"
                        line.process.end(kill=True)
                        self._keeper.noticed(line)
        raise ChildLost(f"{self._name}: {line.fate}, {TRIES} times before it took the request", remedy=Gone.remedy)


class _Keeper:
    """What a ward and its thread share: the process that serves, or why there is none."""

    def __init__(self, name: str, load: Callable[[], Session], guard: Guard, spares: Spares, seconds: float) -> None:
        self.line: Line | None = None
        self._name, self._load, self._guard, self._spares, self._seconds = name, load, guard, spares, seconds
        self._shared = Shared()
        self._changed = threading.Condition()
        self._since = 0.0
        self._trouble = ""
        self._ended = False
        self._down: PaddockError | None = None
        self._starting: Spawned | None = None
        self._pid = os.getpid()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._waking = threading.RLock()  # one that a thread can take twice: garbage is collected anywhere
        # A daemon, or the interpreter would wait for it before anything could tell it to end.
        self._thread = threading.Thread(target=self._work, name=f"paddock {name} keeper", daemon=True)

    def start(self) -> None:
        """Returns once the first process serves; raises why it does not."""
        self._spares.join()
        self._thread.start()
        with self._changed:
            self._changed.wait_for(lambda: self.line is not None or self._down is not None)
            if self._down is not None:
                raise self._down

    def wait(self, until: float) -> Line:
        """The process that serves, waited for until that time (`time.monotonic`) where requests are to wait.

        But not longer than a request may take since it was lost: of many that come meanwhile each would wait its turn.
        Raises `ChildLost` where there is none.
        """
        with self._changed:
            while self.line is None:
                if self._ended:
                    raise RunFailed(f"{self._name} is closed")
                if self._down is not None:
                    raise ChildLost(f"{self._name} stays down: {self._down.problem}", remedy=Gone.remedy)
                if not self._guard.patient:
                    raise ChildLost(f"{self._name}: its process is being started anew")
                self._guard.check_waiting()
                left = min(until, self._since + self._seconds) - time.monotonic()
                if left <= 0:
                    late = f"{self._name}: its process was not back in {self._seconds:g} s{self._trouble}"
                    raise ChildLost(late, remedy=Late.remedy)
                self._changed.wait(left)
            return self.line

    def noticed(self, line: Line) -> None:
        """Somebody saw that this process is no more."""
        with self._changed:
            if self.line is line:
                self.line, self._since = None, time.monotonic()
                self._guard.ends(self)

    def close(self) -> None:
        """Closes the session, ends the process and waits for the thread; raises what closing the session did.

        A process that has ended needs no closing: that is logged, no error.
        """
        failed: Exception | None = None
        self._ended, line = True, self.line
        if line is not None and os.getpid() == self._pid:
            with line.turn:
                if not line.fate:
                    try:
                        line.close()
                    except (Gone, Untouched):
                        self._guard.closing(self._name, line.fate)
                    except Exception as error:
                        failed = error
        self.abandon()
        if self._thread.ident is None:
            self._free()
        elif self._thread is not threading.current_thread():
            self._thread.join()
        if failed is not None:
            raise failed

    def abandon(self) -> None:
        """Has the process end at once, without waiting for anything: garbage collection may call it."""
        if os.getpid() != self._pid:
            return  # a fork has neither the thread nor the right to end its parent's process
        self._ended = True
        for process in (self._starting, self.line.process if self.line is not None else None):
            if process is not None:
                process.kill()
        with self._waking:
            if self._wake >= 0:
                os.eventfd_write(self._wake, 1)

    def _work(self) -> None:
        self._guard.own.add(threading.get_ident())
        try:
            try:
                self._serve()
            except BaseException as error:  # nobody foresaw it: whoever waits must not do so for ever
                failed = BuildFailed(f"{self._name}: internal error: {error!r}", remedy="please report this")
                with contextlib.suppress(BaseException):
                    self._stay_down(failed, told=True)
            with self._changed:
                self._changed.notify_all()
            _waited(self._wake)  # whoever wrote there, nobody will any more
        finally:
            self._guard.own.discard(threading.get_ident())
            self._free()

    def _free(self) -> None:
        self._guard.ends(self)
        self._spares.leave()
        self._shared.close()
        with self._waking:
            wake, self._wake = self._wake, -1
        if wake >= 0:
            os.close(wake)

    def _serve(self) -> None:
        """Returns when this is to end, or no process is started any more."""
        failures, lost = 0, None
        while not self._ended:
            try:
                line = self._started()
            except OSError as error:
                self._trouble = f": it could not be started: {error}"
                if lost is None:
                    return self._stay_down(ChildFailed(self._trouble[2:], where=self._name), told=False)
                _waited(self._wake, seconds=_PAUSE)  # what this host lacks now it may have then
                continue
            except PaddockError as error:
                failures += 1
                if lost is None or failures >= TRIES:
                    return self._stay_down(error, told=lost is not None)
                self._trouble = f": {error.problem}"
                _waited(self._wake, seconds=_PAUSE)
                continue
            begun = time.monotonic()
            self._guard.begins(self, line.process.pid)
            with self._changed:
                self.line = line
                self._changed.notify_all()
            if lost is not None:
                self._guard.back(self._name, begun - lost)
            self._spares.refill()
            self._watch(line)
            lost = time.monotonic()
            reason, used = self._buried(line)
            if self._ended:
                return None
            self._guard.lost(self._name, reason)
            # Requests may end it as often as they like: each is told. By itself it may not.
            failures = failures + 1 if not used and lost - begun < _SETTLING else 0
            if failures >= TRIES:
                failed = ChildFailed(f"it ended by itself {failures} times in a row: {reason}")
                return self._stay_down(failed, told=True)
        return None

    def _started(self) -> Line:
        """A process that has loaded the session; raises why there is none, OSError where it cannot be started."""
        try:
            self._starting = process = self._spares.take()
            line = Line(process, self._shared, self._seconds)
        except OSError:
            if self._starting is not None:
                self._starting.end(kill=True)
                self._starting = None
            raise
        try:
            if self._ended:
                raise Gone("it is closed")
            line.load(self._load, LOADING)
            return line
        except (Gone, Untouched) as error:
            self._give_back(line)
            raise ChildFailed(str(error), where=self._name) from None
        except PaddockError:
            self._give_back(line)
            raise
        except Exception as error:
            self._give_back(line)
            raise BuildFailed(f"{self._name}: loading failed: {type(error).__name__}: {error}") from error
        finally:
            self._starting = None

    def _give_back(self, line: Line) -> None:
        line.process.end(kill=True)
        os.close(line.pidfd)

    def _watch(self, line: Line) -> None:
        """Returns when the process has ended, or is to."""
        while not _waited(line.pidfd, self._wake, seconds=_TRIM):
            line.process.trim()

    def _buried(self, line: Line) -> tuple[str, bool]:
        """How a process ended, and whether it had any request before; frees what it had."""
        self.noticed(line)
        if self._ended:
            line.process.kill()
        line.process.hang_up()  # what it has started may hold its end of the connection
        with line.turn:  # whoever is inside sees its end as well, and is out at once
            used = line.busy or line.answered
            if not line.fate:
                line.fate = line.process.post_mortem()
            self._give_back(line)
        return line.fate, used

    def _stay_down(self, error: PaddockError, told: bool) -> None:
        with self._changed:
            self._down = error
            self._changed.notify_all()
        if told and not self._ended:
            self._guard.gave_up(self._name, error.problem)


def _waited(*fds: int, seconds: float | None = None) -> bool:
    """Whether one of them is readable, waited for so long."""
    poll = select.poll()
    for fd in fds:
        poll.register(fd, select.POLLIN)
    return bool(poll.poll(None if seconds is None else seconds * 1000))
