"""The known defects of the backend that concern a model: those of defects.json, less what the graph shows to be right.

A pattern tells of a node alone; most of these defects ask what stands around it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from paddock.defects import load, remedies
from paddock.graph import Graph, Node
from paddock.plan import Precision, Remedy

NOT_NEGATIVE = frozenset({"Abs", "Exp", "HardSigmoid", "Relu", "Sigmoid", "Softmax", "Softplus", "Sqrt"})
"""Operators that give no number below zero."""
_KEEPS_SIGN = frozenset({"AveragePool", "GlobalAveragePool", "Identity", "MaxPool", "Reshape", "Transpose"})


def wrong(graph: Graph, versions: Mapping[str, str], precision: Precision) -> Sequence[Remedy]:
    """What is to be done about a model of this graph; see `paddock.defects.remedies`."""
    found = []
    for remedy in remedies(load("paddock_qualcomm"), graph, versions, precision):
        right = _RIGHT.get(remedy.name)
        nodes = tuple(n for n in remedy.nodes if right is None or not right(graph.nodes[n], graph))
        if nodes:
            action = f"{len(nodes)} nodes kept off the adapter" if len(nodes) > 1 else "kept off the adapter"
            found.append(replace(remedy, nodes=nodes, action=action))
    return found


def _never_below_zero(node: Node, graph: Graph) -> bool:
    """Whether what a node reads first comes out of an operator that gives no number below zero."""
    makers = {value: other for other in graph.nodes for value in other.outputs}
    current: Node | None = node
    while current is not None and (current is node or current.op in _KEEPS_SIGN):
        current = makers.get(current.inputs[0]) if current.inputs else None
    return current is not None and current.op in NOT_NEGATIVE


def _several_channels(node: Node, graph: Graph) -> bool:
    """Whether the first input is known to have more than one channel."""
    value = graph.values[node.inputs[0]] if node.inputs[0] is not None else None
    extent = value.shape[1] if value is not None and value.shape is not None and len(value.shape) > 2 else None
    return isinstance(extent, int) and extent > 1


def _not_multiplied(node: Node, graph: Graph) -> bool:
    """Whether no product has what a node reads on its left and what the node gives on its right."""
    fed, given = node.inputs[0], node.outputs[0]
    # What leaves the model, or this part of it, is multiplied elsewhere or not at all.
    return not any(other.op == "Mul" and other.inputs == (fed, given) for other in graph.nodes)


_RIGHT: Mapping[str, Callable[[Node, Graph], bool]] = {
    "maxpool-below-zero": _never_below_zero,
    "averagepool-one-channel": _several_channels,
    "hardsigmoid-times-input": _not_multiplied,
}
"""By defect, when a node that matches is right all the same."""
