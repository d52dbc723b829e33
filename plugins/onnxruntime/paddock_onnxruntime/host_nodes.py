"""Which nodes of a model compute from shapes and constants alone: what providers for GPUs leave to the host by design.

What an operator takes as extents, axes or counts it reads on the host, so the provider computes that there as well: the
alternative is to wait for the device in the middle of a run. Of what is fed, such nodes see nothing but its shape.
"""

from __future__ import annotations

from collections.abc import Iterator

from paddock.graph import Graph, Node

from paddock_onnxruntime.named import name, named_bodies

_SHAPES = frozenset({"Shape", "Size"})
_RANDOM = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)


def host_names(graph: Graph) -> frozenset[str]:
    """The names (`paddock_onnxruntime.named`) of the nodes, and of those in bodies, that see only shapes and constants.

    A node with bodies is none of them, whatever they do.
    """
    return frozenset(_names(graph, "", frozenset()))


def _names(graph: Graph, prefix: str, outer: frozenset[str]) -> Iterator[str]:
    """`outer` are the values of the enclosing graphs that depend on nothing that is fed but its shape."""
    known = set(outer) | {graph.values[value].name for value in graph.initializers}
    for node in graph.nodes:
        given = f"{prefix}.{node.index}" if prefix else name(node.index)
        if node.op in _SHAPES or _reads_only(node, graph, known):
            known.update(graph.values[value].name for value in node.outputs if value is not None)
            yield given
        for body, start in named_bodies(node, given):
            yield from _names(body, start, frozenset(known))


def _reads_only(node: Node, graph: Graph, known: set[str]) -> bool:
    read = [graph.values[value].name for value in (*node.inputs, *node.captures) if value is not None]
    return node.op not in _RANDOM and not node.subgraphs and all(value in known for value in read)
