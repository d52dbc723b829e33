"""The check of casts: it passes what is right, and finds each fault that a rewrite could make."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from paddock.errors import ModelError, UsageError
from paddock.onnx_dtypes import Finding, check_casts
from paddock.onnx_tensors import dtype_name, dtype_number, graphs_of

DATA = Path(onnx.__file__).parent / "backend/test/data"
NONE: Mapping[Any, str] = {}


def check(
    proto: onnx.ModelProto,
    folder: Path,
    wanted: Mapping[int, str] = NONE,
    narrow: str = "float16",
    io: Mapping[str, str] = NONE,
    own: Collection[int] = (),
) -> tuple[list[Finding], dict[str, str]]:
    path = folder / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    return check_casts(path, wanted, narrow, io, own)


# Random models with casts made by hand


@dataclass
class Draft:
    """A model under way: which dtype each value has, and by which node each is to be computed in which dtype."""

    narrow: str
    dtypes: dict[str, str] = field(default_factory=dict)
    nodes: list[Any] = field(default_factory=list)
    wanted: dict[str, str] = field(default_factory=dict)  # by the node's name
    weights: dict[str, Any] = field(default_factory=dict)
    outputs: list[str] = field(default_factory=list)

    def read(self, value: str, dtype: str) -> str:
        """The value in that dtype: itself, or what one cast of it gives."""
        if self.dtypes[value] == dtype:
            return value
        name = f"{value}_{dtype}"
        if name not in self.dtypes:
            self.dtypes[name] = dtype
            self.nodes.append(helper.make_node("Cast", [value], [name], name, to=dtype_number(dtype)))
        return name

    def weight(self, dtype: str) -> str:
        name = f"w_{dtype}"
        data = helper.make_tensor(name, dtype_number(dtype), (4, 4), [0.5] * 16)
        self.weights[name], self.dtypes[name] = data, dtype
        return name

    def proto(self) -> onnx.ModelProto:
        def info(name: str) -> onnx.ValueInfoProto:
            return helper.make_tensor_value_info(name, TensorProto.FLOAT, (4, 4))

        outputs = [info(name) for name in self.outputs]
        graph = helper.make_graph(self.nodes, "g", [info("x")], outputs, list(self.weights.values()))
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    def check(self, folder: Path) -> tuple[list[Finding], dict[str, str]]:
        wanted = {i: self.wanted[n.name] for i, n in enumerate(self.nodes) if n.name in self.wanted}
        io = dict.fromkeys(("x", *self.outputs), "float32")
        return check(self.proto(), folder, wanted, self.narrow, io)


@st.composite
def drafts(draw: Any) -> Draft:
    draft = Draft(draw(st.sampled_from(["float16", "bfloat16"])), {"x": "float32"})
    made = ["x"]
    for index in range(draw(st.integers(1, 8))):
        op = draw(st.sampled_from(["Relu", "Add", "MatMul", "Weighted", "Concat", "Where"]))
        dtype = draw(st.sampled_from(["float32", draft.narrow]))
        count = {"Relu": 1, "Weighted": 1, "Concat": 3}.get(op, 2)
        reads = [draft.read(draw(st.sampled_from(made)), dtype) for _ in range(count)]
        name = f"v{index}"
        if op == "Weighted":
            op, reads = "MatMul", [*reads, draft.weight(dtype)]
        if op == "Where":
            draft.nodes.append(helper.make_node("Less", reads, [f"c{index}"], f"c{index}"))
            draft.wanted[f"c{index}"] = dtype
            reads = [f"c{index}", *reads]
        if op == "Concat":
            draft.nodes.append(helper.make_node("Sum", reads, [f"s{index}"], f"s{index}"))
            draft.wanted[f"s{index}"], draft.dtypes[f"s{index}"] = dtype, dtype
            op, reads = "Identity", [f"s{index}"]
        draft.nodes.append(helper.make_node(op, reads, [name], name))
        draft.wanted[name] = draft.dtypes[name] = dtype
        made.append(name)
    read = {name for node in draft.nodes for name in node.input}
    draft.outputs = [draft.read(name, "float32") for name in made[1:] if name not in read]
    return draft


@given(drafts())
@settings(max_examples=40, deadline=None)
def test_right_casts_are_passed_and_dtypes_are_those_of_onnx(tmp_path_factory: Any, draft: Draft) -> None:
    findings, dtypes = draft.check(tmp_path_factory.getbasetemp())
    assert findings == []
    inferred = onnx.shape_inference.infer_shapes(draft.proto(), strict_mode=True).graph
    stated = {info.name: dtype_name(info.type.tensor_type.elem_type) for info in inferred.value_info}
    assert stated.items() <= dtypes.items()
    assert draft.dtypes.items() <= dtypes.items()


def drop(draft: Draft, place: int) -> None:
    node = draft.nodes.pop(place)
    for other in draft.nodes:
        other.input[:] = [node.input[0] if name == node.output[0] else name for name in other.input]


def double(draft: Draft, place: int) -> None:
    node = draft.nodes[place]
    draft.nodes.insert(place + 1, helper.make_node("Cast", node.input, ["twin"], to=node.attribute[0].i))
    draft.nodes.append(helper.make_node("Abs", ["twin"], ["read"]))


def turn(draft: Draft, place: int) -> None:
    draft.nodes[place].attribute[0].i = TensorProto.DOUBLE


def unread(draft: Draft, place: int) -> None:
    node = draft.nodes[place]
    draft.nodes.append(helper.make_node("Cast", node.output, ["unread"], to=TensorProto.DOUBLE))


def late(draft: Draft, place: int) -> None:
    draft.nodes.append(draft.nodes.pop(place))


FAULTS: dict[Callable[[Draft, int], None], str] = {
    drop: "",
    double: "casts",
    turn: "",
    unread: "nobody reads",
    late: "",
}


@pytest.mark.parametrize("fault", FAULTS)
@given(drafts(), st.data())
@settings(max_examples=15, deadline=None)
def test_a_fault_in_any_cast_is_found(
    tmp_path_factory: Any, fault: Callable[[Draft, int], None], draft: Draft, data: Any
) -> None:
    places = [i for i, node in enumerate(draft.nodes) if node.op_type == "Cast"]
    if fault is late:  # moved behind its readers, of which an output has none
        places = [i for i in places if draft.nodes[i].output[0] not in draft.outputs]
    if places:
        fault(draft, data.draw(st.sampled_from(places)))
        findings, _ = draft.check(tmp_path_factory.getbasetemp())
        assert any(FAULTS[fault] in finding.problem for finding in findings)


@given(drafts(), st.data())
@settings(max_examples=20, deadline=None)
def test_an_initializer_of_another_dtype_is_found(tmp_path_factory: Any, draft: Draft, data: Any) -> None:
    if draft.weights:
        name = data.draw(st.sampled_from(sorted(draft.weights)))
        other = draft.narrow if draft.dtypes[name] == "float32" else "float32"
        draft.weights[name] = helper.make_tensor(name, dtype_number(other), (4, 4), [0.5] * 16)
        findings, _ = draft.check(tmp_path_factory.getbasetemp())
        assert any(name in finding.problem and other in finding.problem for finding in findings)


# Each rule once


def model(body: str, opset: int = 17, ir: int = 8, head: str = "(float[4] x) => (float[4] y)") -> onnx.ModelProto:
    """In onnx's textual syntax (docs/Syntax.md); dtypes by number: 1 float32, 10 float16, 11 float64, 16 bfloat16."""
    return onnx.parser.parse_model(f'<ir_version: {ir}, opset_import: ["": {opset}, "odd": 1]> g {head} {body}')


W = "<float[4] w = {1, 2, 3, 4}>"
IF = """(float[4] x, bool c) => (float[4] y) {{
    h = Cast<to=10>(x)
    y = If(c) <then_branch = t () => ({then}[4] p) {{ {first} }}, else_branch = e () => (float[4] q) {{ q = Abs(x) }}>
}}"""
RULES: dict[str, tuple[str, dict[str, Any], int, str]] = {
    "two dtypes in one node": (
        "{ a = Cast<to=10>(x) y = Add(x, a) }",
        {},
        1,
        "#1 Add reads x as float32 and a as float16; they must agree",
    ),
    "two dtypes in a variadic": ("{ a = Cast<to=10>(x) y = Max(x, x, a) }", {}, 1, "Max reads x as float32 and a as"),
    "not allowed at this opset": (
        "{ a = Cast<to=16>(x) b = Elu(a) y = Cast<to=1>(b) }",
        {},
        1,
        "#1 Elu reads a as bfloat16, and opset 17 allows float16, float32, float64",
    ),
    "an output that is not allowed": (
        "{ a = Cast<to=16>(x) y = Cast<to=1>(a) }",
        {"opset": 9},
        0,
        "gives a as bfloat16",
    ),
    "computes in another dtype": ("{ y = Abs(x) }", {"wanted": {0: "float16"}}, 0, "#0 Abs computes in float32, as x"),
    "compares in another dtype": (
        "{ b = Less(x, x) y = Where(b, x, x) }",
        {"wanted": {0: "float16"}},
        0,
        "#0 Less computes in float32, as x is, and is to in float16",
    ),
    "no float at all": ("{ n = Shape(x) m = Abs(n) y = Abs(x) }", {"wanted": {1: "float16"}}, 1, "neither reads nor"),
    "a node that is not there": ("{ y = Abs(x) }", {"wanted": {7: "float16"}}, 7, "there are 1 nodes"),
    "doubled": (
        "{ a = Cast<to=10>(x) b = Cast<to=10>(x) d = Add(a, b) y = Cast<to=1>(d) }",
        {},
        1,
        "#1 Cast casts x to float16, as #0 Cast does",
    ),
    "doubles the model's own": (
        "{ a = Cast<to=10>(x) b = Cast<to=10>(x) d = Add(a, b) y = Cast<to=1>(d) }",
        {"own": {1}},
        0,
        "#0 Cast casts x to float16, as #1 Cast does",
    ),
    "already so": ("{ y = Cast<to=1>(x) }", {}, 0, "which it is already"),
    "there and back": ("{ a = Cast<to=10>(x) y = Cast<to=1>(a) }", {}, 0, "only for #1 Cast to cast that to float32"),
    "one way in two steps": (
        "{ a = Cast<to=11>(x) b = Cast<to=10>(a) d = Abs(b) y = Cast<to=1>(d) }",
        {},
        0,
        "only for",
    ),
    "widened before the model's own": (
        "{ h = Cast<to=10>(x) k = Abs(h) a = Cast<to=1>(k) i = Cast<to=7>(a) y = Cast<to=1>(i) }",
        {"own": {3, 4}},
        2,
        "only for #3 Cast",
    ),
    "back from the model's own": (
        "{ h = Cast<to=10>(x) k = Abs(h) a = Cast<to=1>(k) b = Cast<to=10>(a) d = Abs(b) y = Cast<to=1>(d) }",
        {"own": {2}},
        3,
        "#2 Cast casts k from float16 to float32, only for #3 Cast",
    ),
    "nobody reads": ("{ a = Cast<to=10>(x) y = Abs(x) }", {}, 0, "nobody reads the result a"),
    "a weight not stored narrow": (
        W + "{ a = Cast<to=10>(x) v = Cast<to=10>(w) b = Add(a, v) y = Cast<to=1>(b) }",
        {},
        1,
        "the initializer has to be stored as float16",
    ),
    "value_info": ("<float16[4] a> { a = Abs(x) y = Abs(a) }", {}, -1, "states float16 for a, which is float32"),
    "an output's statement": ("{ y = Cast<to=10>(x) }", {}, -1, "states float32 for y, which is float16"),
    "an output's dtype": ("{ y = Abs(x) }", {"io": {"y": "float16"}}, -1, "output y is float32 and is to be float16"),
    "an input's dtype": ("{ y = Abs(x) }", {"io": {"x": "float16"}}, -1, "input or output x is float32"),
    "no such output": ("{ y = Abs(x) }", {"io": {"z": "float32"}}, -1, "no input or output z"),
    "nothing makes it": ("{ y = Add(x, a) }", {}, 0, "reads a, which nothing before it makes"),
    "made twice": ("{ a = Abs(x) a = Cast<to=10>(x) y = Abs(x) }", {}, 1, "a is made twice, by #0 Abs and by #1 Cast"),
    "a sequence of another dtype": (
        "{ s = SequenceConstruct(x) a = Cast<to=10>(x) q = SequenceInsert(s, a) y = ConcatFromSequence<axis=0>(q) }",
        {},
        2,
        "inserts a into s, and they are float32 and float16",
    ),
    "inside a body": (IF.format(then="float", first="p = Add(x, h)"), {}, 1, "then_branch: #0 Add reads x as float32"),
    "branches of two dtypes": (IF.format(then="float16", first="p = Abs(h)"), {}, 1, "gives y from either branch, and"),
    "a body doubles a cast outside": (
        IF.format(then="float16", first="k = Cast<to=10>(x) l = Add(k, h) p = Abs(l)"),
        {},
        1,
        "then_branch: #0 Cast casts x to float16, as #0 Cast does",
    ),
    "control flow gives another dtype": (
        IF.format(then="float", first="p = Cast<to=1>(h)"),
        {"wanted": {1: "float16"}},
        1,
        "#1 If computes in float32, as y",
    ),
    "a loop's state changes": (
        """(float[4] x, int64 n, bool c) => (float[4] y) { y = Loop(n, c, x) <body = b (int64 i, bool d, float[4] s)
            => (bool e, float16[4] t) { e = Identity(d) t = Cast<to=10>(s) }> }""",
        {},
        0,
        "the state that starts as x is given back, and they are float32 and float16",
    ),
    "a loop's input is stated otherwise": (
        """(float[4] x, int64 n, bool c) => (float[4] y) { y = Loop(n, c, x) <body = b (int64 i, bool d, float16[4] s)
            => (bool e, float[4] t) { e = Identity(d) t = Abs(s) }> }""",
        {},
        0,
        "body: the graph states float16 for s, which is float32",
    ),
    "a scan's state changes": (
        """(float[4] x, float[2, 4] z) => (float[4] y) { y, v = Scan<num_scan_inputs = 1, body = b (float[4] s,
            float[4] u) => (float16[4] t, float[4] o) { o = Add(s, u) t = Cast<to=10>(s) }>(x, z) }""",
        {},
        0,
        "the state that starts as x is given back",
    ),
}


@pytest.mark.parametrize("rule", RULES)
def test_each_rule_finds_its_fault(tmp_path: Path, rule: str) -> None:
    body, options, node, problem = RULES[rule]
    options = dict(options)
    opset = options.pop("opset", 17)
    proto = model(body, opset, head="") if body.startswith("(") else model(body, opset)
    findings, _ = check(proto, tmp_path, **options)
    found = [f for f in findings if problem in f.problem]
    assert [f.node for f in found] == [None if node < 0 else node], findings


@pytest.mark.parametrize(
    ("body", "own"),
    [
        ("{ a = Cast<to=1>(x) y = Abs(a) b = Cast<to=10>(x) }", {0, 2}),
        ("{ a = Cast<to=10>(x) y = Cast<to=1>(a) }", {0, 1}),
        ("{ a = Cast<to=10>(x) y = Cast<to=1>(a) }", {0}),  # the model rounds x: casting back is needed
        (W + "{ a = Cast<to=10>(x) b = Cast<to=10>(w) d = Add(a, b) e = Cast<to=10>(w) y = Cast<to=1>(d) }", {1, 3}),
        ("{ i = Cast<to=7>(x) a = Cast<to=1>(i) b = Cast<to=10>(a) d = Abs(b) y = Cast<to=1>(d) }", {0, 1}),
        (IF.format(then="float", first="k = Cast<to=1>(x) l = Cast<to=1>(h) p = Add(k, l)"), {0, 1}),
    ],
)
def test_the_models_own_casts_are_left_alone(tmp_path: Path, body: str, own: set[int]) -> None:
    proto = model(body, head="") if body.startswith("(") else model(body)
    assert check(proto, tmp_path, own=own)[0] == []
    assert check(proto, tmp_path)[0] != []


@pytest.mark.parametrize(
    ("body", "wanted", "own"),
    [
        (
            "{ a = Cast<to=10>(x) b = Cast<to=11>(x) i = Abs(b) d = Abs(a) y = Cast<to=1>(d) }",
            {3: "float16"},
            (),
        ),
        ("{ a = Cast<to=10>(x) b = Abs(a) d = Cast<to=1>(a) e = Cast<to=1>(b) y = Add(d, e) }", {4: "float32"}, ()),
        ("{ a = Cast<to=10>(x) i = Cast<to=7>(a) y = Cast<to=1>(i) }", {}, {1, 2}),  # from float32, i may differ
        ("{ a = Bernoulli<dtype=10>(x) y = Cast<to=1>(a) }", {0: "float16"}, ()),
        ("{ i, s, z = DynamicQuantizeLinear(x) y = DequantizeLinear(i, s, z) }", {0: "float32", 1: "float32"}, ()),
    ],
)
def test_needed_casts_and_mixed_nodes_are_passed(tmp_path: Path, body: str, wanted: Any, own: Any) -> None:
    assert check(model(body), tmp_path, wanted, own=own)[0] == []


@pytest.mark.parametrize("order", [1, -1])
def test_defaults_and_branches_tell_dtypes(tmp_path: Path, order: int) -> None:
    """A quantizer without a zero point gives uint8; where one branch is unknown, the other tells."""
    unknown = "then_branch = t () => (p) { p = odd.One(x) }"
    known = "else_branch = e () => (float16[4] r) { h = Cast<to=10>(x) r = Abs(h) }"
    branches = ", ".join([unknown, known][::order])
    body = f"{{ s = Constant<value_float = 0.5>() q = QuantizeLinear(x, s) y = If(c) <{branches}> }}"
    proto = model(body, head="(float[4] x, bool c) => (float16[4] y)")
    findings, dtypes = check(proto, tmp_path, {2: "float16"})
    assert findings == []
    assert dtypes == {"x": "float32", "c": "bool", "s": "float32", "q": "uint8", "y": "float16"}


def test_nodes_of_bodies_are_free(tmp_path: Path) -> None:
    then = "h = Cast<to=10>(x) k = Abs(h) p = Cast<to=1>(k)"
    branches = f"then_branch = t () => (float[4] p) {{ {then} }}, else_branch = e () => (float[4] q) {{ q = Abs(x) }}"
    body = f"{{ y = If(c) <{branches}> }}"
    proto = model(body, head="(float[4] x, bool c) => (float[4] y)")
    assert check(proto, tmp_path, {0: "float32"})[0] == []


def test_casts_in_two_branches_do_not_double_each_other(tmp_path: Path) -> None:
    branch = "() => (float16[4] p) { p = Cast<to=10>(x) }"
    body = f"{{ a = If(c) <then_branch = t {branch}, else_branch = e {branch}> b = Abs(a) y = Cast<to=1>(b) }}"
    proto = model(body, head="(float[4] x, bool c) => (float[4] y)")
    findings, dtypes = check(proto, tmp_path, {1: "float16"}, io={"y": "float32"})
    assert findings == []
    assert dtypes == {"x": "float32", "c": "bool", "a": "float16", "b": "float16", "y": "float32"}


def test_unknown_operators_give_what_is_stated_or_nothing(tmp_path: Path) -> None:
    body = "<float16[4] a, float16[4] e>{ a = odd.One(x) b = odd.Two(x) d = Abs(a) e = Abs(b) f = Add(d, e)"
    findings, dtypes = check(model(body + " y = Cast<to=1>(d) }"), tmp_path, {0: "float16", 1: "float16", 2: "float16"})
    assert findings == []
    assert dtypes == {"x": "float32", "a": "float16", "d": "float16", "f": "float16", "y": "float32"}


def test_the_models_functions_are_no_operators_of_onnx(tmp_path: Path) -> None:
    proto = model("{ y = Abs(x) }")
    proto.functions.append(helper.make_function("", "Abs", ["p"], ["q"], [], proto.opset_import))
    proto.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    assert check(proto, tmp_path) == ([], {"x": "float32", "y": "float16"})


def test_a_weight_that_runs_may_replace_is_no_constant(tmp_path: Path) -> None:
    body = "{ a = Cast<to=10>(x) v = Cast<to=10>(w) b = Add(a, v) y = Cast<to=1>(b) }"
    for ir, problems in ((8, 0), (3, 1)):  # before IR version 4, every initializer had to be an input too
        proto = model(body, ir=ir, head="(float[4] x, float[4] w) => (float[4] y)")
        proto.graph.initializer.append(numpy_helper.from_array(np.ones(4, np.float32), "w"))
        assert len(check(proto, tmp_path)[0]) == problems
        proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.ones(4, np.float16), "w"))
        assert "states float16 for w, which is float32" in check(proto, tmp_path)[0][0].problem


def test_no_weight_is_read(tmp_path: Path) -> None:
    proto = model(W + "{ y = Add(x, w) }")
    tensor = proto.graph.initializer[0]
    tensor.ClearField("float_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="absent.bin")
    assert check(proto, tmp_path) == ([], {"x": "float32", "w": "float32", "y": "float32"})


def test_what_is_no_model_is_refused_with_the_files_name(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"\x08\x07nonsense")
    with pytest.raises(ModelError, match="model.onnx"):
        check_casts(path, {}, "float16", {})
    proto = model(W + "{ y = Abs(x) }")
    proto.graph.initializer[0].data_type = 99
    with pytest.raises(ModelError, match=r"model.onnx.*99"):
        check(proto, tmp_path)
    with pytest.raises(UsageError, match="bfloat16"):
        check(model("{ y = Abs(x) }"), tmp_path, narrow="float8e5m2")


# Against onnx's own inference, on models of its own


def element(proto: onnx.TypeProto) -> int:
    kind = proto.WhichOneof("value")
    if kind in ("sequence_type", "optional_type"):
        return element(getattr(proto, kind).elem_type)
    return int(getattr(proto, kind).elem_type) if kind in ("tensor_type", "sparse_tensor_type") else 0


SAMPLE = sorted(DATA.glob("node/*/model.onnx"))[::8] + sorted(DATA.glob("light/*.onnx"))
NAMED = ("loop16_seq_none", "scan_sum", "sequence_map_*", "if_opt", "optional_*", "*quantizelinear*", "eyelike*")


def test_dtypes_are_those_that_onnx_infers() -> None:
    """With `value_info` and the outputs' statements taken away on onnx's side, so that it cannot echo them."""
    paths = {*SAMPLE, *(path for name in NAMED for path in DATA.glob(f"node/test_{name}/model.onnx"))}
    compared = 0
    for path in sorted(paths):
        inferred = onnx.shape_inference.infer_shapes(onnx.load(path, load_external_data=False), strict_mode=True).graph
        own = [i for i, n in enumerate(inferred.node) if n.op_type == "Cast" or any(True for _ in graphs_of(n))]
        findings, dtypes = check_casts(path, {}, "float16", {}, own)
        assert findings == [], path
        for info in (*inferred.input, *inferred.value_info, *inferred.output):
            if number := element(info.type):
                compared += 1
                assert dtypes[info.name] == dtype_name(number), (path, info.name)
    assert compared > 1000
