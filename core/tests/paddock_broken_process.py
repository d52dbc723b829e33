"""Adapters whose numbers are right and who do to the process what no library may.

Importable by child processes under this name. As in `paddock_broken`, each names the checks that find it out.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from paddock.model import Model
from paddock.plan import Precision, Verdict
from paddock.spi import Arrays, Artifact, Context, Device, Devices, Probe, SegmentPlan, Session
from paddock_broken import GoodAdapter, GoodSession, Options, Outputs
from pydantic import BaseModel

RUDE: list[type[GoodAdapter]] = []
_HELD: list[Any] = []


def rude(*caught_by: str) -> Any:
    """Registers a broken adapter, with the checks of which one has to find it out."""

    def register(adapter: type[GoodAdapter]) -> type[GoodAdapter]:
        adapter.caught_by = caught_by
        RUDE.append(adapter)
        return adapter

    return register


@rude("process.undisturbed")
class PrintsInRun(GoodAdapter):
    """A line on standard output for each run, past Python."""

    class Kind(GoodSession):
        def compute(self, feeds: Arrays, names: Sequence[str]) -> Outputs:
            os.write(1, b"[acme] enqueued\n")
            return super().compute(feeds, names)


@rude("process.nothing_kept")
class GrumblesInRun(GoodAdapter):
    """A line on standard error for each run."""

    class Kind(GoodSession):
        def compute(self, feeds: Arrays, names: Sequence[str]) -> Outputs:
            sys.stderr.write("[acme] slow path\n")
            return super().compute(feeds, names)


@rude("process.undisturbed")
class SetsVariables(GoodAdapter):
    """Tells its SDK by the environment, which everybody else reads too."""

    class Kind(GoodSession):
        def __init__(self, artifact: Artifact, options: BaseModel) -> None:
            super().__init__(artifact, options)
            os.environ["OMP_NUM_THREADS"] = "3"


@rude("process.undisturbed")
class SetsVariablesInC(GoodAdapter):
    """The same where Python does not see it."""

    class Kind(GoodSession):
        def __init__(self, artifact: Artifact, options: BaseModel) -> None:
            super().__init__(artifact, options)
            ctypes.CDLL(None).setenv(b"ACME_THREADS", b"3", 1)


@rude("process.undisturbed")
class GoesElsewhere(GoodAdapter):
    """compile() leaves the process in its work folder."""

    def compile(self, model: Model, plan: SegmentPlan, context: Context) -> Artifact:
        os.chdir(context.work)
        return super().compile(model, plan, context)


@rude("process.undisturbed")
class TakesSignals(GoodAdapter):
    """Ends itself what the user's program wanted to end."""

    class Kind(GoodSession):
        def __init__(self, artifact: Artifact, options: BaseModel) -> None:
            super().__init__(artifact, options)
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, lambda number, frame: None)


@rude("process.undisturbed")
class SeedsNumPy(GoodAdapter):
    """Each run seeds the generator that the user's program draws from."""

    class Kind(GoodSession):
        def compute(self, feeds: Arrays, names: Sequence[str]) -> Outputs:
            np.random.seed(0)
            return super().compute(feeds, names)


@rude("process.nothing_kept")
class LeavesTemporaryFiles(GoodAdapter):
    """Each load leaves a file."""

    class Kind(GoodSession):
        def __init__(self, artifact: Artifact, options: BaseModel) -> None:
            super().__init__(artifact, options)
            os.close(tempfile.mkstemp(prefix="acme-")[0])


@rude("process.nothing_kept")
class LeavesFilesOpen(GoodAdapter):
    """An open file each tenth run."""

    class Kind(GoodSession):
        runs = 0

        def compute(self, feeds: Arrays, names: Sequence[str]) -> Outputs:
            self.runs += 1
            if self.runs % 10 == 0:
                _HELD.append(os.open("/dev/null", os.O_RDONLY))
            return super().compute(feeds, names)


@rude("process.nothing_kept")
class LeavesThreads(GoodAdapter):
    """Each compile leaves a thread."""

    def compile(self, model: Model, plan: SegmentPlan, context: Context) -> Artifact:
        threading.Thread(target=time.sleep, args=(500,), daemon=True).start()
        return super().compile(model, plan, context)


@rude("process.ends")
class DiesAtExit(GoodAdapter):
    """The library's destructor crashes."""

    class Kind(GoodSession):
        def __init__(self, artifact: Artifact, options: BaseModel) -> None:
            super().__init__(artifact, options)
            atexit.register(ctypes.string_at, 0)


@rude("contract.loads_elsewhere")
class NeedsItsCache(GoodAdapter):
    """The program lies in the adapter's cache, and the artifact names only its path."""

    def compile(self, model: Model, plan: SegmentPlan, context: Context) -> Artifact:
        made = super().compile(model, plan, context)
        context.cache.mkdir(parents=True, exist_ok=True)
        place = context.cache / f"{os.urandom(4).hex()}.bin"
        place.write_bytes(made.files["model"].read_bytes())
        return replace(made, files={}, facts={**made.facts, "path": str(place)})

    def load(self, artifact: Artifact, context: Context) -> Session:
        return super().load(replace(artifact, files={"model": Path(artifact.facts["path"])}), context)


_FP32 = {Precision.FP32: Verdict.yes("yes")}


@rude("contract.every_device")
class SecondDeviceLies(GoodAdapter):
    """Two devices, of which the second answers wrong."""

    @classmethod
    def probe_device(cls) -> Devices:
        return Devices(Verdict.yes(), (Device(0, "a", _FP32), Device(1, "b", _FP32)))

    class Kind(GoodSession):
        wrong = False

        def compute(self, feeds: Arrays, names: Sequence[str]) -> Outputs:
            found = super().compute(feeds, names)
            return {n: np.asarray(-a, a.dtype) for n, a in found.items()} if self.wrong else found

    def load(self, artifact: Artifact, context: Context) -> Session:
        session = self.Kind(artifact, self.config.options)
        session.wrong = self.device is not None and self.device.index == 1
        return session


@rude("contract.device")
class SameIndexTwice(GoodAdapter):
    """Two devices of one index."""

    @classmethod
    def probe_device(cls) -> Devices:
        return Devices(Verdict.yes(), (Device(0, "a", _FP32), Device(0, "b", _FP32)))


@rude("contract.probe")
class SlowProbe(GoodAdapter):
    """probe() waits for a tool."""

    @classmethod
    def probe(cls) -> Probe:
        subprocess.run([sys.executable, "-S", "-c", "import time; time.sleep(1.5)"], check=False)
        return Probe(Verdict.yes("found"), {})


@rude("contract.probe")
class ProbePrints(GoodAdapter):
    """probe() says so on standard output."""

    @classmethod
    def probe(cls) -> Probe:
        os.write(1, b"acme: probing\n")
        return Probe(Verdict.yes("found"), {})


@rude("contract.probe")
class ProbeSetsVariables(GoodAdapter):
    """probe() sets the environment."""

    @classmethod
    def probe(cls) -> Probe:
        os.environ["ACME_PROBED"] = "1"
        return Probe(Verdict.yes("found"), {})


@rude("soak.kept")
class LeaksSlowly(GoodAdapter):
    """4 KiB a run: 4 GB in a million requests."""

    class Kind(GoodSession):
        def compute(self, feeds: Arrays, names: Sequence[str]) -> Outputs:
            _HELD.append(np.ones(4096, np.uint8))
            return super().compute(feeds, names)


class Echoed(Options):
    """One more option, which nothing reads."""

    turbo: int = 1


class EchoesByFacts(GoodAdapter):
    """The same by way of the artifact, where any adapter puts its options for `load` to find them."""

    Options: ClassVar[type[BaseModel]] = Echoed

    def compile(self, model: Model, plan: SegmentPlan, context: Context) -> Artifact:
        artifact = super().compile(model, plan, context)
        return replace(artifact, facts={**artifact.facts, "options": self.config.options.model_dump()})


class EchoesAnOption(GoodAdapter):
    """Repeats an option that has no effect: no check can refute it, and none counts it as proven."""

    Options: ClassVar[type[BaseModel]] = Echoed
