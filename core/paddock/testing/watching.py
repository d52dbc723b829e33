"""What a process is like around an adapter's calls: what all of it shares, and what is left behind in it.

A vendor's library has the process to itself when it is tried alone; here it shares it with the user's program and
with other vendors' libraries, none of which it may disturb.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import locale
import logging
import os
import random
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil

OWN_SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM", "SIGCHLD", "SIGALRM", "SIGPIPE", "SIGUSR1", "SIGUSR2")
    if hasattr(signal, name)
)
"""Those that belong to the user's program. The others tell of crashes: a library may report them."""


@dataclass(frozen=True)
class State:
    """What the whole process shares, and what the thread that calls has to itself, at one moment.

    `shared` is, by a few words, what is compared and what is said of it where it is another. `random` is the state of
    Python's global random numbers.
    """

    environment: Mapping[str, str]
    shared: Mapping[str, tuple[object, str]]
    random: tuple[Any, ...]

    def changes(self, later: State) -> dict[str, str]:
        """What differs later, by a few words, and how."""
        found: dict[str, str] = {}
        for name in sorted({*self.environment, *later.environment}):
            one, other = self.environment.get(name), later.environment.get(name)
            if one != other:
                found[f"the variable {name}"] = "is gone" if other is None else f"is {other[:60]!r}"
        for name, (before, _) in self.shared.items():
            after, how = later.shared[name]
            if after != before:
                found[name] = how
        if _seeded(self.random, later.random):
            found["Python's global random numbers"] = "are seeded anew"
        return found


def state() -> State:
    """Of this process and this thread, now."""
    status = _status()
    caught = int(status.get("SigCgt", "0"), 16)
    blocked = sorted(signal.Signals(s).name for s in signal.pthread_sigmask(signal.SIG_BLOCK, ()) if s in OWN_SIGNALS)
    drawn: Any = np.random.get_state(legacy=False)
    cores = sorted(os.sched_getaffinity(0))
    rounding = _rounding()
    root = logging.getLogger()
    logs = root.level, root.manager.disable, tuple(root.handlers)
    shared: dict[str, tuple[object, str]] = {
        f"the handler of {s.name}": (f"{signal.getsignal(s)!r} {caught >> (s - 1) & 1}", "is another")
        for s in OWN_SIGNALS
    }
    shared |= {
        "the signals that the thread blocks": (blocked, f"are {', '.join(blocked) or 'none'}"),
        "the current folder": (os.getcwd(), f"is {Path.cwd().name}"),
        "the umask": (status.get("Umask"), f"is {status.get('Umask')}"),
        "the cores that the thread may use": (cores, f"are {', '.join(map(str, cores))}"[:60]),
        "the thread's arithmetic": (rounding, rounding),
        "the locale": (locale.setlocale(locale.LC_ALL), f"is {locale.setlocale(locale.LC_ALL)[:60]}"),
        "NumPy's handling of errors": (np.geterr(), "is another"),
        "NumPy's global random numbers": ((drawn["state"]["pos"], drawn["state"]["key"].tobytes()), "are other ones"),
        "the root logger": (logs, "has another level, or other handlers"),
        "the filters of warnings": (list(warnings.filters), "are other ones"),
        "sys.excepthook": (sys.excepthook, "is another"),
        "the garbage collector": ((gc.isenabled(), gc.get_threshold()), "is off, or has other thresholds"),
    }
    return State({**os.environ, **_own_variables()}, shared, random.getstate())


def _seeded(before: tuple[Any, ...], after: tuple[Any, ...]) -> bool:
    """Whether no drawing leads from one state of `random` to the other: who merely draws disturbs nobody."""
    follower = random.Random()
    follower.setstate(before)
    for _ in range(64):
        if follower.getstate()[1][:-1] == after[1][:-1]:
            return False
        follower.getrandbits(32 * (len(after[1]) - 1))  # as many as make the next state of it
    return True


def _rounding() -> str:
    """How this thread's arithmetic rounds: a mode of the processor's."""
    one, denormal = np.ones(1, np.float32), np.full(1, 1e-40, np.float32)
    if not (denormal * one).view(np.uint32)[0]:
        return "flushes denormal numbers to zero"
    nearest = (one + np.float32(2**-26))[0] == 1 and (one - np.float32(2**-27))[0] == 1
    return "rounds to the nearest" if nearest else "rounds in one direction"


def _status() -> dict[str, str]:
    """What Linux tells of this process."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/self/status").read_text().splitlines()
        return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return {}


def _own_variables() -> dict[str, str]:
    """The environment as C sees it: what a library set there, Python does not know.

    Names that begin with two underscores are a runtime's marks for itself (Intel's OpenMP sets one), read by nobody.
    """
    found: dict[str, str] = {}
    with contextlib.suppress(AttributeError, ValueError, OSError):
        entries = ctypes.POINTER(ctypes.c_char_p).in_dll(ctypes.CDLL(None), "environ")
        position = 0
        while entries and (entry := entries[position]) is not None:
            name, _, value = os.fsdecode(entry).partition("=")
            if not name.startswith("__"):
                found[name] = value
            position += 1
    return found


OPEN, THREADS, CHILDREN, LEFT, SHARED, TOLD = KINDS = (
    "open files",
    "threads",
    "processes",
    "files in the temporary or the current folder (what is removed only at exit counts)",
    "files in /dev/shm",
    "bytes on standard error",
)


@dataclass(frozen=True)
class Kept:
    """What something left behind when it was done again and again: by kind, counted after each third of the times.

    `doubtful`: it went on growing, and was not done often enough to tell a leak from a pool that fills up.
    """

    times: int
    counts: Mapping[str, Sequence[int]] = field(default_factory=dict)
    printed: str = ""
    doubtful: bool = False

    def growing(self, what: str) -> list[str]:
        """What went on growing, in words."""
        return [
            f"{what} {self.times} times leaves {kind}: {', '.join(map(str, counts))} after each third"
            for kind, counts in self.counts.items()
            if _grows(counts)
        ]

    def complaints(self, what: str) -> list[str]:
        """What goes on growing for certain; and whatever was printed to standard output."""
        found = [] if self.doubtful else self.growing(what)
        if self.printed:
            found.append(f"{what} writes to standard output: {self.printed[:60]!r}")
        return found

    def doubts(self, what: str) -> list[str]:
        """What nobody can tell."""
        return [f"that it ends: {text}" for text in self.growing(what)] if self.doubtful else []


def _grows(counts: Sequence[int]) -> bool:
    """Whether every third added to it: what is made once does not."""
    return len(counts) > 2 and all(one < other for one, other in pairwise(counts))


_FILLING, _FILLING_SECONDS = 12, 60.0
"""How many times as often something is done, and for how long at most, before what grew is counted again."""
_ENDING_SECONDS = 3.0
"""For how long what was told to end may take to."""
_LONG_SECONDS = 5.0
"""Where once takes longer than that, it is done three times."""


@dataclass
class Watch:
    """This process with a current and a temporary folder of its own, and with its output caught, in a `with` block."""

    place: Path
    _undo: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def __enter__(self) -> Watch:
        for name in ("tmp", "here"):
            (self.place / name).mkdir(parents=True)
        os.environ["TMPDIR"] = tempfile.tempdir = str(self.place / "tmp")
        before = os.getcwd()
        self._undo.callback(os.chdir, before)
        os.chdir(self.place / "here")
        self._out, self._err = (self._undo.enter_context(caught(number)) for number in (1, 2))
        return self

    def __exit__(self, *error: object) -> None:
        self._undo.close()

    def again(self, times: int, action: Callable[[int], None]) -> Kept:
        """Does it so many times, a multiple of three, and counts what is there after each third.

        What grows may be a pool that fills up, or what was told to end and does so in its own time. So it is done many
        times more, and then again as at first, with time to end after each third; only what still grows is held
        against anybody.
        """
        flushed()
        begun = os.fstat(self._out).st_size
        numbers = count()
        started = time.monotonic()
        action(next(numbers))
        once = time.monotonic() - started
        third = times // 3 if once < _LONG_SECONDS else 1
        counts = [self._after(third - 1, action, numbers), *(self._after(third, action, numbers) for _ in range(2))]
        kept = self._kept(3 * third, counts, begun)
        if not kept.growing(""):
            return kept
        until, filled = time.monotonic() + _FILLING_SECONDS, 0
        while filled < _FILLING * times and time.monotonic() < until:
            action(next(numbers))
            filled += 1
        counts = [self._counted()]
        for _ in range(3):
            counts.append(self._settled(self._after(third, action, numbers), counts[-1]))
        return self._kept(3 * third, counts[1:], begun, doubtful=filled < _FILLING * times)

    def _after(self, times: int, action: Callable[[int], None], numbers: Iterator[int]) -> dict[str, int]:
        for _ in range(times):
            action(next(numbers))
        return self._counted()

    def _settled(self, now: dict[str, int], before: Mapping[str, int]) -> dict[str, int]:
        """The counts once none is more than `before`, or after some seconds.

        Any process of the machine's may write to /dev/shm: what comes there while nothing is done here is not counted.
        """
        until = time.monotonic() + _ENDING_SECONDS
        later = now
        while time.monotonic() < until and any(later[kind] > before[kind] for kind in later if kind in before):
            time.sleep(0.05)
            later = self._counted()
        if later[SHARED] > now[SHARED]:
            later[SHARED] = before[SHARED]
        return later

    def _counted(self) -> dict[str, int]:
        gc.collect()
        flushed()
        children = psutil.Process().children(recursive=True)
        left = sum(1 for name in ("tmp", "here") for path in (self.place / name).rglob("*") if not path.is_dir())
        numbers = (
            _entries("/proc/self/fd"), _entries("/proc/self/task"), len(children), left, _entries("/dev/shm"),
            os.fstat(self._err).st_size,
        )  # fmt: skip
        return dict(zip(KINDS, numbers, strict=True))

    def _kept(self, times: int, counts: Sequence[Mapping[str, int]], begun: int, doubtful: bool = False) -> Kept:
        printed = os.pread(self._out, 1 << 16, begun).decode(errors="replace")
        return Kept(times, {kind: tuple(each[kind] for each in counts) for kind in KINDS}, printed, doubtful)


def _entries(folder: str) -> int:
    try:
        return len(os.listdir(folder))
    except OSError:
        return 0


def flushed() -> None:
    """Everything that Python, or C's standard library, has still to write is written."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).fflush(None)


@contextlib.contextmanager
def caught(number: int) -> Iterator[int]:
    """What anybody writes to the descriptor `number`, by Python or not, as another descriptor to read it from."""
    flushed()
    with tempfile.TemporaryFile() as file:
        kept = os.dup(number)
        os.dup2(file.fileno(), number)
        try:
            yield file.fileno()
        finally:
            flushed()
            os.dup2(kept, number)
            os.close(kept)


def read(descriptor: int) -> str:
    """All that was caught so far."""
    flushed()
    return os.pread(descriptor, 1 << 16, 0).decode(errors="replace")
