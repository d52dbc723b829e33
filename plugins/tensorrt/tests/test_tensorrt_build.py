"""From a model to an engine, and each way to fail, on the fake of TensorRT and CUDA."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from paddock.errors import (
    BuildFailed,
    ConfigError,
    MemoryRefused,
    NotAvailable,
    Unsupported,
)
from paddock.plan import Answer, Precision
from paddock.spi import Context
from paddock_tensorrt import sdk
from paddock_tensorrt.adapter import GpuTensorRt
from tensorrt_models import T, Work, adapter_of, config_of, h, live, model_of, net, nothing, save

Fake = pytest.MonkeyPatch


# Building


def test_the_build_is_told_as_a_bar_and_timings_are_kept(fake: Fake, tmp_path: Path) -> None:
    work = Work(tmp_path, net(tmp_path / "net.onnx"), batch_size=4)
    facts = work.compile().facts
    assert any("50% Tactics" in line and "############" in line for line in work.told), work.told
    assert facts["tensorrt"].endswith("+fake") and "compute capability 9.0" in facts["gpu"]
    assert facts["settings"] == {
        "options.tf32": False, "options.optimization_level": 3, "options.workspace_mib": 8192, "precision": "fp32",
    }  # fmt: skip
    (kept,) = work.context.cache.glob("timing-*.cache")
    assert kept.read_bytes() == b"."
    assert not work.compile().facts["notes"][2:] and kept.read_bytes() == b".."
    fake.setenv("FAKE_TENSORRT", "timings")
    assert "the timing cache is of another device" in work.compile().facts["notes"][2]


def test_options_reach_the_build_and_are_read_back(fake: Fake, tmp_path: Path) -> None:
    options = {"tf32": True, "optimization_level": 5, "workspace_mib": 64, "host_code": True}
    session = Work(tmp_path, net(tmp_path / "net.onnx"), batch_size=4, options=options).load()
    found = session.observed().settings
    assert {name: found[f"options.{name}"] for name in options} == options
    assert session.observed().peak_bytes > 0
    session.close()
    plain = Work(tmp_path, net(tmp_path / "net.onnx"), batch_size=4).load()
    assert plain.observed().settings["options.host_code"] is False, "engines are data unless it is asked for"
    plain.close()


def test_what_the_parser_refuses_is_told_by_node(fake: Fake, tmp_path: Path) -> None:
    work = Work(tmp_path, net(tmp_path / "net.onnx"), batch_size=4)
    fake.setenv("FAKE_TENSORRT", "refuse=Relu")
    found = work.adapter.select_operators(work.model, work.context).verdicts
    expected = [Answer.PROVISIONAL, Answer.NO, *[Answer.PROVISIONAL] * 3]
    assert [v.answer for v in found] == expected, "what is left is asked again"
    assert found[1].reason == "no importer for Relu" and "leaves this one open" in found[0].reason
    with pytest.raises(Unsupported) as caught:
        work.compile()
    assert caught.value.nodes == (1,)
    for fault in ("stop=Relu", "refuse=Relu+Softmax", "refuse=Relu,stop=Softmax"):
        fake.setenv("FAKE_TENSORRT", fault)
        found = work.adapter.select_operators(work.model, work.context).verdicts
        no = {1, 3} if "Softmax" in fault else {1}
        assert [v.answer for v in found] == [Answer.NO if n in no else Answer.PROVISIONAL for n in range(5)]
    fake.setenv("FAKE_TENSORRT", "input=x")
    found = work.adapter.select_operators(work.model, work.context).verdicts
    readers = {0, 4}
    assert [v.answer for v in found] == [Answer.NO if n in readers else Answer.PROVISIONAL for n in range(5)]
    assert "an input has a type" in found[0].reason
    fake.setenv("FAKE_TENSORRT", "model")
    found = work.adapter.select_operators(work.model, work.context).verdicts
    assert {v.answer for v in found} == {Answer.NO} and "the model is of a version" in found[3].reason


@pytest.mark.parametrize(
    ("fault", "error", "words"),
    [
        ("null-builder", NotAvailable, "no builder: CUDA initialization failure"),
        ("null-parser", NotAvailable, "no ONNX parser"),
        ("null-network", NotAvailable, "no network: TensorRT does not say why"),
        ("null-config", NotAvailable, "no builder configuration"),
        ("null-runtime", NotAvailable, "no runtime"),
        ("add-profile", BuildFailed, "refuses the profile x 1x16 .. 4x16 .*: the profile is incomplete"),
        ("refuse=Softmax", Unsupported, "no importer for Softmax"),
        ("profile", BuildFailed, "refuses the profile x 1x16 .. 4x16 .*: the dimensions are inconsistent"),
        ("no-tactic", BuildFailed, "finds no way to run the network: could not find any implementation"),
        ("build-memory", MemoryRefused, "has not the memory to build"),
        ("load-memory", MemoryRefused, "has not the memory for the engine"),
        ("other-gpu", BuildFailed, "the engine was built on another kind of GPU"),
    ],
)
def test_failures_of_a_build(fake: Fake, tmp_path: Path, fault: str, error: type[Exception], words: str) -> None:
    work = Work(tmp_path, net(tmp_path / "net.onnx"), batch_size=4)
    fake.setenv("FAKE_TENSORRT", fault)
    with pytest.raises(error, match=words):
        work.compile()
    assert live() == nothing()


def test_an_input_that_decides_shapes_is_refused(fake: Fake, tmp_path: Path) -> None:
    path = save(
        tmp_path / "reshape.onnx", [h.make_node("Relu", ["x"], ["r"]), h.make_node("Reshape", ["r", "s"], ["y"])],
        [("x", T.FLOAT, [4, 4]), ("s", T.INT64, [2])], [("y", T.FLOAT, None)],
    )  # fmt: skip
    with pytest.raises(Unsupported, match="numbers of the input 's' decide shapes") as caught:
        Work(tmp_path, path).compile()
    assert caught.value.nodes == (1,)


@pytest.mark.parametrize("raised", [KeyboardInterrupt(), ValueError("who is told is broken")])
def test_what_is_raised_while_a_build_tells_ends_it_and_is_raised(
    fake: Fake, tmp_path: Path, raised: BaseException
) -> None:
    """Through TensorRT's bindings nothing is raised: they print it, and the build goes on or gives nothing."""
    work = Work(tmp_path, net(tmp_path / "net.onnx"), batch_size=4)

    def tell(line: str) -> None:
        if "Tactics" in line:
            raise raised

    work.context = Context(work.context.work, work.context.cache, tell)
    with pytest.raises(type(raised)) as caught:
        work.compile()
    assert caught.value is raised


@pytest.mark.parametrize("fault", ["no-tactic", "no-workspace"])
def test_a_build_without_kernels_names_the_workspace_that_bounded_it(fake: Fake, tmp_path: Path, fault: str) -> None:
    fake.setenv("FAKE_TENSORRT", fault)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"options": {"workspace_mib": 2}}, "2.0 MiB"), ({"memory": {"limit": 64 << 20}}, "16.0 MiB"), ({}, "")
    ]  # fmt: skip
    for fields, bound in cases:
        with pytest.raises(BuildFailed, match="finds no way to run the network") as caught:
            Work(tmp_path, net(tmp_path / "net.onnx"), batch_size=4, **fields).compile()
        assert ("the scratch of a layer was bounded to " + bound in caught.value.problem) == bool(bound)
        assert ("raise options.workspace_mib, or memory.limit" in str(caught.value.remedy)) == bool(bound)


def test_what_a_build_that_came_to_an_end_complained_of_is_forgotten(fake: Fake, tmp_path: Path) -> None:
    work = Work(tmp_path, net(tmp_path / "net.onnx"), batch_size=4)
    fake.setenv("FAKE_TENSORRT", "skipped,other-gpu")
    with pytest.raises(BuildFailed, match="another TensorRT.: The engine plan file is generated on"):
        work.compile()


def test_of_what_tensorrt_says_the_last_is_told(fake: Fake) -> None:
    heard = sdk.said()
    assert sdk.said() is heard, "one logger for the process"

    def log(*lines: str) -> None:
        for line in lines:
            heard.logger.log(sdk.trt.ILogger.Severity.ERROR, line)

    log(*(f"{number} " + "x" * 100 for number in range(20)), "the decisive\n one", "the decisive one")
    why = heard.why()
    assert why.startswith("15 xxx") and why.endswith("; the decisive one") and why.count("decisive") == 1
    assert len(why) <= 600 and heard.why() == "TensorRT does not say why"
    log("y" * 1000)
    assert heard.why() == "y" * 600
    other = threading.Thread(target=log, args=("another session's",))
    other.start()
    other.join()
    log("my own")
    assert (heard.why(), heard.why()) == ("my own", "another session's")
    log("of what was before")
    assert sdk.said().why("nothing") == "nothing"


def test_an_open_shape_without_a_profile_is_said(fake: Fake, tmp_path: Path) -> None:
    work = Work(tmp_path, net(tmp_path / "net.onnx"))
    found = work.adapter.select_operators(work.model, work.context).verdicts
    assert {v.answer for v in found} == {Answer.NO} and "nothing bounds axis 0: state shapes" in found[0].reason
    with pytest.raises(BuildFailed, match="optimisation profiles.*nothing bounds axis 0"):
        work.compile()
    planned = adapter_of(work.config, None).select_operators(work.model, work.context).verdicts
    assert planned == found, "a plan without a device says the same"
    assert "there is none for x: nothing bounds axis 0" in work.adapter.notes(work.model)[0]


# Engines


def test_damaged_and_foreign_engines_are_not_loaded(fake: Fake, tmp_path: Path) -> None:
    work = Work(tmp_path, net(tmp_path / "net.onnx"), batch_size=4)
    artifact = work.compile()
    content = artifact.files["engine"].read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"no engine at all"):
        artifact.files["engine"].write_bytes(damaged)
        with pytest.raises(BuildFailed, match="cannot load the engine") as caught:
            work.adapter.load(artifact, work.context)
        assert caught.value.where == str(artifact.files["engine"]) and "paddock cache clear" in str(caught.value.remedy)
    assert live() == nothing()


def test_an_engine_is_for_one_kind_of_gpu_and_one_tensorrt(fake: Fake, tmp_path: Path) -> None:
    work = Work(tmp_path, net(tmp_path / "net.onnx"), batch_size=4)
    artifact = work.compile()
    assert work.adapter.compatible(artifact).usable
    fake.setenv("FAKE_CUDA", "capability=8.6")
    other = Work(tmp_path, net(tmp_path / "net.onnx"), batch_size=4)
    assert "compute capability 8.6" in other.adapter.compatible(artifact).reason
    artifact.facts["tensorrt"] = "10.16.1.11"  # type: ignore[index]  # a dict in fact
    assert "built by TensorRT 10.16.1.11" in work.adapter.compatible(artifact).reason


def test_an_engine_over_the_limit_is_refused_by_what_it_takes(fake: Fake, tmp_path: Path) -> None:
    work = Work(tmp_path, net(tmp_path / "net.onnx"), batch_size=4, memory={"limit": 5000})
    with pytest.raises(MemoryRefused, match=r"the engine takes 5\.0 KiB, over the limit of 4\.9 KiB") as caught:
        work.compile()
    assert caught.value.where == "$.memory.limit" and "1.0 KiB weights" in caught.value.candidates
    assert Work(tmp_path, net(tmp_path / "net.onnx"), batch_size=4, memory={"limit": 6000}).compile()


# Devices


def test_the_device_is_told_with_what_it_computes_in(fake: Fake) -> None:
    (device,) = GpuTensorRt.probe_device().devices
    assert device.memory_kind == "gpu" and device.memory == 8 << 30
    assert all(verdict.usable for verdict in device.precisions.values())
    fake.setenv("FAKE_CUDA", "capability=7.5")
    (device,) = GpuTensorRt.probe_device().devices
    assert not device.precisions[Precision.BF16].usable and device.precisions[Precision.FP16].usable
    fake.setenv("FAKE_CUDA", "capability=6.1")
    (device,) = GpuTensorRt.probe_device().devices
    assert not any(verdict.usable for verdict in device.precisions.values())


def test_no_device_and_no_driver_are_told_apart(fake: Fake) -> None:
    fake.setenv("FAKE_CUDA", "none")
    found = GpuTensorRt.probe_device()
    assert not found.verdict.usable and found.verdict.reason == "CUDA lists no device here"
    fake.setenv("FAKE_CUDA", "old")
    with pytest.raises(NotAvailable, match="cudaErrorInsufficientDriver"):
        GpuTensorRt.probe_device()
    fake.setenv("FAKE_CUDA", "")
    fake.setenv("FAKE_TENSORRT", "null-builder")
    with pytest.raises(NotAvailable, match="no builder"):
        GpuTensorRt.probe_device()


def test_threads_have_no_effect_and_are_refused(fake: Fake) -> None:
    with pytest.raises(ConfigError, match="threads have no effect"):
        adapter_of(config_of(threads=2), None)


def test_a_fed_double_is_refused_rather_than_computed_in_float32(fake: Fake, tmp_path: Path) -> None:
    ports = [(name, T.DOUBLE, [2]) for name in "xy"]
    path = save(tmp_path / "double.onnx", [h.make_node("Neg", ["x"], ["y"])], ports[:1], ports[1:])
    adapter = adapter_of(config_of(), GpuTensorRt.probe_device().devices[0])
    (found,) = adapter.select_operators(model_of(path), Context(tmp_path, tmp_path)).verdicts
    assert found.answer is Answer.NO and "float64, which TensorRT computes in float32" in found.reason
