"""What is known of the processes that sessions are isolated in: how often they were lost, who answered meanwhile."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from paddock.errors import RunFailed

_log = logging.getLogger("paddock.isolation")


@dataclass(frozen=True)
class Isolation:
    """How a deployment's isolated sessions are."""

    processes: tuple[int, ...]
    """The ids of the processes that serve now, one for each isolated session that is up."""
    restarts: int
    """How often one was lost and took up its work again."""
    rescued: int
    """How many requests `rescue` answered."""
    down: tuple[str, ...]
    """Of each session that is not taken up again, why."""
    error: str | None
    """How the last one that was lost ended."""


class Guard:
    """Counts for one deployment; safe from many threads, and told by them."""

    def __init__(self) -> None:
        self.patient = True
        """Whether requests wait for a process to be back; not where somebody else answers them at once."""
        self.own: set[int] = set()
        """The threads that start processes: whoever waits for them must not be one of them."""
        self._tell: Callable[[str, Mapping[str, Any]], None] = lambda kind, facts: None
        self._lock = threading.Lock()
        self._processes: dict[object, int] = {}
        self._restarts = self._rescued = 0
        self._down: tuple[str, ...] = ()
        self._error: str | None = None

    def listen(self, tell: Callable[[str, Mapping[str, Any]], None]) -> None:
        """Has `tell(kind, facts)` called for each event from now on: "child" (lost, back, down) and "rescued"."""
        self._tell = tell

    @property
    def status(self) -> Isolation:
        """How things are."""
        with self._lock:
            processes = tuple(self._processes.values())
            return Isolation(processes, self._restarts, self._rescued, self._down, self._error)

    def begins(self, who: object, pid: int) -> None:
        """A session's process is there."""
        with self._lock:
            self._processes[who] = pid

    def ends(self, who: object) -> None:
        """It is not there any more; twice is fine."""
        with self._lock:
            self._processes.pop(who, None)

    def back(self, name: str, seconds: float) -> None:
        """A process serves again, so long after it was lost."""
        with self._lock:
            self._restarts += 1
        _log.info("%s: its process is back after %.2f s", name, seconds)
        self._tell("child", {"adapter": name, "state": "back", "seconds": seconds})

    def lost(self, name: str, reason: str) -> None:
        """A process ended without being asked to."""
        with self._lock:
            self._error = f"{name}: {reason}"
        _log.warning("%s is started anew: %s", name, reason)
        self._tell("child", {"adapter": name, "state": "lost", "reason": reason})

    def gave_up(self, name: str, reason: str) -> None:
        """A process is not started any more."""
        with self._lock:
            self._down = (*self._down, f"{name}: {reason}")
        _log.error("%s stays down: %s", name, reason)
        self._tell("child", {"adapter": name, "state": "down", "reason": reason})

    def closing(self, name: str, reason: str) -> None:
        """A process had ended before it could be asked to close its session, or while it did: nothing is left open."""
        _log.warning("%s: while closing, %s", name, reason)

    def rescued(self, adapter: str, reason: str) -> None:
        """A request was answered by another adapter."""
        with self._lock:
            self._rescued += 1
        self._tell("rescued", {"adapter": adapter, "reason": reason})

    def check_waiting(self) -> None:
        """Raises `RunFailed` on one of the threads that start processes: a request there would wait for itself."""
        if threading.get_ident() in self.own:
            raise RunFailed(
                "who hears of a session's process cannot have it answer: it is started anew by this very thread",
                remedy="make requests from another thread",
            )

    def check_closing(self) -> None:
        """Raises `RunFailed` on one of the threads that closing waits for."""
        if threading.get_ident() in self.own:
            raise RunFailed(
                "the deployment cannot be closed by who hears of its processes: it would wait for itself",
                remedy="close it from another thread",
            )
