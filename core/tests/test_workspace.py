"""What kernels take beside the values, as far as a graph tells."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from paddock.graph import Graph, Node, Range, Value
from paddock.planning.workspace import column_bytes, computed_share, intermediate_bytes, weight_bytes

Made = tuple[str, list[str], list[str], dict[str, Any]]
"""A node: operator, inputs, outputs, attributes."""


def graph_of(shapes: dict[str, Any], *nodes: Made, **more: Any) -> Graph:
    names = list(shapes)
    values = tuple(Value(name, "float32", shape) for name, shape in shapes.items())
    made = tuple(
        Node(i, op, tuple(map(names.index, ins)), tuple(map(names.index, outs)), attributes=attributes)
        for i, (op, ins, outs, attributes) in enumerate(nodes)
    )
    return Graph(made, values, (0,), (len(values) - 1,), **more)


def test_columns_and_weights_of_convolutions() -> None:
    shapes = {
        "x": (2, 6, 10, 10),
        "w": (8, 3, 5, 5),
        "c": (8, 3, 5, 5),
        "b": (7,),
        "t": (2, 8, 6, 6),
        "y": (2, 8, 6, 6),
    }
    graph = graph_of(
        shapes, ("Identity", ["w"], ["c"], {}), ("Conv", ["x", "c"], ["t"], {}), ("Relu", ["t"], ["y"], {}),
        initializers={1: 2400, 3: 28},
    )  # fmt: skip
    assert column_bytes(graph, {"Conv"}) == 3 * 25 * 36 * 4
    assert column_bytes(graph, {"Conv"}, whole=True) == 2 * 3 * 25 * 36 * 4
    assert column_bytes(graph, {"Other"}) == 0
    open_batch = replace(
        graph, values=(*graph.values[:-2], replace(graph.values[4], shape=("n", 8, 6, 6)), graph.values[5])
    )
    open_batch = replace(open_batch, bounds={"n": Range(1, 1, 9)})
    assert column_bytes(open_batch, {"Conv"}, whole=True) == 9 * 3 * 25 * 36 * 4
    assert weight_bytes(graph, {"Conv"}) == 2400
    assert intermediate_bytes(graph) == 2400 + 2 * 8 * 36 * 4


def test_what_follows_from_a_computed_shape_is_known_late() -> None:
    shapes = {"x": (4, 8), "s": (2,), "k": (2,), "a": (8, 4), "b": (8, 4), "c": (4, 8), "y": (4, 8)}
    nodes: list[Made] = [
        ("Shape", ["x"], ["s"], {}), ("Relu", ["x"], ["c"], {}), ("Reshape", ["c", "k"], ["a"], {}),
        ("Reshape", ["a", "s"], ["b"], {}), ("Reshape", ["b", "k"], ["y"], {}),
    ]  # fmt: skip
    graph = graph_of(shapes, *nodes, initializers={2: 16})
    late, whole = 8 * 4 * 4, 2 * 4 + 3 * 8 * 4 * 4
    assert computed_share(graph, {"Reshape"}) == pytest.approx(late / whole)
    assert computed_share(graph, {"Other"}) == 0
    assert computed_share(replace(graph, initializers={1: 8, 2: 16}), {"Reshape"}) == 0
