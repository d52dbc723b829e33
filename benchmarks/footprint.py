"""Predicted memory against measured: `python -m benchmarks.footprint [--quick]`.

Each example model on each CPU adapter, batch 1 and 16, one and two instances, in fresh processes: what is taken over
the loaded runtimes, by the kernel's own mark. Printed are what the plan needs at least, the bound that holds before
anything was measured, the first measurement, and a second one: a plan that knows the first would be judged by it. The
targets: the bound is never exceeded, and the second measurement is within 15 % of the first.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paddock.child import Children, call_in_child
from paddock.compile import tried
from paddock.errors import PaddockError
from paddock.footprint import largest, measure
from paddock.prepare import prepare

ADAPTERS = ("cpu/onnxruntime", "cpu/openvino", "cpu/mkldnn", "cpu/paddle", "cpu/reference")
MODELS = ("linear", "rotary", "deepseek", "mobilenet", "resnet", "encoder")
BATCHES = (1, 16)
INSTANCES = (1, 2)
SHAPES: Mapping[str, Mapping[str, Sequence[int]]] = {"deepseek": {"tokens": (64,)}, "rotary": {"x": (64, 256)}}
"""Extents behind the batch, of models that leave more than that open."""
TARGET = 0.15
"""How far the second measurement may be from the first."""
NOISE = 1 << 19
"""Bytes by which any two measurements may differ: a single piece of 316 KiB that one process in six touched, and the
others did not, is more than the target of a model of 2 MiB."""
_MIB = 1 << 20


@dataclass(frozen=True)
class Row:
    """One deployment, in bytes: `least` and `most` of its plan, what Paddock owns of it, and two measurements."""

    label: str
    owned: int
    least: int
    most: int | None
    unknown: int
    first: int
    second: int

    @property
    def exceeded(self) -> bool:
        """Whether a measurement is over the bound, or there is none."""
        return self.most is None or max(self.first, self.second) > self.most

    @property
    def drifted(self) -> bool:
        """Whether the second measurement is not what the first one foretells."""
        return abs(self.second - self.first) > max(NOISE, TARGET * self.first)

    def __str__(self) -> str:
        most = "-" if self.most is None else f"{self.most / _MIB:.1f}"
        ratio = "-" if self.most is None else f"{self.most / max(1, self.first):.2f}"
        marks = ["EXCEEDED"] * self.exceeded + ["OVER 15 %"] * self.drifted
        marks += [f"{self.unknown} values of unknown size"] * bool(self.unknown)
        figures = f"{self.owned / _MIB:>7.1f} {self.least / _MIB:>8.1f} {most:>8} {self.first / _MIB:>8.1f} {ratio:>6}"
        return f"{self.label} {figures} {self.second / max(1, self.first):>6.3f}  {', '.join(marks)}"


def main() -> int:
    """Prints one table; the exit status is 1 where a bound is exceeded, or a measurement is not repeated."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="three small models, batch 1")
    parser.add_argument("--adapter", action="append", choices=ADAPTERS)
    parser.add_argument("--model", action="append", choices=MODELS)
    parser.add_argument("--batch", action="append", type=int)
    parser.add_argument("--instances", action="append", type=int)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--seconds", type=float, default=600.0, help="for one measurement; longer ones are skipped")
    parser.add_argument("--models", type=Path, help="a folder where the example models are, or are to be exported")
    arguments = parser.parse_args()
    models = arguments.model or (MODELS[:2] + MODELS[3:4] if arguments.quick else MODELS)
    batches = arguments.batch or (BATCHES[:1] if arguments.quick else BATCHES)
    print(
        f"{'adapter':<16} {'model':<9} {'batch':>5} {'x':>2} {'owned':>7} {'least':>8} {'bound':>8} {'first':>8} "
        f"{'ratio':>6} {'second':>6}   (MiB; ratio: bound over first; second: over first)"
    )
    rows: dict[tuple[str, str], list[Row]] = {}
    skipped = 0
    with ExitStack() as stack:
        folder = arguments.models or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="paddock-bench-")))
        paths = _exported(folder, models)
        combinations = itertools.product(
            arguments.adapter or ADAPTERS, models, batches, arguments.instances or INSTANCES
        )
        for adapter, model, batch, instances in combinations:
            label = f"{adapter:<16} {model:<9} {batch:>5} {instances:>2}"
            try:
                config = _config(adapter, model, batch, instances, arguments.precision)
                row = _row(label, paths[model], config, arguments.seconds)
            except PaddockError as error:
                skipped += 1
                print(f"{label} skipped: {error.problem}", flush=True)
                continue
            rows.setdefault((adapter, model), []).append(row)
            print(row, flush=True)
    return _summary(rows, skipped)


def _row(label: str, model: Path, config: Mapping[str, Any], seconds: float) -> Row:
    with Children() as children:
        prepared = prepare(model, config, children=children)
        try:
            with tried(prepared.plan, prepared.parts) as (artifacts, _):
                pass
            request = largest(prepared)
            first, second = (measure(prepared, artifacts, request, seconds=seconds).peak for _ in range(2))
        finally:
            prepared.discard()
    memory = prepared.plan.memory
    return Row(label, memory.owned, memory.least, memory.most, memory.unknown, first, second)


def _config(adapter: str, model: str, batch: int, instances: int, precision: str) -> dict[str, Any]:
    hardware, _, backend = adapter.partition("/")
    shapes = {name: [batch, *extents] for name, extents in SHAPES.get(model, {}).items()}
    return {
        "hardware": hardware,
        "backend": backend,
        "precision": precision,
        "batch_size": batch,
        "instances": instances,
        "shapes": shapes,
        "accuracy": {"verify": "off"},
    }


def _exported(folder: Path, names: Iterable[str]) -> dict[str, Path]:
    """The models' files; exported in a child, since the exporting runtime is not to be measured with them."""
    missing = [name for name in names if not (folder / f"{name}.json").exists()]
    if missing:
        call_in_child("exporting the models", _export, folder, missing, seconds=900)
    return {name: folder / f"{name}.json" for name in names}


def _export(folder: Path, names: Sequence[str]) -> None:
    from examples.export import ALL

    for name in names:
        ALL[name](folder)


def _summary(rows: Mapping[tuple[str, str], Sequence[Row]], skipped: int) -> int:
    every = [row for found in rows.values() for row in found]
    exceeded = sum(row.exceeded for row in every)
    drifted = sum(row.drifted for row in every)
    print(f"\n{len(every)} deployments measured twice, {skipped} skipped; bound exceeded: {exceeded}; "
          f"second measurement not within {TARGET:.0%} of the first: {drifted}")  # fmt: skip
    for adapter in dict.fromkeys(adapter for adapter, _ in rows):
        for model, ratios in _ratios(rows, adapter):
            print(f"{adapter:<16} {model:<9} bound over measured {min(ratios):.2f} to {max(ratios):.2f}")
    return 1 if exceeded or drifted else 0


def _ratios(rows: Mapping[tuple[str, str], Sequence[Row]], adapter: str) -> Iterator[tuple[str, list[float]]]:
    for (name, model), found in rows.items():
        ratios = [row.most / max(1, row.first) for row in found if row.most is not None]
        if name == adapter and ratios:
            yield model, ratios


if __name__ == "__main__":
    sys.exit(main())
