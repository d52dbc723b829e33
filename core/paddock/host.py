"""Where sessions live and on which threads they run: in this process, or in a child.

`run` goes straight through on the caller's thread wherever the adapter's declared concurrency allows, because a
hand-over between threads costs more (10 to 45 microseconds) than a small model's whole run.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from paddock.child import DEFAULT_SECONDS, Child
from paddock.device_session import OnDevice, run_there
from paddock.errors import BuildFailed, PaddockError, RunFailed
from paddock.guard import Guard
from paddock.own_thread import OwnThread
from paddock.spi import Adapter, Arrays, Artifact, Context, Device, Observed, ResolvedConfig, Session, Threading
from paddock.staging import Staging

Outputs = dict[str, "np.ndarray[Any, Any]"]

_REENTRANT_PERMITS = 256
"""How many calls may be inside one reentrant session at once, where nothing limits them."""


class ExecutionHost(ABC):
    """Owns the sessions of one deployment."""

    @abstractmethod
    def run(self, feeds: Arrays, outputs: Sequence[str] | None = None) -> Outputs:
        """Runs one request to its end; safe from many threads. Raises `RunFailed`."""

    @abstractmethod
    def observed(self) -> Observed:
        """What really took effect in the sessions."""

    @abstractmethod
    def close(self) -> None:
        """Waits for the requests inside, then frees everything; closing twice is fine."""


class Threads:
    """A host's own threads, on which requests are submitted, and what must hold for any request.

    One thread for each instance: they stay, since a new thread can cost a runtime 0.3 s and 139 MB.
    """

    def __init__(self, count: int, name: str) -> None:
        self._name = name
        self._pid = os.getpid()
        self._own: set[int] = set()
        self._closed = False
        self._pool = ThreadPoolExecutor(
            count, thread_name_prefix=f"paddock {name}", initializer=lambda: self._own.add(threading.get_ident())
        )

    def check(self) -> None:
        """Raises `RunFailed` where no request can be answered any more, or in this process."""
        if self._closed:  # at once: callers that keep coming would keep `close` from ever getting a turn
            raise self.is_closed()
        if os.getpid() != self._pid:
            # A fork has the sessions' memory but none of their threads: a run there would wait for ever.
            raise RunFailed(
                f"the deployment on {self._name} was made in another process", remedy="deploy again after the fork"
            )

    def submit(self, action: Callable[..., Outputs], *args: Any) -> Future[Outputs]:
        """`action(*args)` on one of the threads."""
        self.check()
        try:
            return self._pool.submit(action, *args)
        except RuntimeError:
            raise self.is_closed() from None

    def check_closing(self) -> None:
        """Raises `RunFailed` on one of these threads, which would wait for itself."""
        if threading.get_ident() in self._own:
            raise RunFailed(
                f"the deployment on {self._name} cannot be closed from a callback of its own: it would wait for itself",
                remedy="close it from another thread",
            )

    def close(self) -> None:
        """Waits for what was submitted; twice is fine."""
        self._closed = True
        self._pool.shutdown(wait=True)

    def is_closed(self) -> RunFailed:
        """The error of whoever comes too late."""
        return RunFailed(f"the deployment on {self._name} is closed")


class ServingHost(ExecutionHost):
    """A host that requests are served from."""

    @abstractmethod
    def run(self, feeds: Arrays, outputs: Sequence[str] | None = None, into: Arrays | None = None) -> Outputs:
        """One request; with `into` (never empty), only the outputs that it names, written into these arrays."""

    @abstractmethod
    def submit(
        self, feeds: Arrays, outputs: Sequence[str] | None = None, into: Arrays | None = None
    ) -> Future[Outputs]:
        """`run` on one of the host's own threads."""

    @abstractmethod
    def check_closing(self) -> None:
        """Raises `RunFailed` where `close` would wait for its own caller."""

    @abstractmethod
    def run_on(self, instance: int, feeds: Arrays, into: Arrays | None = None) -> Outputs:
        """`run` on one given instance, whoever else uses it: for checking each, and for whoever shares them out."""

    guard: Guard | None = None
    """What is known of the processes that its sessions are isolated in, where any is."""
    staging: Staging | None = None
    """What makes requests dense once they are inside; what is run by `run_on` has to be."""

    @property
    @abstractmethod
    def writes(self) -> bool:
        """Whether a session has a `run_into` of its own, whose numbers are not those of its `run` by construction."""


class InProcessHost(ServingHost):
    """Sessions in this process.

    Args:
        load: Makes a session; called once, and again for each further instance that cannot be forked.
        threading_kind: The adapter's declared threading.
        instances: How many sessions serve in parallel.
        name: The adapter's name; errors carry it.
        inside: How many calls may be inside one reentrant session at once, 256 by default; where memory is limited it
            has to be 1, since what a session takes is known for one call. Any other session takes one at a time.
    """

    def __init__(
        self,
        load: Callable[[], Session],
        threading_kind: Threading,
        instances: int,
        name: str,
        *,
        inside: int | None = None,
    ) -> None:
        self._name = name
        self._threading = threading_kind
        self._home = threading.get_ident()
        self._free: queue.SimpleQueue[Session | None] = queue.SimpleQueue()
        self._threads = Threads(instances, name)
        self._closing = threading.Lock()
        self._bound = threading_kind is Threading.BOUND
        self._sessions: list[Session] = []
        self._owners: dict[int, OwnThread] = {}
        self._owner_threads: list[OwnThread] = []
        self._permits = 0
        self._ended = False
        try:
            for _ in range(instances):
                self._add(load)
        except BaseException:
            # What went wrong is this error, whatever else fails while the sessions made so far are closed.
            with contextlib.suppress(RunFailed):
                self.close()
            raise
        permits = 1
        if threading_kind is Threading.REENTRANT:
            permits = _REENTRANT_PERMITS if inside is None else inside
        for _ in range(permits):  # in turns, so that as few as can be meet in one session
            for session in self._sessions:
                self._free.put(session)
        self._permits = permits * instances

    def run(self, feeds: Arrays, outputs: Sequence[str] | None = None, into: Arrays | None = None) -> Outputs:
        self._threads.check()
        if self._threading is Threading.HOME and threading.get_ident() != self._home:
            return self._threads.submit(self._run, feeds, outputs, into).result()
        return self._run(feeds, outputs, into)

    def submit(
        self, feeds: Arrays, outputs: Sequence[str] | None = None, into: Arrays | None = None
    ) -> Future[Outputs]:
        return self._threads.submit(self._run, feeds, outputs, into)

    def run_on(self, instance: int, feeds: Arrays, into: Arrays | None = None) -> Outputs:
        session = self._sessions[instance]
        try:
            found: Outputs = self._on_owner(session, lambda: _run_session(session, feeds, None, into))
        except PaddockError:
            raise
        except Exception as error:
            raise RunFailed(f"{self._name} failed while running: {first_line(error)}") from error
        return found

    @property
    def writes(self) -> bool:
        return any(getattr(session.run_into, "__func__", None) is not Session.run_into for session in self._sessions)

    def bind(self, instance: int, buffers: Arrays) -> frozenset[str]:
        """`Session.bind` of one instance, on its own thread; raises `BuildFailed` for what its SDK raises."""
        session = self._sessions[instance]
        found: object = self._on_owner(
            session, lambda: building(f"{self._name}: binding buffers", lambda: session.bind(buffers))
        )
        if not isinstance(found, (set, frozenset)) or not found <= buffers.keys():
            raise BuildFailed(f"{self._name}: bind() returned {ascii(found)[:60]}, not a set of the names it was given")
        return frozenset(found)

    def observed(self) -> Observed:
        found: Observed = self._on_owner(self._sessions[0], self._sessions[0].observed)
        return found

    def check_closing(self) -> None:
        self._threads.check_closing()

    def close(self) -> None:
        self.check_closing()
        with self._closing:  # a second caller returns when the first is done
            if self._ended:
                return
            self._threads.close()
            while self._permits:  # counted down, so that who was interrupted here can go on with closing
                self._free.get()  # each call inside gives its permit back when it is done
                self._permits -= 1
            self._ended = True
            self._free.put(None)  # whoever waits, or comes later, finds this
            failed: Exception | None = None
            for session in self._sessions:
                try:
                    self._on_owner(session, session.close)
                except Exception as error:
                    failed = failed or error  # the others are closed all the same
            for owner in self._owner_threads:
                owner.shutdown()
        if failed is not None:
            raise RunFailed(f"{self._name} failed while closing: {first_line(failed)}") from failed

    def _run(self, feeds: Arrays, outputs: Sequence[str] | None, into: Arrays | None) -> Outputs:
        session = self._free.get()
        if session is None:
            self._free.put(None)
            raise self._threads.is_closed()
        try:
            if self.staging is None:
                return self._inside(session, feeds, outputs, into)
            return self.staging.run(feeds, lambda dense: self._inside(session, dense, outputs, into))
        except PaddockError:
            raise
        except Exception as error:
            raise RunFailed(f"{self._name} failed while running: {first_line(error)}") from error
        finally:
            self._free.put(session)

    def _inside(self, session: Session, feeds: Arrays, outputs: Sequence[str] | None, into: Arrays | None) -> Outputs:
        if self._bound:
            found: Outputs = self._owners[id(session)].call(_run_session, session, feeds, outputs, into)
            return found
        return _run_session(session, feeds, outputs, into)

    def _add(self, load: Callable[[], Session]) -> None:
        first = self._sessions[0] if self._sessions else None
        if not self._bound:
            fork = first.fork() if first is not None else None
            self._sessions.append(fork if fork is not None else load())
            return
        owner = OwnThread(f"paddock {self._name} bound")
        self._owner_threads.append(owner)
        session = owner.call(load)
        self._sessions.append(session)
        self._owners[id(session)] = owner

    def _on_owner(self, session: Session, action: Callable[[], Any]) -> Any:
        owner = self._owners.get(id(session))
        return owner.call(action) if owner is not None else action()


def _run_session(session: Session, feeds: Arrays, outputs: Sequence[str] | None, into: Arrays | None) -> Outputs:
    if isinstance(feeds, OnDevice):
        return run_there(session, feeds, outputs)
    if into is None:
        return session.run(feeds, outputs)
    session.run_into(feeds, into)
    return dict(into)


class ChildHost(ExecutionHost):
    """One session in a child process: for references and first tries, where a crash must not end this process.

    The child is the caller's, who closes it; `close` here ends only the session.
    """

    def __init__(
        self,
        child: Child,
        adapter: type[Adapter],
        config: ResolvedConfig,
        device: Device | None,
        artifact: Artifact,
        context: Context,
        seconds: float = DEFAULT_SECONDS,
    ) -> None:
        self._child = child
        self._seconds = seconds
        self._handle: str | None = child.call(
            _load_here, adapter, config, device, artifact, context.work, context.cache, seconds=seconds
        )

    def limit(self, seconds: float) -> None:
        """How long one run may take from now on; a longer one ends the child with `ChildFailed`."""
        self._seconds = seconds

    def run(self, feeds: Arrays, outputs: Sequence[str] | None = None) -> Outputs:
        return self._child.call(_run_here, self._handle, dict(feeds), outputs, seconds=self._seconds)

    def observed(self) -> Observed:
        return self._child.call(_observed_here, self._handle)

    def close(self) -> None:
        handle, self._handle = self._handle, None
        if handle is not None:
            self._child.call(_close_here, handle)


def first_line(error: BaseException) -> str:
    """The first non-empty line of an SDK's message, with the error's type."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def building(what: str, action: Callable[[], Any]) -> Any:
    """`action()`, with whatever an SDK raises turned into `BuildFailed`."""
    try:
        return action()
    except PaddockError:
        raise
    except Exception as error:
        raise BuildFailed(f"{what} failed: {first_line(error)}") from error


_SESSIONS: dict[str, tuple[Session, OwnThread | None]] = {}
"""In a child: the sessions that its parent holds handles to, each with its thread where it is bound to one.

No handle is ever used again, in this process or in the one that takes its place after a crash.
"""


def _load_here(
    adapter: type[Adapter], config: ResolvedConfig, device: Device | None, artifact: Artifact, work: Any, cache: Any
) -> str:
    bound = adapter.concurrency.threading is Threading.BOUND
    thread = OwnThread(f"paddock {adapter.name()} bound") if bound else None

    def load() -> object:
        return adapter(config, device).load(artifact, Context(work, cache))

    session = thread.call(load) if thread is not None else load()
    if not isinstance(session, Session):
        raise BuildFailed(f"load() returned a {type(session).__name__}, not a Session")
    handle = uuid.uuid4().hex
    _SESSIONS[handle] = session, thread
    return handle


def _on_thread(handle: str | None, action: Callable[[Session], Any]) -> Any:
    if handle not in _SESSIONS:
        raise RunFailed("the session is closed, or ended with its process")
    session, thread = _SESSIONS[handle]
    return thread.call(action, session) if thread is not None else action(session)


def _run_here(handle: str | None, feeds: Arrays, outputs: Sequence[str] | None) -> Outputs:
    found: Outputs = _on_thread(handle, lambda session: session.run(feeds, outputs))
    return found


def _observed_here(handle: str | None) -> Observed:
    found: Observed = _on_thread(handle, lambda session: session.observed())
    return found


def _close_here(handle: str) -> None:
    if handle in _SESSIONS:  # it is not where it ended with its process
        _on_thread(handle, lambda session: session.close())
        thread = _SESSIONS.pop(handle)[1]
        if thread is not None:
            thread.shutdown()
