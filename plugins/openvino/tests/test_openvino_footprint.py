"""The bound on what OpenVINO takes, against a process of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from paddock.child import Children
from paddock.compile import build
from paddock.footprint import largest, measure
from paddock.prepare import prepare

pytest.importorskip("openvino")


def network(path: Path) -> Path:
    """Convolutions that widen, pooled and multiplied: 9 MiB of weights, 12 MiB of intermediates at batch 4."""
    random = np.random.default_rng(0)
    shapes = {"a": (64, 3, 3, 3), "b": (256, 64, 3, 3), "c": (256, 8192)}
    weights = [numpy_helper.from_array(random.random(s, np.float32), name) for name, s in shapes.items()]
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["1"], pads=[1] * 4), helper.make_node("Relu", ["1"], ["2"]),
        helper.make_node("Conv", ["2", "b"], ["3"], pads=[1] * 4, strides=[2] * 2),
        helper.make_node("Relu", ["3"], ["4"]), helper.make_node("GlobalAveragePool", ["4"], ["5"]),
        helper.make_node("Flatten", ["5"], ["6"]), helper.make_node("MatMul", ["6", "c"], ["y"]),
    ]  # fmt: skip
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 64, 64])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    graph = helper.make_graph(nodes, "g", inputs, outputs, weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_the_bound_is_not_exceeded(tmp_path: Path) -> None:
    config = {"hardware": "cpu", "backend": "openvino", "batch_size": 4, "instances": 2}
    with Children() as children:
        prepared = prepare(network(tmp_path / "m.onnx"), config, children=children)
        found = measure(prepared, build(prepared.plan, prepared.parts), largest(prepared))
        prepared.discard()
    bound, weights = prepared.plan.memory.most, prepared.plan.memory.segments[0].weights
    assert bound is not None
    assert weights < found.peak <= bound  # requests share them
