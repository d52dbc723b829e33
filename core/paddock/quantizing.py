"""int8 by an adapter's quantiser: calibrated once, in a child that stays, written for each set of nodes kept out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from paddock.cache import Store
from paddock.child import Children
from paddock.errors import NotAvailable
from paddock.graph import Graph
from paddock.host import building
from paddock.machine import host_facts
from paddock.model import Model
from paddock.npz import read_npz, write_npz
from paddock.plan import NodePrecision
from paddock.planning.casts import WIDE
from paddock.reading import carried_bounds, check_unchanged, read_files
from paddock.registry import Registry, Resolved
from paddock.samples import Sample, digest_samples
from paddock.spi import Quantizer
from paddock.workshop import Workshop

SECONDS = 3600.0
"""How long a calibration may take."""

_TRACE = "quantized.json"


@dataclass(frozen=True)
class Quantised:
    """A quantised model; `nodes` says of each node of the model it was made of in which dtype it now computes."""

    model: Model
    nodes: tuple[NodePrecision, ...]
    saved: int
    """Bytes by which its files are smaller."""


def quantised(
    workshop: Workshop,
    target: Model,
    keep: frozenset[int],
    samples: Sequence[Sample],
    registry: Registry,
    children: Children,
    store: Store,
) -> Quantised:
    """`target` in int8, the nodes `keep` in float; calibrated on `samples`, whose names are those of its inputs."""
    resolved = workshop.resolved
    key = [
        target.fingerprint, digest_samples(samples), sorted(keep), resolved.name, dict(resolved.versions),
        resolved.config.options.model_dump(mode="json"), host_facts(),
    ]  # fmt: skip

    def build(folder: Path) -> None:
        fed = workshop.context.work / f"calibration-{digest_samples(samples)[:16]}"
        if not fed.exists():
            fed.mkdir()
            for number, sample in enumerate(samples):
                write_npz(fed / f"{number:06}.npz", sample, "the work folder")
        child = children.get(f"quantising for {resolved.name}")
        # The quantiser keeps files in the work folder, which goes with the deployment.
        path, token = folder / "model.onnx", [target.fingerprint, str(fed)]
        trace = child.call(_write_here, resolved, target, fed, token, path, keep, seconds=SECONDS)
        check_unchanged(target)
        names = sorted(found.relative_to(folder).as_posix() for found in folder.rglob("*") if found.is_file())
        (folder / _TRACE).write_text(json.dumps({"provenance": trace, "files": names}))

    folder = store.folder("quantized", key, build)
    kept = json.loads((folder / _TRACE).read_text())
    provenance = tuple(tuple(nodes) for nodes in kept["provenance"])
    files = {"model" if name == "model.onnx" else f"data/{name}": folder / name for name in kept["files"]}
    model = read_files(registry.formats[target.format], files, registry, children)
    graph = model.graph.with_bounds(carried_bounds(target.graph.input_values, target.graph, model.graph))
    borders = [[v.name for v in (*g.input_values, *g.output_values)] for g in (target.graph, graph)]
    if len(provenance) != len(graph.nodes) or borders[0] != borders[1]:
        raise NotAvailable(
            f"{workshop.name} quantised the model wrongly: {len(provenance)} nodes traced of {len(graph.nodes)}, "
            f"with the border {borders[1]}",
            remedy="report this to the plugin's author",
        )  # fmt: skip
    sizes = [sum(path.stat().st_size for path in found.files.values()) for found in (target, model)]
    nodes = _precisions(target.graph, graph, provenance)
    return Quantised(replace(model, graph=graph, source=target, provenance=provenance), nodes, sizes[0] - sizes[1])


def _precisions(target: Graph, graph: Graph, provenance: Sequence[Sequence[int]]) -> tuple[NodePrecision, ...]:
    """The dtype of each node of `target`: int8 where all that it reads of floats has just been dequantised.

    Constants aside, since biases stay in float. Where only some of its values are rounded, a node is both.
    """
    fresh = {v for node in graph.nodes if node.op == "DequantizeLinear" for v in node.outputs}
    rounded: dict[int, list[bool]] = {}
    for node, came in zip(graph.nodes, provenance, strict=True):
        read = [v for v in node.inputs if v is not None and graph.values[v].dtype == WIDE]
        data = [v in fresh for v in read if v not in graph.initializers]
        for index in came:
            rounded.setdefault(index, []).extend(data)
    found = []
    for node in target.nodes:
        floats = any(v is not None and target.values[v].dtype == WIDE for v in (*node.inputs, *node.outputs))
        if not floats:
            found.append(NodePrecision(node.index, node.type, ""))
        elif all(rounded.get(node.index, [False])) and rounded[node.index]:
            found.append(NodePrecision(node.index, node.type, "int8", "quantised"))
        elif any(rounded.get(node.index, ())):
            reason = "quantised in part: the rest of it stays in float"
            found.append(NodePrecision(node.index, node.type, f"int8 and {WIDE}", reason))
        else:
            found.append(NodePrecision(node.index, node.type, WIDE, "left in float by the quantiser"))
    return tuple(found)


_CALIBRATED: dict[str, Quantizer] = {}
"""In the child: the quantiser of the model that is being quantised, which holds what it saw of the samples."""


def _write_here(
    resolved: Resolved, target: Model, fed: Path, token: Sequence[Any], path: Path, keep: frozenset[int]
) -> tuple[tuple[int, ...], ...]:
    name = json.dumps(token)
    if name not in _CALIBRATED:
        _CALIBRATED.clear()
        samples = [read_npz(file, "the work folder") for file in sorted(fed.glob("*.npz"))]
        adapter = resolved.registered.adapter(resolved.config, resolved.device)
        work = fed.parent / f"{fed.name}-work"
        work.mkdir(exist_ok=True)
        made: Quantizer = building(f"{resolved.name}: calibrating", lambda: adapter.quantizer(target, samples, work))
        _CALIBRATED[name] = made
    return tuple(tuple(nodes) for nodes in _CALIBRATED[name].write(path, keep))
