"""Deployments measured against each other: each in a process of its own, in turns, so that drift hits all alike.

Sessions of several runtimes in one process slow each other up to three times; so nothing is measured that way.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from paddock.child import Child
from paddock.compile import expendable
from paddock.config import HardwareConfig
from paddock.deployment import Deployment, deploy
from paddock.errors import PaddockError
from paddock.plan import Plan
from paddock.samples import Sample, typical
from paddock.verify import Report

CHUNK_SECONDS = 0.2
"""How long one is measured before it is the next one's turn."""
_RUNS = 3
_WARM_UP_SECONDS = 0.3
OPEN_SECONDS = 900.0
"""How long one may take to be deployed."""


@dataclass(frozen=True)
class Opened:
    """What is known of a deployment that was opened in its process: its plan, its report, what it is run on."""

    plan: Plan
    report: Report
    config: HardwareConfig
    batch: int
    """The extent of axis 0 of the first input; a throughput is in these."""
    shapes: str
    taken: int | None
    """Bytes that its sessions took over the loaded runtimes; None where that was not measured: `untaken` says why."""
    untaken: str


@dataclass
class Contestant:
    """One config of a contest: what its rounds gave, or the error that ended it."""

    label: str
    source: Any
    opened: Opened | None = None
    error: PaddockError | None = None
    turns: list[int] = field(default_factory=list)
    """The numbers of the contest's turns that it was measured in: whoever shares one saw the same drift."""
    rounds: list[Sequence[float]] = field(default_factory=list)
    """For each round, the seconds of its runs, one after another."""
    rates: list[float] = field(default_factory=list)
    """For each round, runs per second with every instance busy."""

    @property
    def latencies(self) -> list[float]:
        """Seconds of all its runs."""
        return [seconds for found in self.rounds for seconds in found]


class Contest:
    """Opens deployments of one model in processes of their own, and measures them in turns, all on one sample.

    Several threads may `open` at once (what they generate as the sample is the same); nothing else may happen then.
    A context manager; every process ends with it.

    Args:
        model: The model's path.
        sample: What to run on; by default one is generated at the optimum of the shapes of the first that is opened.
        memory: Whether what their sessions take is measured as well: that loads each one more time.
    """

    def __init__(self, model: Path, sample: Sample | None = None, memory: bool = True) -> None:
        self._model = model
        self._sample = sample
        self._memory = memory
        self._children: dict[int, Child] = {}
        self._turn = 0

    @property
    def sample(self) -> Sample | None:
        """What is run on; None before any is opened, where none was given."""
        return self._sample

    def open(self, contestant: Contestant, seconds: float = OPEN_SECONDS) -> bool:
        """Deploys it in a process of its own, in so many seconds; whether that worked, else it has the error."""
        child = self._children[id(contestant)] = Child(f"measuring {contestant.label}")
        try:
            contestant.opened, sample = child.call(
                _open_here, self._model, contestant.source, self._sample, self._memory, seconds=seconds
            )
            self._sample = self._sample if self._sample is not None else sample
        except PaddockError as error:
            contestant.error = error
            self.close(contestant)
        return contestant.error is None

    def round(self, contestants: Sequence[Contestant], seconds: float = CHUNK_SECONDS) -> None:
        """Measures each of them once; whoever fails has the error from then on."""
        self._turn += 1
        # Every other round the other way round: nobody always runs after the same neighbour.
        for contestant in contestants if self._turn % 2 else contestants[::-1]:
            if contestant.error is not None:
                continue
            try:
                latencies, rate = self._children[id(contestant)].call(_measure_here, seconds)
            except PaddockError as error:
                contestant.error = error
                continue
            contestant.turns.append(self._turn)
            contestant.rounds.append(latencies)
            contestant.rates.append(rate)

    def peak(self, contestant: Contestant) -> int:
        """The resident high-water mark of its process in bytes, with runtimes, planning and verification."""
        return self._children[id(contestant)].call(_peak_here)

    def close(self, contestant: Contestant) -> None:
        """Ends its process."""
        child = self._children.pop(id(contestant), None)
        if child is None:
            return
        with suppress(PaddockError):  # it ends with its process all the same; this removes its files as well
            child.call(_close_here)
        child.close()

    def __enter__(self) -> Contest:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for child in self._children.values():
            with suppress(PaddockError):
                child.call(_close_here)
            child.close()
        self._children.clear()


def typical_sample(deployment: Deployment) -> Sample:
    """A generated sample at the optimum of the deployment's shapes."""
    format = deployment.registry.formats[deployment.model.format]
    return typical(deployment.interface, format.gathers, format.transparent)


_HERE: dict[str, Any] = {}
"""In a contestant's process: its deployment and the sample it runs."""


def _open_here(model: Path, source: Any, feeds: Sample | None, memory: bool) -> tuple[Opened, Sample]:
    with expendable():
        deployment = deploy(model, HardwareConfig.load(source))
    sample = feeds if feeds is not None else typical_sample(deployment)
    _HERE.update(deployment=deployment, sample=sample)
    begun = time.perf_counter()
    while time.perf_counter() - begun < _WARM_UP_SECONDS:
        deployment.run(sample)
    taken, untaken = None, "not asked for"
    if memory:
        try:
            taken, untaken = deployment.measure_memory().peak, ""
        except PaddockError as error:
            untaken = error.problem
    arrays = list(sample.values())
    batch = arrays[0].shape[0] if arrays and arrays[0].ndim else 1
    shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in sample.items())
    return Opened(deployment.plan, deployment.report, deployment.config, batch, shapes, taken, untaken), sample


def _close_here() -> None:
    deployment = _HERE.pop("deployment", None)
    if deployment is not None:
        deployment.close()


def _measure_here(seconds: float) -> tuple[Sequence[float], float]:
    """(latencies of runs one after another, runs per second with every instance busy)."""
    deployment: Deployment = _HERE["deployment"]
    sample: Sample = _HERE["sample"]
    latencies = _loop(deployment, sample, seconds)
    instances = deployment.config.instances
    if instances == 1:
        return latencies, len(latencies) / sum(latencies)
    begun = time.perf_counter()
    with ThreadPoolExecutor(instances) as pool:
        counts = [len(done) for done in pool.map(lambda _: _loop(deployment, sample, seconds), range(instances))]
    return latencies, sum(counts) / (time.perf_counter() - begun)


def _loop(deployment: Deployment, sample: Sample, seconds: float) -> list[float]:
    latencies: list[float] = []
    begun = time.perf_counter()
    # Of one or two runs a median says little; what takes seconds is told from the rest by one.
    while (took := time.perf_counter() - begun) < seconds or (len(latencies) < _RUNS and took < _RUNS * seconds):
        before = time.perf_counter()
        deployment.run(sample)
        latencies.append(time.perf_counter() - before)
    return latencies


def _peak_here() -> int:
    # ru_maxrss would count the parent's peak too: it survives exec. VmHWM does not.
    lines = Path("/proc/self/status").read_text().splitlines()
    marks = [int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")]
    return marks[0] if marks else int(psutil.Process().memory_info().rss)
