"""Planted traps: fp16 finds exactly the operators that need fp32, and with nowhere to run them in fp32 refuses by name.

On cpu/reference, which computes float16 and bfloat16 in software on any machine: the numbers are those of the type.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from paddock.child import Children
from paddock.deployment import Deployment, deploy
from paddock.errors import AccuracyRefused, ConfigError, NotAvailable, UsageError
from paddock.plan import Means
from paddock.prepare import prepare
from paddock.registry import Registry

Nodes = Sequence[onnx.NodeProto]
F = np.float32
RNG = np.random.default_rng(0)
SQUARE = (RNG.standard_normal((64, 64)) / 8).astype(F)
FP16 = {"hardware": "cpu", "backend": "reference", "precision": "fp16"}
make = helper.make_node


def save(
    folder: Path,
    nodes: Nodes,
    shape: Sequence[int | str],
    constants: Mapping[str, np.ndarray[Any, Any]],
    width: int = 64,
) -> Path:
    """A model from x: float32 `shape` to y."""
    border = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, list(shape)),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, [shape[0], width]),
    ]
    held = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(list(nodes), "trap", border[:1], border[1:], held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    path = folder / "trap.onnx"
    onnx.save(model, path)
    return path


def mask(folder: Path) -> Path:
    """Scores with a mask of -1e12 on every third position: Add and what reads its sums overflow."""
    nodes = [
        make("MatMul", ["x", "w"], ["h"]),
        make("Relu", ["h"], ["r"]),
        make("MatMul", ["r", "w"], ["s"]),
        make("Add", ["s", "mask"], ["a"]),
        make("Softmax", ["a"], ["p"], axis=-1),
        make("MatMul", ["p", "w"], ["y"]),
    ]
    return save(folder, nodes, ["N", 64], {"w": SQUARE, "mask": np.where(np.arange(64) % 3, 0, -1e12).astype(F)[None]})


def logits(folder: Path) -> Path:
    """A softmax whose logits stand side by side at some 3,000: float16 rounds them to multiples of two."""
    nodes = [
        make("MatMul", ["x", "w"], ["h"]),
        make("Add", ["h", "level"], ["l"]),
        make("Softmax", ["l"], ["p"], axis=-1),
        make("MatMul", ["p", "w"], ["y"]),
    ]
    return save(folder, nodes, ["N", 64], {"w": SQUARE, "level": np.array(3000, F)})


def norm(folder: Path) -> Path:
    """A layer norm over values in the thousands: every value fits, the squares inside do not."""
    nodes = [
        make("MatMul", ["x", "w"], ["h"]),
        make("Mul", ["h", "k"], ["l"]),
        make("LayerNormalization", ["l", "g"], ["n"], axis=-1),
        make("MatMul", ["n", "w"], ["y"]),
    ]
    return save(folder, nodes, ["N", 64], {"w": SQUARE, "k": np.array(3000, F), "g": np.ones(64, F)})


def running_sum(folder: Path) -> Path:
    """A running sum over 100,000 elements of about 0.5: under 65,504, and past 2,048 nothing is added any more."""
    nodes = [
        make("MatMul", ["x", "w"], ["h"]),
        make("Sigmoid", ["h"], ["s"]),
        make("CumSum", ["s", "axis"], ["c"]),
        make("Mul", ["c", "k"], ["m"]),
        make("MatMul", ["m", "w"], ["y"]),
    ]
    constants = {"w": np.eye(2, dtype=F), "axis": np.array(0), "k": np.array(1e-3, F)}
    return save(folder, nodes, [100_000, 2], constants, width=2)


def weight(folder: Path) -> Path:
    """A product whose weight is past 65,504; what it gives fits."""
    heavy = SQUARE.copy()
    heavy[3, 4] = 7e4
    nodes = [
        make("MatMul", ["x", "w"], ["h"]),
        make("Mul", ["h", "small"], ["r"]),
        make("MatMul", ["r", "heavy"], ["q"]),
        make("Add", ["h", "q"], ["y"]),
    ]
    return save(folder, nodes, ["N", 64], {"w": SQUARE, "heavy": heavy, "small": np.array(1e-3, F)})


TRAPS = {
    mask: ["#3 Add", "#4 Softmax"],
    logits: ["#1 Add", "#2 Softmax"],
    norm: ["#2 LayerNormalization"],
    running_sum: ["#2 CumSum"],
    weight: ["#2 MatMul"],
}


@pytest.fixture(params=TRAPS, ids=lambda trap: trap.__name__)
def trap(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, list[str]]:
    return request.param(tmp_path), TRAPS[request.param]


def kept(deployment: Deployment) -> list[str]:
    nodes = deployment.model.graph.nodes
    return [f"#{index} {nodes[index].type}" for index in deployment.plan.precision.keep_fp32]


@pytest.mark.long
def test_exactly_what_needs_fp32_is_kept(trap: tuple[Path, list[str]], registry: Registry, children: Children) -> None:
    path, needed = trap
    with deploy(path, {**FP16, "accuracy": {"max_error": 5e-3}}, registry=registry, children=children) as deployment:
        assert kept(deployment) == needed
        plan = deployment.plan.precision
        assert plan.means is Means.CAST
        assert deployment.report.error is not None and deployment.report.error <= 5e-3
        for node in plan.nodes:
            if f"#{node.node} {node.op}" in needed:
                assert node.dtype == "float32"
                assert node.reason
            else:  # narrow, or beside what is kept, where that takes fewer casts
                assert node.dtype == "float16" or node.reason.endswith("fewer casts")
        # What was found is an exact list that works by itself.
        stated = {**FP16, "accuracy": {"max_error": 5e-3}, "operators": {"keep_fp32": needed}}
    with deploy(path, stated, registry=registry, children=children) as again:
        assert kept(again) == needed
        assert not again.plan.precision.searched


def test_with_an_exact_list_that_is_too_short_they_are_named(
    trap: tuple[Path, list[str]], registry: Registry, children: Children
) -> None:
    path, needed = trap
    config = {**FP16, "accuracy": {"max_error": 5e-3}, "operators": {"keep_fp32": []}}
    with pytest.raises((AccuracyRefused, NotAvailable)) as caught:
        deploy(path, config, registry=registry, children=children)
    named = [line.partition(" needs fp32: ")[0] for line in caught.value.candidates if " needs fp32: " in line]
    assert named == needed


def test_nan_and_infinity_never_pass(tmp_path: Path, registry: Registry, children: Children) -> None:
    """What overflows only on the samples that judge, where ranges were measured on others."""
    nodes = [make("MatMul", ["x", "w"], ["h"]), make("Mul", ["h", "k"], ["q"]), make("Div", ["q", "k"], ["y"])]
    path = save(tmp_path, nodes, ["N", 64], {"w": SQUARE, "k": np.array(6e4, F)})
    x = RNG.standard_normal((4, 64)).astype(F)
    np.savez(tmp_path / "small.npz", x=x / 100)
    np.savez(tmp_path / "large.npz", x=x * 100)
    for budget in ({"max_error": 1e30}, {"min_agreement": {"cosine": 1e-6}}, {"min_agreement": {"top1": 1e-6}}):
        accuracy = {**budget, "samples": str(tmp_path / "large.npz")}
        more = {"accuracy": accuracy, "calibration": {"samples": str(tmp_path / "small.npz")}}
        with pytest.raises(AccuracyRefused) as caught:
            deploy(path, {**FP16, **more, "operators": {"keep_fp32": []}}, registry=registry, children=children)
        assert any("#1 Mul needs fp32" in line for line in caught.value.candidates)
        with deploy(path, {**FP16, **more}, registry=registry, children=children) as deployment:
            assert kept(deployment) == ["#1 Mul"]


def test_nothing_is_narrow_where_nothing_would_be(tmp_path: Path, registry: Registry, children: Children) -> None:
    path = logits(tmp_path)
    config = {**FP16, "operators": {"keep_fp32": ["MatMul", "Add", "Softmax"]}}
    with pytest.raises(NotAvailable, match="would have no effect") as caught:
        deploy(path, config, registry=registry, children=children)
    assert any("kept by the config" in line for line in caught.value.candidates)


def test_without_verification_what_is_prone_stays_wide(tmp_path: Path, registry: Registry, children: Children) -> None:
    config = {**FP16, "accuracy": {"verify": "off"}}
    with deploy(norm(tmp_path), config, registry=registry, children=children) as deployment:
        assert kept(deployment) == ["#2 LayerNormalization"]
        assert "nothing is verified" in deployment.plan.precision.nodes[2].reason


@pytest.mark.parametrize("narrow", ["fp16", "bf16"])
def test_weights_stored_narrow_and_computed_wide(
    narrow: str, tmp_path: Path, registry: Registry, children: Children
) -> None:
    path, dtype = logits(tmp_path), {"fp16": "float16", "bf16": "bfloat16"}[narrow]
    for backend in ("reference", "onnxruntime", "openvino"):
        config = {"hardware": "cpu", "backend": backend, "storage": narrow, "accuracy": {"max_error": 0.05}}
        with deploy(path, config, registry=registry, children=children) as deployment:
            plan = deployment.plan.precision
            assert (plan.precision, plan.means, plan.storage) == ("fp32", Means.CAST, dtype)
            assert plan.weights_saved == SQUARE.nbytes // 2 + 2
            assert deployment.report.error is not None and deployment.report.error > 0


def test_inputs_and_outputs_in_the_dtype_asked_for(tmp_path: Path, registry: Registry, children: Children) -> None:
    path = norm(tmp_path)
    x = RNG.standard_normal((3, 64)).astype(F)
    with deploy(path, FP16, registry=registry, children=children) as deployment:
        assert deployment.inputs == {"x": "float32 [N?, 64]"}
        wide = deployment.run({"x": x})["y"]
        assert wide.dtype == F
    with deploy(path, {**FP16, "io_dtype": "fp16"}, registry=registry, children=children) as deployment:
        assert deployment.inputs == {"x": "float16 [N?, 64]"}
        narrow = deployment.run({"x": x.astype(np.float16)})["y"]
        assert narrow.dtype == np.float16
        np.testing.assert_allclose(narrow, wide, atol=2e-2)
        with pytest.raises(UsageError, match="float32, the model takes float16"):
            deployment.run({"x": x})
        assert kept(deployment) == ["#2 LayerNormalization"]


def test_bfloat16_is_rounded_and_not_only_stored(tmp_path: Path, registry: Registry, children: Children) -> None:
    config = {**FP16, "precision": "bf16", "accuracy": {"max_error": 0.5}}
    x = RNG.standard_normal((3, 64)).astype(F)
    nodes = [make("MatMul", ["x", "w"], ["h"]), make("Relu", ["h"], ["y"])]
    with deploy(save(tmp_path, nodes, ["N", 64], {"w": SQUARE}), config, registry=registry, children=children) as made:
        found = made.run({"x": x})["y"]
    assert not (found.view(np.uint32) & 0xFFFF).any(), "every result is a bfloat16"
    np.testing.assert_allclose(found, np.maximum(x @ SQUARE, 0), atol=0.03)


def test_an_output_past_the_type_is_no_border(tmp_path: Path, registry: Registry, children: Children) -> None:
    nodes = [make("MatMul", ["x", "w"], ["h"]), make("Mul", ["h", "k"], ["y"])]
    path = save(tmp_path, nodes, ["N", 64], {"w": SQUARE, "k": np.array(3e5, F)})
    with deploy(path, FP16, registry=registry, children=children) as deployment:
        assert kept(deployment) == ["#1 Mul"]
        wide = deployment.plan.key
    with pytest.raises(NotAvailable, match="'y' reaches") as caught:
        deploy(path, {**FP16, "io_dtype": "fp16"}, registry=registry, children=children)
    assert "$.io_dtype" in str(caught.value.where)
    small = {**FP16, "io_dtype": "fp16", "accuracy": {"max_error": 0.1}}
    assert prepare(norm(tmp_path), small, registry=registry, children=children).plan.key != wide


def test_a_fallback_in_fp32_shows_node_by_node(tmp_path: Path, registry: Registry, children: Children) -> None:
    more = {"operators": {"exclude": ["#0 MatMul"]}, "fallback": ["cpu/onnxruntime"]}
    with deploy(norm(tmp_path), {**FP16, **more}, registry=registry, children=children) as deployment:
        plan = deployment.plan.precision
        assert [node.dtype for node in plan.nodes] == ["float32", "float32", "float32", "float16"]
        assert plan.nodes[0].reason == "cpu/onnxruntime computes it in fp32"
        assert plan.nodes[1].reason.endswith("fewer casts"), "between the border and what is kept"
        assert "1 of 4 nodes" in plan.reason


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "paddle", "mkldnn"])
def test_no_adapter_claims_what_it_does_not_compute_in(backend: str, registry: Registry) -> None:
    """What a device computes fp16 in on this host is said, or refused with where fp16 could still be of use."""
    entry = registry.get(f"cpu/{backend}")
    (device,) = registry.devices(entry, registry.probe(entry)).devices
    assert set(device.precisions) == set(entry.adapter.precisions)
    assert all(verdict.reason and verdict.source for verdict in device.precisions.values())


def test_a_plan_tells_every_node_without_building(tmp_path: Path, registry: Registry, children: Children) -> None:
    prepared = prepare(mask(tmp_path), FP16, registry=registry, children=children)
    prepared.discard()
    plan = prepared.plan.precision
    assert [node.dtype for node in plan.nodes] == ["float16"] * 3 + ["float32"] * 2 + ["float16"]
    assert dict(plan.casts) == {"x": "float16", "s": "float32", "p": "float16", "y": "float32"}
    assert plan.weights_saved == SQUARE.nbytes // 2


def test_requests_without_effect_are_refused(tmp_path: Path, registry: Registry, children: Children) -> None:
    path = mask(tmp_path)
    for more, where in (
        ({"precision": "fp32", "calibration": {"samples": "c.npz"}}, "$.calibration"),
        ({"precision": "fp32", "storage": "fp16", "backend": "paddle"}, "$.hardware"),
        ({"storage": "fp16"}, "$"),
        ({"precision": "bf16", "io_dtype": "fp16"}, "$"),
        ({"precision": "int8"}, "$.calibration"),
    ):
        with pytest.raises((ConfigError, NotAvailable)) as caught:
            deploy(path, {**FP16, "accuracy": {"verify": "off"}, **more}, registry=registry, children=children)
        assert where in (caught.value.where or ""), more
