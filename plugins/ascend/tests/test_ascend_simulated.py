"""`npu/ascend` on the simulated NPU: what is claimed runs there, what is not is refused, and each fault is told."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import paddock_ascend_calls as calls
import pytest
from paddock.child import Child
from paddock.errors import (
    AccuracyRefused,
    BuildFailed,
    ChildFailed,
    MemoryRefused,
    NotAvailable,
    PaddockError,
    RunFailed,
    StrictnessError,
    Unsupported,
    UsageError,
)
from paddock.plan import Plan, Precision
from paddock_ascend import simulator

Simulate = Callable[..., Child]

RNG = np.random.default_rng(7)
FEEDS: Mapping[str, Mapping[str, Any]] = {
    "convolution": {"x": RNG.standard_normal((3, 3, 16, 16), dtype=np.float32)},
    "pooling": {"x": RNG.standard_normal((2, 3, 16, 16), dtype=np.float32)},
    "attention": {"x": RNG.integers(0, 50, (2, 7))},
    "mixed": {"x": RNG.standard_normal((5, 8), dtype=np.float32)},
}
FALLBACK = {"fallback": ["cpu/paddle"]}


def claimed(plan: Plan) -> Counter[str]:
    """How many nodes of each operator a plan has a kernel of the device run."""
    nodes = (n for n in plan.placement.nodes if n.adapter == "npu/ascend" and n.verdict.reason == "npu kernel")
    return Counter(node.op.partition(".")[2].removesuffix("_") for node in nodes)


def refused(child: Child, model: Path, kind: type[PaddockError], **config: Any) -> PaddockError:
    with pytest.raises(kind) as caught:
        child.call(calls.ran, model, FEEDS[model.stem], config)
    return caught.value


# What is claimed is what runs


pytestmark = pytest.mark.long  # the simulated NPU is compiled first, and Paddle imported for each process


@pytest.mark.parametrize(("name", "folded"), [("convolution", {"reshape": 1}), ("attention", {})])
def test_every_node_claimed_runs_on_the_device_and_is_right(
    simulate: Simulate, models: Path, name: str, folded: Mapping[str, int]
) -> None:
    """But for what Paddle folds: a convolution's bias is reshaped once, while the model is loaded."""
    child = simulate()
    path = models / f"{name}.json"
    found = child.call(calls.ran, path, FEEDS[name], {}, 2)
    assert found.outcome == "passed" and found.plan.placement.on("npu/ascend") == len(found.plan.placement.nodes)
    assert simulator.NAME in found.plan.device and simulator.NAME in found.plan.versions
    called = Counter({kernel: count // 2 for kernel, count in found.calls.items()})
    assert claimed(found.plan) - called == folded  # passes of Paddle's may add some (layouts), and take none away
    assert found.left == 0
    wanted = child.call(calls.reference, path, FEEDS[name])
    for output, array in wanted.items():
        assert np.allclose(found.answers[output], array, rtol=1e-4, atol=1e-5)


def test_paddle_is_silent_about_what_it_leaves_to_the_cpu_and_paddock_is_not(simulate: Simulate, models: Path) -> None:
    """Plain Paddle runs the model without a word, the sum on the CPU; Paddock refuses it, or gives it to a fallback."""
    path = models / "mixed.json"
    child = simulate()
    assert "cumsum" not in child.call(calls.raw_calls, path, FEEDS["mixed"])
    error = refused(child, path, NotAvailable)
    assert "1 of" in error.problem and "cumsum" in error.candidates[0] and "without a word" in error.candidates[0]
    found = child.call(calls.ran, path, FEEDS["mixed"], FALLBACK)
    assert found.outcome == "passed"
    assert {n.op for n in found.plan.placement.nodes if n.adapter == "cpu/paddle"} >= {"pd_op.cumsum"}
    assert any(note.startswith("FALLBACK") for note in found.plan.notes)
    assert found.calls["softmax"] == 1 and found.calls["relu"] == 1


def test_a_kernel_that_is_registered_and_not_taken_is_found_out(
    simulate: Simulate, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Paddle's own black list keeps an operation off the device, and its registry still shows the kernel."""
    monkeypatch.setenv("CUSTOM_DEVICE_BLACK_LIST", "softmax")
    child = simulate()
    path = models / "mixed.json"
    found = child.call(calls.ran, path, FEEDS["mixed"], FALLBACK)
    assert "softmax" not in found.calls and found.outcome == "passed"
    on_host = {n.op: n.reason for n in found.plan.placement.nodes if n.adapter == "cpu/paddle"}
    assert "Paddle would run them on the CPU" in on_host["pd_op.softmax"]
    with pytest.raises(Unsupported, match=r"pd_op\.softmax"):
        child.call(calls.compiled, models / "attention.json", path.parent)


def test_what_passes_add_and_the_device_lacks_is_refused_by_name(
    simulate: Simulate, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Paddle turns a max pooling to another layout: no node of the model is a transpose."""
    artifact = simulate().call(calls.compiled, models / "pooling.json", tmp_path)
    assert artifact.facts["hosted"] == {}
    monkeypatch.setenv("CUSTOM_DEVICE_BLACK_LIST", "transpose")
    child = simulate()
    with pytest.raises(Unsupported, match=r"pd_op\.pool2d, transpose \(its passes add it") as caught:
        child.call(calls.compiled, models / "pooling.json", tmp_path)
    assert len(caught.value.nodes) == 1
    found = child.call(calls.ran, models / "pooling.json", FEEDS["pooling"], FALLBACK)
    assert found.outcome == "passed" and found.calls["conv2d"] == 2 and "transpose" not in found.calls


def test_what_lies_elsewhere_than_when_it_was_compiled_is_not_loaded(
    simulate: Simulate, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = simulate()
    artifact = child.call(calls.compiled, models / "attention.json", tmp_path)
    plan = child.call(calls.ran, models / "attention.json", FEEDS["attention"]).plan
    assert child.call(calls.loaded, artifact, tmp_path) == claimed(plan).total() and artifact.facts["hosted"] == {}
    monkeypatch.setenv("CUSTOM_DEVICE_BLACK_LIST", "softmax")
    with pytest.raises(BuildFailed, match="softmax on the CPU"):
        simulate().call(calls.loaded, artifact, tmp_path)


# Faults


def test_a_missing_kernel_goes_to_the_fallback_or_is_refused(simulate: Simulate, models: Path) -> None:
    child = simulate(faults="missing:relu")
    error = refused(child, models / "mixed.json", NotAvailable)
    assert any("relu" in candidate for candidate in error.candidates)
    found = child.call(calls.ran, models / "mixed.json", FEEDS["mixed"], FALLBACK)
    assert found.outcome == "passed" and "relu" not in found.calls


def test_a_wrong_kernel_is_refused_by_the_reference(simulate: Simulate, models: Path) -> None:
    error = refused(simulate(faults="wrong:relu"), models / "convolution.json", AccuracyRefused)
    assert "relative error" in error.problem


def test_running_out_of_memory_is_told_as_that(simulate: Simulate, models: Path) -> None:
    error = refused(simulate(faults="oom:relu"), models / "convolution.json", RunFailed)
    assert "not enough memory" in error.problem and "In user code" not in error.problem


def test_a_crash_is_an_error_and_not_the_end_of_the_process(simulate: Simulate, models: Path) -> None:
    child = simulate(faults="crash:relu")
    pid = child.call(os.getpid)
    error = refused(child, models / "convolution.json", BuildFailed)
    assert "SIGSEGV" in error.problem and child.call(os.getpid) == pid


def test_a_crash_later_on_is_the_end_of_the_process_that_serves(simulate: Simulate, models: Path) -> None:
    """What isolation is for: in-process, a library that crashes after some requests takes the host along."""
    child = simulate(faults="crash:relu@40")
    with pytest.raises(ChildFailed, match="SIGSEGV"):
        child.call(calls.ran, models / "convolution.json", FEEDS["convolution"], {}, 40)


def test_a_hang_holds_the_process_that_asked(simulate: Simulate, models: Path) -> None:
    child = simulate(faults="hang:relu@3")
    path, feeds = models / "convolution.json", FEEDS["convolution"]
    assert child.call(calls.raw_calls, path, feeds, seconds=60)["relu"] == 2
    with pytest.raises(ChildFailed, match="did not answer within 20 s"):
        child.call(calls.raw_calls, path, feeds, seconds=20)


def test_settings_that_are_none_end_the_process_with_a_reason(simulate: Simulate) -> None:
    with pytest.raises(ChildFailed, match="cannot read PADDOCK_SIMULATOR_FAULTS=worng"):
        simulate(faults="worng:relu").call(calls.probed_here)
    with pytest.raises(ChildFailed, match="no such kernel"):
        simulate(faults="wrong:rleu").call(calls.probed_here)
    for setting, value in (
        ("faults", "wrong:relu@0"), ("faults", "crash:relu@-1"), ("faults", "oom:relu@"), ("faults", "missing:relu@2"),
        ("faults", "hang:relu@3,wrong:relu"), ("memory", "-1"), ("memory", "+5"), ("devices", "-1"),
    ):  # fmt: skip
        refused_value = re.escape(value.rpartition(",")[2])
        with pytest.raises(ChildFailed, match=f"cannot read PADDOCK_SIMULATOR_{setting.upper()}={refused_value}"):
            simulate(**{setting: value}).call(calls.probed_here)
    with pytest.raises(UsageError, match="no such setting"):
        simulator.environment(Path(), speed="high")


@pytest.mark.parametrize(
    ("fault", "said"), [("oom:relu@30", "ran out of memory"), ("crash:relu@30", "SIGABRT|SIGSEGV")]
)
def test_what_an_isolated_npu_loses_is_rescued(simulate: Simulate, models: Path, fault: str, said: str) -> None:
    model, feeds = models / "convolution.json", FEEDS["convolution"]
    answers, isolation = simulate(faults=fault).call(calls.isolated, model, feeds, 60, seconds=300)
    expected = next(iter(simulate().call(calls.reference, model, feeds).values()))
    for answer in answers:
        np.testing.assert_allclose(answer, expected, rtol=1e-4, atol=1e-5)
    assert isolation is not None and isolation.rescued >= 1 and re.search(said, str(isolation.error))


# Devices, memory, precision, options


def test_hidden_devices_are_not_there(simulate: Simulate, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASCEND_RT_VISIBLE_DEVICES", "2,0")
    child = simulate(devices="4")
    probe, devices = child.call(calls.probed)
    assert probe.versions["ASCEND_RT_VISIBLE_DEVICES"] == "2,0"
    assert [d.name for d in devices.devices] == [f"{simulator.NAME} (number {n} of the host)" for n in (2, 0)]
    found = child.call(calls.ran, models / "convolution.json", FEEDS["convolution"], {"devices": [1]})
    assert found.outcome == "passed" and found.plan.device.startswith("1 (")
    error = refused(child, models / "convolution.json", NotAvailable, devices=[2])
    assert "no device 2" in error.problem
    monkeypatch.setenv("ASCEND_RT_VISIBLE_DEVICES", "")
    _, devices = simulate(devices="4").call(calls.probed)
    assert not devices.verdict.usable and "visible" in devices.verdict.reason
    monkeypatch.setenv("ASCEND_RT_VISIBLE_DEVICES", "7")
    _, devices = simulate(devices="4").call(calls.probed)
    assert not devices.verdict.usable and "ASCEND_RT_VISIBLE_DEVICES='7'" in devices.verdict.reason


def test_the_device_says_what_it_is_and_computes_in(simulate: Simulate, models: Path) -> None:
    child = simulate(memory="1000000000")
    probe, devices = child.call(calls.probed)
    assert simulator.NAME in probe.verdict.reason and "no Ascend" in probe.verdict.reason
    (device,) = devices.devices
    assert (device.name, device.memory, device.memory_kind) == (simulator.NAME, 1000000000, "npu")
    assert device.precisions[Precision.FP32].usable and not device.precisions[Precision.FP16].usable
    error = refused(child, models / "convolution.json", NotAvailable, precision="fp16")
    assert "PIR" in error.problem
    error = refused(child, models / "convolution.json", StrictnessError, options={"jit_compile": True})
    assert error.where is not None and error.where.endswith("$.options.jit_compile")


def test_capacity_and_limit_are_kept(simulate: Simulate, models: Path) -> None:
    path = models / "convolution.json"
    refused(simulate(memory="1500"), path, MemoryRefused)
    child = simulate()
    shapes = {"x": [3, 3, 16, 16]}
    found = child.call(calls.ran, path, FEEDS["convolution"], {"shapes": shapes})
    memory = found.plan.memory
    assert memory.most is not None and memory.least <= found.peak <= memory.most and memory.kind == "npu"
    refused(child, path, MemoryRefused, shapes=shapes, memory={"limit": f"{memory.least - 1}B"})
    limit = {"limit": f"{memory.most}B"}
    assert child.call(calls.ran, path, FEEDS["convolution"], {"shapes": shapes, "memory": limit}).outcome == "passed"


# What is not the simulated NPU


def test_a_device_that_comes_after_paddle_is_an_error_and_no_abort(library: Path) -> None:
    with Child("a process that imported Paddle before") as child:
        assert "no devices of the type npu in this process" in child.call(calls.too_late, library)


def test_flags_hold_for_a_process_and_deployments_in_it_must_agree(library: Path) -> None:
    with Child("a process without a device") as child:
        assert child.call(calls.claimed_flags) == [
            "storage_format is True",
            "another deployment was loaded with others",
            "Paddle's library has no FLAGS_npu_jit_compile",
        ]


@pytest.mark.parametrize("mark", ["", "[]", "{}", '{"digest": 1}', "\x00"])
def test_what_is_no_mark_is_no_simulated_npu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mark: str) -> None:
    (tmp_path / "simulated.json").write_text(mark)
    monkeypatch.setenv(simulator.ROOT, str(tmp_path))
    assert simulator.here() is None
    with pytest.raises(NotAvailable, match="environment"):
        simulator.calls()
