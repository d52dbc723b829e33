"""The frozen plan: storing, hashing, comparing; placement and its checks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paddock.config import HardwareConfig
from paddock.errors import ConfigError, NotAvailable, PaddockError
from paddock.graph import Graph, Node, Range, Value
from paddock.memory_plan import Footprint, MemoryPlan, PlannedBuffer, SegmentMemory
from paddock.model import Model
from paddock.plan import (
    Answer,
    Means,
    NodePlacement,
    NodePrecision,
    Placement,
    Plan,
    Precision,
    PrecisionPlan,
    Remedy,
    SearchStep,
    Segment,
    Setting,
    Verdict,
    digest,
)
from paddock.planning.operators import Candidate, matching, place
from paddock.planning.precision import Keep, asked_to_keep, portable
from paddock.planning.verifier import verify_placement
from pydantic import ValidationError

TEXT = st.text(max_size=5)
COUNT = st.integers(0, 2**40)
INDICES = st.lists(st.integers(0, 99), max_size=3).map(tuple)
VERDICTS = st.builds(Verdict, st.sampled_from(Answer), TEXT, TEXT)
DATA = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), TEXT),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(TEXT, inner, max_size=2)),
    max_leaves=4,
)
RANGES = st.builds(Range, COUNT, COUNT, COUNT, st.lists(st.tuples(COUNT, COUNT), max_size=2).map(tuple))
PLANS = st.builds(
    Plan,
    model=TEXT,
    format=TEXT,
    adapter=TEXT,
    device=TEXT,
    precision=st.builds(
        PrecisionPlan,
        st.sampled_from(Precision),
        st.sampled_from(Means),
        INDICES,
        TEXT,
        st.lists(st.builds(NodePrecision, COUNT, TEXT, TEXT, TEXT), max_size=2).map(tuple),
        st.lists(st.tuples(TEXT, TEXT), max_size=2).map(tuple),
        COUNT,
        TEXT,
        st.lists(
            st.builds(SearchStep, COUNT, st.floats(0, 1), st.none() | st.floats(0, 9), st.none(), st.booleans()),
            max_size=2,
        ).map(tuple),
    ),
    placement=st.builds(
        Placement,
        st.lists(
            st.builds(
                NodePlacement, COUNT, TEXT, TEXT, VERDICTS, st.lists(st.tuples(TEXT, VERDICTS), max_size=2).map(tuple)
            ),
            max_size=3,
        ).map(tuple),
        st.lists(st.builds(Segment, COUNT, TEXT, INDICES, INDICES, INDICES, INDICES), max_size=2).map(tuple),
    ),
    memory=st.builds(
        MemoryPlan,
        st.lists(
            st.builds(
                SegmentMemory,
                COUNT,
                TEXT,
                TEXT,
                COUNT,
                COUNT,
                COUNT,
                COUNT,
                st.booleans(),
                COUNT,
                COUNT,
                COUNT,
                TEXT,
                COUNT,
                st.booleans(),
                st.none() | st.builds(Footprint, COUNT, COUNT),
                st.lists(
                    st.builds(PlannedBuffer, st.lists(TEXT, max_size=2).map(tuple), TEXT, COUNT, COUNT, COUNT, COUNT),
                    max_size=2,
                ).map(tuple),
            ),
            max_size=2,
        ).map(tuple),
        COUNT,
        COUNT,
        TEXT,
        st.none() | COUNT,
        st.none() | COUNT,
    ),
    shapes=st.dictionaries(TEXT, TEXT, max_size=2),
    bounds=st.dictionaries(TEXT, RANGES, max_size=2),
    choices=st.lists(st.lists(st.dictionaries(TEXT, RANGES, max_size=2), max_size=2).map(tuple), max_size=2).map(tuple),
    settings=st.lists(st.builds(Setting, TEXT, DATA, DATA, TEXT), max_size=2).map(tuple),
    remedies=st.lists(st.builds(Remedy, TEXT, TEXT, TEXT, st.booleans(), TEXT, INDICES, st.booleans()), max_size=2).map(
        tuple
    ),
    versions=st.dictionaries(TEXT, TEXT, max_size=2),
    verify=TEXT,
    reference=st.lists(TEXT, max_size=2).map(tuple),
    budget=TEXT,
    notes=st.lists(TEXT, max_size=2).map(tuple),
)


@given(PLANS)
@settings(max_examples=100, deadline=None)
def test_a_stored_plan_is_the_same_plan(plan: Plan) -> None:
    stored = json.loads(json.dumps(plan.to_json()))
    again = Plan.from_json(stored)
    assert again == plan
    assert again.key == plan.key and again.semantics() == plan.semantics()


@pytest.mark.parametrize("data", [None, {}, [], {"model": 1}, "text"])
def test_foreign_data_is_no_plan(data: Any) -> None:
    with pytest.raises(ValidationError):
        Plan.from_json(data)


def plan() -> Plan:
    node = NodePlacement(0, "Relu", "cpu/x", Verdict.yes("it can", "a table"))
    return Plan(
        model="m", format="onnx", adapter="cpu/x", device="0 (CPU)",
        precision=PrecisionPlan(Precision.FP32), placement=Placement((node,), (Segment(0, "cpu/x", (0,), (0,), (1,)),)),
        memory=MemoryPlan(owned=1), shapes={"x": "[1]"}, settings=(Setting("threads", 2),), versions={"sdk": "1"},
        remedies=(Remedy("d", "s", "a", True),), budget="max_error 0.1",
    )  # fmt: skip


BUILDS_ANOTHER: Mapping[str, Any] = {
    "model": "other", "format": "paddle", "adapter": "cpu/y", "device": "1 (CPU)", "shapes": {"x": "[2]"},
    "bounds": {"n": Range(1, 2, 4)}, "choices": (({"n": Range(1, 1, 1)}, {"n": Range(2, 2, 2)}),),
    "precision": PrecisionPlan(Precision.BF16, Means.BACKEND), "versions": {"sdk": "2"}, "verify": "off",
    "budget": "max_error 0.2", "settings": (Setting("threads", 3),), "remedies": (Remedy("d", "s", "a", False),),
    "memory": MemoryPlan(owned=1, instances=2),
    "placement": Placement((NodePlacement(0, "Relu", "cpu/z", Verdict.yes("")),), ()),
}  # fmt: skip


@pytest.mark.parametrize("field", BUILDS_ANOTHER)
def test_what_changes_the_build_changes_the_key(field: str) -> None:
    other = replace(plan(), **{field: BUILDS_ANOTHER[field]})
    assert other.key != plan().key
    assert other.semantics() != plan().semantics()


def test_reasons_and_predictions_do_not() -> None:
    node = NodePlacement(0, "Relu", "cpu/x", Verdict.provisional("perhaps", "elsewhere"))
    other = replace(
        plan(), placement=replace(plan().placement, nodes=(node,)), memory=MemoryPlan(owned=9, measured=3),
        notes=("n",),
        settings=(Setting("threads", 2, 2, "why"),), remedies=(Remedy("d", "S", "A", True, "e"),), reference=("r",),
    )  # fmt: skip
    assert other.key == plan().key and other.semantics() == plan().semantics()


def test_digest() -> None:
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1}) != digest({"a": 1, "b": [3]})


def test_by_operator_counts_and_sorts() -> None:
    yes, no = Verdict.yes("r"), Verdict.no("n")
    rows = [("B", "c", ()), ("A", "c", ()), ("B", "c", ()), ("C", "d", (("c", no),))]
    nodes = tuple(NodePlacement(i, op, where, yes, passed) for i, (op, where, passed) in enumerate(rows))
    found = Placement(nodes, (Segment(0, "d", (3,), (), ()), Segment(1, "c", (0, 1, 2), (), ())))
    wanted = [("B", "c", "yes", "r", 2), ("A", "c", "yes", "r", 1), ("C", "d", "yes", "r; not c: n", 1)]
    assert found.by_operator() == wanted
    assert found.on("c") == 3 and found.adapters == ("d", "c")


# Placement


def model() -> Model:
    values = tuple(Value(name, "float32", (1,)) for name in "xaby")
    nodes = (
        Node(0, "Relu", (0,), (1,), "first"),
        Node(1, "Gelu", (1,), (2,), "second", "com.x"),
        Node(2, "Relu", (2,), (3,)),
    )
    return Model("onnx", {}, "f", Graph(nodes, values, (0,), (3,)))


def config(**fields: Any) -> HardwareConfig:
    return HardwareConfig.load({"hardware": "cpu", "backend": "x", **fields})


ALL = Candidate("cpu/x", (Verdict.yes(),) * 3)


@pytest.mark.parametrize(
    ("pattern", "nodes"), [("Relu", {0, 2}), ("com.x.Gelu", {1}), ("Gelu", {1}), ("second", {1}), ("first", {0})]
)
def test_nodes_are_named_by_type_or_name(pattern: str, nodes: set[int]) -> None:
    assert matching(model(), [pattern], "$.operators.exclude") == nodes


def test_a_name_of_the_users_model_reaches_the_converted_nodes() -> None:
    source = model()
    graph = Graph((Node(0, "Fused", (0,), (1,)),), source.graph.values, (0,), (1,))
    converted = Model("other", {}, "g", graph, source, ((0, 1),))
    assert matching(converted, ["second"], "$.x") == {0}
    with pytest.raises(ConfigError):
        matching(converted, ["Softmax"], "$.x")


def test_a_pattern_without_effect_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        matching(model(), ["Relu", "Reluu"], "$.operators.exclude")
    error = caught.value
    assert error.where == "$.operators.exclude[1]" and "Relu" in error.candidates
    assert error.remedy == "did you mean 'Relu'?"


@pytest.mark.parametrize(("pattern", "nodes"), [("#1", {1}), ("#1 com.x.Gelu", {1}), ("#2 Relu", {2})])
def test_nodes_are_named_by_index(pattern: str, nodes: set[int]) -> None:
    assert matching(model(), [pattern], "$.operators.exclude") == nodes


@pytest.mark.parametrize(("pattern", "said"), [("#3", "no node #3"), ("#1 Relu", "is a com.x.Gelu, not a Relu")])
def test_an_index_of_another_model_is_refused(pattern: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        matching(model(), ["Relu", pattern], "$.operators.exclude")
    assert caught.value.where == "$.operators.exclude[1]"


def test_all_nodes_make_one_segment() -> None:
    placement = place(model().graph, [ALL])
    assert placement.segments == (Segment(0, "cpu/x", (0, 1, 2), (0,), (3,)),) and placement.on("cpu/x") == 3
    verify_placement(model().graph, placement)


def test_nodes_nobody_takes_refuse() -> None:
    chosen = (Verdict.yes(), Verdict.no("no kernel", "the registry"), Verdict.provisional("maybe"))
    with pytest.raises(NotAvailable, match="cpu/x does not take 1 of 3 nodes") as caught:
        place(model().graph, [Candidate("cpu/x", chosen)])
    assert caught.value.candidates == ("#1 com.x.Gelu (second): no kernel [the registry]",)
    assert caught.value.nodes == (1,)
    with pytest.raises(NotAvailable, match="none of cpu/x, cpu/y takes 1 of 3 nodes") as caught:
        place(model().graph, [Candidate("cpu/x", chosen), Candidate("cpu/y", chosen)])
    assert "cpu/x: no kernel" in str(caught.value) and "cpu/y: no kernel" in str(caught.value)
    with pytest.raises(NotAvailable, match="2 verdicts for 3 nodes"):
        place(model().graph, [Candidate("cpu/x", chosen[:2])])


@pytest.mark.parametrize("broken", ["twice", "elsewhere", "uncovered"])
def test_a_wrong_placement_is_caught(broken: str) -> None:
    good = place(model().graph, [ALL])
    segment = good.segments[0]
    segments = {
        "twice": (segment, replace(segment, index=1)),
        "elsewhere": (replace(segment, adapter="cpu/y"),),
        "uncovered": (replace(segment, nodes=(0, 2)),),
    }[broken]
    with pytest.raises(PaddockError, match="the placement is not right"):
        verify_placement(model().graph, replace(good, segments=segments))


def test_what_the_config_keeps_in_fp32() -> None:
    assert asked_to_keep(model(), config()) == Keep()
    named = asked_to_keep(model(), config(precision="fp16", operators={"keep_fp32": ["Relu"]}))
    assert (tuple(named.nodes), named.exact) == ((0, 2), True)
    nothing = asked_to_keep(model(), config(precision="fp16", operators={"keep_fp32": []}))
    assert (tuple(nothing.nodes), nothing.exact) == ((), True)
    assert asked_to_keep(model(), config(operators={"keep_fp32": portable(model(), [2, 0])})).nodes == named.nodes
    with pytest.raises(ConfigError) as caught:
        asked_to_keep(model(), config(operators={"keep_fp32": ["Softmax"]}))
    assert caught.value.where == "$.operators.keep_fp32[0]"
