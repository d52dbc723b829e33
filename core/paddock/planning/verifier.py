"""Checks a placement by other means than it was made: coverage, order, borders and what may cross them."""

from __future__ import annotations

from collections.abc import Collection

from paddock.errors import PaddockError
from paddock.graph import Graph
from paddock.plan import Placement, Segment
from paddock.planning.partition import reads


def verify_placement(graph: Graph, placement: Placement, constants: Collection[str] = ()) -> None:
    """Raises `PaddockError` where a placement is not right, which is always a defect of Paddock's own.

    Right is: each node stands in exactly one segment, of the adapter that it is placed on; the segments stand in an
    order in which every value is made before another segment reads it (so that there is no cycle, and each segment is
    convex); each has as inputs what it reads and does not hold, as outputs what others or the caller need, and no more;
    what is copied makes a constant; and what crosses has a dtype and is no map.
    """
    owners: dict[int, Segment] = {}
    for position, segment in enumerate(placement.segments):
        _must(segment.index == position, f"segment {segment.index} stands at position {position}")
        for index in segment.nodes:
            _must(index not in owners, f"node {index} stands in two segments")
            owners[index] = segment
    _must(len(placement.nodes) == len(graph.nodes), "it does not place every node")
    for node, placed in zip(graph.nodes, placement.nodes, strict=True):
        _must(placed.node == node.index and node.index in owners, f"{node.label} stands in no segment")
        _must(owners[node.index].adapter == placed.adapter, f"{node.label} is not placed where its segment runs")
    known = set(graph.inputs)
    whole = len(placement.segments) == 1
    initializers, ends = set(graph.initializers), {*graph.inputs, *graph.outputs}
    for segment in placement.segments:
        _check_segment(graph, segment, known, constants, whole, initializers, ends)
        known.update(v for v in segment.outputs)
    needed = {v for segment in placement.segments for v in segment.inputs} | set(graph.outputs)
    _must(needed <= known, "somebody needs a value that no segment hands out")
    for segment in placement.segments:
        idle = set(segment.outputs) - needed
        # Nodes that nobody reads may stand in a segment of their own, which then hands out one value all the same.
        _must(not idle or len(segment.outputs) == 1, f"segment {segment.index} hands out values that nobody needs")


def _check_segment(
    graph: Graph,
    segment: Segment,
    known: set[int],
    constants: Collection[str],
    whole: bool,
    initializers: set[int],
    ends: set[int],
) -> None:
    name = f"segment {segment.index}"
    inside: set[int] = set()
    for index in (*segment.nodes, *segment.constants):
        inside.update(v for v in graph.nodes[index].outputs if v is not None)
    for copied in segment.constants:
        node = graph.nodes[copied]
        _must(node.type in constants and not reads(node), f"{name} copies {node.label}, which makes no constant")
        _must(copied not in segment.nodes, f"{name} copies a node of its own")
    used = {v for index in segment.nodes for v in reads(graph.nodes[index])}
    outside = used - inside - initializers
    _must(outside <= set(segment.inputs), f"{name} reads values that are not among its inputs")
    _must(whole or set(segment.inputs) <= outside, f"{name} has inputs that it does not read")
    _must(set(segment.inputs) <= known, f"{name} reads values that are made after it")
    made = {v for index in segment.nodes for v in graph.nodes[index].outputs}
    _must(
        whole or set(segment.outputs) <= made | initializers,
        f"{name} hands out values that it does not make",
    )
    for value in {*segment.inputs, *segment.outputs} - ends:
        found = graph.values[value]
        _must(found.dtype is not None and found.kind != "map", f"{name}: {found.name!r} has no type to cross a border")


def _must(holds: bool, problem: str) -> None:
    if not holds:
        raise PaddockError(
            f"the placement is not right: {problem}", remedy="please report this, with the model and the config"
        )
