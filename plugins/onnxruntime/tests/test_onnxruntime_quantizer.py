"""The int8 files: still the same function, small, with kept nodes in float, traced, and the same each time."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from paddock.errors import BuildFailed
from paddock_onnxruntime.quantizer import OnnxRuntimeQuantizer as Quantizer

ort = pytest.importorskip("onnxruntime")
pytest.importorskip("ml_dtypes")

LINEAR, BATCH_NORM, FIRST_CONV, RELU = 12, 4, 3, 5


Made = tuple[Path, Path, Quantizer]


def network(path: Path, names: str = "", external: bool = False) -> Any:
    """conv, batch norm, relu, conv, add, pool, two linear layers; weights as paddle2onnx leaves them."""
    random = np.random.default_rng(0)

    def weight(*shape: int, scale: float = 0.3) -> Any:
        return numpy_helper.from_array((random.standard_normal(shape) * scale).astype(np.float32))

    def node(op: str, inputs: list[str], output: str, **attributes: Any) -> Any:
        return helper.make_node(op, inputs, [output], name=names, **attributes)

    initializers: list[Any] = []
    for name, shape in {"g": (8,), "b": (8,), "m": (8,), "w2": (8, 8, 3, 3), "b3": (64,)}.items():
        initializers.append(weight(*shape))
        initializers[-1].name = name
    initializers.append(numpy_helper.from_array(np.full(8, 0.7, np.float32), "v"))
    nodes = [
        node("Constant", [], "w1c", value=weight(8, 3, 3, 3)),
        node("Identity", ["w1c"], "w1"),
        node("Constant", [], "w3c", value=weight(8, 64)),
        node("Conv", ["x", "w1"], "c1", pads=[1, 1, 1, 1]),
        node("BatchNormalization", ["c1", "g", "b", "m", "v"], "n1"),
        node("Relu", ["n1"], "r1"),
        node("Conv", ["r1", "w2"], "c2", pads=[1, 1, 1, 1]),
        node("Add", ["c2", "r1"], "a"),
        node("GlobalAveragePool", ["a"], "p"),
        node("Flatten", ["p"], "f"),
        node("MatMul", ["f", "w3c"], "h"),
        node("Add", ["h", "b3"], "hb"),
        node("Tanh", ["hb"], "t"),
        node("Constant", [], "w4", value=weight(64, 200)),
        node("MatMul", ["t", "w4"], "y"),
    ]
    ports = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 10, "wide"])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 200])]
    graph = helper.make_graph(nodes, "net", ports, outputs, initializers)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(proto, path, save_as_external_data=external, location="weights.bin", size_threshold=0)
    return path


def feeds(count: int = 4, seed: int = 1) -> Any:
    random = np.random.default_rng(seed)
    return [{"x": random.standard_normal((1 + i % 2, 3, 10, 10)).astype(np.float32)} for i in range(count)]


def run(path: Path, feed: Any) -> Any:
    settings = ort.SessionOptions()
    settings.add_session_config_entry("session.x64quantprecision", "1")
    return ort.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"]).run(None, feed)[0]


def distance(path: Path, plain: Path, feed: Any) -> float:
    wanted = run(plain, feed)
    return float(np.abs(run(path, feed) - wanted).max() / np.abs(wanted).max())


def reads_int8(proto: Any) -> Any:
    made = {name for node in proto.graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    return [not made.isdisjoint(node.input) for node in proto.graph.node]


def int8_weights(proto: Any) -> Any:
    held = {t.name for t in proto.graph.initializer if t.data_type == TensorProto.INT8}
    return {n.output[0] for n in proto.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in held}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("quantizer")
    plain = network(folder / "plain.onnx")
    return folder, plain, Quantizer(plain, feeds(), folder, narrow=False)


def test_int8_file(made: Made) -> None:
    folder, plain, quantizer = made
    quantizer.write(folder / "a.onnx")
    proto, original = onnx.load(folder / "a.onnx"), onnx.load(plain)
    onnx.checker.check_model(proto, full_check=True)
    assert list(proto.graph.input) == list(original.graph.input)
    assert list(proto.graph.output) == list(original.graph.output)
    assert {(o.domain, o.version) for o in proto.opset_import} == {("", 17)}
    floats = [t for t in proto.graph.initializer if t.data_type == TensorProto.FLOAT]
    assert max(np.prod(t.dims, dtype=int) for t in floats) <= 200  # scales and biases, no weight
    products = [n for n in proto.graph.node if n.op_type in ("Conv", "MatMul", "Gemm")]
    quantised = reads_int8(proto)
    assert len(products) == 4 and all(quantised[list(proto.graph.node).index(n)] for n in products)
    assert 1e-5 < distance(folder / "a.onnx", plain, feeds(1, seed=2)[0]) < 0.05


def test_provenance_names_each_node_and_follows_what_was_merged(made: Made) -> None:
    folder, plain, quantizer = made
    traced = quantizer.write(folder / "b.onnx")
    proto, original = onnx.load(folder / "b.onnx"), onnx.load(plain)
    assert len(traced) == len(proto.graph.node)
    assert {i for nodes in traced for i in nodes} == set(range(len(original.graph.node)))
    for node, nodes in zip(proto.graph.node, traced, strict=True):
        assert not (nodes and node.op_type in ("QuantizeLinear", "DequantizeLinear"))
    assert any({FIRST_CONV, BATCH_NORM, RELU} <= set(nodes) for nodes in traced)
    assert sum(LINEAR in nodes for nodes in traced) == 1


@pytest.mark.parametrize("keep", [6, BATCH_NORM, 10, 14])
def test_kept_nodes_have_float_weights(made: Made, keep: int) -> None:
    folder, _, quantizer = made
    traced = quantizer.write(folder / "c.onnx", {keep})
    proto = onnx.load(folder / "c.onnx")
    weights = int8_weights(proto)
    kept = [n for n, nodes in zip(proto.graph.node, traced, strict=True) if keep in nodes and len(n.input) > 1]
    assert kept and all(weights.isdisjoint(node.input) for node in kept)
    assert len(weights) == 3


def test_all_kept_is_the_model_itself(made: Made) -> None:
    folder, plain, quantizer = made
    quantizer.write(folder / "d.onnx", range(15))
    assert not any(reads_int8(onnx.load(folder / "d.onnx")))
    feed = feeds(1, seed=2)[0]
    assert distance(folder / "d.onnx", plain, feed) < 1e-5


def test_narrow_weights_have_seven_bits(tmp_path: Path) -> None:
    plain = network(tmp_path / "plain.onnx", names="one name for all")
    reach = {}
    for narrow in (False, True):
        Quantizer(plain, feeds(1), tmp_path, narrow=narrow).write(tmp_path / "n.onnx")
        weights = [t for t in onnx.load(tmp_path / "n.onnx").graph.initializer if t.data_type == TensorProto.INT8]
        reach[narrow] = max(np.abs(numpy_helper.to_array(t).astype(int)).max() for t in weights if t.dims)
    assert reach[False] == 127 and reach[True] == 64


def test_a_bias_that_is_scaled_stays_in_float(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    stored = [
        numpy_helper.from_array(random.standard_normal(shape).astype(np.float32), name)
        for name, shape in {"w": (12, 7), "b": (7,)}.items()
    ]
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in {"x": [3, 12], "y": [3, 7]}.items()]
    node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], beta=0.5)
    graph = helper.make_graph([node], "scaled", ports[:1], ports[1:], stored)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), tmp_path / "p.onnx")
    feed = {"x": random.standard_normal((3, 12)).astype(np.float32)}
    Quantizer(tmp_path / "p.onnx", [feed], tmp_path, narrow=False).write(tmp_path / "q.onnx")
    assert distance(tmp_path / "q.onnx", tmp_path / "p.onnx", feed) < 0.03


def test_stacks_of_matrices_and_factors_on_the_left_run(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    weights = {"stack": (3, 16, 32), "left": (4, 5)}
    initializers = [
        numpy_helper.from_array(random.standard_normal(s).astype(np.float32), n) for n, s in weights.items()
    ]
    nodes = [helper.make_node("MatMul", ["x", "stack"], ["h"]), helper.make_node("MatMul", ["left", "h"], ["y"])]
    ports = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in {"x": [3, 5, 16], "y": [3, 4, 32]}.items()
    ]
    graph = helper.make_graph(nodes, "stack", ports[:1], ports[1:], initializers)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), tmp_path / "p.onnx")
    feed = {"x": random.standard_normal((3, 5, 16)).astype(np.float32)}
    Quantizer(tmp_path / "p.onnx", [feed], tmp_path, narrow=False).write(tmp_path / "q.onnx")
    assert sum(reads_int8(onnx.load(tmp_path / "q.onnx"))) == 2
    assert distance(tmp_path / "q.onnx", tmp_path / "p.onnx", feed) < 0.03


def test_bytes_are_the_same_in_every_process_and_after_other_variants(made: Made, tmp_path: Path) -> None:
    _, plain, quantizer = made
    quantizer.write(tmp_path / "other.onnx", {6})
    quantizer.write(tmp_path / "here.onnx", {10})
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1])\n"
        "import test_onnxruntime_quantizer as t\n"
        "work = Path(sys.argv[2])\n"
        "t.Quantizer(Path(sys.argv[3]), t.feeds(), work, narrow=False).write(work / 'there.onnx', {10})\n"
    )
    arguments = [sys.executable, "-c", code, str(Path(__file__).parent), str(tmp_path), str(plain)]
    subprocess.run(arguments, check=True, env={**os.environ, "PYTHONHASHSEED": "7"}, capture_output=True)
    sums = {hashlib.sha256((tmp_path / n).read_bytes()).hexdigest() for n in ("here.onnx", "there.onnx")}
    assert len(sums) == 1


def test_external_data_ends_in_the_one_file(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "work").mkdir()
    plain = network(tmp_path / "model" / "plain.onnx", external=True)
    Quantizer(plain, feeds(1), tmp_path / "work", narrow=False).write(tmp_path / "q.onnx")
    assert distance(tmp_path / "q.onnx", plain, feeds(1)[0]) < 0.05


def test_errors_are_build_failed(tmp_path: Path) -> None:
    plain = network(tmp_path / "plain.onnx")
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    with pytest.raises(BuildFailed, match="samples"):
        Quantizer(plain, [], tmp_path)
    with pytest.raises(BuildFailed, match="cannot quantise"):
        Quantizer(tmp_path / "broken.onnx", feeds(1), tmp_path)
    with pytest.raises(BuildFailed, match="cannot quantise"):
        Quantizer(plain, [{"z": feeds(1)[0]["x"]}], tmp_path)
