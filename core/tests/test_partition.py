"""Placement and partition: properties on random graphs, against brute force, and against the whole model's results."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from paddock.errors import NotAvailable, PaddockError
from paddock.graph import Graph, Node, Value
from paddock.model import Model
from paddock.onnx_format import OnnxFormat
from paddock.plan import NodePlacement, Placement, Segment, Verdict
from paddock.planning.operators import Candidate, place
from paddock.planning.partition import Partitioner, Piece, reads
from paddock.planning.verifier import verify_placement

YES, NO = Verdict.yes("it can"), Verdict.no("it cannot", "a table")
F32 = Value("", "float32", (2, 3))


def graph_of(wires: Sequence[Sequence[int]], captures: Mapping[int, Sequence[int]] | None = None) -> Graph:
    """Node i reads the values `wires[i]` (0 is the input) and makes value i + 1; what nobody reads is an output."""
    nodes = tuple(
        Node(i, "Constant" if not wire else "Op", tuple(wire), (i + 1,), captures=tuple((captures or {}).get(i, ())))
        for i, wire in enumerate(wires)
    )
    read = {v for node in nodes for v in reads(node)}
    outputs = tuple(i + 1 for i in range(len(wires)) if i + 1 not in read)
    return Graph(nodes, tuple(replace(F32, name=f"v{i}") for i in range(len(wires) + 1)), (0,), outputs)


@st.composite
def graphs(draw: st.DrawFn, most: int = 24, constants: bool = True) -> Graph:
    wires: list[list[int]] = []
    captures: dict[int, list[int]] = {}
    for index in range(draw(st.integers(1, most))):
        known = st.integers(max(0, index - 6), index)
        if constants and draw(st.integers(0, 5)) == 0:
            wires.append([])
            continue
        wires.append(draw(st.lists(known, min_size=1, max_size=3)))
        if draw(st.integers(0, 7)) == 0:
            captures[index] = draw(st.lists(known, max_size=2))
    graph = graph_of(wires, captures)
    extra = draw(st.lists(st.integers(1, len(wires)), max_size=2))  # outputs that are read as well
    return replace(graph, outputs=tuple(dict.fromkeys((*graph.outputs, *extra))))


@st.composite
def chains(draw: st.DrawFn, graph: Graph, adapters: int = 3) -> list[Candidate]:
    """Adapters of which the last takes everything."""
    found = []
    for number in range(adapters):
        no = set() if number == adapters - 1 else draw(st.sets(st.integers(0, len(graph.nodes) - 1)))
        found.append(Candidate(f"cpu/{'abc'[number]}", [NO if n.index in no else YES for n in graph.nodes]))
    return found


@given(st.data())
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_every_node_stands_in_one_segment_and_nothing_is_read_before_it_is_made(data: st.DataObject) -> None:
    graph = data.draw(graphs())
    chain = data.draw(chains(graph))
    placement = place(graph, chain, {"Constant"})
    verify_placement(graph, placement, {"Constant"})
    # Once more by other means than the verifier's.
    assert sorted(n for s in placement.segments for n in s.nodes) == list(range(len(graph.nodes)))
    made = {0}
    for segment in placement.segments:
        assert set(segment.inputs) <= made
        inside = set(segment.inputs)
        for node in sorted((*segment.nodes, *segment.constants)):
            assert set(reads(graph.nodes[node])) <= inside
            inside.add(node + 1)
        assert set(segment.outputs) <= inside
        made |= set(segment.outputs)
    assert set(graph.outputs) <= made
    for placed in placement.nodes:
        candidate = next(c for c in chain if c.adapter == placed.adapter)
        assert candidate.verdicts[placed.node].usable
        assert [name for name, _ in placed.passed] == [c.adapter for c in chain[: chain.index(candidate)]]
        assert all(not verdict.usable and verdict.reason for _, verdict in placed.passed)


def fewest(graph: Graph, owners: Sequence[int]) -> int:
    """By trying: the fewest turns in which all nodes can be taken, each turn any ready nodes of one owner."""
    needs = [{v - 1 for v in reads(node) if v} for node in graph.nodes]
    states, turns = {frozenset[int]()}, 0
    everything = frozenset(range(len(needs)))
    while everything not in states:
        grown = set()
        for state, owner in itertools.product(states, set(owners)):
            taken = set(state)
            for node in range(len(needs)):
                if owners[node] == owner and needs[node] <= taken:
                    taken.add(node)
            grown.add(frozenset(taken))
        states, turns = grown, turns + 1
    return turns


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_two_owners_get_the_fewest_segments_that_are_possible(data: st.DataObject) -> None:
    graph = data.draw(graphs(14, constants=False))
    owners = data.draw(st.lists(st.integers(0, 1), min_size=len(graph.nodes), max_size=len(graph.nodes)))
    assert len(Partitioner(graph).pieces(owners)) == fewest(graph, owners)


def closed(pieces: Sequence[Piece]) -> bool:
    """Whether these pieces have an order in which every value is made before it is read."""
    left = list(pieces)
    every = {v for piece in pieces for v in piece.outputs}
    made: set[int] = set()
    while left:
        ready = [piece for piece in left if not (set(piece.inputs) & every) - made - set(piece.outputs)]
        if not ready:
            return False
        made |= {v for piece in ready for v in piece.outputs}
        left = [piece for piece in left if piece not in ready]
    return True


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_no_two_segments_of_one_owner_could_be_one(data: st.DataObject) -> None:
    graph = data.draw(graphs(16, constants=False))
    owners = data.draw(st.lists(st.integers(0, 2), min_size=len(graph.nodes), max_size=len(graph.nodes)))
    pieces = Partitioner(graph).pieces(owners)
    assert closed(pieces)
    for one, two in itertools.combinations(pieces, 2):
        if one.owner == two.owner:
            inputs = tuple(v for v in {*one.inputs, *two.inputs} if v not in {*one.outputs, *two.outputs})
            both = Piece(one.owner, one.nodes + two.nodes, inputs, one.outputs + two.outputs)
            assert not closed([both, *(piece for piece in pieces if piece not in (one, two))])


def onnx_model(graph: Graph, path: Path) -> onnx.ModelProto:
    """Adds and scales a graph's wires for real; constants hold their index."""
    nodes = []
    for node in graph.nodes:
        names = [f"v{v}" for v in node.inputs]
        if not names:
            tensor = numpy_helper.from_array(np.full((2, 3), node.index, np.float32))
            nodes.append(helper.make_node("Constant", [], [f"v{node.index + 1}"], value=tensor))
        elif node.captures:
            body = helper.make_graph(
                [helper.make_node("Sum", [f"v{v}" for v in (*node.inputs, *node.captures)], [f"b{node.index}"])],
                "body", [], [helper.make_tensor_value_info(f"b{node.index}", TensorProto.FLOAT, [2, 3])],
            )  # fmt: skip
            nodes.append(helper.make_node("If", ["flag"], [f"v{node.index + 1}"], then_branch=body, else_branch=body))
        else:
            nodes.append(helper.make_node(["Sum", "Mean"][node.index % 2], names, [f"v{node.index + 1}"]))
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 3]) for name in ("v0",)]
    outputs = [helper.make_tensor_value_info(f"v{v}", TensorProto.FLOAT, [2, 3]) for v in graph.outputs]
    flag = numpy_helper.from_array(np.array(True), "flag")
    proto = helper.make_model(
        helper.make_graph(nodes, "g", info, outputs, [flag]),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    onnx.save(proto, path)
    return proto


@given(st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_the_partitioned_model_computes_what_the_whole_one_does(data: st.DataObject) -> None:
    drawn = data.draw(graphs(14))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "whole.onnx"
        proto = onnx_model(drawn, path)
        graph = OnnxFormat().read({"model": path})
        model = Model("onnx", {"model": path}, "f", graph)
        placement = place(graph, data.draw(chains(graph)), OnnxFormat.constants)
        verify_placement(graph, placement, OnnxFormat.constants)
        x = np.arange(6, dtype=np.float32).reshape(2, 3)
        known: dict[str, Any] = {"v0": x}
        for segment in placement.segments:
            home = Path(folder) / str(segment.index)
            home.mkdir()
            part = OnnxFormat().extract(model, segment, home)
            names = [graph.values[v].name for v in segment.outputs]
            feeds = {graph.values[v].name: known[graph.values[v].name] for v in segment.inputs}
            answers = ReferenceEvaluator(onnx.load(part["model"])).run(names, feeds)
            known.update(zip(names, answers, strict=True))
        names = [value.name for value in graph.output_values]
        for name, wanted in zip(names, ReferenceEvaluator(proto).run(names, {"v0": x}), strict=True):
            np.testing.assert_array_equal(known[name], wanted)


def test_a_sequence_keeps_its_nodes_together() -> None:
    """Node 1 alone could run on a; but it makes a sequence, and the node that reads it cannot."""
    graph = graph_of([[0], [1], [2], [3]])
    values = list(graph.values)
    values[2] = replace(values[2], kind="sequence")
    graph = replace(graph, values=tuple(values))
    chain = [Candidate("cpu/a", [YES, YES, NO, YES]), Candidate("cpu/b", [YES] * 4)]
    placement = place(graph, chain)
    assert [placed.adapter for placed in placement.nodes] == ["cpu/a", "cpu/b", "cpu/b", "cpu/a"]
    assert placement.nodes[1].passed[0][1].reason == "kept with the nodes that it exchanges values with"


def test_a_small_island_is_not_worth_the_way() -> None:
    """Of a, b, a, b, a with tiny nodes, b's one node in the middle that a could run goes to a; the reason says why."""
    graph = graph_of([[0], [1], [2], [3], [4]])
    chain = [Candidate("cpu/b", [NO, NO, YES, NO, NO]), Candidate("cpu/a", [YES] * 5)]
    placement = place(graph, chain)
    assert len(placement.segments) == 1 and placement.on("cpu/a") == 5
    assert "1 nodes among those of cpu/a" in placement.nodes[2].passed[0][1].reason
    values = (*(replace(value, shape=(64, 512)) for value in graph.values), Value("w", "float32", (512, 512)))
    nodes = (*graph.nodes[:2], replace(graph.nodes[2], inputs=(2, 6)), *graph.nodes[3:])
    heavy = replace(graph, nodes=nodes, values=values, initializers={6: 512 * 512 * 4})
    assert len(place(heavy, chain).segments) == 3


def test_the_ends_of_a_model_are_no_islands() -> None:
    graph = graph_of([[0], [1], [2]])
    chain = [Candidate("cpu/a", [YES, NO, YES]), Candidate("cpu/b", [YES] * 3)]
    assert [s.adapter for s in place(graph, chain).segments] == ["cpu/a", "cpu/b", "cpu/a"]


def test_a_node_that_nobody_reads_has_a_segment_all_the_same() -> None:
    graph = replace(graph_of([[0], [0]]), outputs=(2,))
    chain = [Candidate("cpu/a", [YES, NO]), Candidate("cpu/b", [YES, YES])]
    placement = place(graph, chain)
    verify_placement(graph, placement)
    assert {segment.outputs for segment in placement.segments} == {(1,), (2,)}


def test_who_takes_no_node_is_told_with_every_reason() -> None:
    graph = graph_of([[0], [1]])
    with pytest.raises(NotAvailable) as caught:
        place(graph, [Candidate("cpu/a", [YES, NO]), Candidate("cpu/b", [YES, Verdict.no("nor can b", "b's table")])])
    assert "it cannot [a table]" in str(caught.value) and "nor can b [b's table]" in str(caught.value)


GOOD = Placement(
    tuple(NodePlacement(i, "Op", a, YES) for i, a in enumerate(("cpu/a", "cpu/b", "cpu/a"))),
    (
        Segment(0, "cpu/a", (0,), (0,), (1,)),
        Segment(1, "cpu/b", (1,), (1,), (2,)),
        Segment(2, "cpu/a", (2,), (1, 2), (3,)),
    ),
)


def with_segment(number: int, **changes: Any) -> Placement:
    segments = list(GOOD.segments)
    segments[number] = replace(segments[number], **changes)
    return replace(GOOD, segments=tuple(segments))


@pytest.mark.parametrize(
    ("placement", "said"),
    [
        (with_segment(1, nodes=(1, 0)), "two segments"),
        (with_segment(1, nodes=()), "stands in no segment"),
        (with_segment(1, adapter="cpu/c"), "not placed where its segment runs"),
        (with_segment(2, inputs=(1,)), "not among its inputs"),
        (with_segment(2, inputs=(1, 2, 0)), "inputs that it does not read"),
        (with_segment(0, outputs=()), "made after it"),
        (with_segment(0, outputs=(1, 2)), "does not make"),
        (with_segment(2, outputs=()), "no segment hands out"),
        (with_segment(1, constants=(0,)), "makes no constant"),
        (replace(GOOD, segments=GOOD.segments[::-1]), "stands at position"),
        (
            replace(GOOD, segments=tuple(replace(s, index=i) for i, s in enumerate(GOOD.segments[::-1]))),
            "made after it",
        ),
    ],
)
def test_the_verifier_finds_what_is_not_right(placement: Placement, said: str) -> None:
    graph = graph_of([[0], [1], [1, 2]])
    verify_placement(graph, GOOD)
    with pytest.raises(PaddockError, match=said):
        verify_placement(graph, placement)


def test_a_value_without_a_type_does_not_cross() -> None:
    graph = graph_of([[0], [1], [1, 2]])
    values = list(graph.values)
    values[2] = replace(values[2], dtype=None)
    with pytest.raises(PaddockError, match="no type to cross"):
        verify_placement(replace(graph, values=tuple(values)), GOOD)


@given(graphs(10, constants=False), st.data())
@settings(max_examples=50, deadline=None)
def test_a_cycle_between_segments_is_found(graph: Graph, data: st.DataObject) -> None:
    """Nodes dealt out at random: either an order of the segments exists, or the verifier says that it does not."""
    parts = data.draw(st.integers(2, 3))
    assume(len(graph.nodes) >= parts)
    homes = data.draw(st.lists(st.integers(0, parts - 1), min_size=len(graph.nodes), max_size=len(graph.nodes)))
    assume(len(set(homes)) == parts)
    groups = [[n for n, home in enumerate(homes) if home == part] for part in range(parts)]
    pieces = []
    ends = set(graph.outputs)
    for group in groups:
        made = {n + 1 for n in group}
        read = {v for n in group for v in reads(graph.nodes[n])}
        outside = {v for n, home in enumerate(homes) if n not in group for v in reads(graph.nodes[n])}
        pieces.append(Piece(0, tuple(group), tuple(read - made), tuple(made & (outside | ends))))
    for order in itertools.permutations(pieces):
        segments = tuple(Segment(i, f"cpu/{i}", p.nodes, p.inputs, p.outputs) for i, p in enumerate(order))
        owners = {n: s.adapter for s in segments for n in s.nodes}
        nodes = tuple(NodePlacement(n.index, n.op, owners[n.index], YES) for n in graph.nodes)
        try:
            verify_placement(graph, Placement(nodes, segments))
        except PaddockError as error:
            assert "made after it" in error.problem
        else:
            assert closed(pieces)
            break
    else:
        assert not closed(pieces)
