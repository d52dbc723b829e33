"""What `npu/qualcomm` says of models and of itself without asking its SDK."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto as T
from onnx import helper as h
from paddock.config import HardwareConfig
from paddock.defects import load
from paddock.plan import Answer, Precision
from paddock.spi import Context, ResolvedConfig
from paddock_onnxruntime.named import index, name
from paddock_qualcomm.adapter import INSTALL, NpuQualcomm, QualcommOptions
from paddock_qualcomm.named import Singles, named
from paddock_qualcomm.wrong import wrong
from qualcomm_models import conv_net, model_of, proto

VERSIONS = {"onnxruntime-qnn": "2.7.0"}


def absent() -> NpuQualcomm:
    config = HardwareConfig.load({"hardware": "npu", "backend": "qualcomm"})
    return NpuQualcomm(ResolvedConfig(config, QualcommOptions(), 1), None)


def kept_off(content: Any, folder: Path, precision: Precision = Precision.FP32) -> dict[str, tuple[int, ...]]:
    return {r.name: r.nodes for r in wrong(model_of(content, folder).graph, VERSIONS, precision)}


def test_without_the_package_it_says_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: None if n == "onnxruntime_qnn" else real(n, *a))
    found = NpuQualcomm.probe()
    assert not found.verdict.usable
    assert found.verdict.reason == "onnxruntime-qnn is not installed"
    assert found.remedy == INSTALL


def test_importing_the_plugin_imports_no_sdk() -> None:
    code = "import sys, paddock_qualcomm.plugin as p; p.paddock_adapters()[0].probe(); "
    code += "print(sorted({'onnx', 'onnxruntime', 'onnxruntime_qnn'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_where_the_device_is_not_here_a_list_answers(tmp_path: Path) -> None:
    nodes = [h.make_node("Relu", ["x"], ["r"]), h.make_node("Det", ["r"], ["y"])]
    content = proto(nodes, [("x", T.FLOAT, [2, 3, 3])], [("y", T.FLOAT, [2])])
    found = absent().select_operators(model_of(content, tmp_path), Context(tmp_path, tmp_path)).verdicts
    assert [v.answer for v in found] == [Answer.PROVISIONAL, Answer.NO]
    assert "documentation" in found[0].source


def test_what_no_array_carries_is_refused_at_the_border(tmp_path: Path) -> None:
    content = proto([h.make_node("Relu", ["x"], ["y"])], [("x", T.DOUBLE, [2])], [("y", T.DOUBLE, [2])])
    found = absent().select_operators(model_of(content, tmp_path), Context(tmp_path, tmp_path)).verdicts
    assert "float64" in found[0].reason


@pytest.mark.parametrize("given", ["p12", "p12_token_1", "p12/MatMulAddFusion", "p12.body.0"])
def test_a_node_is_known_by_how_its_name_begins(given: str) -> None:
    assert index(given) == 12 and index(name(12)) == 12
    assert index("Transpose_token_3") is None
    assert index("InsertedPrecisionFreeCast_p12") is None


def test_a_model_is_named_and_fixed_and_keeps_its_border(tmp_path: Path) -> None:
    content = proto(
        [h.make_node("Relu", ["x"], ["y"], name="r")], [("x", T.FLOAT, ["N", 4])], [("y", T.FLOAT, ["N", 4])]
    )
    model = model_of(content, tmp_path, N=3)
    made = named(model.files["model"], model.graph)
    assert [node.name for node in made.graph.node] == ["p0"]
    assert [dim.dim_value for dim in made.graph.input[0].type.tensor_type.shape.dim] == [3, 4]
    assert (made.graph.input[0].name, made.graph.output[0].name) == ("x", "y")


def test_single_nodes_take_their_constants_along(tmp_path: Path) -> None:
    model = model_of(conv_net(), tmp_path)
    content = named(model.files["model"], model.graph)
    singles = Singles(content, content)
    conv = singles.of(0)
    assert conv is not None
    onnx.checker.check_model(conv, full_check=True)
    assert [port.name for port in conv.graph.input] == ["x"]
    assert {tensor.name for tensor in conv.graph.initializer} == {"w1", "b1"}
    assert not singles.is_folded(0)


@pytest.mark.parametrize(
    ("before", "attributes", "precision", "expected"),
    [
        ("Neg", {"pads": [1] * 4}, Precision.FP32, True),
        ("Relu", {"pads": [1] * 4}, Precision.FP32, False),
        ("Neg", {"pads": [1] * 4}, Precision.INT8, False),
        ("Neg", {"auto_pad": "SAME_UPPER"}, Precision.FP32, True),
        ("Neg", {"ceil_mode": 1}, Precision.FP32, True),
        ("Neg", {}, Precision.FP32, False),
    ],
)
def test_padded_pools_are_kept_off_where_numbers_may_be_below_zero(
    tmp_path: Path, before: str, attributes: Any, precision: Precision, expected: bool
) -> None:
    nodes = [
        h.make_node(before, ["x"], ["n"]),
        h.make_node("Transpose", ["n"], ["t"], perm=[0, 1, 3, 2]),
        h.make_node("MaxPool", ["t"], ["y"], kernel_shape=[3, 3], **attributes),
    ]
    content = proto(nodes, [("x", T.FLOAT, [1, 2, 8, 8])], [("y", T.FLOAT, None)])
    assert kept_off(content, tmp_path, precision) == ({"maxpool-below-zero": (2,)} if expected else {})


@pytest.mark.parametrize(("channels", "count", "expected"), [(1, 0, True), (2, 0, False), (1, 1, False)])
def test_averages_over_padding_are_kept_off_for_one_channel(
    tmp_path: Path, channels: int, count: int, expected: bool
) -> None:
    node = h.make_node("AveragePool", ["x"], ["y"], kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=count)
    content = proto([node], [("x", T.FLOAT, [1, channels, 8, 8])], [("y", T.FLOAT, None)])
    assert kept_off(content, tmp_path) == ({"averagepool-one-channel": (0,)} if expected else {})


@pytest.mark.parametrize(
    ("alpha", "operands", "expected"), [(1 / 6, "xh", True), (1 / 6, "hx", False), (0.2, "xh", False)]
)
def test_a_hard_swish_that_is_written_out_is_kept_off_as_it_is_merged_wrongly(
    tmp_path: Path, alpha: float, operands: str, expected: bool
) -> None:
    nodes = [h.make_node("HardSigmoid", ["x"], ["h"], alpha=alpha, beta=0.5), h.make_node("Mul", [*operands], ["y"])]
    border = [(n, T.FLOAT, [2, 8]) for n in ("x", "y")]
    content = proto(nodes, border[:1], border[1:])
    assert kept_off(content, tmp_path) == ({"hardsigmoid-times-input": (0,)} if expected else {})


def test_layer_normalisation_is_kept_off_in_float32_only(tmp_path: Path) -> None:
    node = h.make_node("LayerNormalization", ["x", "g"], ["y"])
    border = [(n, T.FLOAT, [2, 8]) for n in ("x", "y")]
    content = proto([node], border[:1], border[1:], {"g": np.ones(8, "f")})
    assert kept_off(content, tmp_path) == {"layernorm-float32": (0,)}
    assert kept_off(content, tmp_path, Precision.FP16) == {}


def test_the_list_of_defects_is_read_and_each_has_its_evidence() -> None:
    found = load("paddock_qualcomm")
    assert len(found) == 5
    assert all("onnxruntime-qnn 2.7.0" in defect.evidence for defect in found)
