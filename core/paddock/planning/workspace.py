"""What kernels take beside the values themselves, as far as a graph tells: for the adapters' own figures.

An adapter that measured how its backend behaves states its bound in these terms (`paddock.spi.Adapter.footprint`).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator

from paddock.graph import BITS, Graph, Node


def intermediate_bytes(graph: Graph) -> int:
    """The sum of all values that nodes make and that do not leave the graph, each at its largest."""
    return sum(graph.nbytes(v) or 0 for v in _made(graph))


def column_bytes(graph: Graph, operators: Collection[str], whole: bool = False) -> int:
    """The largest matrix of columns (im2col) of any convolution, for one element of the batch or the `whole` of it.

    For each output position it holds what the kernel covers: channels of a group times the kernel's area times output
    positions, in the input's dtype. `operators` are the names of convolutions whose second operand is the kernel,
    [out, channels of a group, ...].
    """
    return max((_columns(graph, node, whole) for node in graph.nodes if node.op in operators), default=0)


def weight_bytes(graph: Graph, operators: Collection[str]) -> int:
    """Bytes of the constants that nodes with these operators read, or get made of constants only; each counted once."""
    sources: dict[int, frozenset[int]] = {value: frozenset({value}) for value in graph.initializers}
    read: set[int] = set()
    for node in graph.nodes:
        inputs = [sources.get(v) for v in node.inputs if v is not None]
        if node.op in operators:
            read.update(*(found for found in inputs if found is not None))
        elif all(found is not None for found in inputs):
            constants = frozenset().union(*(found for found in inputs if found is not None))
            sources.update((v, constants) for v in node.outputs if v is not None)
    return sum(graph.initializers[value] for value in read)


def computed_share(graph: Graph, operators: Collection[str]) -> float:
    """The share, by bytes, of the intermediates whose shape is only known while the model runs.

    Those are what nodes with these operators make from a shape that is no constant (their operands but the first), and
    all that follows from them.
    """
    fixed: set[int | None] = {None, *graph.initializers}
    late: set[int | None] = set()
    for node in graph.nodes:
        if fixed.issuperset(node.inputs):
            fixed.update(node.outputs)
            continue
        if not late.isdisjoint(node.inputs) or (node.op in operators and not fixed.issuperset(node.inputs[1:])):
            late.update(v for v in node.outputs if v is not None)
    total = sum(graph.nbytes(v) or 0 for v in _made(graph))
    return sum(graph.nbytes(v) or 0 for v in _made(graph) if v in late) / max(1, total)


def _made(graph: Graph) -> Iterator[int]:
    outputs = set(graph.outputs)
    return (v for node in graph.nodes for v in node.outputs if v is not None and v not in outputs)


def _columns(graph: Graph, node: Node, whole: bool) -> int:
    values = [None if v is None else graph.values[v] for v in (*node.inputs[:2], *node.outputs[:1])]
    if len(values) < 3 or any(value is None or value.shape is None for value in values):
        return 0
    source, kernel, made = (value for value in values if value is not None)
    positions = (*(made.shape or ())[:1], *(made.shape or ())[2:]) if whole else (made.shape or ())[2:]
    ranges = [graph.range_of(dim) for dim in (*(kernel.shape or ())[1:], *positions)]
    return math.prod(bound.max for bound in ranges if bound is not None) * BITS.get(source.dtype or "", 32) // 8
