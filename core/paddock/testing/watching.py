"""What a process is like around an adapter's calls: environment, folder, signals, output, open files, threads.

A vendor's library has the process to itself when it is tried alone; here it shares it with the user's program and
with other vendors' libraries, none of which it may disturb.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

OWN_SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM", "SIGCHLD", "SIGALRM", "SIGPIPE", "SIGUSR1", "SIGUSR2")
    if hasattr(signal, name)
)
"""Those that belong to the user's program. The others tell of crashes: a library may report them."""


@dataclass(frozen=True)
class State:
    """What the whole process shares, at one moment."""

    environment: Mapping[str, str]
    folder: str
    handlers: Mapping[str, str]
    numpy: str

    def changes(self, later: State) -> dict[str, str]:
        """What differs later, by a few words, and how."""
        found: dict[str, str] = {}
        for name in sorted({*self.environment, *later.environment}):
            one, other = self.environment.get(name), later.environment.get(name)
            if one != other:
                found[f"the variable {name}"] = "is gone" if other is None else f"is {other[:60]!r}"
        for name, handler in self.handlers.items():
            if later.handlers[name] != handler:
                found[f"the handler of {name}"] = "is another"
        if later.folder != self.folder:
            found["the current folder"] = f"is {Path(later.folder).name}"
        if later.numpy != self.numpy:
            found["NumPy's handling of errors, or its global random numbers"] = "are other ones"
        return found


def state() -> State:
    """Of this process, now."""
    caught = _caught()
    handlers = {s.name: f"{signal.getsignal(s)!r} {caught >> (s - 1) & 1}" for s in OWN_SIGNALS}
    drawn: Any = np.random.get_state(legacy=False)
    numbers = f"{sorted(np.geterr().items())} {drawn['state']['pos']} {hash(drawn['state']['key'].tobytes())}"
    return State({**os.environ, **_own_variables()}, os.getcwd(), handlers, numbers)


def _caught() -> int:
    """The signals that have a handler, also one of a library's, as bits."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("SigCgt:"):
                return int(line.partition(":")[2], 16)
    return 0


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


@dataclass(frozen=True)
class Kept:
    """What something left behind when it was done again and again, counted after each third of the times."""

    times: int
    files: Sequence[int] = ()
    threads: Sequence[int] = ()
    leftovers: Sequence[int] = ()
    told: Sequence[int] = ()
    printed: str = ""

    def complaints(self, what: str) -> list[str]:
        """What goes on growing, in words; and whatever was printed to standard output."""
        kinds = {
            "open files": self.files,
            "threads": self.threads,
            "files in the temporary or the current folder": self.leftovers,
            "bytes on standard error": self.told,
        }
        found = [
            f"{what} {self.times} times leaves {kind}: {', '.join(map(str, counts))} after each third"
            for kind, counts in kinds.items()
            if _grows(counts)
        ]
        if self.printed:
            found.append(f"{what} writes to standard output: {self.printed[:60]!r}")
        return found


def _grows(counts: Sequence[int]) -> bool:
    """Whether every third added to it: what is made once, and pools that fill up, do not."""
    return len(counts) > 2 and all(one < other for one, other in pairwise(counts))


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
        """Does it so many times, a multiple of three, and counts what is there after each third."""
        flushed()
        begun = os.fstat(self._out).st_size
        counts: list[tuple[int, int, int, int]] = []
        for number in range(times):
            action(number)
            if (number + 1) % (times // 3) == 0:
                gc.collect()
                flushed()
                counts.append(
                    (_entries("fd"), _entries("task"), self._leftovers(), os.fstat(self._err).st_size)
                )  # fmt: skip
        files, threads, leftovers, told = zip(*counts, strict=True)
        printed = os.pread(self._out, 1 << 16, begun).decode(errors="replace")
        return Kept(times, files, threads, leftovers, told, printed)

    def _leftovers(self) -> int:
        return sum(1 for name in ("tmp", "here") for path in (self.place / name).rglob("*") if not path.is_dir())


def _entries(of: str) -> int:
    try:
        return len(os.listdir(f"/proc/self/{of}"))
    except OSError:
        return 0


def flushed() -> None:
    """Everything that Python has still to write is written."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()


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
