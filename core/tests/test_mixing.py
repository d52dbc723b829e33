"""Mixed placement: cuts and assignments by properties and brute force, and adapters of which a mix is the fastest."""

from __future__ import annotations

import itertools
import json
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import paddock_fakes_twins as twins
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator
from paddock import tune
from paddock.contest import Contest
from paddock.deployment import deploy
from paddock.graph import Graph, Node, Value
from paddock.mixing import Mixed, mix
from paddock.model import Model
from paddock.onnx_format import OnnxFormat
from paddock.plan import NodePlacement, Placement, Segment, Verdict
from paddock.planning.mixing import Assignment, assign, cut_points, cuts, joined, kept_off, predicted
from paddock.planning.operators import Candidate, place
from paddock.planning.partition import Partitioner, reads
from paddock.registry import Registry
from paddock_fakes_segments import save
from test_partition import NO, YES, graph_of, graphs, onnx_model

# The assignment

seconds = st.integers(1, 40).map(lambda n: n / 8)  # exact sums, and ties
prices = st.integers(-8, 40).map(lambda n: n / 8)


@st.composite
def chains(draw: st.DrawFn) -> tuple[list[dict[str, float]], list[dict[tuple[str, str], float]]]:
    """Times and borders of up to five pieces on up to three adapters, with holes."""
    names = "abc"[: draw(st.integers(1, 3))]
    count = draw(st.integers(1, 5))
    times = [
        {a: draw(seconds) for a in names if draw(st.integers(0, 5))} for _ in range(count)
    ]  # fmt: skip
    pairs = [(one, other) for one in names for other in names]
    borders = [{pair: draw(prices) for pair in pairs if draw(st.integers(0, 5))} for _ in range(count - 1)]
    return times, borders


@given(chains())
@settings(max_examples=300, deadline=None)
def test_no_assignment_is_faster_nor_as_fast_with_fewer_borders(
    drawn: tuple[list[dict[str, float]], list[dict[tuple[str, str], float]]],
) -> None:
    times, borders = drawn
    every = []
    for adapters in itertools.product("abc", repeat=len(times)):
        pairs = list(itertools.pairwise(adapters))
        whole = all(a in piece for a, piece in zip(adapters, times, strict=True))
        if whole and all(pair in border for pair, border in zip(pairs, borders, strict=True)):
            total = sum(piece[a] for a, piece in zip(adapters, times, strict=True))
            total += sum(border[pair] for pair, border in zip(pairs, borders, strict=True))
            every.append((total, sum(a != b for a, b in pairs), adapters))
            assert predicted(adapters, times, borders) == total
        else:
            assert predicted(adapters, times, borders) is None
    for least in (0, 1):
        found = assign(times, borders, least)
        meant = [way for way in every if way[1] >= least]
        if found is None:
            assert not meant
            continue
        assert (found.seconds, found.borders) == min(meant)[:2]
        assert (found.seconds, found.borders, found.adapters) in meant


def test_a_tie_goes_to_fewer_borders() -> None:
    times = [{"a": 1.0, "b": 1.0}] * 3
    free = {(one, other): 0.0 for one in "ab" for other in "ab"}
    assert assign(times, [free, free]) == Assignment(("a", "a", "a"), 3.0, 0)
    assert assign([{"a": 1.0, "b": 2.0}, {"a": 2.0, "b": 1.0}], [{**free, ("a", "b"): 2.0}]) == Assignment(
        ("a", "a"), 3.0, 0
    )


# The cuts


@given(graphs(), st.integers(1, 4))
@settings(max_examples=200, deadline=None)
def test_few_values_cross_each_cut(graph: Graph, most: int) -> None:
    constants = [node.index for node in graph.nodes if node.type == "Constant"]
    partitioner = Partitioner(graph, constants)
    points = cut_points(partitioner, most)
    for position in range(1, len(graph.nodes)):
        # Found by looking at all nodes, not by sweeping.
        made = {v for n in graph.nodes[:position] if n.index not in partitioner.free for v in n.outputs}
        crossing = made & {v for n in graph.nodes[position:] for v in reads(n)}
        found = [cut for cut in points if cut.position == position]
        assert bool(found) == (0 < len(crossing) <= most)
        assert all(set(cut.values) == crossing for cut in found)


def test_what_no_array_carries_is_not_cut() -> None:
    graph = graph_of([[0], [1], [2], [3]])
    values = list(graph.values)
    values[2] = replace(values[2], kind="sequence")
    graph = replace(graph, values=tuple(values))
    assert [cut.position for cut in cut_points(Partitioner(graph))] == [1, 3]


def test_pieces_are_of_similar_work_and_begin_with_products() -> None:
    """A row of products with weights, each followed by two nodes on tensors of the same size."""
    nodes = []
    for n in range(12):
        nodes.append(Node(3 * n, "MatMul", (3 * n, 37), (3 * n + 1,)))
        nodes += [Node(3 * n + k, "Op", (3 * n + k,), (3 * n + k + 1,)) for k in (1, 2)]
    values = [*(Value(f"v{n}", "float32", (64, 512)) for n in range(37)), Value("w", "float32", (512, 512))]
    graph = Graph(tuple(nodes), tuple(values), (0,), (36,), {37: 512 * 512 * 4})
    assert [cut.position for cut in cuts(Partitioner(graph), 4)] == [9, 18, 27]
    assert [cut.nbytes for cut in cuts(Partitioner(graph), 4)] == [64 * 512 * 4] * 3
    narrow = list(values)
    narrow[16] = replace(values[16], shape=(64, 16))
    assert cuts(Partitioner(replace(graph, values=tuple(narrow))), 4)[1].position == 16, "fewer bytes are worth more"
    assert not cuts(Partitioner(graph_of([[0]])), 4)


@given(graphs(14), st.integers(2, 6))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_the_pieces_one_after_another_compute_what_the_whole_does(drawn: Graph, pieces: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "whole.onnx"
        proto = onnx_model(drawn, path)
        graph = OnnxFormat().read({"model": path})
        model = Model("onnx", {"model": path}, "f", graph)
        partitioner = Partitioner(graph, [n.index for n in graph.nodes if n.type in OnnxFormat.constants])
        found = partitioner.intervals([cut.position for cut in cuts(partitioner, pieces)])
        assert len(found) <= pieces
        assert sorted(n for piece in found for n in piece.nodes) == list(range(len(graph.nodes)))
        known: dict[str, Any] = {"v0": np.arange(6, dtype=np.float32).reshape(2, 3)}
        whole = dict(known)
        for number, piece in enumerate(found):
            home = Path(folder) / str(number)
            home.mkdir()
            segment = Segment(number, "cpu/a", piece.nodes, piece.inputs, piece.outputs, piece.copies)
            part = OnnxFormat().extract(model, segment, home)
            names = [graph.values[v].name for v in piece.outputs]
            feeds = {graph.values[v].name: known[graph.values[v].name] for v in piece.inputs}
            known.update(zip(names, ReferenceEvaluator(onnx.load(part["model"])).run(names, feeds), strict=True))
        names = [value.name for value in graph.output_values]
        for name, wanted in zip(names, ReferenceEvaluator(proto).run(names, whole), strict=True):
            np.testing.assert_array_equal(known[name], wanted)


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_the_config_places_every_node_where_the_assignment_has_it(data: st.DataObject) -> None:
    graph = data.draw(graphs())
    partitioner = Partitioner(graph, [node.index for node in graph.nodes if node.type == "Constant"])
    pieces = partitioner.intervals([cut.position for cut in cuts(partitioner, 4)])
    chain = ["cpu/a", "cpu/b", "cpu/c"]
    adapters = [data.draw(st.sampled_from(chain)) for _ in pieces]
    segments = [(a, tuple(n for n in nodes if n not in partitioner.free)) for a, nodes in joined(pieces, adapters)]
    assert all(one[0] != other[0] for one, other in itertools.pairwise(segments))
    exclude = kept_off(graph, segments, chain, partitioner.free)
    off = {a: {int(pattern.split()[0][1:]) for pattern in exclude.get(a, ())} for a in chain}
    candidates = [Candidate(a, [NO if n.index in off[a] else YES for n in graph.nodes]) for a in chain]
    placement = place(graph, candidates, {"Constant"}, trim=False)
    wanted = {node: adapter for adapter, nodes in segments for node in nodes}
    assert {n.node: n.adapter for n in placement.nodes if n.node in wanted} == wanted
    exact = sorted(segments) == sorted(
        (s.adapter, tuple(n for n in s.nodes if n in wanted)) for s in placement.segments
    )  # fmt: skip
    assert (Mixed("", segments=tuple(segments)).differs(placement) == "") == exact


def test_a_placement_that_came_out_otherwise_is_told() -> None:
    def placed(*segments: tuple[str, tuple[int, ...]]) -> Placement:
        nodes = [NodePlacement(n, "Op", a, Verdict.yes(), ()) for a, ns in segments for n in ns]
        return Placement(tuple(nodes), tuple(Segment(i, a, ns, (), ()) for i, (a, ns) in enumerate(segments)))

    meant = Mixed("", segments=(("a", (0, 1)), ("b", (2, 3)), ("a", (4,))))
    assert meant.differs(placed(("a", (0, 1)), ("b", (2, 3)), ("a", (4,)))) == ""
    assert "1 of 3 segments" in meant.differs(placed(("a", (0, 1)), ("b", (2, 3)), ("b", (4,))))
    assert "nodes #0 to #1 on a" in meant.differs(placed(("a", (0, 1, 4)), ("b", (2, 3))))


# Real deployments of adapters that sleep


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host with these adapters and nothing else; a model of five early nodes and seven late ones."""
    twins.install(tmp_path / "site")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setenv("PADDOCK_ALLOW", "twins,paddock-reference")
    names = ["early"] * 5 + ["late"] * 7
    nodes = [(f"{name}{n} {('Neg', 'Abs')[n % 2]}", f"v{n}", f"v{n + 1}") for n, name in enumerate(names)]
    return save(tmp_path / "m.onnx", nodes, ["v12"])


@pytest.mark.long
def test_a_mix_that_is_faster_wins_as_an_ordinary_config(host: Path) -> None:
    base = {"hardware": "npu", "threads": 1, "instances": 1}  # nothing is left to be turned
    found = tune.tune(host, base, seconds=3600, mixed=True)
    assert found.mixed is not None and found.mixed.label in {row.label for row in found.tried}, found.mixed
    assert found.config["operators"]["exclude"], found.reason
    assert {found.config["backend"], *found.config["fallback"]} == {"early", "npu/late"} or {
        found.config["backend"], *found.config["fallback"]
    } == {"late", "npu/early"}  # fmt: skip
    row = next(row for row in found.tried if row.verdict == "chosen")
    assert row.label == found.mixed.label and "mixed" in row.label
    alone = [row.ratio for row in found.tried if row.label != found.mixed.label and row.ratio is not None]
    assert alone and all(ratio[1] > 1.5 for ratio in alone), "told by sleeping"
    assert json.loads(json.dumps(asdict(found.mixed)))["pieces"][0]["ms"]
    with deploy(host, found.config) as deployment:
        placed = deployment.plan.placement
        assert [n.adapter for n in placed.nodes[:4]] == ["npu/early"] * 4
        assert [n.adapter for n in placed.nodes[6:]] == ["npu/late"] * 6
        assert found.mixed.differs(placed) == "" and deployment.report.outcome == "passed"


@pytest.mark.long
def test_no_mix_is_tried_where_one_adapter_is_best_everywhere(host: Path) -> None:
    registry = Registry.discover()
    best = {"hardware": "npu", "backend": "late"}
    feeds = {"v0": np.ones((2, 3), np.float32)}
    found = mix(host, best, ["dsp/poor"], feeds, registry=registry, until=time.monotonic() + 3600, rounds=3)
    assert found.config is None and "of the time of npu/late alone: not tried" in found.reason
    assert found.alone["dsp/poor"] > found.alone["npu/late"]
    late = mix(host, best, ["dsp/poor"], feeds, registry=registry, until=time.monotonic() - 1)
    assert late.config is None and "the time was up" in late.reason


@pytest.mark.long
def test_a_piece_that_an_adapter_refuses_goes_to_another(host: Path) -> None:
    best = {"hardware": "npu", "backend": "late", "options": {"refuses_border": ["v8"]}}
    feeds = {"v0": np.ones((2, 3), np.float32)}
    until = time.monotonic() + 3600
    found = mix(host, best, ["npu/early"], feeds, registry=Registry.discover(), until=until, rounds=3)
    assert "cannot be fed that value" in found.refused["piece 4 on npu/late"]
    assert "pieces 4 and 5 on npu/late and npu/early" in found.refused
    assert list(found.alone) == ["npu/early"] and "npu/late" not in found.pieces[4]["ms"]
    assert found.adapters[4] == "npu/early" and found.adapters[5] == "npu/late" and found.config is not None
    assert found.config["options"] == best["options"] and found.config["backend"] == "late"


@pytest.mark.parametrize(
    ("best", "others", "reason"),
    [
        ({"backend": "late"}, [], "only one adapter"),
        ({"backend": "late", "storage": "fp16"}, ["npu/early"], "plain fp32"),
        ({"backend": "late", "operators": {"exclude": ["Neg"]}}, ["npu/early"], "states who"),
    ],
)  # fmt: skip
def test_what_is_not_mixed_says_why(host: Path, best: dict[str, Any], others: list[str], reason: str) -> None:
    config = {"hardware": "npu", **best}
    feeds = {"v0": np.ones((2, 3), np.float32)}
    found = mix(host, config, others, feeds, registry=Registry.discover(), until=time.monotonic() + 60)
    assert found.config is None and reason in found.reason


def test_a_model_that_cannot_be_cut_says_so(host: Path) -> None:
    path = save(host.with_name("one.onnx"), [("late Neg", "x", "y")], ["y"])
    feeds = {"x": np.ones((2, 3), np.float32)}
    config = {"hardware": "npu", "backend": "late"}
    found = mix(path, config, ["npu/early"], feeds, registry=Registry.discover(), until=time.monotonic() + 60)
    assert found.config is None and "no cut" in found.reason


def test_a_contest_tells_its_sample(host: Path) -> None:
    assert Contest(host).sample is None
