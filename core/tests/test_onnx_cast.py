"""Cast ONNX models: valid, checked by code that did not write them, and answering as the originals do."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, checker, helper, numpy_helper, shape_inference
from paddock.errors import NotAvailable
from paddock.formats import CastModel
from paddock.graph import Graph
from paddock.model import Model
from paddock.onnx_dtypes import check_casts
from paddock.onnx_format import OnnxFormat
from paddock.onnx_store import INLINE, narrowed
from paddock.onnx_tensors import nodes_of, tensor_bytes
from paddock.plan import Segment
from paddock.planning.casts import CastRequest
from paddock.planning.classes import OperatorClasses, standard_classes

FORMAT = OnnxFormat()
FLOAT, HALF, INT64 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT64
EXACT = {"float16": 2.0**-11, "bfloat16": 2.0**-8}
"""The relative error of rounding once to each type."""
node = helper.make_node


def value(name: str, shape: Any = ("N", 4), dtype: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def tensor(name: str, *shape: int, seed: int = 0) -> onnx.TensorProto:
    rng = np.random.default_rng(seed)
    return numpy_helper.from_array((rng.standard_normal(shape) / 2).astype(np.float32), name)


def constant(name: str, array: Any, dtype: Any = np.float32) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(array, dtype), name)


def proto_of(
    nodes: Any, outputs: Any, *, inputs: Any = None, inits: Any = (), sparse: Any = (), functions: Any = (),
    domains: Any = (), infos: Any = (), opset: int = 17, ir: int = 8,
) -> onnx.ModelProto:  # fmt: skip
    graph = helper.make_graph(
        nodes,
        "whole",
        [value("x")] if inputs is None else inputs,
        [value(o, None) if isinstance(o, str) else o for o in outputs],
        initializer=list(inits),
        sparse_initializer=list(sparse),
        value_info=list(infos),
    )
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    proto = helper.make_model(graph, opset_imports=opsets, ir_version=ir, functions=list(functions))
    known = {info.name: info for info in shape_inference.infer_shapes(proto, data_prop=True).graph.output}
    known.update({t.name: value(t.name, list(t.dims)) for t in inits if t.data_type == FLOAT})
    for info in proto.graph.output:  # the checker wants shapes there
        info.CopyFrom(known[info.name])
    return proto


def opened(path: Path) -> Model:
    files = FORMAT.complete({"model": path})
    return Model("onnx", files, "", FORMAT.read(files))


def saved(proto: onnx.ModelProto, folder: Path) -> Model:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "whole.onnx"
    path.write_bytes(proto.SerializeToString())
    return opened(path)


def all_narrow(graph: Graph) -> OperatorClasses:
    """Classes by which whatever can be narrow is."""
    return OperatorClasses(allow=frozenset(n.type for n in graph.nodes))


def asked(model: Model, narrow: str = "float16", **given: Any) -> CastRequest:
    return CastRequest(**{"narrow": narrow, "classes": all_narrow(model.graph), **given})


def run(path: Path, feeds: Mapping[str, Any]) -> list[Any]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, dict(feeds)))


def loads_in_openvino(path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    openvino.Core().compile_model(str(path), "CPU")


def converts(graph: Graph, index: int) -> bool:
    """Whether the node's first output is a float of another type already: it then computes in neither."""
    made = graph.nodes[index].outputs[0]
    return made is not None and graph.values[made].dtype in ("float16", "bfloat16", "float64")


def cast(model: Model, request: CastRequest, folder: Path) -> CastModel:
    """Casts, and checks all that must hold of any cast model."""
    graph = model.graph
    made = FORMAT.cast(model, request, folder)
    path = made.files["model"]
    if _fault(model.files["model"]) is None:  # onnx itself refuses some of what runtimes take
        assert _fault(path) is None
    proto = onnx.load(path, load_external_data=False)
    assert {p.name for p in folder.iterdir()} == {p.name for p in made.files.values()}
    assert FORMAT.complete({"model": path}) == made.files

    assert len(proto.graph.node) == len(made.provenance)
    became = {came: index for index, origins in enumerate(made.provenance) for came in origins}
    assert sorted(became) == [n.index for n in graph.nodes] and sorted(became.values()) == list(became.values())
    for found in graph.nodes:
        written = proto.graph.node[became[found.index]]
        assert (written.op_type, written.domain, written.name) == (found.op, found.domain, found.name)
    added = [proto.graph.node[index] for index, origins in enumerate(made.provenance) if not origins]
    assert all(n.op_type == "Cast" for n in added)
    assert len(added) == len(made.casts)

    assert [n.node for n in made.nodes] == [n.index for n in graph.nodes]
    wanted = {
        became[n.node]: n.dtype
        for n in made.nodes
        if n.dtype and not converts(graph, n.node) and not graph.nodes[n.node].subgraphs
    }
    own = [became[n.index] for n in graph.nodes if n.op == "Cast" or n.subgraphs]
    border = request.narrow if request.narrow_border else "float32"
    given = (*graph.input_values, *graph.output_values)
    io = {
        v.name: border if v.dtype == "float32" and v.kind == "tensor" else v.dtype for v in given if v.dtype is not None
    }
    findings, _ = check_casts(path, wanted, request.narrow, io, own)
    read = {name for n in nodes_of([n for n in proto.graph.node if n not in added]) for name in n.input}
    wide = read | {info.name for info in proto.graph.output} | {s.values.name for s in proto.graph.sparse_initializer}
    shared = [f for f in findings if f.problem.endswith(f"has to be stored as {request.narrow}") and f.value in wide]
    assert [finding.problem for finding in findings if finding not in shared] == []

    before, after = model.graph, opened(path).graph
    assert [v.name for v in before.input_values] == [v.name for v in after.input_values]
    assert [v.shape for v in before.input_values] == [v.shape for v in after.input_values]
    assert [v.name for v in before.output_values] == [v.name for v in after.output_values]
    assert [v.shape for v in before.output_values] == [v.shape for v in after.output_values]
    in_nodes = sum(_held(n) for n in onnx.load(model.files["model"], load_external_data=False).graph.node)
    in_nodes -= sum(_held(n) for n in proto.graph.node)
    assert made.saved == before.weight_bytes - after.weight_bytes + in_nodes
    return made


def _fault(path: Path) -> str | None:
    """What onnx's full check finds, which infers types and shapes strictly."""
    try:
        checker.check_model(str(path), full_check=True)
    except (checker.ValidationError, shape_inference.InferenceError) as error:
        return str(error)
    return None


def _held(found: Any) -> int:
    """Bytes of the float constant that a Constant node holds."""
    if found.op_type != "Constant":
        return 0
    given = found.attribute[0]
    if given.name == "value":
        return tensor_bytes(given.t)
    return 4 * len(given.floats) if given.name == "value_floats" else 4 * (given.name == "value_float")


def dtypes(made: CastModel) -> list[str]:
    return [n.dtype for n in made.nodes]


def close(found: Sequence[Any], expected: Sequence[Any], tolerance: float = 0.02) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        if isinstance(other, np.ndarray) and other.dtype.kind == "f":
            assert one.shape == other.shape
            scale = max(1.0, float(np.abs(other).max(initial=0.0)))
            assert float(np.abs(one.astype(np.float64) - other).max(initial=0.0)) <= tolerance * scale
        else:
            np.testing.assert_array_equal(one, other)


def equal(found: Sequence[Any], expected: Sequence[Any]) -> None:
    assert [(a.dtype, a.shape, a.tobytes()) for a in found] == [(a.dtype, a.shape, a.tobytes()) for a in expected]


X = np.random.default_rng(1).standard_normal((3, 4)).astype(np.float32)


def both(
    proto: onnx.ModelProto, folder: Path, feeds: Mapping[str, Any] | None = None, tolerance: float = 0.02,
    **given: Any,
) -> CastModel:  # fmt: skip
    """The model in float16 answers nearly as it does, and with all nodes kept exactly."""
    feeds = {"x": X} if feeds is None else feeds
    model = saved(proto, folder / "given")
    expected = run(model.files["model"], feeds)
    kept = cast(model, asked(model, keep={n.index: "all" for n in model.graph.nodes}), folder / "kept")
    equal(run(kept.files["model"], feeds), expected)
    assert "float16" not in dtypes(kept)
    made = cast(model, asked(model, **given), folder / "narrow")
    close(run(made.files["model"], feeds), expected, tolerance)
    return made


def written(made: CastModel) -> onnx.ModelProto:
    return onnx.load(made.files["model"])


# Random models


KINDS = (
    "product", "gemm", "binary", "unary", "unary", "softmax", "norm", "casts", "where", "pow", "shape", "constant",
    "filled", "clip", "split", "if", "loop", "concat", "reduce",
)  # fmt: skip


class Draft:
    """A random model under way: float values of shape ("N", 4), with what else nodes make of them."""

    def __init__(self, seed: int, opset: int) -> None:
        self.rng = random.Random(seed)
        self.opset = opset
        self.nodes: list[Any] = []
        self.inits = [tensor("w", 4, 4, seed=seed), tensor("v", 4, seed=seed + 1), constant("axes", [1], np.int64)]
        self.floats = ["x", "y"]
        self.count = 0

    def new(self, prefix: str = "t") -> str:
        self.count += 1
        return f"{prefix}{self.count}"

    def any(self) -> str:
        return self.rng.choice(self.floats[-5:])

    def add(self, op: str, inputs: Sequence[str], outputs: int = 1, **attributes: Any) -> list[str]:
        names = [self.new() for _ in range(outputs)]
        self.nodes.append(node(op, inputs, names, **attributes))
        return names

    def body(self, captured: str) -> Any:
        name, made = self.new("body"), self.new("b")
        return helper.make_graph([node("Add", [captured, "v"], [made])], name, [], [value(made, None)])

    def step(self) -> None:
        kind = self.rng.choice(KINDS)
        made: list[str] = []
        if kind == "product":
            made = self.add("MatMul", [self.any(), "w"])
        elif kind == "gemm":
            made = self.add("Gemm", [self.any(), "w", self.rng.choice(("v", ""))])
        elif kind == "binary":
            made = self.add(
                self.rng.choice(("Add", "Mul", "Sub", "Max")), [self.any(), self.rng.choice((self.any(), "v"))]
            )
        elif kind == "unary":
            made = self.add(self.rng.choice(("Relu", "Tanh", "Sigmoid", "Neg", "Identity", "Abs")), [self.any()])
        elif kind == "softmax":
            made = self.add("Softmax", [self.any()], axis=-1)
        elif kind == "norm":
            count = self.rng.choice((1, 3))
            made = self.add("LayerNormalization", [self.any(), "v", *self.rng.choice(((), ("v",)))], count, axis=-1)
            made = [*made[:1], *(self.add("Mul", [made[1], self.any()]) if count == 3 else [])]
        elif kind == "casts":
            to = self.rng.choice((TensorProto.DOUBLE, HALF, TensorProto.INT32, FLOAT))
            made = self.add("Cast", self.add("Cast", [self.any()], to=to), to=FLOAT)
            made = made if to == FLOAT or self.rng.random() < 0.5 else self.add("Relu", made)
        elif kind == "where":
            made = self.add("Where", [*self.add("Greater", [self.any(), "v"]), self.any(), self.any()])
        elif kind == "pow":
            (two,) = self.add("Constant", [], value=constant("", 2, np.int64))
            made = self.add("Tanh", self.add("Pow", [self.any(), two]))
        elif kind == "shape":
            made = self.add("Reshape", [self.any(), *self.add("Shape", [self.any()])])
        elif kind == "constant":
            attributes: Any = self.rng.choice(
                ({"value_float": 0.5}, {"value_floats": [0.5, 1, 2, 3]}, {"value": tensor("", 4, seed=3)})
            )
            made = self.add("Add", [self.any(), *self.add("Constant", [], **attributes)])
        elif kind == "filled":
            attributes = self.rng.choice(({}, {"value": constant("", [0.25])}))
            made = self.add(
                "Add", [self.any(), *self.add("ConstantOfShape", self.add("Shape", [self.any()]), **attributes)]
            )
        elif kind == "clip":
            (low,) = self.add("Constant", [], value_float=-0.5)
            made = self.add("Clip", [self.any(), *self.rng.choice(((low,), ("", low), ()))])
        elif kind == "split":
            parts = {"num_outputs": 2} if self.opset >= 18 else {}
            one, other = self.add("Split", [self.any()], 2, axis=1, **parts)
            made = self.add("Concat", [other, one], axis=1)
        elif kind == "if":
            (low,) = self.add("ReduceMin", [self.any()], keepdims=0)
            (zero,) = self.add("Constant", [], value_float=0.0)
            (test,) = self.add("Less", [low, zero])
            made = self.add("If", [test], then_branch=self.body(self.any()), else_branch=self.body(self.any()))
        elif kind == "loop":
            made = self.loop()
        elif kind == "concat":
            wide = self.add("Concat", [self.any(), self.any(), self.any()], axis=1)
            made = self.add("Slice", [*wide, *(self.add("Constant", [], value_ints=[at])[0] for at in (1, 5, 1))])
        elif kind == "reduce":
            axes: dict[str, Any] = {"axes": [1]} if self.opset < 18 else {}
            inputs = [self.any()] if self.opset < 18 else [self.any(), "axes"]
            made = self.add("Sub", [self.any(), *self.add("ReduceMean", inputs, **axes)])
        self.floats.extend(made)

    def loop(self) -> list[str]:
        state, back, on, i, end = (self.new("l") for _ in range(5))
        body = helper.make_graph(
            [
                node("Identity", [on], [end]),
                node("Add", [state, self.any()], [f"{back}_"]),
                node("Tanh", [f"{back}_"], [back]),
            ],
            self.new("body"),
            [value(i, (), INT64), value(on, (), TensorProto.BOOL), value(state, None)],
            [value(end, (), TensorProto.BOOL), value(back, None)],
        )
        (times,) = self.add("Constant", [], value_int=2)
        return self.add("Loop", [times, "", self.any()], body=body)

    def proto(self) -> onnx.ModelProto:
        for _ in range(self.rng.randint(3, 14)):
            self.step()
        outputs = dict.fromkeys([self.floats[-1], *self.rng.sample(self.floats, self.rng.randint(0, 3))])
        outputs.pop("y", None)
        inits = [t for t in self.inits if t.name != "axes" or self.opset >= 18]
        return proto_of(
            self.nodes, [value(o) for o in outputs] or ["x"], inputs=[value("x"), value("y")], inits=inits,
            opset=self.opset, ir=8 if self.opset < 21 else 10,
        )  # fmt: skip


def drawn(seed: int, folder: Path) -> tuple[Model, dict[str, Any], random.Random]:
    rng = np.random.default_rng(seed)
    feeds = {name: rng.standard_normal((3, 4)).astype(np.float32) for name in ("x", "y")}
    for number in range(seed, 1000, 200):
        model = saved(Draft(number, 22 if seed % 4 == 3 else 17).proto(), folder)
        try:
            run(model.files["model"], feeds)
        except onnxruntime.capi.onnxruntime_pybind11_state.Fail:  # it loses a value that a body captures
            continue
        return model, feeds, random.Random(seed)
    raise LookupError("no model that runs as it is")


@pytest.mark.parametrize("seed", range(60))
def test_random_models(seed: int, tmp_path: Path) -> None:
    model, feeds, rng = drawn(seed, tmp_path / "given")
    expected = run(model.files["model"], feeds)
    assert all(np.isfinite(array).all() for array in expected)
    nodes = model.graph.nodes
    keep = {n.index: "drawn" for n in nodes if rng.random() < 0.3 and n.op != "Cast"}
    classes = rng.choice((all_narrow(model.graph), standard_classes()))
    made = cast(model, asked(model, keep=keep, classes=classes), tmp_path / "narrow")
    assert not {n.node for n in made.nodes if n.dtype == "float16"} & keep.keys()
    close(run(made.files["model"], feeds), expected, 0.05)
    again = FORMAT.cast(model, asked(model, keep=keep, classes=classes), tmp_path / "again")
    for role, path in made.files.items():
        assert path.read_bytes() == again.files[role].read_bytes()
    bfloat = cast(model, asked(model, "bfloat16", keep=keep, classes=classes), tmp_path / "bfloat16")
    kept = cast(model, asked(model, keep={n.index: "all" for n in nodes}), tmp_path / "kept")
    equal(run(kept.files["model"], feeds), expected)
    if seed % 10 == 0:
        loads_in_openvino(made.files["model"])
        loads_in_openvino(bfloat.files["model"])


@pytest.mark.parametrize("seed", range(24))
def test_random_models_with_a_narrow_border(seed: int, tmp_path: Path) -> None:
    model, feeds, rng = drawn(seed, tmp_path / "given")
    expected = run(model.files["model"], feeds)
    keep = {n.index: "drawn" for n in model.graph.nodes if rng.random() < 0.5 and n.op != "Cast"}
    made = cast(model, asked(model, keep=keep, narrow_border=True), tmp_path / "narrow")
    halves = {name: array.astype(np.float16) for name, array in feeds.items()}
    found = run(made.files["model"], halves)
    assert all(array.dtype == np.float16 for array in found)
    close(found, expected, 0.05)
    cast(model, asked(model, "bfloat16", keep=keep, narrow_border=True), tmp_path / "bfloat16")


@pytest.mark.parametrize("narrow", ["float16", "bfloat16"])
@pytest.mark.parametrize("seed", range(8))
def test_random_models_with_narrow_weights(seed: int, narrow: str, tmp_path: Path) -> None:
    model, feeds, _ = drawn(seed, tmp_path / "given")
    made = cast(model, asked(model, narrow, storage_only=True), tmp_path / "narrow")
    assert narrow not in dtypes(made)
    close(run(made.files["model"], feeds), run(model.files["model"], feeds), 0.05)


# What models may hold beside plain nodes


def test_what_was_narrow_is_told_with_its_reasons(tmp_path: Path) -> None:
    nodes = [node("MatMul", ["x", "w"], ["a"]), node("Softmax", ["a"], ["b"]), node("Shape", ["b"], ["s"])]
    proto = proto_of(nodes, ["b", value("s", None, INT64)], inits=[tensor("w", 4, 4)])
    model = saved(proto, tmp_path / "given")
    made = cast(model, asked(model, keep={1: "because"}), tmp_path / "narrow")
    assert [(n.dtype, n.reason) for n in made.nodes] == [
        ("float16", "a product: always worth it"), ("float32", "because"), ("", "")
    ]  # fmt: skip
    assert made.kept == (1,)
    assert made.casts == (("x", "float16"), ("a", "float32"))
    assert made.saved == 32
    assert made.provenance == ((), (0,), (), (1,), (2,))


def test_a_weight_past_the_limits_keeps_its_node_wide(tmp_path: Path) -> None:
    big = constant("w", np.full((4, 4), 7e4))
    model = saved(proto_of([node("MatMul", ["x", "w"], ["a"])], ["a"], inits=[big]), tmp_path / "given")
    made = cast(model, asked(model), tmp_path / "narrow")
    assert dtypes(made) == ["float32"] and made.kept == (0,) and "'w' reaches 7e+04" in made.nodes[0].reason
    assert dtypes(cast(model, asked(model, "bfloat16"), tmp_path / "bfloat16")) == ["bfloat16"]


@pytest.mark.parametrize("place", ["initializer", "constant", "sparse"])
def test_an_infinity_in_a_weight_hides_no_number_past_the_limits(place: str, tmp_path: Path) -> None:
    given = np.array([-np.inf, -1e9, 0.5, 1], np.float32)
    nodes, inits, sparse = [node("Add", ["x", "m"], ["a"])], [], []
    if place == "initializer":
        inits = [constant("m", given)]
    elif place == "constant":
        nodes.insert(0, node("Constant", [], ["m"], value=constant("", given)))
    else:
        sparse = [helper.make_sparse_tensor(constant("m", given), constant("at", range(4), np.int64), [4])]
    model = saved(proto_of(nodes, ["a"], inits=inits, sparse=sparse), tmp_path / "given")
    made = FORMAT.cast(model, asked(model), tmp_path / "narrow")
    assert made.nodes[-1].dtype == "float32" and "1e+09" in made.nodes[-1].reason
    given[1] = -9
    assert dtypes(both(proto_of([node("Max", ["x", "m"], ["a"])], ["a"], inits=[constant("m", given)]), tmp_path)) == [
        "float16"
    ]


def test_ranges_that_were_measured_keep_nodes_wide(tmp_path: Path) -> None:
    nodes = [node("Exp", ["x"], ["a"]), node("Neg", ["a"], ["b"]), node("Relu", ["x"], ["c"])]
    model = saved(proto_of(nodes, ["b", "c"]), tmp_path / "given")
    reach = {next(i for i, v in enumerate(model.graph.values) if v.name == "a"): 1e5}
    made = cast(model, asked(model, reach=reach), tmp_path / "narrow")
    assert dtypes(made) == ["float32", "float32", "float16"] and made.kept == (0, 1)


def bodies(captured: str) -> dict[str, Any]:
    """Branches of an If that read `captured`, one of them in a body inside its body."""
    inner = [
        helper.make_graph([node("Neg", [captured], [f"{at}_made"])], at, [], [value(f"{at}_made", None)])
        for at in ("deep", "deeper")
    ]
    outer = node("If", ["on"], ["then_made"], then_branch=inner[0], else_branch=inner[1])
    return {
        "then_branch": helper.make_graph([outer], "then", [], [value("then_made", None)]),
        "else_branch": helper.make_graph(
            [node("Abs", [captured], ["else_made"])], "else", [], [value("else_made", None)]
        ),
    }


@pytest.mark.parametrize("border", [False, True])
@pytest.mark.parametrize("captured", ["x", "w", "a", "out"])
def test_bodies_read_what_they_capture_in_float32(captured: str, border: bool, tmp_path: Path) -> None:
    """An input, a weight that narrow nodes read too, a value that is made narrow, and one that is an output."""
    nodes = [
        node("Constant", [], ["zero"], value_float=0.0),
        node("Add", ["x", "w"], ["a"]),
        node("Mul", ["a", "w"], ["out"]),
        node("ReduceSum", ["x"], ["sum"], keepdims=0),
        node("Less", ["sum", "zero"], ["on"]),
        node("If", ["on"], ["given"], **bodies(captured)),
    ]
    proto = proto_of(nodes, ["given", "out"], inits=[tensor("w", 3, 4)])
    if not border:
        made = both(proto, tmp_path)
    else:
        model = saved(proto, tmp_path / "given")
        made = cast(model, asked(model, narrow_border=True), tmp_path / "narrow")
        expected = run(model.files["model"], {"x": X})
        close(run(made.files["model"], {"x": X.astype(np.float16)}), expected)
    assert dtypes(made)[1:3] == ["float16", "float16"] and dtypes(made)[5] == "float32"
    loads_in_openvino(made.files["model"])


def test_names_that_bodies_define_themselves_are_left_alone(tmp_path: Path) -> None:
    """A Scan over the rows, whose state is called as the fresh names are."""
    body = helper.make_graph(
        [node("Add", ["a/float32", "row"], ["next"]), node("Mul", ["next", "a"], ["scaled"])],
        "body", [value("a/float32", (4,)), value("row", (4,))], [value("next", (4,)), value("scaled", (4,))],
    )  # fmt: skip
    nodes = [node("Relu", ["w"], ["a"]), node("Scan", ["w", "x"], ["end", "rows"], body=body, num_scan_inputs=1)]
    made = both(proto_of(nodes, ["end", "rows"], inits=[tensor("w", 4)]), tmp_path)
    assert dtypes(made) == ["float16", "float32"]


def test_names_that_collide_with_ours_are_passed_over(tmp_path: Path) -> None:
    nodes = [
        node("Relu", ["x"], ["x/float16"]),
        node("MatMul", ["x/float16", "w"], ["w/float16"]),
        node("Add", ["w/float16", "w"], ["w/float32"]),
        node("Exp", ["w/float32"], ["w/float16.1"]),
    ]
    proto = proto_of(nodes, ["w/float16.1", "x/float16"], inits=[tensor("w", 4, 4)], inputs=[value("x", (4, 4))])
    feeds = {"x": np.vstack([X, X[:1]])}
    made = both(proto, tmp_path, feeds, keep={2: "kept"})
    assert dtypes(made) == ["float16", "float16", "float32", "float16"]
    made = both(proto, tmp_path / "storage", feeds, storage_only=True)
    assert {t.name for t in written(made).graph.initializer} == {"w/float16.2"}


@pytest.mark.parametrize("border", [False, True])
def test_outputs_that_are_inputs_weights_or_read_inside(border: bool, tmp_path: Path) -> None:
    nodes = [node("Add", ["x", "w"], ["a"]), node("Relu", ["a"], ["b"]), node("Mul", ["b", "w"], ["c"])]
    model = saved(proto_of(nodes, ["x", "w", "a", "c", "b"], inits=[tensor("w", 4)]), tmp_path / "given")
    expected = run(model.files["model"], {"x": X})
    for keep in ({}, {1: "kept"}, {0: "kept", 2: "kept"}, {0: "", 1: "", 2: ""}):
        folder = tmp_path / "".join(map(str, keep))
        made = cast(model, asked(model, keep=keep, narrow_border=border), folder / "n")
        feeds = {"x": X.astype(np.float16) if border else X}
        found = run(made.files["model"], feeds)
        assert all(array.dtype == (np.float16 if border else np.float32) for array in found)
        close(found, expected)
    if not border:
        equal(found, expected)


@pytest.mark.parametrize("border", [False, True])
@pytest.mark.parametrize("mode", [{}, {"keep": {0: "kept"}}, {"keep": {1: "kept"}}, {"storage_only": True}])
def test_old_models_list_their_weights_among_the_inputs(mode: Any, border: bool, tmp_path: Path) -> None:
    nodes = [node("MatMul", ["x", "w"], ["a"]), node("MatMul", ["a", "w"], ["b"]), node("Add", ["b", "v"], ["c"])]
    inputs = [value("w", (4, 4)), value("x"), value("v", (4,))]
    proto = proto_of(nodes, ["c", "v"], inputs=inputs, inits=[tensor("w", 4, 4), tensor("v", 4)], ir=3)
    model = saved(proto, tmp_path / "given")
    made = cast(model, asked(model, **{"narrow_border": border and "storage_only" not in mode, **mode}), tmp_path / "n")
    narrow = border and "storage_only" not in mode
    found = run(made.files["model"], {"x": X.astype(np.float16) if narrow else X})
    close(found, run(model.files["model"], {"x": X}))
    inside = written(made).graph
    assert {t.name for t in inside.initializer} <= {i.name for i in inside.input}
    assert [v.name for v in opened(made.files["model"]).graph.input_values] == ["x"]


def test_sparse_weights_stay_wide_and_are_cast(tmp_path: Path) -> None:
    sparse = helper.make_sparse_tensor(constant("w", [0.5, -2, 3]), constant("at", [1, 6, 11], np.int64), [4, 4])
    for name, mode in (("n", {}), ("s", {"storage_only": True}), ("k", {"keep": {0: ""}})):
        made = both(proto_of([node("MatMul", ["x", "w"], ["a"])], ["a"], sparse=[sparse]), tmp_path / name, **mode)
        assert dtypes(made) == ["float32" if mode else "float16"]


def test_constants_of_every_kind(tmp_path: Path) -> None:
    sparse = helper.make_sparse_tensor(constant("", [2.0]), constant("", [1], np.int64), [4])
    given: list[tuple[str, Any]] = [
        ("value_float", 0.5), ("value_floats", [1.0, 2, 3, 4]), ("value", tensor("t", 4)), ("sparse_value", sparse),
        ("value", constant("", 2.5)), ("value", numpy_helper.from_array(np.ones((0, 4), np.float32))),
    ]  # fmt: skip
    nodes, last = [], "x"
    for at, (attribute, held) in enumerate(given[:-1]):
        nodes.append(node("Constant", [], [f"c{at}"], **{attribute: held}))
        nodes.append(node("Add", [last, f"c{at}"], [f"a{at}"]))
        last = f"a{at}"
    nodes.append(node("Constant", [], ["empty"], value=given[-1][1]))
    nodes.append(node("Concat", [last, "empty"], ["joined"], axis=0))
    nodes.append(node("Constant", [], ["shape"], value_ints=[-1]))
    nodes.append(node("Constant", [], ["two"], value_int=2))
    nodes.append(node("Reshape", ["joined", "shape"], ["flat"]))
    nodes.append(node("Pow", ["flat", "two"], ["end"]))
    made = both(proto_of(nodes, ["end"]), tmp_path)
    wide = {n.node for n in made.nodes if n.dtype == "float32"}
    assert wide == {6}, "only the sparse constant"
    assert [n.dtype for n in made.nodes if n.op == "Constant"][-2:] == ["", ""]


def test_constants_that_both_read_are_made_once(tmp_path: Path) -> None:
    nodes = [
        node("Constant", [], ["c"], value=tensor("", 4)),
        node("Add", ["x", "c"], ["a"]),
        node("Mul", ["a", "c"], ["b"]),
    ]
    made = both(proto_of(nodes, ["b"]), tmp_path, keep={2: "kept"})
    assert [n.op_type for n in written(made).graph.node].count("Constant") == 1


@pytest.mark.parametrize("to", [FLOAT, HALF, TensorProto.DOUBLE, INT64, TensorProto.BOOL, TensorProto.BFLOAT16])
@pytest.mark.parametrize("kept", [False, True])
def test_casts_of_the_models_own(to: int, kept: bool, tmp_path: Path) -> None:
    nodes = [
        node("Tanh", ["x"], ["a"]), node("Cast", ["a"], ["b"], to=to), node("Cast", ["b"], ["c"], to=FLOAT),
        node("Tanh", ["c"], ["d"]), node("Cast", ["d"], ["out"], to=to),
    ]  # fmt: skip
    proto = proto_of(nodes, ["d", value("out", None, to)])
    if to == INT64:
        nodes[0].op_type = "Relu"
    keep = {0: "kept", 3: "kept"} if kept else {}
    model = saved(proto, tmp_path / "given")
    made = cast(model, asked(model, keep=keep), tmp_path / "narrow")
    if to in (FLOAT, HALF, TensorProto.DOUBLE):
        close(run(made.files["model"], {"x": X}), run(model.files["model"], {"x": X}))
    cast(model, asked(model, "bfloat16", keep=keep), tmp_path / "bfloat16")
    cast(model, asked(model, keep=keep, narrow_border=True), tmp_path / "border")


def test_an_opset_without_casts_to_the_type_is_refused_where_they_are_needed(tmp_path: Path) -> None:
    proto = proto_of([node("MatMul", ["x", "w"], ["a"])], ["a"], inits=[tensor("w", 4, 4)], opset=11)
    model = saved(proto, tmp_path / "given")
    assert dtypes(cast(model, asked(model, "bfloat16"), tmp_path / "wide")) == ["float32"]
    for mode in ({"storage_only": True}, {"narrow_border": True}):
        with pytest.raises(NotAvailable, match="opset 11 has no casts to bfloat16"):
            FORMAT.cast(model, asked(model, "bfloat16", **mode), tmp_path / "refused")
    proto = proto_of([node("MatMul", ["x", "w"], ["a"])], ["a"], inits=[tensor("w", 4, 4)], opset=5)
    model = saved(proto, tmp_path / "five")
    with pytest.raises(NotAvailable, match="opset 5 has no casts to float16"):
        FORMAT.cast(model, asked(model), tmp_path / "refused")


def test_operators_whose_types_attributes_say_stay_as_they_are(tmp_path: Path) -> None:
    nodes = [
        node("HannWindow", ["n"], ["h"]), node("EyeLike", ["w"], ["e"], dtype=FLOAT),
        node("ConstantOfShape", ["s"], ["z"]), node("MatMul", ["x", "e"], ["a"]), node("Add", ["a", "h"], ["b"]),
        node("Add", ["b", "z"], ["c"]),
    ]  # fmt: skip
    inits = [constant("n", 4, np.int64), tensor("w", 4, 4), constant("s", [4], np.int64)]
    made = both(proto_of(nodes, ["c"], inits=inits), tmp_path)
    assert dtypes(made) == ["float32", "float32", *["float16"] * 4]
    model = opened(tmp_path / "given" / "whole.onnx")
    narrow = cast(model, asked(model, "bfloat16"), tmp_path / "bfloat16")
    assert dtypes(narrow)[2] == "float32", "ConstantOfShape gives bfloat16 from opset 20 on"


def test_nodes_with_types_that_nobody_knows_stay_as_they_are(tmp_path: Path) -> None:
    """A product of a value that an unknown operator makes, and of a weight: only the weight's type is known."""
    nodes = [
        node("Odd", ["x"], ["a"], domain="odd"), node("MatMul", ["a", "w"], ["b"]), node("MatMul", ["x", "w"], ["c"]),
        node("Odd", ["c"], ["d"], domain="odd"), node("Relu", ["e0"], ["e"]),
    ]  # fmt: skip
    nodes.insert(4, node("Odd", ["x"], ["e0"], domain="odd"))
    outputs = [value("b", None), value("d", None), value("e", None)]
    proto = proto_of(nodes, outputs, inits=[tensor("w", 4, 4)], domains=["odd"], infos=[value("e0")])
    model = saved(proto, tmp_path / "given")
    made = FORMAT.cast(model, asked(model), tmp_path / "narrow")
    assert [made.nodes[at].dtype for at in (1, 2, 5)] == ["float32", "float16", "float16"]
    graph = written(made).graph
    names = {n.output[0]: list(n.input) for n in graph.node}
    assert names["b"] == ["a", "w"], "as it was"
    assert names["e"] != ["e0"] or any(n.op_type == "Cast" and n.input[0] == "e0" for n in graph.node)


def test_functions_sequences_and_quantised_parts_stay_as_they_are(tmp_path: Path) -> None:
    twice = helper.make_function(
        "own", "Twice", ["i"], ["o"], [node("Add", ["i", "i"], ["o"])], [helper.make_opsetid("", 17)]
    )
    nodes = [
        node("MatMul", ["x", "w"], ["a"]), node("Twice", ["a"], ["b"], domain="own"),
        node("SequenceConstruct", ["b", "a"], ["q"]), node("SequenceAt", ["q", "i"], ["c"]),
        node("QuantizeLinear", ["c", "step", "z"], ["d"]), node("DequantizeLinear", ["d", "step", "z"], ["e"]),
        node("MatMul", ["e", "w"], ["f"]),
    ]  # fmt: skip
    inits = [tensor("w", 4, 4), constant("i", 0, np.int64), constant("step", 0.02), constant("z", 128, np.uint8)]
    proto = proto_of(nodes, ["f"], inits=inits, functions=[twice], domains=["own"])
    made = both(proto, tmp_path, tolerance=0.03)
    assert dtypes(made) == ["float16", *["float32"] * 3, "float32", "float32", "float16"]
    narrow = both(proto, tmp_path / "stored", storage_only=True)
    held = {t.name: t.data_type for t in written(narrow).graph.initializer}
    assert held["step"] == FLOAT, "a step is no weight"


def test_special_operators(tmp_path: Path) -> None:
    nodes = [
        node("Conv", ["img", "k", "kb"], ["a"], pads=[1, 1, 1, 1]),
        node("BatchNormalization", ["a", "g", "g", "g", "var"], ["b"]),
        node("Resize", ["b", "", "scales"], ["c"], mode="nearest"),
        node("Dropout", ["c", "ratio"], ["d", "mask"]),
        node("GlobalAveragePool", ["d"], ["e"]),
        node("Squeeze", ["e", "axes"], ["f"]),
        node("Unsqueeze", ["f", "first"], ["seq"]),
        node("LSTM", ["seq", "lw", "lr", "", "", "", "", ""], ["y", "h"], hidden_size=2),
        node("Range", ["zero", "four", "one"], ["r"]),
        node("Where", ["cond", "r", "g"], ["w"]),
        node("MatMul", ["f", "m"], ["n"]),
        node("Add", ["n", "w"], ["z"]),
    ]
    inits = [
        tensor("k", 4, 3, 3, 3), tensor("kb", 4), tensor("g", 4), constant("var", [1, 2, 3, 4]),
        constant("scales", [1, 1, 4 / 3, 4 / 3]), constant("ratio", 0.3), constant("axes", [2, 3], np.int64),
        constant("first", [0], np.int64), tensor("lw", 1, 8, 4), tensor("lr", 1, 8, 2), constant("zero", 0.0),
        constant("four", 4.0), constant("one", 1.0), constant("cond", [True, False, True, True], np.bool_),
        tensor("m", 4, 4),
    ]  # fmt: skip
    outputs = ["z", "h", value("mask", None, TensorProto.BOOL)]
    proto = proto_of(nodes, outputs, inputs=[value("img", ("N", 3, 6, 6))], inits=inits)
    feeds = {"img": np.random.default_rng(0).standard_normal((2, 3, 6, 6)).astype(np.float32)}
    made = both(proto, tmp_path, feeds)
    assert [n.op for n in made.nodes if n.dtype == "float32"] == ["Range"]
    loads_in_openvino(made.files["model"])
    stored = both(proto, tmp_path / "stored", feeds, storage_only=True)
    wide = {t.name for t in written(stored).graph.initializer if t.data_type == FLOAT}
    assert wide == {"scales", "zero", "four", "one"}, "these decide extents"
    model = opened(tmp_path / "given" / "whole.onnx")
    loads_in_openvino(cast(model, asked(model, "bfloat16"), tmp_path / "bfloat16").files["model"])


def test_convolutions_in_bfloat16_from_opset_22_on(tmp_path: Path) -> None:
    for opset, expected in ((17, "float32"), (22, "bfloat16")):
        nodes = [node("Conv", ["img", "k"], ["a"]), node("Relu", ["a"], ["b"])]
        proto = proto_of(
            nodes, ["b"], inputs=[value("img", ("N", 3, 6, 6))], inits=[tensor("k", 4, 3, 3, 3)], opset=opset
        )
        model = saved(proto, tmp_path / str(opset))
        made = cast(model, asked(model, "bfloat16", classes=standard_classes()), tmp_path / f"cast{opset}")
        assert dtypes(made)[0] == expected
        if opset == 17:
            assert "takes no bfloat16 in the model's opset" in made.nodes[0].reason


@pytest.mark.parametrize("narrow", ["float16", "bfloat16"])
def test_what_is_counted_in_extents_stays_exact(narrow: str, tmp_path: Path) -> None:
    """All columns are taken, counted in floats, and so are their positions: 4,099 is no float16, 257 no bfloat16."""
    nodes = [
        node("Shape", ["x"], ["s"], start=1), node("Cast", ["s"], ["f"], to=FLOAT), node("Mul", ["f", "one"], ["h"]),
        node("Floor", ["h"], ["g"]), node("Cast", ["g"], ["end"], to=INT64),
        node("Slice", ["x", "first", "end", "axis"], ["a"]),
        node("Squeeze", ["f", "first"], ["limit"]), node("Range", ["zero", "limit", "step"], ["r"]),
        node("Mul", ["r", "step"], ["positions"]), node("Expand", ["w", "s"], ["filled"]),
        node("Add", ["filled", "x"], ["b"]), node("ReduceMax", ["positions"], ["last"], keepdims=0),
    ]  # fmt: skip
    inits = [
        constant("one", [1.0]), constant("first", [0], np.int64), constant("axis", [1], np.int64),
        constant("zero", 0.0), constant("step", 1.0), constant("w", [0.5]),
    ]  # fmt: skip
    model = saved(proto_of(nodes, ["a", "b", "last"], inputs=[value("x", (2, "M"))], inits=inits), tmp_path / "given")
    made = cast(model, asked(model, narrow), tmp_path / "narrow")
    wide = {n.op for n in made.nodes if n.dtype == "float32"}
    assert wide == {"Cast", "Mul", "Floor", "Squeeze", "Range", "ReduceMax"}
    if narrow == "float16":
        given, _, last = run(made.files["model"], {"x": np.zeros((2, 4099), np.float32)})
        assert given.shape == (2, 4099) and last == 4098


def test_layer_normalization_keeps_its_statistics_wide(tmp_path: Path) -> None:
    nodes = [
        node("LayerNormalization", ["x", "w"], ["a", "mean", "inverse"], axis=-1),
        node("Mul", ["a", "inverse"], ["b"]), node("Add", ["b", "mean"], ["c"]),
    ]  # fmt: skip
    made = both(proto_of(nodes, ["c", "mean"], inits=[tensor("w", 4)]), tmp_path)
    assert dtypes(made) == ["float16"] * 3
    assert ("inverse", "float16") in made.casts and ("mean", "float16") in made.casts


# Where weights are stored


def elements(made: CastModel, name: str) -> Any:
    found = next(t for t in written(made).graph.initializer if t.name == name)
    return numpy_helper.to_array(found)


@pytest.mark.parametrize("narrow", ["float16", "bfloat16"])
def test_weights_are_stored_once_and_rounded_once(narrow: str, tmp_path: Path) -> None:
    nodes = [node("MatMul", ["x", "w"], ["a"]), node("MatMul", ["a", "w"], ["b"]), node("Add", ["b", "v"], ["c"])]
    weights = tensor("w", 64, 64)
    proto = proto_of(nodes, ["c"], inputs=[value("x", ("N", 64))], inits=[weights, tensor("v", 64)])
    model = saved(proto, tmp_path / "given")
    made = cast(model, asked(model, narrow), tmp_path / "narrow")
    assert made.files["data/weights.bin"].stat().st_size == 64 * 64 * 2
    exact = narrowed(numpy_helper.to_array(weights).ravel(), narrow)
    assert made.files["data/weights.bin"].read_bytes() == exact.tobytes()
    assert made.saved == (64 * 64 + 64) * 2
    shared = cast(model, asked(model, narrow, keep={0: "kept"}), tmp_path / "shared")
    assert shared.files["data/weights.bin"].stat().st_size == 64 * 64 * 4, "wide for the node that is kept, and cast"
    stored = cast(model, asked(model, narrow, storage_only=True), tmp_path / "stored")
    assert stored.files["data/weights.bin"].read_bytes() == exact.tobytes()
    size = sum(path.stat().st_size for path in stored.files.values())
    assert size < 0.6 * model.files["model"].stat().st_size


def test_the_rounding_of_weights(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**32, 100_000, dtype=np.uint32)
    edges = np.array([0, -0.0, np.inf, -np.inf, np.nan, 65519.99, 65520, 2**-25, 3.3895e38, 3.4e38, 1e-45], np.float32)
    array = np.concatenate([bits.view(np.float32), edges, np.float32(1) + np.arange(600, dtype=np.float32) * 2.0**-9])
    import ml_dtypes

    with np.errstate(all="ignore"):
        halves, brains = array.astype(np.float16), array.astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(narrowed(array, "float16"), halves)
    found = (narrowed(array, "bfloat16").astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_array_equal(found, brains.astype(np.float32))


def external(proto: onnx.ModelProto, folder: Path, location: str, size: int = 0) -> Model:
    folder.mkdir(parents=True)
    path = folder / "whole.onnx"
    onnx.save_model(proto, str(path), save_as_external_data=True, location=location, size_threshold=size)
    return opened(path)


def test_external_data_with_offsets_and_tied_weights(tmp_path: Path) -> None:
    """Weights and large integers in one file, one tensor at a place that two name, and an attribute's."""
    places = np.arange(1000, dtype=np.int64) % 4
    nodes = [
        node("Gather", ["w", "places"], ["rows"]), node("MatMul", ["x", "w"], ["a"]),
        node("MatMul", ["a", "tied"], ["b"]), node("Constant", [], ["c"], value=tensor("held", 400, 4)),
        node("Concat", ["b", "c", "rows"], ["d"], axis=0),
        node("Concat", ["d", "k"], ["e"], axis=0),
    ]  # fmt: skip
    inits = [constant("places", places, np.int64), tensor("w", 4, 4), tensor("tied", 4, 4), tensor("k", 300, 4)]
    proto = proto_of(nodes, ["e"], inits=inits)
    model = external(proto, tmp_path / "given", "weights.bin")
    again = onnx.load(model.files["model"], load_external_data=False)
    first = next(t for t in again.graph.initializer if t.name == "k")
    for copy in ("tied2", "tied3"):
        again.graph.initializer.add().CopyFrom(first)
        again.graph.initializer[-1].name = copy
    again.graph.node.add().CopyFrom(node("Concat", ["k", "tied2", "tied3"], ["more"], axis=0))
    again.graph.output.add().CopyFrom(value("more", (900, 4)))
    model.files["model"].write_bytes(again.SerializeToString())
    model = opened(model.files["model"])
    expected = run(model.files["model"], {"x": X})
    kept = cast(model, asked(model, keep={n.index: "" for n in model.graph.nodes}), tmp_path / "kept")
    equal(run(kept.files["model"], {"x": X}), expected)
    made = cast(model, asked(model), tmp_path / "narrow")
    close(run(made.files["model"], {"x": X}), expected)
    np.testing.assert_array_equal(elements(made, "places"), places)
    assert made.files["data/weights.bin"].stat().st_size <= 8000 + 300 * 4 * 2 + 128, "tied weights lie in one place"
    stored = cast(model, asked(model, storage_only=True), tmp_path / "stored")
    close(run(stored.files["model"], {"x": X}), expected)
    loads_in_openvino(made.files["model"])


def test_a_segment_can_be_cast_and_a_cast_model_again(tmp_path: Path) -> None:
    nodes = [node("MatMul", ["x", "w"], ["a"]), node("Relu", ["a"], ["b"]), node("MatMul", ["b", "w"], ["c"])]
    proto = proto_of(nodes, ["c"], inputs=[value("x", ("N", 64))], inits=[tensor("w", 64, 64)])
    model = saved(proto, tmp_path / "given")
    index = {v.name: i for i, v in enumerate(model.graph.values)}
    segment = Segment(0, "cpu/some", (1, 2), (index["a"],), (index["c"],))
    files = FORMAT.extract(model, segment, tmp_path / "segment")
    assert "data/weights.bin" in files
    part = opened(files["model"])
    made = cast(part, asked(part), tmp_path / "narrow")
    feeds = {"a": np.random.default_rng(0).standard_normal((2, 64)).astype(np.float32)}
    expected = run(files["model"], feeds)
    close(run(made.files["model"], feeds), expected)
    second = opened(made.files["model"])
    again = cast(second, asked(second, storage_only=True), tmp_path / "again")
    equal(run(again.files["model"], feeds), run(made.files["model"], feeds))


@pytest.mark.parametrize("narrow", ["float16", "bfloat16"])
def test_storage_rounds_the_weights_and_nothing_else(narrow: str, tmp_path: Path) -> None:
    nodes = [
        node("MatMul", ["x", "w"], ["a"]), node("Add", ["a", "big"], ["b"]), node("Shape", ["unread"], ["s"]),
        node("MatMul", ["b", "w"], ["c"]),
    ]  # fmt: skip
    weights = tensor("w", 4, 4)
    inits = [weights, constant("big", [3.4e38, 1, 2, 3]), tensor("unread", 7, 5), tensor("nobody", 3)]
    proto = proto_of(nodes, ["c", value("s", None, INT64)], inits=inits)
    model = saved(proto, tmp_path / "given")
    made = cast(model, asked(model, narrow, storage_only=True), tmp_path / "narrow")
    held = {t.name.split("/")[0]: t.data_type for t in written(made).graph.initializer}
    assert held["w"] != FLOAT and held["unread"] != FLOAT and held["nobody"] != FLOAT
    assert held["big"] == FLOAT
    assert [name for name, _ in made.casts].count("w") == 1 and "unread" not in dict(made.casts)
    rounded = onnx.ModelProto()
    rounded.CopyFrom(proto)
    exact = narrowed(numpy_helper.to_array(weights).ravel(), narrow)
    wide = exact.astype(np.float32) if narrow == "float16" else (exact.astype(np.uint32) << 16).view(np.float32)
    assert float(np.abs(wide / numpy_helper.to_array(weights).ravel() - 1).max()) <= EXACT[narrow]
    rounded.graph.initializer[0].CopyFrom(constant("w", wide.reshape(4, 4)))
    oracle = saved(rounded, tmp_path / "rounded")
    equal(run(made.files["model"], {"x": X}), run(oracle.files["model"], {"x": X}))
    loads_in_openvino(made.files["model"])


def test_small_weights_stay_inside_and_empty_ones_do_no_harm(tmp_path: Path) -> None:
    edge = INLINE // 2 // 4
    nodes = [node("Concat", ["x", "w", "none", "one"], ["a"], axis=0)]
    inits = [tensor("w", edge, 4), numpy_helper.from_array(np.ones((0, 4), np.float32), "none"), tensor("one", 1, 4)]
    made = both(proto_of(nodes, ["a"], inits=inits), tmp_path)
    assert set(made.files) == {"model"}
    assert elements(made, "none").shape == (0, 4)
    inits[0] = tensor("w", edge + 1, 4)
    assert "data/weights.bin" in both(proto_of(nodes, ["a"], inits=inits), tmp_path / "more").files


def test_inputs_that_are_sequences_keep_their_types_at_a_narrow_border(tmp_path: Path) -> None:
    sequence = helper.make_tensor_sequence_value_info("q", FLOAT, ("N", 4))
    nodes = [node("SequenceAt", ["q", "i"], ["a"]), node("MatMul", ["a", "w"], ["b"])]
    inits = [tensor("w", 4, 4), constant("i", 0, np.int64)]
    model = saved(proto_of(nodes, ["b"], inputs=[sequence], inits=inits), tmp_path / "given")
    made = cast(model, asked(model, narrow_border=True), tmp_path / "narrow")
    assert written(made).graph.input[0] == sequence
    (found,) = run(made.files["model"], {"q": [X]})
    assert found.dtype == np.float16
    close([found], run(model.files["model"], {"q": [X]}))
