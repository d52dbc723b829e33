"""`paddock bench`: one model under several configs, measured side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from paddock.contest import CHUNK_SECONDS, Contest, Contestant
from paddock.errors import PaddockError, UsageError
from paddock.npz import read_npz
from paddock.prepare import Progress
from paddock.verify import Report


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


@dataclass(frozen=True)
class Entry:
    """One config of a comparison: its figures, or the error that kept it from having any."""

    label: str
    measured: Measured | None = None
    error: PaddockError | None = None


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
    contestants = [Contestant(label, source) for label, source in configs.items()]
    with Contest(model, read_npz(sample, "--input") if sample is not None else None) as contest:
        first: Contestant | None = None
        for contestant in contestants:
            tell(f"deploying {contestant.label}")
            if contest.open(contestant):
                first = first or contestant
            elif isinstance(contestant.error, UsageError) and sample is None and first is not None:
                contestant.error.remedy = f"give --input with a sample that all admit; this one suits {first.label}"
        rounds = max(3, round(seconds / CHUNK_SECONDS))
        for number in range(rounds):
            tell(f"measuring, round {number + 1} of {rounds}")
            contest.round(contestants)
        return [_entry(contestant, contest) for contestant in contestants]


def _entry(contestant: Contestant, contest: Contest) -> Entry:
    if contestant.error is not None:
        return Entry(contestant.label, error=contestant.error)
    assert contestant.opened is not None
    opened, latencies = contestant.opened, contestant.latencies
    p50, p95, p99 = (float(np.percentile(latencies, q)) * 1e3 for q in (50, 95, 99))
    median = float(np.median(latencies)) * 1e3
    rate = float(np.median(contestant.rates)) * opened.batch
    plan, placement = opened.plan, opened.plan.placement
    placed = f"{placement.on(plan.adapter)}/{len(placement.nodes)}"
    memory = plan.memory
    measured = Measured(
        plan.adapter, opened.config.precision.value, median, p50, p95, p99, rate, len(latencies), opened.shapes,
        contest.peak(contestant), placed, opened.report, memory.least, memory.most, memory.measured, opened.taken,
        opened.untaken,
    )  # fmt: skip
    return Entry(contestant.label, measured)
