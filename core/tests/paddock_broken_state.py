"""More adapters that do to the process what no library may: what a process has beside its environment and its files.

Importable by child processes under this name, and made as those of `paddock_broken_process` are.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import functools
import gc
import locale
import logging
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from typing import ClassVar

from paddock.model import Model
from paddock.plan import Verdict
from paddock.spi import Arrays, Artifact, Context, Probe, SegmentPlan
from paddock_broken import GoodAdapter, GoodSession, Outputs
from pydantic import BaseModel

STATE: list[type[GoodAdapter]] = []


class Disturbs(GoodAdapter):
    """What each session does when it is loaded; in those below."""

    caught_by: ClassVar[tuple[str, ...]] = ("process.undisturbed",)

    class Kind(GoodSession):
        def __init__(self, artifact: Artifact, options: BaseModel) -> None:
            super().__init__(artifact, options)
            self.disturb()

        def disturb(self) -> None:
            """Nothing yet."""

    def __init_subclass__(cls) -> None:
        STATE.append(cls)


class BlocksSignals(Disturbs):
    """For its workers' sake, and does not unblock them: Ctrl-C does nothing any more."""

    class Kind(Disturbs.Kind):
        def disturb(self) -> None:
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})


class IgnoresSignals(Disturbs):
    """A signal that is ignored stays so in what the process starts."""

    class Kind(Disturbs.Kind):
        def disturb(self) -> None:
            signal.signal(signal.SIGINT, signal.SIG_IGN)


class RoundsUp(Disturbs):
    """Leaves the thread's arithmetic in another mode."""

    class Kind(Disturbs.Kind):
        def disturb(self) -> None:
            upwards = 0x400000 if os.uname().machine == "aarch64" else 0x800
            ctypes.CDLL(ctypes.util.find_library("m")).fesetround(upwards)


class TakesOneCore(Disturbs):
    """Pins the caller's thread."""

    class Kind(Disturbs.Kind):
        def disturb(self) -> None:
            os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


class OpensTheUmask(Disturbs):
    """What the user's program writes then, anybody may."""

    class Kind(Disturbs.Kind):
        def disturb(self) -> None:
            os.umask(0)


class SpeaksC(Disturbs):
    """Sets the locale of the whole process."""

    class Kind(Disturbs.Kind):
        def disturb(self) -> None:
            locale.setlocale(locale.LC_ALL, "C.UTF-8" if locale.setlocale(locale.LC_CTYPE) == "C" else "C")


class SeedsPython(Disturbs):
    """Seeds the generator that the user's program draws from."""

    class Kind(Disturbs.Kind):
        def disturb(self) -> None:
            random.seed(0)


class ConfiguresLogging(Disturbs):
    """As if the program were its own."""

    class Kind(Disturbs.Kind):
        def disturb(self) -> None:
            logging.basicConfig(level=logging.ERROR, force=True)


class SilencesWarnings(Disturbs):
    """Everybody's."""

    class Kind(Disturbs.Kind):
        def disturb(self) -> None:
            warnings.simplefilter("ignore")


class StopsCollecting(Disturbs):
    """For the sake of its latency."""

    class Kind(Disturbs.Kind):
        def disturb(self) -> None:
            gc.disable()


class PrintsInC(Disturbs):
    """C's standard library keeps it until the end where nobody asks for it."""

    class Kind(Disturbs.Kind):
        def disturb(self) -> None:
            ctypes.CDLL(None).printf(b"[acme] runtime 1.2\n")


class SetsVariablesInCompile(Disturbs):
    """The first compilation of a run is not the one that is watched."""

    def compile(self, model: Model, plan: SegmentPlan, context: Context) -> Artifact:
        os.environ["ACME_COMPILED"] = "1"
        return super().compile(model, plan, context)


class LeavesProcesses(Disturbs):
    """Each session has a server, which lives on."""

    caught_by: ClassVar[tuple[str, ...]] = ("process.nothing_kept",)

    class Kind(Disturbs.Kind):
        def disturb(self) -> None:
            server = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(200)"])
            server.returncode = 0


class LeavesSharedMemory(Disturbs):
    """Each session leaves a file there."""

    caught_by: ClassVar[tuple[str, ...]] = ("process.nothing_kept",)

    class Kind(Disturbs.Kind):
        def disturb(self) -> None:
            os.close(tempfile.mkstemp(prefix=f"paddock-test-{os.getpid()}-", dir="/dev/shm")[0])


@functools.cache
def _asked() -> None:
    time.sleep(1.5)


class SlowFirstProbe(Disturbs):
    """A command asks once in each process."""

    caught_by: ClassVar[tuple[str, ...]] = ("contract.probe",)

    @classmethod
    def probe(cls) -> Probe:
        _asked()
        return Probe(Verdict.yes("found"), {})


class ProbeLoadsALibrary(Disturbs):
    """In the place of a driver: some library that Python has not loaded."""

    caught_by: ClassVar[tuple[str, ...]] = ("contract.probe",)

    @classmethod
    def probe(cls) -> Probe:
        ctypes.CDLL("libutil.so.1" if os.path.exists("/lib/x86_64-linux-gnu/libutil.so.1") else "libanl.so.1")
        return Probe(Verdict.yes("found"), {})


class RepeatsItself(Disturbs):
    """Keeps a record of each run, 3 KB, and none is ever dropped."""

    caught_by: ClassVar[tuple[str, ...]] = ("soak.kept",)

    class Kind(Disturbs.Kind):
        history: list[bytearray]

        def disturb(self) -> None:
            self.history = []

        def compute(self, feeds: Arrays, names: Sequence[str]) -> Outputs:
            self.history.append(bytearray(3000))
            return super().compute(feeds, names)
