"""`npu/qualcomm` through `paddock.deploy`: verified, in its precision, kept, and in a process of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto as T
from onnx import helper as h
from paddock.child import Children
from paddock.deployment import deploy
from paddock.errors import NotAvailable
from paddock.registry import Registry

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxruntime_qnn", reason="onnxruntime-qnn is not installed")
pytest.importorskip("paddock.ward", reason="this version cannot give an adapter a process of its own")

from qualcomm_models import conv_net, encoder, proto, reference


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PADDOCK_CACHE", str(tmp_path / "cache"))


def config_of(**fields: Any) -> dict[str, Any]:
    return {"hardware": "npu", "backend": "qualcomm", **fields}


def saved(content: Any, folder: Path) -> Path:
    path = folder / "model.onnx"
    onnx.save(content, path)
    return path


def test_a_conv_net_is_verified_and_the_same_when_it_is_taken_from_the_cache(tmp_path: Path) -> None:
    path = saved(conv_net(), tmp_path)
    x = np.random.default_rng(5).standard_normal((1, 3, 16, 16), "f")
    answers = []
    for _ in range(2):
        with deploy(path, config_of()) as deployment:
            assert deployment.report.outcome == "passed"
            assert deployment.plan.placement.on("npu/qualcomm") == 10
            assert list(deployment.artifacts[0].files) == ["context"]
            answers.append(deployment.run({"x": x})["y"])
    np.testing.assert_array_equal(answers[0], answers[1])
    assert np.abs(answers[0] - reference(conv_net(), x=x)).max() < 1e-5


@pytest.mark.long
def test_float16_and_a_chip_beside_it_do_not_disturb_float32(tmp_path: Path) -> None:
    """What one process was told does not reach the others: three deployments at once, which share their children."""
    path = saved(conv_net(), tmp_path)
    x = np.random.default_rng(5).standard_normal((1, 3, 16, 16), "f")
    expected = reference(conv_net(), x=x)
    chip = config_of(precision="fp16", options={"soc_model": 57})
    registry = Registry.discover()
    with Children() as children:
        made = [
            deploy(path, config, registry=registry, children=children)
            for config in (config_of(), chip, config_of(precision="fp16"), config_of(threads=1))
        ]
        try:
            errors = [float(np.abs(d.run({"x": x})["y"] - expected).max()) for d in (*made, *made)]
        finally:
            for deployment in made:
                deployment.close()
    assert all(error < 1e-5 for error in (errors[0], errors[3], errors[4], errors[7]))
    assert all(1e-5 < error < 1e-2 for error in (errors[1], errors[2], errors[5], errors[6]))


@pytest.mark.long
def test_an_encoder_block_in_int8_is_quantised_and_verified(tmp_path: Path) -> None:
    pytest.importorskip("ml_dtypes")
    folder = tmp_path / "samples"
    folder.mkdir()
    for number in range(16):
        fed = np.random.default_rng(700 + number).standard_normal((1, 8, 32), "f")
        np.savez(folder / f"{number:02}.npz", x=fed)
    config = config_of(precision="int8", calibration={"samples": str(folder)}, accuracy={"max_error": 0.1})
    with deploy(saved(encoder(), tmp_path), config) as deployment:
        assert deployment.report.outcome == "passed"
        assert deployment.report.error is not None and deployment.report.error > 1e-4
        assert deployment.artifacts[0].facts["settings"] == {"precision": "int8"}


def test_what_it_does_not_take_goes_to_the_fallback_and_to_nobody_without_one(tmp_path: Path) -> None:
    nodes = [h.make_node("MatMul", ["x", "w"], ["m"]), h.make_node("Elu", ["m"], ["e"])]
    nodes.append(h.make_node("MatMul", ["e", "w"], ["y"]))
    held = {"w": np.random.default_rng(0).standard_normal((16, 16), "f") / 4}
    path = saved(proto(nodes, [("x", T.FLOAT, [4, 16])], [("y", T.FLOAT, [4, 16])], held), tmp_path)
    with pytest.raises(NotAvailable, match="1 of 3 nodes") as caught:
        deploy(path, config_of())
    assert "finalize" in caught.value.candidates[0]
    with deploy(path, config_of(fallback=["cpu/onnxruntime"])) as deployment:
        placed = [node.adapter for node in deployment.plan.placement.nodes]
        assert placed == ["npu/qualcomm", "cpu/onnxruntime", "npu/qualcomm"]
        assert deployment.report.outcome == "passed"


def test_open_shapes_are_refused_and_one_extent_is_enough(tmp_path: Path) -> None:
    node = h.make_node("Relu", ["x"], ["y"])
    path = saved(proto([node], [("x", T.FLOAT, ["N", 4])], [("y", T.FLOAT, ["N", 4])]), tmp_path)
    with pytest.raises(NotAvailable, match="fixed shapes only"):
        deploy(path, config_of())
    with deploy(path, config_of(shapes={"x": [2, 4]})) as deployment:
        x = np.array([[1, -1, 2, -2], [0, 3, -3, 4]], "f")
        np.testing.assert_array_equal(deployment.run({"x": x})["y"], np.maximum(x, 0))


def test_the_plan_says_that_it_is_a_simulation(tmp_path: Path) -> None:
    with deploy(saved(conv_net(), tmp_path), config_of()) as deployment:
        assert "simulation by Qualcomm" in deployment.plan.device
