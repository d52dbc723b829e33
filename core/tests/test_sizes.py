"""The sizes that graphs leave open: computed by onnx's rules, guessed by ours, and what kernels take by them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from paddock.graph import Graph, Node, Range, Value
from paddock.model import Model
from paddock.onnx_format import OnnxFormat
from paddock.onnx_sizes import sized
from paddock.planning.extents import completed
from paddock.planning.workspace import column_bytes, computed_share, intermediate_bytes, weight_bytes

F, I = TensorProto.FLOAT, TensorProto.INT64  # noqa: E741
BATCH, LENGTH, WIDTH, HEADS = 5, 7, 12, 3
Made = tuple[str, list[str], list[str], dict[str, Any]]
"""A node: operator, inputs, outputs, attributes."""


def attention(path: Path) -> Path:
    """Heads split and joined by shapes that are computed; positions by a Range; numbers passed on by Identity."""
    numbers = {"zero": 0, "one": 1, "axis1": [1], "heads": [HEADS], "rest": [-1], "axes": [0]}
    weights = [numpy_helper.from_array(np.array(v, np.int64), n) for n, v in numbers.items()]
    weights.append(numpy_helper.from_array(np.ones((WIDTH, WIDTH), np.float32), "w"))
    made: list[Made] = [
        ("Shape", ["x"], ["shape"], {}), ("Gather", ["shape", "zero"], ["b"], {"axis": 0}),
        ("Gather", ["shape", "one"], ["n"], {"axis": 0}), ("Identity", ["b"], ["b1"], {}),
        ("Unsqueeze", ["b1", "axes"], ["bs"], {}), ("Unsqueeze", ["n", "axes"], ["ns"], {}),
        ("Identity", ["ns"], ["ns1"], {}), ("Concat", ["bs", "ns1", "heads", "rest"], ["cut"], {"axis": 0}),
        ("Identity", ["cut"], ["cut1"], {}), ("Reshape", ["x", "cut1"], ["q"], {}),
        ("Transpose", ["q"], ["qt"], {"perm": [0, 2, 1, 3]}), ("Transpose", ["q"], ["kt"], {"perm": [0, 2, 3, 1]}),
        ("MatMul", ["qt", "kt"], ["scores"], {}), ("Softmax", ["scores"], ["p"], {"axis": -1}),
        ("MatMul", ["p", "qt"], ["mixed"], {}), ("Transpose", ["mixed"], ["back"], {"perm": [0, 2, 1, 3]}),
        ("Concat", ["bs", "ns1", "rest"], ["whole"], {"axis": 0}), ("Reshape", ["back", "whole"], ["j"], {}),
        ("MatMul", ["j", "w"], ["y"], {}), ("Range", ["zero", "n", "one"], ["positions"], {}),
        ("NonZero", ["y"], ["found"], {}), ("Add", ["positions", "one"], ["z"], {}),
    ]  # fmt: skip
    nodes = [helper.make_node(op, ins, outs, **attributes) for op, ins, outs, attributes in made]
    inputs = [helper.make_tensor_value_info("x", F, ["b", "n", WIDTH])]
    outputs = [helper.make_tensor_value_info(n, k, None) for n, k in (("y", F), ("z", I), ("found", I))]
    graph = helper.make_graph(nodes, "g", inputs, outputs, weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.fixture
def model(tmp_path: Path) -> Model:
    files = OnnxFormat().complete({"model": attention(tmp_path / "m.onnx")})
    return Model("onnx", files, "f", OnnxFormat().read(files))


def bounded(model: Model, **bounds: int) -> Model:
    return model.with_graph(model.graph.with_bounds({name: Range(1, 1, most) for name, most in bounds.items()}))


def test_shapes_that_a_model_computes_are_those_of_a_run(model: Model) -> None:
    model = bounded(model, b=BATCH, n=LENGTH)
    graph = sized(model)
    proto = onnx.load(model.files["model"])
    names = [name for node in proto.graph.node for name in node.output]
    del proto.graph.output[:]
    proto.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    ran = ReferenceEvaluator(proto).run(names, {"x": np.ones((BATCH, LENGTH, WIDTH), np.float32)})
    sizes = dict(zip(names, (np.asarray(array).nbytes for array in ran), strict=True))
    found = {graph.values[v].name: graph.nbytes(v) for node in graph.nodes for v in node.outputs if v is not None}
    assert found.pop("found") is None  # how many are not zero only the data tells
    assert {name: sizes[name] for name in found} == found
    assert any(model.graph.nbytes(v) is None for v in range(len(graph.values)) if graph.values[v].name == "scores")


def test_what_is_known_stays_and_what_nothing_bounds_too(model: Model) -> None:
    assert sized(model) is model.graph
    assert sized(bounded(model, b=BATCH)) is not None
    graph = sized(bounded(model, b=BATCH, n=LENGTH))
    for before, after in zip(bounded(model, b=BATCH, n=LENGTH).graph.values, graph.values, strict=True):
        assert (before.name, before.dtype, before.kind) == (after.name, after.dtype, after.kind)


def test_a_huge_constant_is_not_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    computed = []
    run = ReferenceEvaluator.run

    def recorded(self: Any, *arguments: Any) -> Any:
        computed.extend([len(self.proto_.graph.node), *(node.op_type for node in self.proto_.graph.node)])
        return run(self, *arguments)

    monkeypatch.setattr(ReferenceEvaluator, "run", recorded)
    shape = numpy_helper.from_array(np.array([1 << 13, 1 << 13], np.int64), "shape")
    many = numpy_helper.from_array(np.array(1 << 26, np.int64), "many")
    zero, one = (numpy_helper.from_array(np.array(n, np.int64), name) for n, name in ((0, "zero"), (1, "one")))
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["c"]),
        helper.make_node("Range", ["zero", "many", "one"], ["r"]),
        helper.make_node("Identity", ["many"], ["again"]), helper.make_node("Range", ["zero", "again", "one"], ["s"]),
        helper.make_node("ReduceSum", ["x"], ["y"]),
    ]  # fmt: skip
    inputs, outputs = ([helper.make_tensor_value_info(n, F, s)] for n, s in (("x", ["b", 2]), ("y", None)))
    graph = helper.make_graph(nodes, "g", inputs, outputs, [shape, many, zero, one])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    files = {"model": tmp_path / "m.onnx"}
    model = Model("onnx", files, "f", OnnxFormat().read(files))
    assert sized(bounded(model, b=2)) is not None
    assert computed == [1, "Identity"]


def graph_of(shapes: dict[str, Any], *nodes: Made, **more: Any) -> Graph:
    names = list(shapes)
    values = tuple(Value(name, "float32", shape) for name, shape in shapes.items())
    made = tuple(
        Node(i, op, tuple(map(names.index, ins)), tuple(map(names.index, outs)), attributes=attributes)
        for i, (op, ins, outs, attributes) in enumerate(nodes)
    )
    return Graph(made, values, (0,), (len(values) - 1,), **more)


X, N = (4, 6, 8), None


@pytest.mark.parametrize(
    ("op", "operands", "attributes", "left", "expected"),
    [
        ("pd_op.scale", [X], {}, (4, N, 8), (4, 6, 8)),
        ("pd_op.add", [X, (8,)], {}, (N, N, 8), (4, 6, 8)),
        ("pd_op.multiply", [(1, 6), (6, 1)], {}, (N, N), (6, 6)),
        ("pd_op.matmul", [X, (8, 3)], {}, (N, N, 3), (4, 6, 3)),
        ("pd_op.matmul", [X, (4, 9, 8)], {"transpose_y": True}, (4, N, N), (4, 6, 9)),
        ("MatMul", [X, (8, 3)], {}, (N, N, N), (4, 6, 3)),
        ("pd_op.transpose", [X], {"perm": [0, 2, 1]}, (N, N, N), (4, 8, 6)),
        ("pd_op.reshape", [X], {}, (N, N, 2, 4), (4, 6, 2, 4)),
        ("pd_op.reshape", [X], {}, (N, 48), (4, 48)),
        ("pd_op.reshape", [X], {}, (24, N), (24, 8)),
        ("pd_op.unsqueeze", [X], {}, (N, 1, N, 8), (4, 1, 6, 8)),
        ("pd_op.concat", [X, X], {}, (4, N, 8), (4, 12, 8)),
        ("pd_op.concat", [X, X], {}, (4, N, 16), (4, 6, 16)),
        ("pd_op.sum", [X], {}, (N, N), (4, 6)),
        ("pd_op.topk", [X], {}, (N, N, 2), (4, 6, 2)),
        ("pd_op.one_hot", [X], {}, (N, N, N, 10), (4, 6, 8, 10)),
        ("Split", [X], {}, (4, 6, N), (4, 6, 8)),
        ("vendor.unheard_of", [], {}, (N, 3), (64, 3)),
    ],
)
def test_an_open_extent_is_what_the_operands_suggest(
    op: str, operands: list[Any], attributes: dict[str, Any], left: Any, expected: Any
) -> None:
    names = [f"v{i}" for i in range(len(operands))] or ["v0"]
    shapes = {**dict(zip(names, operands or [(1,)], strict=True)), "y": left}
    graph = graph_of(shapes, (op, names[: len(operands)], ["y"], attributes), fixed={"n": 64})
    assert completed(graph).values[-1].shape == expected


def test_parts_of_a_whole_are_no_more_than_it() -> None:
    shapes = {"x": X, "pack": None, "a": (4, 6, N), "b": (4, 6, N), "y": (N, N, N)}
    graph = graph_of(
        shapes, ("pd_op.split", ["x"], ["pack"], {}), ("builtin.split", ["pack"], ["a", "b"], {}),
        ("builtin.combine", ["a", "b"], ["pack"], {}), ("pd_op.concat", ["pack"], ["y"], {}),
    )  # fmt: skip
    found = completed(graph).values
    assert (found[2].shape, found[3].shape) == ((4, 6, 4), (4, 6, 4))
    assert completed(graph).nbytes(4) == 4 * 4 * 6 * 8


def test_bounds_are_taken_at_their_largest_and_symbols_agree() -> None:
    shapes = {"x": ("b", 3), "t": ("later", 3), "u": ("later", 3), "y": ("b", 3)}
    nodes: list[Made] = [("A", ["x"], ["t"], {}), ("B", ["t"], ["u"], {}), ("C", ["u"], ["y"], {})]
    graph = graph_of(shapes, *nodes, bounds={"b": Range(1, 2, 5)})
    assert [value.shape for value in completed(graph).values] == [(5, 3)] * 4
    again = completed(completed(graph))
    assert again == completed(graph)


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
