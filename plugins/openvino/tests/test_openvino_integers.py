"""Integer arithmetic that OpenVINO's CPU plugin gets wrong is refused, and what it gets right is not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto as T
from onnx import helper as h
from paddock.config import HardwareConfig
from paddock.model import Model
from paddock.onnx_format import OnnxFormat
from paddock.plan import Answer, Verdict
from paddock.spi import Context, ResolvedConfig
from paddock_openvino.adapter import CpuOpenVino, CpuOptions

ADAPTER = CpuOpenVino(
    ResolvedConfig(HardwareConfig.load({"hardware": "cpu", "backend": "openvino"}), CpuOptions(), 1), None
)


def kind(dtype: str) -> int:
    return int(h.np_dtype_to_tensor_dtype(np.dtype(dtype)))


def model_of(
    folder: Path, nodes: Sequence[Any], inputs: Mapping[str, str], output: str, opset: int = 18, **weights: Any
) -> Model:
    """Inputs are [N, 4] by dtype; the last node's output is the model's, of unknown shape."""
    graph = h.make_graph(
        nodes,
        "graph",
        [h.make_tensor_value_info(name, kind(dtype), ["N", 4]) for name, dtype in inputs.items()],
        [h.make_tensor_value_info(nodes[-1].output[0], kind(output), None)],
        [onnx.numpy_helper.from_array(np.asarray(w), n) for n, w in weights.items()],
    )
    path = folder / "model.onnx"
    onnx.save(h.make_model(graph, opset_imports=[h.make_opsetid("", opset)], ir_version=8), path)
    return Model("onnx", {"model": path}, "test", OnnxFormat().read({"model": path}))


def verdicts(model: Model, folder: Path) -> tuple[Verdict, ...]:
    return ADAPTER.select_operators(model, Context(folder, folder)).verdicts


def refused(model: Model, folder: Path) -> list[str]:
    """The refused nodes' operators; each refusal says who measured it and what to do instead."""
    found = []
    for node, verdict in zip(model.graph.nodes, verdicts(model, folder), strict=True):
        assert verdict.answer is not Answer.PROVISIONAL
        if verdict.answer is Answer.NO:
            assert "measured on OpenVINO" in verdict.source
            assert "OpenVINO's CPU plugin" in verdict.reason and "another backend" in verdict.reason
            found.append(node.op)
    return found


WRAPPING = ["int8", "uint8", "int16", "uint16", "uint32", "int64", "uint64"]


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div", "Mod", "Sum"])
@pytest.mark.parametrize("dtype", WRAPPING)
def test_arithmetic_of_what_is_fed_is_refused(tmp_path: Path, op: str, dtype: str) -> None:
    if op == "Sum":
        node, inputs = h.make_node("ReduceSum", ["x"], ["y"]), {"x": dtype}
        if dtype not in ("uint32", "int64", "uint64"):
            return  # ONNX has no ReduceSum of 8 and 16 bits
    else:
        node, inputs = h.make_node(op, ["x", "z"], ["y"]), {"x": dtype, "z": dtype}
    assert refused(model_of(tmp_path, [node], inputs, dtype), tmp_path) == [node.op_type]


@pytest.mark.parametrize(
    ("op", "dtype"),
    [("Abs", "int8"), ("Neg", "int64"), ("ReduceSum", "int32"), ("ReduceMax", "int32"), ("ReduceProd", "int64")],
)
def test_unary_arithmetic_that_is_wrong_is_refused(tmp_path: Path, op: str, dtype: str) -> None:
    assert refused(model_of(tmp_path, [h.make_node(op, ["x"], ["y"])], {"x": dtype}, dtype), tmp_path) == [op]


@pytest.mark.parametrize("dtype", WRAPPING)
def test_a_cast_from_float_is_refused_where_it_saturates(tmp_path: Path, dtype: str) -> None:
    node = h.make_node("Cast", ["x"], ["y"], to=kind(dtype))
    assert refused(model_of(tmp_path, [node], {"x": "float32"}, dtype), tmp_path) == ["Cast"]


def test_64_bit_numbers_made_inside_are_refused_and_named(tmp_path: Path) -> None:
    nodes = [
        h.make_node("Cast", ["x"], ["a"], to=T.INT64),
        h.make_node("Mul", ["a", "k"], ["b"]),
        h.make_node("Div", ["b", "k2"], ["c"]),
        h.make_node("Cast", ["c"], ["y"], to=T.FLOAT),
    ]
    model = model_of(tmp_path, nodes, {"x": "float32"}, "float32", k=np.int64(100000), k2=np.int64(1000))
    assert refused(model, tmp_path) == ["Cast", "Mul", "Div"]
    (defect,) = ADAPTER.known_defects(model)
    assert "inside a (int64), b (int64), c (int64)" in defect.summary


@pytest.mark.parametrize("op", ["Less", "Equal", "Max", "Where", "Concat", "Gather", "Reshape", "Cast"])
@pytest.mark.parametrize("dtype", [*WRAPPING, "int32"])
def test_moving_comparing_and_reading_stay(tmp_path: Path, op: str, dtype: str) -> None:
    attributes: dict[str, Any] = {"Concat": {"axis": 0}, "Cast": {"to": T.FLOAT}}.get(op, {})
    reads = {"Where": ["c", "x", "x"], "Gather": ["x", "i"], "Reshape": ["x", "i"], "Cast": ["x"]}.get(op, ["x", "x"])
    output = {"Less": "bool", "Equal": "bool", "Cast": "float32"}.get(op, dtype)
    weights: dict[str, Any] = {
        "c": np.array([True, False, True, True]),
        "i": np.array([0, 1] if op == "Gather" else [-1]),
    }
    used = {name: weight for name, weight in weights.items() if name in reads}
    model = model_of(tmp_path, [h.make_node(op, reads, ["y"], **attributes)], {"x": dtype}, output, **used)
    assert refused(model, tmp_path) == []


def test_shape_arithmetic_stays(tmp_path: Path) -> None:
    nodes = [
        h.make_node("Shape", ["x"], ["s"]),
        h.make_node("ReduceProd", ["s"], ["p"]),
        h.make_node("Mul", ["p", "two"], ["m"]),
        h.make_node("Div", ["m", "two"], ["d"]),
        h.make_node("Cast", ["d"], ["f"], to=T.DOUBLE),
        h.make_node("Cast", ["f"], ["n"], to=T.INT64),
        h.make_node("Reshape", ["x", "n"], ["y"]),
    ]
    assert refused(model_of(tmp_path, nodes, {"x": "float32"}, "float32", two=np.array([2])), tmp_path) == []


def test_counting_a_mask_stays_while_its_values_are_known_to_be_small(tmp_path: Path) -> None:
    counting = [
        h.make_node("CumSum", ["m", "axis"], ["c"]),
        h.make_node("Sub", ["c", "one"], ["y"]),
    ]
    mask = [h.make_node("Cast", ["x"], ["m"], to=T.INT64)]
    weights: dict[str, Any] = {"axis": np.array(1), "one": np.array([1])}
    assert refused(model_of(tmp_path, mask + counting, {"x": "bool"}, "int64", **weights), tmp_path) == []
    # an int64 mask could hold anything
    assert refused(model_of(tmp_path, counting, {"m": "int64"}, "int64", **weights), tmp_path) == ["CumSum", "Sub"]
    weights["one"] = np.array([100000])
    grown = [*mask, counting[0], h.make_node("Mul", ["c", "one"], ["y"])]
    assert refused(model_of(tmp_path, grown, {"x": "bool"}, "int64", **weights), tmp_path) == ["Mul"]


def test_a_constant_beyond_32_bits_is_refused_unless_it_only_limits(tmp_path: Path) -> None:
    for op, wrong in (("Less", ["Less"]), ("Min", [])):
        node = h.make_node(op, ["x", "k"], ["y"])
        model = model_of(tmp_path, [node], {"x": "int64"}, "bool" if op == "Less" else "int64", k=np.array([2**40]))
        assert refused(model, tmp_path) == wrong


def test_bodies_are_judged(tmp_path: Path) -> None:
    def body(op: str) -> Any:
        return h.make_graph(
            [h.make_node(op, ["x", "x"], ["t"])], op, [], [h.make_tensor_value_info("t", T.INT64, ["N", 4])]
        )

    nodes = [
        h.make_node("ReduceMax", ["f"], ["b"], keepdims=0),
        h.make_node("Cast", ["b"], ["c"], to=T.BOOL),
        h.make_node("If", ["c"], ["y"], then_branch=body("Add"), else_branch=body("Max")),
    ]
    model = model_of(tmp_path, nodes, {"x": "int64", "f": "float32"}, "int64")
    assert refused(model, tmp_path) == ["If"]
    assert "in its body, #0 Add" in verdicts(model, tmp_path)[2].reason
