"""Measuring deployments: each in a process of its own, interleaved, so that drift of the host hits all alike.

Sessions of several runtimes in one process slow each other up to three times; so nothing is measured that way.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from paddock.child import Child
from paddock.config import HardwareConfig
from paddock.deployment import Deployment, deploy
from paddock.errors import PaddockError, UsageError
from paddock.npz import read_npz
from paddock.prepare import Progress
from paddock.samples import Sample, typical
from paddock.verify import Report

_CHUNK_SECONDS = 0.2
_WARM_UP_SECONDS = 0.3


@dataclass(frozen=True)
class Measured:
    """One config's figures: latencies of single `run` calls in milliseconds, throughput in samples per second.

    A sample is one element of axis 0 of the first input. `peak_bytes` is the child's resident high-water mark, with
    runtimes, planning and verification. `least`, `most` and `kept` are what the plan predicts of the sessions alone,
    the last by an earlier measurement; `taken` is what they took in a process of their own at the largest shapes, over
    the loaded runtimes (None where that could not be measured: `untaken` says why).
    """

    adapter: str
    precision: str
    median: float
    p50: float
    p95: float
    p99: float
    throughput: float
    runs: int
    shapes: str
    peak_bytes: int
    placed: str
    """Nodes on the adapter asked for, of nodes in the graph, as in "121/122"."""
    report: Report
    least: int
    most: int | None
    kept: int | None
    taken: int | None
    untaken: str = ""


@dataclass
class Entry:
    """One config of a comparison: its figures, or the error that kept it from having any."""

    label: str
    source: Any
    measured: Measured | None = None
    error: PaddockError | None = None
    _latencies: list[float] = field(default_factory=list)
    _rates: list[float] = field(default_factory=list)


def labelled(texts: Sequence[str]) -> dict[str, str]:
    """Configs by a short name each: a file's stem, or its whole path where two have the same; `config 2` for JSON text.

    Raises `UsageError` where one is named twice.
    """
    inline = [text.lstrip().startswith("{") for text in texts]
    stems = [f"config {n}" if inline[n - 1] else Path(text).stem for n, text in enumerate(texts, start=1)]
    labels = [text if stems.count(stem) > 1 else stem for stem, text in zip(stems, texts, strict=True)]
    if len(set(labels)) != len(texts):
        raise UsageError("one config is named twice", where="--config", remedy="name each once")
    # A path as the bench child needs it, whatever folder it works in.
    sources = [text if plain else str(Path(text).absolute()) for text, plain in zip(texts, inline, strict=True)]
    return dict(zip(labels, sources, strict=True))


def bench(
    model: Path,
    configs: Mapping[str, Any],
    *,
    seconds: float = 3.0,
    sample: Path | None = None,
    progress: Progress | None = None,
) -> list[Entry]:
    """Measures `model` under each config, `seconds` each, in turns of a fifth of a second, all on one sample.

    Args:
        configs: By label; anything `HardwareConfig.load` takes.
        sample: An .npz to run on; by default one is generated at the optimum of the first config's shapes.

    An entry that could not be deployed or measured has its error in place of figures.
    """
    tell = progress or (lambda message: None)
    entries = [Entry(label, source) for label, source in configs.items()]
    children = [Child(f"bench {entry.label}") for entry in entries]
    opened: list[tuple[Entry, Child, Any]] = []
    feeds: Sample | None = read_npz(sample, "--input") if sample is not None else None
    try:
        for entry, child in zip(entries, children, strict=True):
            tell(f"deploying {entry.label}")
            try:
                facts, feeds = child.call(_open_here, model, entry.source, feeds, seconds=900)
                opened.append((entry, child, facts))
            except PaddockError as error:
                if isinstance(error, UsageError) and sample is None and opened:
                    error.remedy = f"give --input with a sample that all admit; this one suits {opened[0][0].label}"
                entry.error = error
        rounds = max(3, round(seconds / _CHUNK_SECONDS))
        for number in range(rounds):
            tell(f"measuring, round {number + 1} of {rounds}")
            # Every other round the other way round: nobody always runs after the same neighbour.
            for entry, child, _ in opened if number % 2 == 0 else opened[::-1]:
                if entry.error is None:
                    _round(entry, child)
        for entry, child, facts in opened:
            if entry.error is None:
                entry.measured = _figures(entry, facts, child.call(_peak_here))
    finally:
        for _, child, _ in opened:
            with suppress(PaddockError):  # it ends with its process all the same; this removes its files as well
                child.call(_close_here)
        for child in children:
            child.close()
    return entries


def _round(entry: Entry, child: Child) -> None:
    try:
        latencies, rate = child.call(_measure_here, _CHUNK_SECONDS)
    except PaddockError as error:
        entry.error = error
        return
    entry._latencies.extend(latencies)
    entry._rates.append(rate)


def _figures(entry: Entry, facts: Mapping[str, Any], peak: int) -> Measured:
    p50, p95, p99 = (float(np.percentile(entry._latencies, q)) * 1e3 for q in (50, 95, 99))
    median = float(np.median(entry._latencies)) * 1e3
    rate = float(np.median(entry._rates)) * facts["batch"]
    report: Report = facts["report"]
    planned = facts["planned"]
    return Measured(
        facts["adapter"], facts["precision"], median, p50, p95, p99, rate, len(entry._latencies), facts["shapes"], peak,
        facts["placed"], report, planned[0], planned[1], planned[2], facts["taken"], facts["untaken"],
    )  # fmt: skip


_HERE: dict[str, Any] = {}
"""In a bench child: its deployment and the sample it runs."""


def _open_here(model: Path, source: Any, feeds: Sample | None) -> tuple[Mapping[str, Any], Sample]:
    config = HardwareConfig.load(source)
    deployment = deploy(model, config)
    sample = feeds if feeds is not None else typical_sample(deployment)
    _HERE.update(deployment=deployment, sample=sample)
    begun = time.perf_counter()
    while time.perf_counter() - begun < _WARM_UP_SECONDS:
        deployment.run(sample)
    planned = deployment.plan.memory
    taken, untaken = None, ""
    try:
        taken = deployment.measure_memory().peak
    except PaddockError as error:
        untaken = error.problem
    arrays = list(sample.values())
    placement = deployment.plan.placement
    facts = {
        "adapter": deployment.plan.adapter,
        "precision": config.precision.value,
        "placed": f"{placement.on(deployment.plan.adapter)}/{len(placement.nodes)}",
        "report": deployment.report,
        "batch": arrays[0].shape[0] if arrays and arrays[0].ndim else 1,
        "shapes": ", ".join(f"{name} {list(array.shape)}" for name, array in sample.items()),
        "planned": (planned.least, planned.most, planned.measured),
        "taken": taken,
        "untaken": untaken,
    }
    return facts, sample


def _close_here() -> None:
    _HERE.pop("deployment").close()


def typical_sample(deployment: Deployment) -> Sample:
    """A generated sample at the optimum of the deployment's shapes."""
    format = deployment.registry.formats[deployment.model.format]
    return typical(deployment.interface, format.gathers, format.transparent)


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
    while not latencies or time.perf_counter() - begun < seconds:
        before = time.perf_counter()
        deployment.run(sample)
        latencies.append(time.perf_counter() - before)
    return latencies


def _peak_here() -> int:
    # ru_maxrss would count the parent's peak too: it survives exec. VmHWM does not.
    lines = Path("/proc/self/status").read_text().splitlines()
    marks = [int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")]
    return marks[0] if marks else int(psutil.Process().memory_info().rss)
