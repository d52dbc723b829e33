"""Known defects as data: what a pattern matches, what is done about it, and what is wrong with a broken file."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.specifiers import SpecifierSet
from paddock.defects import Defect, Pattern, load, remedies
from paddock.errors import ConfigError
from paddock.graph import Graph, Node, Range, Value
from paddock.plan import Precision, Remedy
from pydantic import TypeAdapter

PATTERN = TypeAdapter(Pattern)
ENTRY: dict[str, Any] = {
    "name": "a-defect", "summary": "it is wrong", "evidence": "SDK 1.2: 3, not 4", "sdk": "sdk", "versions": ">=1,<2",
    "remedy": "exclude", "patterns": [{"operators": ["Relu"]}],
}  # fmt: skip


def graph_of(*nodes: Node, values: tuple[Value, ...] = (), **more: Any) -> Graph:
    top = max((i for n in nodes for i in (*n.inputs, *n.outputs) if i is not None), default=-1)
    values = (*values, *(Value(f"v{i}", "float32", (2, 3)) for i in range(len(values), top + 1)))
    return Graph(nodes, values, **{"inputs": (), "outputs": (), "opsets": {"": 17}, **more})


def pool(kernel: int, stride: int) -> Node:
    return Node(0, "P", (0,), (1,), attributes={"kernel_shape": [kernel], "strides": [stride]})


def entry(**changes: Any) -> Defect:
    return TypeAdapter(Defect).validate_python({**ENTRY, **changes})


def concern(defect: Defect, graph: Graph, version: str = "1.2", **more: Any) -> tuple[Remedy, ...]:
    return remedies([defect], graph, {"sdk": version}, more.pop("precision", Precision.FP32), **more)


RELU = Node(0, "Relu", (0,), (1,))


@pytest.mark.parametrize(
    ("pattern", "node", "more", "wanted"),
    [
        ({}, RELU, {}, True),
        ({"operators": ["Relu"]}, RELU, {}, True),
        ({"operators": ["Neg", "Abs"]}, RELU, {}, False),
        ({"operators": ["a.b.Relu"]}, Node(0, "Relu", (0,), (1,), domain="a.b"), {}, True),
        ({"operators": ["Relu"]}, Node(0, "Relu", (0,), (1,), domain="a.b"), {}, False),
        ({"attributes": {"mode": ["max"]}}, Node(0, "P", (0,), (1,), attributes={"mode": "max"}), {}, True),
        ({"attributes": {"mode": ["max"]}}, Node(0, "P", (0,), (1,), attributes={"mode": "avg"}), {}, False),
        ({"attributes": {"mode": ["max"]}}, Node(0, "P", (0,), (1,)), {}, False),
        ({"attributes": {"mode": ["max", None]}}, Node(0, "P", (0,), (1,)), {}, True),
        ({"attributes": {"ks": [[1, 1]]}}, Node(0, "P", (0,), (1,), attributes={"ks": [1, 1]}), {}, True),
        ({"other_than": {"clip": [None]}}, Node(0, "P", (0,), (1,), attributes={"clip": 0.5}), {}, True),
        ({"other_than": {"clip": [None]}}, Node(0, "P", (0,), (1,)), {}, False),
        ({"dtypes": {"input 0": ["int8"]}}, RELU, {"values": (Value("x", "int8"),)}, True),
        ({"dtypes": {"input 0": ["int8"]}}, RELU, {"values": (Value("x", None),)}, True),
        ({"dtypes": {"input 0": ["int8"]}}, RELU, {"values": (Value("x", "uint8"),)}, False),
        ({"dtypes": {"output 0": ["float32"]}}, RELU, {}, True),
        ({"dtypes": {"input 1": ["float32"]}}, RELU, {}, False),
        ({"present": ["input 1"]}, Node(0, "P", (0, 2), (1,)), {}, True),
        ({"present": ["input 1"]}, Node(0, "P", (0, None), (1,)), {}, False),
        ({"present": ["output 1"]}, RELU, {}, False),
        ({"absent": ["input 1"]}, Node(0, "P", (0, None), (1,)), {}, True),
        ({"absent": ["input 0"]}, RELU, {}, False),
        ({"fed": ["input 0"]}, RELU, {"inputs": (0,)}, True),
        ({"fed": ["input 0"]}, RELU, {"inputs": (1,)}, False),
        ({"fed": ["input 1"]}, RELU, {"inputs": (0,)}, False),
        ({"inputs": ">1"}, RELU, {}, False),
        ({"inputs": ">1"}, Node(0, "P", (0, 2), (1,)), {}, True),
        ({"rank": ">=3"}, RELU, {}, False),
        ({"rank": ">=3"}, RELU, {"values": (Value("x", "float32", (1, 2, 3)),)}, True),
        ({"rank": ">=3"}, RELU, {"values": (Value("x", "float32", None),)}, True),
        ({"opset": "<9"}, RELU, {}, False),
        ({"opset": "<9"}, RELU, {"opsets": {"": 8}}, True),
        ({"opset": "<9"}, RELU, {"opsets": {}}, True),
        ({"form": "adds several"}, pool(3, 3), {"values": (Value("x", "float32", (1, 1, 5)),)}, False),
        ({"form": "adds several"}, pool(3, 3), {"values": (Value("x", "float32", (1, 1, 6)),)}, False),
        ({"form": "adds several"}, pool(3, 3), {"values": (Value("x", "float32", (1, 1, 7)),)}, True),
        ({"form": "adds several"}, pool(3, 3), {"values": (Value("x", "float32", (1, 1, "n")),)}, True),
        ({"form": "adds several"}, pool(3, 2), {"values": (Value("x", "float32", (1, 1, "n")),)}, False),
        ({"form": "empty"}, RELU, {}, False),
        ({"form": "empty"}, RELU, {"values": (Value("x", "float32", (2, 0)),)}, True),
        ({"form": "empty"}, RELU, {"values": (Value("x", "float32", ("n", 2)),)}, False),
        ({"form": "empty"}, RELU, {"values": (Value("x", "float32", ("n",)),), "bounds": {"n": Range(0, 1, 2)}}, True),
        ({"form": "uneven"}, RELU, {"values": (Value("x", "float32", (1, 16, 3)),)}, False),
        ({"form": "uneven"}, RELU, {"values": (Value("x", "float32", (1, 10, 1)),)}, True),
        ({"form": "uneven"}, RELU, {"values": (Value("x", "float32", ("n", 16, 1)),)}, True),
        ({"form": "uneven"}, RELU, {"values": (Value("x", "float32", None),)}, True),
    ],
)  # fmt: skip
def test_a_pattern_matches_the_form_it_states(pattern: Any, node: Node, more: Any, wanted: bool) -> None:
    graph = graph_of(node, **more)
    assert PATTERN.validate_python(pattern).matches(graph.nodes[0], graph) is wanted


@given(
    size=st.integers(1, 12), kernel=st.integers(1, 4), stride=st.integers(1, 5), dilation=st.integers(1, 2),
    data=st.data(),
)  # fmt: skip
def test_a_window_that_starts_late_is_never_missed(
    size: int, kernel: int, stride: int, dilation: int, data: st.DataObject
) -> None:
    """Against the count itself: rounded up, the last window begins beyond the input and its first padding."""
    span = dilation * (kernel - 1) + 1
    begin, end = data.draw(st.integers(0, span - 1)), data.draw(st.integers(0, span - 1))
    node = Node(
        0, "MaxPool", (0,), (1,),
        attributes={"kernel_shape": [kernel], "strides": [stride], "dilations": [dilation], "pads": [begin, end]},
    )  # fmt: skip
    found = Pattern(form="late window").matches(node, graph_of(node))
    room = size + begin + end - span
    if room >= 0:
        windows = -(-room // stride) + 1
        assert found or (windows - 1) * stride < size + begin


def test_usual_pooling_starts_no_window_late() -> None:
    for attributes in (
        {"kernel_shape": [3, 3], "strides": [2, 2]},
        {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]},
        {"kernel_shape": [2, 2], "strides": [2, 2]},
        {"kernel_shape": [3, 3]},
    ):
        node = Node(0, "MaxPool", (0,), (1,), attributes=attributes)
        assert not Pattern(form="late window").matches(node, graph_of(node))


@st.composite
def models(draw: st.DrawFn) -> Graph:
    """Chains of A, B and If nodes, the bodies of which are such chains again."""

    def chain(depth: int) -> Graph:
        kinds = draw(st.lists(st.sampled_from("AB" + "I" * bool(depth)), max_size=4))
        nodes = [
            Node(i, kind, (i,), (i + 1,), subgraphs=(chain(depth - 1),) if kind == "I" else ())
            for i, kind in enumerate(kinds)
        ]
        return graph_of(*nodes)

    return chain(2)


def holds(node: Node, op: str) -> bool:
    return node.op == op or any(holds(inner, op) for body in node.subgraphs for inner in body.nodes)


@given(models())
def test_exclusion_keeps_exactly_the_nodes_off_that_are_or_run_the_operator(graph: Graph) -> None:
    found = concern(entry(patterns=[{"operators": ["A"]}]), graph)
    assert sorted(n for r in found for n in r.nodes) == [n.index for n in graph.nodes if holds(n, "A")]
    assert all(r.applied and not r.refuses for r in found)
    direct = {n for r in found if not r.summary.startswith("in its body") for n in r.nodes}
    assert direct == {n.index for n in graph.nodes if n.op == "A"}


def test_a_body_is_named_in_the_reason() -> None:
    body = graph_of(Node(0, "If", (0,), (1,), subgraphs=(graph_of(RELU),)))
    graph = graph_of(RELU, Node(1, "Loop", (1,), (2,), subgraphs=(body,)))
    assert [(r.summary, r.nodes) for r in concern(entry(), graph)] == [
        ("it is wrong", (0,)),
        ("in its body, Relu: it is wrong", (1,)),
    ]


@pytest.mark.parametrize(
    ("version", "concerned"),
    [
        *((version, True) for version in ("1.2", "1.2.post1", "1.9rc1", "1.5+cpu", "who knows", "")),
        *((version, False) for version in ("0.9", "2.0")),
    ],
)
def test_only_affected_versions_are_concerned(version: str, concerned: bool) -> None:
    assert bool(concern(entry(), graph_of(RELU), version)) is concerned


def test_a_version_that_is_not_told_counts_as_affected() -> None:
    assert remedies([entry()], graph_of(RELU), {}, Precision.FP32)


def test_precision_and_model_decide() -> None:
    defect = entry(precisions=["bf16"])
    assert not concern(defect, graph_of(RELU))
    assert concern(defect, graph_of(RELU), precision=Precision.BF16)
    assert not concern(entry(), graph_of(Node(0, "Neg", (0,), (1,))))


def test_passes_are_dropped_where_asked_for() -> None:
    defect = entry(remedy="drop_pass", passes=["inplace_pass", "other"], patterns=[])
    (remedy,) = concern(defect, graph_of())
    assert remedy.applied and remedy.action == "delete_pass('inplace_pass', 'other')" and not remedy.nodes
    (remedy,) = concern(defect, graph_of(RELU), applied=False)
    assert not remedy.applied
    narrow = entry(remedy="drop_pass", passes=["inplace_pass"])
    assert concern(narrow, graph_of(RELU)) and not concern(narrow, graph_of(Node(0, "Neg", (0,), (1,))))


def test_exclusion_and_refusal_apply_whatever_is_asked_for() -> None:
    (excluded,) = concern(entry(), graph_of(RELU), applied=False)
    assert excluded.applied and excluded.nodes == (0,)
    (refused,) = concern(entry(remedy="refuse"), graph_of(RELU), applied=False)
    assert refused.applied and refused.refuses and not refused.nodes


@pytest.fixture
def package(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "vendor_of_test"
    folder.mkdir()
    (folder / "__init__.py").touch()
    sys.path.insert(0, str(tmp_path))
    load.cache_clear()
    yield folder / "defects.json"
    sys.path.remove(str(tmp_path))
    sys.modules.pop(folder.name, None)
    load.cache_clear()


def test_a_file_is_read(package: Path) -> None:
    package.write_text(
        '[{"name": "n", "summary": "s", "evidence": "e", "sdk": "d", "versions": "<2", "remedy": "exclude",'
        ' "patterns": [{"operators": ["Relu"], "dtypes": {"input 0": ["int8"]}, "opset": "<9"}]}]'
    )
    (found,) = load("vendor_of_test")
    pattern = Pattern(("Relu",), dtypes={"input 0": ("int8",)}, opset=SpecifierSet("<9"))
    assert found == Defect("n", "s", "e", "d", SpecifierSet("<2"), "exclude", (pattern,))


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"remedy": "pray"}, "$[0].remedy"),
        ({"versions": "three"}, "$[0].versions"),
        ({"nonsense": 1}, "$[0].nonsense"),
        ({"evidence": ""}, "$[0].evidence"),
        ({"precisions": ["fp7"]}, "$[0].precisions[0]"),
        ({"patterns": []}, "$[0]: "),
        ({"passes": ["p"]}, "$[0]: "),
        ({"remedy": "drop_pass"}, "$[0]: "),
        ({"patterns": [{"operator": ["Relu"]}]}, "$[0].patterns[0].operator"),
        ({"patterns": [{"form": "odd"}]}, "$[0].patterns[0].form"),
        ({"patterns": [{"present": ["input one"]}]}, "$[0].patterns[0].present[0]"),
        ({"patterns": [{"dtypes": {"any": ["int8"]}}]}, "$[0].patterns[0].dtypes"),
    ],
)
def test_a_broken_entry_is_named_with_its_place(package: Path, changes: dict[str, Any], place: str) -> None:
    import json

    package.write_text(json.dumps([{**ENTRY, **changes}]))
    with pytest.raises(ConfigError) as caught:
        load("vendor_of_test")
    assert caught.value.where == "vendor_of_test/defects.json"
    assert place in caught.value.problem and "vendor_of_test" in str(caught.value.remedy)


def test_broken_files_are_named(package: Path) -> None:
    with pytest.raises(ConfigError, match=r"vendor_of_test/defects.json: cannot be read"):
        load("vendor_of_test")
    package.write_text('[{"name": "n",}]')
    with pytest.raises(ConfigError, match=r"vendor_of_test/defects.json: line 1, column"):
        load("vendor_of_test")
    package.write_text("[]")
    assert load("vendor_of_test") == ()


def test_two_entries_of_one_name_are_refused(package: Path) -> None:
    import json

    package.write_text(json.dumps([ENTRY, ENTRY]))
    with pytest.raises(ConfigError, match="two entries are called 'a-defect'"):
        load("vendor_of_test")
