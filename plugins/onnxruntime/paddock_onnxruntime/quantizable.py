"""Makes ONNX models ready for quantisers, and tells what became of their nodes; for this plugin and for others.

Quantisers want constants folded, batch normalisation merged into convolutions, every weight an initializer and every
node a name: onnxruntime's basic optimiser does that. Values keep their names through it, and through quantisers, so
that each node can be traced to those it was made of. Everything here needs onnx, and `prepared` onnxruntime.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from paddock.machine import cpu

OPSET = 13
"""The first opset in which DequantizeLinear takes a scale for each channel."""

FATAL = 4
_EXACT = frozenset({"avx512_vnni", "avx_vnni", "amx_int8", "i8mm"})


def has_vnni() -> bool:
    """Whether the CPU multiplies int8 without saturating on the way; False where the system does not tell."""
    return not _EXACT.isdisjoint(cpu()[1])


def upgraded(proto: Any) -> Any:
    """The model, raised to opset 13 where it is older."""
    import onnx

    opset = next((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), OPSET)
    return proto if opset >= OPSET else onnx.version_converter.convert_version(proto, OPSET)


def prepared(original: Any, work: Path) -> Any:
    """The model as onnxruntime's basic optimiser rewrites it, with a unique name for every node.

    Values keep their names, so that `origins` can tell where a node came from.
    """
    import onnx
    import onnxruntime

    named = onnx.ModelProto()
    named.CopyFrom(original)
    for index, node in enumerate(node for graph in graphs(named) for node in graph.node):
        node.name = f"node_{index}"  # onnxruntime refuses a model in which two nodes have one name
    source, target = work / "named.onnx", work / "optimised.onnx"
    onnx.save(named, source)
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = FATAL
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    settings.optimized_model_filepath = str(target)
    onnxruntime.InferenceSession(str(source), settings, providers=["CPUExecutionProvider"])
    proto = onnx.load(target)
    restore_ports(proto, list(original.graph.input), list(original.graph.output))
    for index, node in enumerate(proto.graph.node):
        node.name = f"{node.op_type}_{index}"
    prune(proto)
    return proto


def prune(proto: Any) -> None:
    """Drops what the optimiser adds: domains that no node is of, initializers that none reads, inner values' types."""
    used = {node.domain for graph in graphs(proto) for node in graph.node} | {f.domain for f in proto.functions}
    kept = [o for o in proto.opset_import if o.domain in ("", "ai.onnx") or o.domain in used]
    read = {name for node in proto.graph.node for name in reads(node)} | {o.name for o in proto.graph.output}
    held = [t for t in proto.graph.initializer if t.name in read]
    for field, entries in ((proto.opset_import, kept), (proto.graph.initializer, held), (proto.graph.value_info, [])):
        copies = [type(entry).FromString(entry.SerializeToString()) for entry in entries]
        del field[:]
        field.extend(copies)
    del proto.metadata_props[:]


def origins(original: Any, derived: Any) -> dict[str, tuple[int, ...]]:
    """For each node of `derived`, by name, the indices of the nodes of `original` that it computes.

    From what it writes back through the original to what other nodes of `derived` write: so a constant that was folded
    belongs to each node that reads it.
    """
    makers = {name: i for i, node in enumerate(original.graph.node) for name in node.output if name}
    made = {name for node in derived.graph.node for name in node.output}
    found = {}
    for node in derived.graph.node:
        nodes: set[int] = set()
        open_names = [name for name in node.output if name]
        while open_names:
            index = makers.get(open_names.pop())
            if index is not None and index not in nodes:
                nodes.add(index)
                open_names.extend(name for name in reads(original.graph.node[index]) if name not in made)
        found[node.name] = tuple(sorted(nodes))
    return found


def reads(node: Any) -> Iterator[str]:
    """The names that a node reads, those that its bodies read included."""
    yield from (name for name in node.input if name)
    for attribute in node.attribute:
        for body in [attribute.g] if attribute.HasField("g") else attribute.graphs:
            for inner in body.node:
                yield from reads(inner)
            yield from (port.name for port in body.output)


def graphs(proto: Any) -> Iterator[Any]:
    """The model's graph and every body in it."""
    left = [proto.graph]
    while left:
        graph = left.pop()
        yield graph
        for node in graph.node:
            for attribute in node.attribute:
                left.extend([attribute.g] if attribute.HasField("g") else attribute.graphs)


def sorted_nodes(proto: Any) -> Any:
    """The model with its nodes in topological order, and otherwise in the order that they had."""
    nodes = list(proto.graph.node)
    makers = {name: i for i, node in enumerate(nodes) for name in node.output if name}
    done: dict[int, None] = {}
    for start in range(len(nodes)):
        path = [start]
        while path:
            needed = [makers[name] for name in reads(nodes[path[-1]]) if name in makers]
            missing = [i for i in needed if i not in done]
            if missing and path[-1] not in done:
                path.append(missing[0])
            else:
                done.setdefault(path.pop())
    copies = [type(nodes[i]).FromString(nodes[i].SerializeToString()) for i in done]
    del proto.graph.node[:]
    proto.graph.node.extend(copies)
    return proto


def short(error: Exception) -> str:
    """A library's message on one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def restore_ports(proto: Any, inputs: list[Any], outputs: list[Any]) -> None:
    """States the border as the model did: the optimiser infers shapes of its own; a caller counts on the symbols."""
    for field, ports in ((proto.graph.input, inputs), (proto.graph.output, outputs)):
        del field[:]
        field.extend(ports)
