"""Which values share memory: checked by running random graphs in that very memory, byte by byte."""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paddock.graph import Graph, Node, Value
from paddock.planning.aliasing import Aliasing, standard_aliasing
from paddock.planning.lifetimes import Lifetimes, lifetimes
from paddock.planning.offsets import allocate, lower_bound

ALIASING = Aliasing(frozenset({"View"}), frozenset({"Over"}), {"Join": "axis"})


@st.composite
def graphs(draw: Any, largest: int = 10) -> Graph:
    """Views, operators that may write over an input, concatenations along both axes, and others, on uint8 matrices."""
    columns = st.integers(1, 3)
    values = [Value(f"v{i}", "uint8", (1, draw(columns))) for i in range(draw(st.integers(1, 3)))]
    starts = len(values)
    nodes: list[Node] = []
    for index in range(draw(st.integers(1, largest))):
        kind = draw(st.sampled_from(["View", "Over", "Over", "Join", "Join", "Op"]))
        count = draw(st.integers(1, 3)) if kind == "Join" else draw(st.integers(1, 2))
        # Recent values more often: chains are where memory is shared.
        picked = [len(values) - 1 - min(draw(st.integers(0, 6)), len(values) - 1) for _ in range(count)]
        attributes: dict[str, Any] = {}
        shape = values[picked[0]].shape
        assert shape is not None
        if kind == "View":
            picked = picked[:1]
            shape = (*shape[1:], shape[0]) if draw(st.booleans()) else shape
        elif kind == "Join":
            axis = draw(st.integers(0, 1))
            rows = shape[1 - axis]
            picked = [v for v in picked if (values[v].shape or ())[1 - axis] == rows]
            total = sum((values[v].shape or ())[axis] for v in picked)
            shape = (total, rows) if axis == 0 else (rows, total)
            attributes = {"axis": axis - 2 * draw(st.integers(0, 1))}
        values.append(Value(f"v{len(values)}", "uint8", shape))
        captures = (draw(st.integers(0, len(values) - 2)),) if draw(st.integers(0, 9)) == 0 else ()
        nodes.append(Node(index, kind, tuple(picked), (len(values) - 1,), attributes=attributes, captures=captures))
    outputs = draw(st.lists(st.integers(starts, len(values) - 1), min_size=1, max_size=2, unique=True))
    return Graph(tuple(nodes), tuple(values), tuple(range(starts)), tuple(outputs))


def places(graph: Graph, found: Lifetimes) -> dict[int, tuple[int, int]]:
    """By value its buffer's number and where in it the value begins; the parts of a concatenation lie one by one."""
    at: dict[int, tuple[int, int]] = {}
    for buffer, members in found.buffers:
        same = {v: v for v in members}  # views are where their source is, whoever writes over which of them
        for node in graph.nodes:
            if node.type == "View" and node.inputs[0] in same and node.outputs[0] in same:
                same[node.outputs[0]] = same[node.inputs[0]]
        inner = {same[v]: 0 for v in members if graph.nbytes(v) == buffer.size}
        for node in reversed(graph.nodes):  # backwards: only who reads last may write over what it reads
            result = same.get(node.outputs[0])  # type: ignore[arg-type]
            if result not in inner or node.type not in ("Over", "Join"):
                continue
            offset = inner[result]
            for v in node.inputs:
                if v in same:
                    inner.setdefault(same[v], offset)
                offset += (graph.nbytes(v) or 0) if node.type == "Join" and v is not None else 0
        for node in graph.nodes:  # what is written over, forwards
            for v in node.inputs[:1] if node.type == "Over" else ():
                if v in same and same[v] in inner and node.outputs[0] in same:
                    inner.setdefault(same[node.outputs[0]], inner[same[v]])
        assert set(inner) == set(same.values())
        number = buffer.id
        assert isinstance(number, int)
        at.update({v: (number, inner[same[v]]) for v in members})
    return at


def content(graph: Graph) -> dict[int, list[tuple[int, int]]]:
    """What the bytes of each value are: those of the value that they come from."""
    known: dict[int, list[tuple[int, int]]] = {}
    for v in graph.inputs:
        known[v] = [(v, i) for i in range(graph.nbytes(v) or 0)]
    for node in graph.nodes:
        result = node.outputs[0]
        assert result is not None
        shape = graph.values[result].shape or ()
        if node.type == "View":
            known[result] = known[node.inputs[0]]  # type: ignore[index]
        elif node.type == "Join" and all(d == 1 for d in shape[: node.attributes["axis"] % 2]):
            known[result] = [byte for v in node.inputs for byte in known[v]]  # type: ignore[index]
        else:
            known[result] = [(result, i) for i in range(graph.nbytes(result) or 0)]
    return known


@given(graphs())
@settings(max_examples=150, deadline=None)
def test_every_read_finds_what_was_written(graph: Graph) -> None:
    check_by_running(graph)


def test_a_view_of_what_is_written_over_stays_where_it_is() -> None:
    """Found by the property above: two parts of a concatenation are made of one value, one over a view of it."""
    nodes = [("Over", (0,)), ("View", (1,)), ("Over", (2,)), ("Over", (1,)), ("Join", (4, 3))]
    made = tuple(
        Node(i, kind, inputs, (i + 1,), attributes={"axis": 0} if kind == "Join" else {}, captures=(2,) * (i == 3))
        for i, (kind, inputs) in enumerate(nodes)
    )
    values = tuple(Value(f"v{i}", "uint8", (2 if i == 5 else 1, 1)) for i in range(6))
    check_by_running(Graph(made, values, (0,), (1,)))


def check_by_running(graph: Graph) -> None:
    """Each value's bytes written into its buffer when it is made, and looked at whenever it is read."""
    found = lifetimes(graph, ALIASING)
    at, bytes_of = places(graph, found), content(graph)
    memory: dict[tuple[Any, int], tuple[int, int]] = {}
    alive = {buffer.id: (buffer.lower, buffer.upper) for buffer, _ in found.buffers}
    for node in graph.nodes:
        for v in {*node.inputs, *node.captures}:
            if v in at:
                number, offset = at[v]
                assert alive[number][0] <= node.index < alive[number][1], "read outside of its lifetime"
                assert [memory[number, offset + i] for i in range(len(bytes_of[v]))] == bytes_of[v]
        result = node.outputs[0]
        assert result is not None
        if result in at:
            number, offset = at[result]
            assert alive[number][0] <= node.index < alive[number][1]
            begins = list(accumulate((graph.nbytes(v) or 0 for v in node.inputs), initial=offset))  # type: ignore[arg-type]
            if node.type == "Join" and [at.get(v) for v in node.inputs] == [(number, start) for start in begins[:-1]]:  # type: ignore[arg-type]
                found_there = [memory[number, offset + i] for i in range(len(bytes_of[result]))]
                assert found_there == bytes_of[result], "nothing is copied where the inputs lie in their places"
            memory.update({(number, offset + i): byte for i, byte in enumerate(bytes_of[result])})


@given(graphs())
@settings(max_examples=200, deadline=None)
def test_sharing_never_takes_more(graph: Graph) -> None:
    plain, shared = lifetimes(graph), lifetimes(graph, ALIASING)
    bounds = [lower_bound([buffer for buffer, _ in found.buffers]) for found in (plain, shared)]
    assert bounds[1] <= bounds[0] <= plain.unshared == shared.unshared
    assert (plain.io, plain.unknown) == (shared.io, shared.unknown)


def graph(nodes: str, shapes: dict[str, tuple[int, ...]], inputs: str, outputs: str) -> Graph:
    """`"y = Relu x; z = Concat x y"`; a concatenation is along axis 0."""
    names = list(shapes)
    made = []
    for index, text in enumerate(nodes.split(";")):
        left, right = text.split("=")
        op, *reads = right.split()
        attributes = {"axis": 0} if op == "Concat" else {}
        reading = tuple(names.index(name) for name in reads)
        made.append(Node(index, op, reading, (names.index(left.strip()),), attributes=attributes))
    values = tuple(Value(name, "uint8", shape) for name, shape in shapes.items())
    begin, end = (tuple(names.index(name) for name in text.split()) for text in (inputs, outputs))
    return Graph(tuple(made), values, begin, end)


@pytest.mark.parametrize(
    ("nodes", "shapes", "height"),
    [
        # A chain of elementwise operators is one buffer.
        ("a = Conv x; b = Relu a; c = Sigmoid b; y = Conv c", {"a": (8,), "b": (8,), "c": (8,)}, 8),
        # A reshape is no copy, also of an input.
        ("a = Reshape x; b = Conv a; c = Flatten b; y = Conv c", {"a": (4, 4), "b": (4, 2), "c": (8,)}, 8),
        # Both branches are written into the concatenation.
        ("a = Conv x; b = Conv x; c = Concat a b; y = Conv c", {"a": (3,), "b": (5,), "c": (8,)}, 8),
        # A residual: the sum is written over the branch, the trunk stays.
        ("a = Conv x; b = Conv a; c = Add b a; y = Conv c", {"a": (8,), "b": (8,), "c": (8,)}, 16),
        # Not written over what is read later.
        ("a = Conv x; b = Relu a; c = Conv b; y = Add c a", {"a": (8,), "b": (8,), "c": (8,)}, 24),
        # Not written over a smaller input that is broadcast.
        ("a = Conv x; b = Conv x; c = Add a b; y = Conv c", {"a": (1,), "b": (8,), "c": (8,)}, 9),
    ],
)
def test_what_real_operators_share(nodes: str, shapes: dict[str, tuple[int, ...]], height: int) -> None:
    made = graph(nodes, {"x": (16,), **shapes, "y": (16,)}, "x", "y")
    found = lifetimes(made, standard_aliasing())
    allocation = allocate([buffer for buffer, _ in found.buffers])
    assert (allocation.height, allocation.proven) == (height, True)
    assert found.io == 32 and found.unshared == sum(
        shape[0] if len(shape) == 1 else 16 if shape == (4, 4) else 8 for shape in shapes.values()
    )


@pytest.mark.parametrize(
    "nodes",
    [
        # The concatenation is written over while a part of it is still to be read.
        "a = Op x; b = Op x; c = Join a b; d = Over c; e = Op d; f = Op e a; y = Op f",
        "a = Op x; b = Op x; c = Join a b; g = Op x; h = Join c g; d = Over h; e = Op d a; y = Op e",
        # A part is written over while the concatenation is still to be read.
        "a = Op x; b = Op x; c = Join a b; d = Over a; e = Op d; f = Op e c; y = Op f",
        # One part in two concatenations, one of which has no other.
        "a = Op x; b = Join a; c = Op x; d = Join a c; e = Over b; f = Op e d; y = Op f d",
        "a = Op x; c = Op x; d = Join a c; b = Join a; e = Over b; f = Op e d; y = Op f d",
        "a = Op x; b = Join a a; y = Op b",
    ],
)
def test_what_must_not_share(nodes: str) -> None:
    sizes = {"a": 2, "b": 2, "c": 2, "g": 2, "x": 2, "y": 2}
    shapes: dict[str, tuple[int, ...]] = {}
    for text in ["x =", *nodes.split(";")]:
        name, _, right = text.partition("=")
        op, *reads = right.split() or ["Op"]
        joined = sum(shapes[read][0] for read in reads)
        size = joined if op == "Join" else shapes[reads[0]][0] if op == "Over" else sizes.get(name.strip(), 1)
        shapes[name.strip()] = (size,)
    made = graph(nodes, shapes, "x", "y")
    axis = {"axis": 0}
    joins = tuple(replace(node, attributes=axis) if node.type == "Join" else node for node in made.nodes)
    check_by_running(replace(made, nodes=joins))


def test_a_body_takes_memory_while_its_node_runs() -> None:
    body = Graph(
        (Node(0, "Conv", (0,), (1,)), Node(1, "Conv", (1,), (2,))),
        tuple(Value(name, "uint8", (size,)) for name, size in (("s", 4), ("t", 30), ("u", 4))), (), (2,),
    )  # fmt: skip
    values = tuple(Value(name, "uint8", (4,)) for name in ("x", "a", "b", "y"))
    nodes = (
        Node(0, "Conv", (0,), (1,)), Node(1, "If", (1,), (2,), subgraphs=(body,)), Node(2, "Conv", (2,), (3,)),
    )  # fmt: skip
    found = lifetimes(Graph(nodes, values, (0,), (3,)))
    assert lower_bound([buffer for buffer, _ in found.buffers]) == 4 + 4 + 30 + 4
    assert found.unshared == 8 + 34


def test_a_chain_of_concatenations_does_not_double() -> None:
    """As in DenseNet: each block appends to what came before, and reads all of it."""
    nodes, shapes = ["a0 = Conv x"], {"x": (4,), "a0": (4,)}
    for i in range(1, 12):
        nodes += [f"n{i} = Conv a{i - 1}", f"a{i} = Concat a{i - 1} n{i}"]
        shapes |= {f"n{i}": (4,), f"a{i}": (4 + 4 * i,)}
    nodes.append("y = Conv a11")
    made = graph("; ".join(nodes), {**shapes, "y": (4,)}, "x", "y")
    shared = allocate([buffer for buffer, _ in lifetimes(made, standard_aliasing()).buffers])
    plain = allocate([buffer for buffer, _ in lifetimes(made).buffers])
    assert shared.height == 48 and plain.height == 44 + 4 + 48
