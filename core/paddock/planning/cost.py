"""What a node's work and a value's way from one segment to another cost, roughly, in microseconds.

These figures decide one thing only: whether a few nodes on another adapter are worth the way there and back. They are
taken from shapes, not measured; what is unknown counts as nothing. The constants are a laptop core's: calling a session
takes 4 to 16 microseconds and copying 12.8 MB took 670 (measured, docs/measured.md); 20 GFLOP/s and 10 GB/s stand for
an operator library on few cores.
"""

from __future__ import annotations

from paddock.graph import BITS, Graph, Node

CALL = 15.0
"""Calling one more session, in microseconds."""
COPY = 19_000.0
"""Bytes copied in a microsecond within one memory."""
LINK = 8_000.0
"""Bytes moved in a microsecond between two memories (PCIe 3.0 x16 and the like)."""
GAIN = 0.5
"""The share of a node's work that the adapter asked for is taken to save over the next one."""

_FLOPS, _BYTES = 20_000.0, 10_000.0


def work(graph: Graph, node: Node) -> float:
    """The microseconds that a node takes; a body counts once."""
    made = sum(_size(graph, value) for value in node.outputs)
    read = sum(_size(graph, value) for value in node.inputs)
    inner = sum(work(body, each) for body in node.subgraphs for each in body.nodes)
    return (made + read) / _BYTES + _products(graph, node) / _FLOPS + inner


def crossing(graph: Graph, values: tuple[int, ...], far: bool) -> float:
    """The microseconds that a border with these values costs; `far` is between two memories."""
    return CALL + sum(_size(graph, value) for value in values) / (LINK if far else COPY)


def _size(graph: Graph, value: int | None) -> int:
    return 0 if value is None else graph.nbytes(value, "opt") or 0


def _products(graph: Graph, node: Node) -> float:
    """Floating-point operations of a product with weights: each output element takes 2 for each weight of its channel.

    Which dimension of the weight is the output's channel is not known here: the largest that both have.
    """
    value = node.outputs[0] if node.outputs else None
    output = graph.values[value] if value is not None else None
    if value is None or output is None or output.shape is None or output.dtype is None or output.dtype not in BITS:
        return 0.0
    elements = _size(graph, value) * 8 / BITS[output.dtype]
    found = 0.0
    for operand in node.inputs:
        if operand is None or operand not in graph.initializers:
            continue
        shape = [dim for dim in graph.values[operand].shape or () if isinstance(dim, int)]
        if len(shape) >= 2:
            shared = [dim for dim in shape if dim in output.shape]
            count = 1
            for dim in shape:
                count *= dim
            found += 2 * elements * count / max(shared or shape)
    return found
