"""How low the intermediates of real graphs can lie: `python -m benchmarks.layouts`.

The example models, the nine light networks of the onnx wheel and an encoder of 24 layers, as each adapter gets them:
Paddle's programs and the ONNX they are converted to, at batch 1 and 16. Heights are over the lower bound (the largest
sum alive at once): of the layout taken, of greedy by size, of execution order with best fit (as runtimes do without
planning), with no reuse at all, and without memory shared by views, operators that write over an input, and
concatenations.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from paddock.child import Children
from paddock.planning.lifetimes import lifetimes
from paddock.planning.memory import SECONDS, predict
from paddock.planning.offsets import Buffer, allocate
from paddock.prepare import prepare
from paddock.registry import Registry
from paddock.testing.light import networks, with_weights

LIMIT_SECONDS = 1.0
SHAPES: dict[str, dict[str, Any]] = {
    "deepseek": {"tokens": [0, 64]},
    "rotary": {"x": [0, 64, 256]},
}
"""Inputs with more than the batch open; 0 stands for it."""


def models(folder: Path) -> Iterator[tuple[str, Path]]:
    """Name and path of every model; the light networks with weights of their own, which are nodes in the wheel."""
    from examples.encoder.export import Config, export
    from examples.export import ALL

    for name, make in ALL.items():
        yield name, make(folder / name)
    yield "encoder, 24 layers", export(folder / "deep", Config(layers=24))
    for name, path in networks().items():
        yield name, with_weights(path, folder / f"{name}.onnx")


def main() -> int:
    """Prints one table; the exit status is 1 where a layout is not proven to be the lowest, or takes too long."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, action="append")
    arguments = parser.parse_args()
    print(
        f"{'model':<20} {'format':<7} {'batch':>5} {'nodes':>6} {'buffers':>7} {'bound MiB':>10} {'height':>7} "
        f"{'proven':>6} {'ms':>6} {'greedy':>7} {'in order':>8} {'unshared':>8} {'no alias':>8}"
    )
    missed = 0
    with tempfile.TemporaryDirectory(prefix="paddock-bench-") as scratch, Children() as children:
        registry = Registry.discover()
        for name, path in models(Path(scratch)):
            for backend in ("mkldnn", "onnxruntime") if path.suffix == ".json" else ("onnxruntime",):
                for batch in arguments.batch or (1, 16):
                    row = measure(name, path, backend, batch, registry, children)
                    missed += row
    return 1 if missed else 0


def measure(name: str, path: Path, backend: str, batch: int, registry: Registry, children: Children) -> bool:
    """Prints one row; True where it misses."""
    config: dict[str, Any] = {"hardware": "cpu", "backend": backend, "accuracy": {"verify": "off"}}
    if name in SHAPES:
        config["shapes"] = {x: [extent or batch for extent in shape] for x, shape in SHAPES[name].items()}
    elif path.suffix == ".json":
        config["batch_size"] = batch
    elif batch != 1:
        return False  # the light networks have fixed shapes
    prepared = prepare(path, config, children=children, registry=registry)
    try:
        (part,) = prepared.parts
        graph = prepared.budgeter.largest_graphs()[0]
        aliasing = registry.formats[part.target.format].aliasing
        begun = time.perf_counter()
        found = predict(graph, aliasing)
        taken = time.perf_counter() - begun
        shared = [buffer for buffer, _ in lifetimes(graph, aliasing).buffers]
        plain = lifetimes(graph)
        bound = max(found.bound, 1)
        apart = allocate([buffer for buffer, _ in plain.buffers], seconds=SECONDS)
        missed = not found.proven or taken > LIMIT_SECONDS
        print(
            f"{name:<20} {part.target.format:<7} {batch:>5} {found.nodes:>6} {len(shared):>7} "
            f"{found.bound / 2**20:>10.2f} {found.arena / bound:>7.4f} {'yes' if found.proven else 'NO':>6} "
            f"{taken * 1e3:>6.0f} {by_size(shared) / bound:>7.3f} {in_order(shared) / bound:>8.3f} "
            f"{plain.unshared / bound:>8.2f} {apart.height / bound:>8.3f}"
            f"{f'  {found.unknown} unknown' if found.unknown else ''}",
            flush=True,
        )
    finally:
        prepared.discard()
    return missed


def by_size(buffers: list[Buffer]) -> int:
    """The height of greedy by size, first fit."""
    return _placed(sorted(buffers, key=lambda b: (-b.size, b.lower)))


def in_order(buffers: list[Buffer]) -> int:
    """The height of best fit in order of execution."""
    return _placed(sorted(buffers, key=lambda b: b.lower), best=True)


def _placed(buffers: list[Buffer], best: bool = False) -> int:
    placed: list[tuple[Buffer, int]] = []
    for buffer in buffers:
        taken = sorted((at, at + b.size) for b, at in placed if b.lower < buffer.upper and buffer.lower < b.upper)
        gaps: list[tuple[int, int]] = []
        top = 0
        for start, end in taken:
            if start - top >= buffer.size:
                gaps.append((start - top, top))
            top = max(top, end)
        offset = top if not gaps else min(gaps)[1] if best else min(gap[1] for gap in gaps)
        placed.append((buffer, offset))
    return max((at + b.size for b, at in placed), default=0)


if __name__ == "__main__":
    sys.exit(main())
