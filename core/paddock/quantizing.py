"""int8 by an adapter's quantiser: calibrated once, in a child that stays, written for each set of nodes kept out."""

from __future__ import annotations

import importlib.metadata
import json
import operator
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from paddock.cache import Store
from paddock.child import Children
from paddock.errors import BuildFailed, ModelError
from paddock.graph import Graph
from paddock.host import building
from paddock.machine import host_facts
from paddock.model import Model, check_unchanged
from paddock.npz import read_npz, write_npz
from paddock.plan import NodePrecision
from paddock.planning.casts import WIDE
from paddock.reading import carried_bounds, read_files
from paddock.registry import Registry, Resolved
from paddock.samples import Sample, digest_samples
from paddock.spi import Adapter, Quantizer
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
        quantizer_versions(resolved.registered.adapter),
    ]  # fmt: skip

    format = registry.formats[target.format]
    name = f"model{format.suffixes[0]}"

    def build(folder: Path) -> None:
        fed = workshop.context.work / f"calibration-{digest_samples(samples)[:16]}"
        if not fed.exists():
            fed.mkdir()
            for number, sample in enumerate(samples):
                write_npz(fed / f"{number:06}.npz", sample, "the work folder")
        child = children.get(f"quantising for {resolved.name}")
        # The quantiser keeps files in the work folder, which goes with the deployment.
        path, token = folder / name, [target.fingerprint, str(fed)]
        trace = child.call(_write_here, resolved, target, fed, token, path, keep, seconds=SECONDS)
        check_unchanged(target)
        (folder / _TRACE).write_text(json.dumps(_checked(trace, workshop.name)))
        try:
            read(folder)  # before it is kept: what is wrong once would be wrong for good
        except ModelError as error:
            raise BuildFailed(
                f"{workshop.name}: its quantiser wrote what cannot be read: {error.problem}",
                remedy="report this to the plugin's author",
            ) from error

    def read(folder: Path) -> Quantised:
        provenance = tuple(tuple(nodes) for nodes in json.loads((folder / _TRACE).read_text()))
        files = format.locate(folder / name)
        if files is None:
            raise ModelError(f"there is no {name}")
        model = read_files(format, files, registry, children)
        graph = model.graph.with_bounds(carried_bounds(target.graph.input_values, target.graph, model.graph))
        _check_written(workshop.name, target.graph, graph, provenance)
        sizes = [sum(path.stat().st_size for path in found.files.values()) for found in (target, model)]
        nodes = _precisions(target.graph, graph, provenance)
        made = replace(model, graph=graph, source=target, provenance=provenance)
        return Quantised(made, nodes, sizes[0] - sizes[1])

    found = read(store.folder("quantized", key, build))
    ignored = [found.nodes[node] for node in sorted(keep) if found.nodes[node].dtype == "int8"]
    if ignored:
        raise BuildFailed(
            f"{workshop.name}: its quantiser did not leave {target.graph.nodes[ignored[0].node].label} in float",
            remedy="report this to the plugin's author",
        )
    return found


def quantizer_versions(adapter: type[Adapter]) -> list[list[str]]:
    """What an adapter's quantiser works with, beside its SDK: the distributions that are installed, with versions."""
    found = []
    for name in adapter.quantizes_with:
        with suppress(importlib.metadata.PackageNotFoundError):
            found.append([name, importlib.metadata.version(name)])
    return found


def _checked(trace: Any, adapter: str) -> list[list[int]]:
    """A quantiser's provenance as plain data; raises `BuildFailed` where it is something else."""
    try:
        return [[operator.index(node) for node in nodes] for nodes in trace]
    except TypeError:
        raise BuildFailed(
            f"{adapter}: its quantiser traced nodes as {type(trace).__name__}, not as tuples of node indices",
            remedy="report this to the plugin's author",
        ) from None


def _check_written(adapter: str, target: Graph, graph: Graph, provenance: Sequence[Sequence[int]]) -> None:
    """Raises `BuildFailed` where a quantised model is traced wrongly, or has another border than its origin."""
    ahead, behind = ([(v.name, v.dtype, v.shape) for v in (*g.input_values, *g.output_values)] for g in (target, graph))
    strange = sorted({n for nodes in provenance for n in nodes} - set(range(len(target.nodes))))
    problem = ""
    if len(provenance) != len(graph.nodes):
        problem = f"traced {len(provenance)} nodes of {len(graph.nodes)}"
    elif strange:
        problem = f"traced nodes to {strange[:5]}, which the model does not have"
    elif graph.nodes and not any(provenance):
        problem = "traced no node at all"
    elif [name for name, _, _ in ahead] != [name for name, _, _ in behind] or any(
        (d, len(s or ())) != (e, len(t or ())) for (_, d, s), (_, e, t) in zip(ahead, behind, strict=True)
    ):
        problem = f"changed the border from {ahead} to {behind}"
    if problem:
        raise BuildFailed(f"{adapter}: its quantiser {problem}", remedy="report this to the plugin's author")


def _precisions(target: Graph, graph: Graph, provenance: Sequence[Sequence[int]]) -> tuple[NodePrecision, ...]:
    """The dtype of each node of `target`: int8 where all that it computes with has just been dequantised.

    Vectors and scalars aside, since biases stay in float. A node with its weights in float computes in it, whatever it
    reads; one that reads only some of its values rounded does both.
    """
    fresh = {v for node in graph.nodes if node.op == "DequantizeLinear" for v in node.outputs}
    rounded: dict[int, list[bool]] = {}
    weighty: set[int] = set()
    for node, came in zip(graph.nodes, provenance, strict=True):
        read = [v for v in node.inputs if v is not None and graph.values[v].dtype == WIDE]
        held = [v for v in read if v in graph.initializers]
        for index in came:
            rounded.setdefault(index, []).extend(v in fresh for v in read if v not in graph.initializers)
            if any(len(graph.values[v].shape or ()) >= 2 for v in held):
                weighty.add(index)
    found = []
    for node in target.nodes:
        floats = any(v is not None and target.values[v].dtype == WIDE for v in (*node.inputs, *node.outputs))
        reads = rounded.get(node.index, [])
        if not floats:
            found.append(NodePrecision(node.index, node.type, ""))
        elif not any(reads) or node.index in weighty:
            found.append(NodePrecision(node.index, node.type, WIDE, "left in float by the quantiser"))
        elif all(reads):
            found.append(NodePrecision(node.index, node.type, "int8", "quantised"))
        else:
            reason = "quantised in part: the rest of it stays in float"
            found.append(NodePrecision(node.index, node.type, f"int8 and {WIDE}", reason))
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
        adapter = resolved.instance()
        work = fed.parent / f"{fed.name}-work"
        work.mkdir(exist_ok=True)
        made: Quantizer = building(f"{resolved.name}: calibrating", lambda: adapter.quantizer(target, samples, work))
        _CALIBRATED[name] = made
    return tuple(tuple(nodes) for nodes in _CALIBRATED[name].write(path, keep))
