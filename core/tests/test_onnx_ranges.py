"""Models that measure: what they give is NumPy's largest magnitude of every value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, checker, helper, numpy_helper
from paddock.model import Model
from paddock.onnx_format import OnnxFormat

FORMAT = OnnxFormat()
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
node = helper.make_node


def value(name: str, shape: Any = ("N", 4), dtype: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def saved(
    nodes: Sequence[Any], outputs: Sequence[Any], folder: Path, inits: Any = (), inputs: Any = None, opset: int = 17,
    external: bool = False,
) -> Model:  # fmt: skip
    inits = [numpy_helper.from_array(np.asarray(array), name) for name, array in dict(inits).items()]
    graph = helper.make_graph(list(nodes), "g", inputs or [value("x")], list(outputs), inits)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    folder.mkdir(parents=True)
    onnx.save_model(
        proto, str(folder / "m.onnx"), save_as_external_data=external, location="weights.bin", size_threshold=0
    )
    files = FORMAT.complete({"model": folder / "m.onnx"})
    return Model("onnx", files, "", FORMAT.read(files))


def run(path: Path, feeds: Mapping[str, Any], names: Sequence[str] | None = None) -> dict[str, Any]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    given = [o.name for o in session.get_outputs()]
    return dict(zip(given, session.run(given, dict(feeds)), strict=True))


def measured(model: Model, feeds: Mapping[str, Any], folder: Path) -> dict[str, float]:
    """By the value's name, what the measuring model gives; compared with NumPy over all values as outputs."""
    files, outputs = FORMAT.ranges(model, folder / "ranges")
    assert files == FORMAT.complete({"model": files["model"]})
    checker.check_model(str(files["model"]), full_check=True)
    read = FORMAT.read(files)
    assert [v.name for v in read.input_values] == [v.name for v in model.graph.input_values]
    assert [(v.dtype, v.shape) for v in read.output_values] == [("float32", ())] * len(outputs)
    given = run(files["model"], feeds)
    assert given.keys() == outputs.keys()

    graph = model.graph
    wanted = {*graph.inputs, *(v for n in graph.nodes for v in n.outputs if v is not None)}
    wanted = {v for v in wanted if graph.values[v].dtype == "float32" and graph.values[v].kind == "tensor"}
    assert sorted(outputs.values()) == sorted(wanted)
    proto = onnx.load(model.files["model"])
    del proto.graph.output[:]
    made = [graph.values[v].name for v in wanted if v not in graph.inputs]
    proto.graph.output.extend(value(name, None) for name in made)
    (folder / "all.onnx").write_bytes(proto.SerializeToString())
    truth = {**feeds, **run(folder / "all.onnx", feeds)}
    found = {graph.values[v].name: float(given[name]) for name, v in outputs.items()}
    for name, largest in found.items():
        assert largest == float(np.abs(truth[name]).max(initial=0.0)), name
    return found


X = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32) * 100


@pytest.mark.parametrize("opset", [13, 17, 20])
def test_every_float_value_is_measured(opset: int, tmp_path: Path) -> None:
    nodes = [
        node("MatMul", ["x", "w"], ["a"]), node("Constant", [], ["c"], value_float=-7.5), node("Neg", ["a"], ["b"]),
        node("Mul", ["b", "c"], ["d"]), node("Cast", ["d"], ["e"], to=TensorProto.DOUBLE), node("Shape", ["e"], ["s"]),
        node("Split", ["x"], ["first", "half"], axis=1, **({"num_outputs": 2} if opset >= 18 else {})),
    ]  # fmt: skip
    outputs = [value("s", None, INT64), value("half", None)]
    weights = {"w": np.random.default_rng(1).standard_normal((4, 4)).astype(np.float32)}
    found = measured(saved(nodes, outputs, tmp_path / "m", weights, opset=opset), {"x": X}, tmp_path)
    assert found.keys() == {"x", "a", "b", "c", "d", "first", "half"}
    assert found["c"] == 7.5


def test_scalars_and_empty_tensors_and_zero_rows(tmp_path: Path) -> None:
    nodes = [
        node("Slice", ["x", "end", "end"], ["none"]), node("Relu", ["none"], ["still"]), node("NonZero", ["z"], ["at"]),
        node("Gather", ["x", "row"], ["rows"], axis=1), node("ReduceSum", ["x"], ["sum"], keepdims=0),
        node("Neg", ["one"], ["scalar"]), node("ConstantOfShape", ["zero"], ["filled"]),
    ]  # fmt: skip
    weights = {
        "end": np.array([2**40]), "z": np.zeros(3, np.float32), "row": np.zeros((0,), np.int64),
        "one": np.float32(3), "zero": np.array([0, 4]),
    }  # fmt: skip
    model = saved(nodes, [value(n, None) for n in ("still", "rows", "sum", "scalar")], tmp_path / "m", weights)
    found = measured(model, {"x": X}, tmp_path)
    assert found["none"] == found["still"] == found["rows"] == found["filled"] == 0
    assert found["scalar"] == 3
    files, outputs = FORMAT.ranges(model, tmp_path / "again")
    given = run(files["model"], {"x": X[:0]})
    assert {float(given[name]) for name, v in outputs.items() if v in model.graph.inputs} == {0.0}


def test_models_with_bodies(tmp_path: Path) -> None:
    body = helper.make_graph(
        [node("Identity", ["on"], ["again"]), node("Add", ["state", "a"], ["next"]), node("Neg", ["next"], ["row"])],
        "body", [value("i", (), INT64), value("on", (), TensorProto.BOOL), value("state", None)],
        [value("again", (), TensorProto.BOOL), value("next", None), value("row", None)],
    )  # fmt: skip
    nodes = [node("Neg", ["x"], ["a"]), node("Loop", ["times", "", "x"], ["end", "rows"], body=body)]
    model = saved(nodes, [value("rows", None)], tmp_path / "m", {"times": np.int64(3)})
    assert measured(model, {"x": X}, tmp_path).keys() == {"x", "a", "end", "rows"}


def test_external_data_and_names_that_collide_with_ours(tmp_path: Path) -> None:
    nodes = [node("MatMul", ["x", "w"], ["paddock_range/0"]), node("Relu", ["paddock_range/0"], ["paddock_range/2"])]
    weights = {"w": np.random.default_rng(1).standard_normal((4, 400)).astype(np.float32)}
    model = saved(nodes, [value("paddock_range/2", None)], tmp_path / "m", weights, external=True)
    assert "data/weights.bin" in model.files
    assert measured(model, {"x": X}, tmp_path).keys() == {"x", "paddock_range/0", "paddock_range/2"}


def test_sequences_and_integers_are_left_out(tmp_path: Path) -> None:
    nodes = [
        node("SequenceConstruct", ["x", "x"], ["q"]), node("SequenceAt", ["q", "i"], ["a"]),
        node("Cast", ["a"], ["b"], to=INT64),
    ]  # fmt: skip
    model = saved(nodes, [value("b", None, INT64)], tmp_path / "m", {"i": np.int64(1)})
    assert measured(model, {"x": X}, tmp_path).keys() == {"x", "a"}


def test_infinities_and_nan_come_out_as_they_are(tmp_path: Path) -> None:
    model = saved([node("Log", ["x"], ["a"]), node("Relu", ["x"], ["b"])], [value("a"), value("b")], tmp_path / "m")
    files, outputs = FORMAT.ranges(model, tmp_path / "ranges")
    names = {model.graph.values[v].name: name for name, v in outputs.items()}
    given = run(files["model"], {"x": np.zeros((2, 4), np.float32)})
    assert given[names["a"]] == np.inf and given[names["b"]] == 0
