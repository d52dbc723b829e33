"""`python -m paddock.testing.light`: the nine real networks that ship with onnx, on every adapter that is fed ONNX.

As shipped, each float weight of more than 64 elements is a `ConstantOfShape` of 0.02, so that outputs hardly depend on
the input, and a check on them would prove nothing. They are given seeded random weights first. Ends with 1 where a
network does not pass on an adapter, with 2 where it cannot begin.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from paddock.child import Child, Children
from paddock.config import HardwareConfig
from paddock.deployment import deploy
from paddock.errors import NotAvailable, PaddockError, UsageError, did_you_mean
from paddock.registry import Registry
from paddock.testing.nodes import Settings, check_adapters
from paddock.verify import Outcome

SECONDS = 1200.0
"""How long one network on one adapter may take before its worker is ended: the reference evaluator is slow."""

_WIDTH = 120
_PREFIX = "light_"
_BESIDE, _TOGETHER = 0.25, 0.7
"""The scale of a normalisation whose result is added to what went around it, and of two that are added: a network has
up to 16 such sums one after another, and with 1 each of them would double or treble the variance."""
_SHAPING = frozenset(
    {"AveragePool", "Concat", "Dropout", "GlobalAveragePool", "LRN", "MaxPool", "Reshape", "Transpose"}
)
"""Operators behind which rectified values are still that."""

Weight = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Row:
    """One network on one adapter.

    `native` and `helped` count the nodes on the adapter and on its fallbacks; `outcome` is the verification's or
    "refused"; `error` is relative, against the adapter `reference`; `seconds` go from the config to the deployment.
    """

    network: str
    adapter: str
    outcome: str
    native: int = 0
    helped: int = 0
    segments: int = 0
    error: float | None = None
    reference: str = ""
    seconds: float = 0.0
    reason: str = ""

    @property
    def passed(self) -> bool:
        """Whether it was served, checked."""
        return self.outcome == Outcome.PASSED


def networks(only: str = "*") -> Mapping[str, Path]:
    """The light networks of the installed onnx whose names (`squeezenet`) match the glob `only`.

    Raises `UsageError` where none does.
    """
    import onnx

    files = sorted((Path(onnx.__file__).parent / "backend/test/data/light").glob(f"{_PREFIX}*.onnx"))
    names = {path.stem.removeprefix(_PREFIX): path for path in files}
    chosen = {name: path for name, path in names.items() if fnmatchcase(name, only)}
    if not chosen:
        raise UsageError(
            f"no light network is called {only!r}", candidates=list(names), remedy=did_you_mean(only, list(names))
        )
    return chosen


def with_weights(source: Path, target: Path, seed: int = 0) -> Path:
    """Writes the network at `source` to `target` with a random float32 initializer for each `ConstantOfShape`.

    Convolutions and matrices get He's scale, times what a normalisation after them divides by; variances are positive.
    What is an initializer already stays as it is. The same seed gives the same file.

    Raises `UsageError` where a weight is used in a way that none of the nine networks uses one.
    """
    import onnx

    proto = onnx.load(source)
    graph = proto.graph
    made = _Weights(graph, seed).all()
    kept = [node for node in graph.node if node.output[0] not in made]
    read = {name for node in kept for name in node.input}
    constants = [tensor for tensor in graph.initializer if tensor.name in read]
    constants += [onnx.numpy_helper.from_array(array, name) for name, array in made.items()]
    # Since version 4 an initializer that is an input too may be fed, and then is no constant.
    proto.ir_version = max(proto.ir_version, 4)
    fed = [value for value in graph.input if value.name not in {tensor.name for tensor in graph.initializer}]
    for field, content in ((graph.node, kept), (graph.initializer, constants), (graph.input, fed)):
        del field[:]
        field.extend(content)
    onnx.save(proto, target)
    return target


class _Weights:
    """The arrays to put in the place of a graph's `ConstantOfShape` nodes, by the name of their output."""

    def __init__(self, graph: Any, seed: int) -> None:
        from onnx import numpy_helper

        self.seed = seed
        self.nodes = graph.node
        self.stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        self.makers = {name: node for node in graph.node for name in node.output}
        self.readers: dict[str, list[tuple[Any, int]]] = {}
        for node in graph.node:
            for position, name in enumerate(node.input):
                self.readers.setdefault(name, []).append((node, position))
        self.drawn: dict[str, Weight] = {}

    def all(self) -> Mapping[str, Weight]:
        """Statistics first: the scale of a convolution depends on those of the normalisation after it."""
        wanted = [
            (number, node.output[0], tuple(int(n) for n in self.stored[node.input[0]]))
            for number, node in enumerate(self.nodes)
            if node.op_type == "ConstantOfShape"
        ]
        uses = {name: self._use(name, shape) for _, name, shape in wanted}
        for number, name, shape in sorted(wanted, key=lambda each: uses[each[1]][0].op_type == "Conv"):
            rng = np.random.default_rng([self.seed, number])
            self.drawn[name] = self._draw(rng, shape, *uses[name])
        return self.drawn

    def _use(self, name: str, shape: Sequence[int]) -> tuple[Any, int, tuple[int, ...]]:
        """Which operator reads a weight, at which position, and in which shape."""
        ((node, position),) = self.readers[name]
        if node.op_type not in ("Unsqueeze", "Reshape"):
            return node, position, tuple(shape)
        if node.op_type == "Reshape":
            shape = np.empty(shape, np.float32).reshape(self.stored[node.input[1]]).shape
        return self._use(node.output[0], shape)

    def _draw(
        self, rng: np.random.Generator, shape: Sequence[int], node: Any, position: int, read_as: Sequence[int]
    ) -> Weight:
        std: Weight
        match node.op_type, position:
            case "Conv", 1:
                std = self._expected(node) * np.sqrt(self._gain(node) / np.prod(read_as[1:]))
                return rng.standard_normal(shape, np.float32) * std.astype(np.float32)
            case "Gemm", 1:
                transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
                std = np.sqrt([self._gain(node) / read_as[1 if transposed else 0]])
                return rng.standard_normal(shape, np.float32) * std.astype(np.float32)
            case ("BatchNormalization", 1) | ("Mul", 1):
                scale = self._share(node)
                return rng.uniform(0.8 * scale, 1.2 * scale, shape).astype(np.float32)
            case "BatchNormalization", 4:
                return rng.uniform(0.5, 1.5, shape).astype(np.float32)
            case ("BatchNormalization", 2 | 3) | ("Conv" | "Gemm", 2) | ("Add", 1):
                return rng.normal(0, 0.1, shape).astype(np.float32)
        raise UsageError(f"a weight is input {position} of a {node.op_type}: no scale is known for that")

    def _share(self, node: Any) -> float:
        """The scale of a normalisation, by what its result is added to."""
        for reader, _ in self.readers[node.output[0]]:
            if reader.op_type == "Sum":
                makers = [self.makers[name].op_type for name in reader.input]
                return _TOGETHER if set(makers) == {node.op_type} else _BESIDE
        return 1.0

    def _gain(self, node: Any) -> float:
        """2 for what reads rectified values, of whose second moment a half is left; else 1."""
        maker = self.makers.get(node.input[0])
        while maker is not None and maker.op_type in _SHAPING:
            maker = self.makers.get(maker.input[0])
        return 2.0 if maker is not None and maker.op_type == "Relu" else 1.0

    def _expected(self, node: Any) -> Weight:
        """By output channel, the standard deviation that the normalisation after a convolution divides by; else 1."""
        for reader, position in self.readers.get(node.output[0], ()):
            if reader.op_type == "BatchNormalization" and position == 0:
                name = reader.input[4]
                found: Weight = np.sqrt(self.drawn[name] if name in self.drawn else self.stored[name])
                return found.reshape(-1, 1, 1, 1)
        return np.ones(1)


def image(seed: int = 0) -> Weight:
    """One picture, float32 [1, 3, 224, 224]: patches of 32 pixels under noise, so that averages over it vary too."""
    rng = np.random.default_rng([224, seed])
    patches = np.kron(rng.standard_normal((1, 3, 7, 7)), np.ones((1, 1, 32, 32)))
    return (patches + 0.5 * rng.standard_normal((1, 3, 224, 224))).astype(np.float32)


def run_light(
    chosen: Mapping[str, Path],
    adapters: Sequence[str],
    chain: Sequence[str],
    told: Callable[[Row], None] = lambda row: None,
    seed: int = 0,
) -> tuple[Row, ...]:
    """Deploys every network (as shipped) on every adapter with the chain as its fallback, each checked on one image.

    Args:
        chain: The adapters that may help, in order; the one under test is left out of it.
        told: Called with each row as it comes.

    Works in a cache and a process of its own; of the networks one at a time lies on the disk (up to 0.6 GB).
    """
    rows = []
    with (
        tempfile.TemporaryDirectory(prefix="paddock-light-", ignore_cleanup_errors=True) as name,
        Child("light networks") as child,
    ):
        folder = Path(name)
        for network, source in chosen.items():
            path = with_weights(source, folder / source.name, seed)
            for adapter in adapters:
                row = _in_worker(child, Row(network, adapter, "refused"), path, Settings(tuple(chain), False), folder)
                rows.append(row)
                told(row)
            path.unlink()
    return tuple(rows)


def _in_worker(child: Child, row: Row, path: Path, settings: Settings, folder: Path) -> Row:
    before = time.perf_counter()
    try:
        return child.call(_run_here, row, path, settings, folder, seconds=SECONDS)
    except PaddockError as error:
        return replace(row, reason=error.problem, seconds=time.perf_counter() - before)


@cache
def _bench(folder: Path) -> tuple[Registry, Children]:
    """In the worker: the plugins and the children that all networks share, and a cache of the run's own."""
    os.environ["PADDOCK_CACHE"] = str(folder / "cache")
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
    return Registry.discover(), Children()


def _run_here(row: Row, path: Path, settings: Settings, folder: Path) -> Row:
    import onnx

    registry, children = _bench(folder)
    (fed,) = [value.name for value in onnx.load(path, load_external_data=False).graph.input]
    config = {**settings.config(row.adapter), "strict": True}
    before = time.perf_counter()
    try:
        with deploy(path, config, registry=registry, children=children, samples=[{fed: image()}]) as deployment:
            placement, report = deployment.plan.placement, deployment.report
            native = placement.on(row.adapter)
            return replace(
                row,
                outcome=report.outcome.value,
                native=native,
                helped=len(placement.nodes) - native,
                segments=len(placement.segments),
                error=report.error,
                reference=report.reference,
                seconds=time.perf_counter() - before,
            )
    except PaddockError as error:
        reason = f"{type(error).__name__}: {error.problem}"
        first = error.candidates[:1] if error.candidates else ()
        return replace(row, reason=" / ".join((reason, *first)), seconds=time.perf_counter() - before)


def show(out: Console, rows: Sequence[Row]) -> None:
    """Prints the table, then why anything was refused."""
    table = Table(header_style="bold", show_edge=False, pad_edge=False)
    for column in ("network", "adapter", "native", "helped", "segments", "outcome", "error", "reference", "seconds"):
        table.add_column(column, no_wrap=True)
    for row in rows:
        color = "green" if row.passed else "red"
        error = "-" if row.error is None else f"{row.error:.1e}"
        counts = [str(count) for count in (row.native, row.helped, row.segments)]
        cells = [*counts, f"[{color}]{row.outcome}[/]", error, row.reference or "-", f"{row.seconds:.1f}"]
        table.add_row(row.network, row.adapter, *cells)
    out.print(table)
    for row in rows:
        if row.reason:
            out.print(f"[red]{row.network} on {row.adapter}[/]: {escape(row.reason)}", soft_wrap=True, highlight=False)


def available(registry: Registry) -> list[str]:
    """Every adapter that takes ONNX models and has a device here."""
    found = []
    for entries in registry.adapters.values():
        for adapter in (entry.adapter for entry in entries if "onnx" in entry.adapter.formats):
            config = HardwareConfig.load({"hardware": adapter.hardware, "backend": adapter.backend})
            with contextlib.suppress(NotAvailable):
                found.append(registry.consider(adapter.name(), config).name)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the networks and prints the table; returns the exit status."""
    asked = _parser().parse_args(arguments)
    notes = Console(stderr=True)
    try:
        chosen = networks(asked.only)
        registry = Registry.discover()
        adapters = check_adapters(registry, asked.adapter or available(registry))
        chain = check_adapters(registry, [name for name in asked.chain.split(",") if name])

        def told(row: Row) -> None:
            notes.print(f"{row.network} on {row.adapter}: {row.outcome}", highlight=False)

        rows = run_light(chosen, adapters, chain, told, asked.seed)
    except (PaddockError, OSError) as error:
        notes.print(str(error), style="red", markup=False, soft_wrap=True)
        return 2
    show(Console(width=None if sys.stdout.isatty() else _WIDTH), rows)
    return 0 if all(row.passed for row in rows) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m paddock.testing.light", description=__doc__)
    parser.add_argument("--adapter", action="append", help="under test, as in a/b; repeatable (default: all here)")
    parser.add_argument("--chain", default="", help="adapters that may help, in order, as in a,b")
    parser.add_argument("--only", default="*", metavar="PATTERN", help="names of networks, as in 'inception*'")
    parser.add_argument("--seed", type=int, default=0, help="of the weights (default 0)")
    return parser


if __name__ == "__main__":
    # Workers look functions up by the module's name, which is not its own while it is being run.
    sys.exit(importlib.import_module("paddock.testing.light").main())
