"""What changes for an example model between real backends: here, without their device, and not installed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from paddock.child import Children
from paddock.diff import Diff, diff
from paddock.plan import Answer
from paddock.registry import Registry

READY = Path(__file__).resolve().parents[1] / "adapters_json"
Compared = Callable[..., Diff]


@pytest.fixture(scope="module")
def compared(models: Mapping[str, Path], registry: Registry, children: Children) -> Compared:
    """The diff for the rotary embedding, from the ready config of oneDNN to another, with further keys on both."""

    def call(after: str, **fields: Any) -> Diff:
        before = {"hardware": "cpu", "backend": "mkldnn", "options": {"kept_shapes": 4}, **fields}
        hardware, backend, precision = after.split("-")
        there = {"hardware": hardware, "backend": backend, "precision": precision, **fields}
        return diff(models["rotary"], before, there, registry=registry, children=children)

    return call


def known(found: Diff) -> dict[tuple[str, str], tuple[Any, Any]]:
    """What both sides tell for sure, or not at all."""
    return {
        (c.topic, c.what): (c.before and c.before.value, c.after and c.after.value)
        for c in found.changes
        if all(told is None or told.verdict.answer is Answer.YES for told in (c.before, c.after))
    }


@pytest.mark.long
def test_between_two_backends_that_are_here(compared: Compared) -> None:
    found = compared("cpu-openvino-fp32")
    changes = known(found)
    assert found.before.verdict.answer is found.after.verdict.answer is Answer.YES
    assert changes["hardware", "model given as"] == ("paddle", "onnx")
    assert changes["options", "kept_shapes"] == (4, None)
    assert found.lost["options.kept_shapes"] == "cpu/openvino has no such option"
    assert "delete_pass('inplace_pass')" in changes["known defects", "onednn-inplace-layout"][0]
    assert ("precision", "precision") not in changes and not found.computed and not found.placed


@pytest.mark.long
def test_to_a_device_that_may_not_be_here(compared: Compared, registry: Registry) -> None:
    """Where it is, the plan is a real one; the operators are then its answer."""
    (refused,) = compared("npu-openvino-fp16").after.refused
    assert "takes fixed shapes only, and these are open" in refused.problem
    fixed = compared("npu-openvino-fp16", shapes={"x": [1, 8, 256]})
    here = registry.survey()["npu/openvino (paddock-openvino)"][2].verdict.usable
    assert fixed.after.verdict.answer is (Answer.YES if here else Answer.PROVISIONAL)
    changes = known(fixed)
    assert changes["precision", "precision"] == ("fp32", "fp16")
    assert changes["precision", "means"] == ("none", "backend")
    assert changes["memory", "taken of"] == ("host", "host" if here else "npu")
    assert {(m.before, m.after) for m in fixed.computed} == {("float32", "float16")}
    if not here:
        reasons = {m.reasons[1] for m in fixed.placed}
        assert reasons == {"OpenVINO reads it; whether its NPU plugin takes it, only the device tells"}


@pytest.mark.long
def test_to_a_gpu_that_may_not_be_here(compared: Compared, registry: Registry) -> None:
    """Where TensorRT is, it is a plan as any other."""
    found = compared("gpu-tensorrt-fp16", batch_size=2)
    here = registry.survey()["gpu/tensorrt (paddock-tensorrt)"][2].verdict.usable
    assert found.after.verdict.answer is (Answer.YES if here else Answer.PROVISIONAL)
    assert here or "there is no NVIDIA driver" in found.after.verdict.reason or "TensorRT" in found.after.verdict.reason
    assert found.lost["options.kept_shapes"] == "gpu/tensorrt has no such option"
    assert any("optimisation profile 0" in note for note in found.after.plan.notes)
    assert {(m.before, m.after) for m in found.computed} == {("float32", "float16")}
