"""The state machine from a model to answers, and each way to fail, on the fake of TensorRT and CUDA.

What is computed is right by onnxruntime on the CPU, and proves nothing of a GPU: it shows that copies, shapes,
profiles, addresses and memory are handled as TensorRT asks.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from paddock.errors import (
    BuildFailed,
    ConfigError,
    MemoryRefused,
    NotAvailable,
    OtherShape,
    RunFailed,
    Unsupported,
    UsageError,
)
from paddock.plan import Answer, Precision
from paddock.spi import Context
from paddock_tensorrt import cuda
from paddock_tensorrt.adapter import GpuTensorRt
from tensorrt_models import T, Work, adapter_of, config_of, h, model_of, net, save

Fake = pytest.MonkeyPatch


def x(rows: int, seed: int = 1) -> Any:
    return np.random.default_rng(seed).standard_normal((rows, 16)).astype(np.float32)


def right(answers: Any, feed: Any) -> bool:
    return bool(np.allclose(answers["y"].sum(axis=1), 1, atol=1e-5) and np.array_equal(answers["z"], feed + feed))


def live() -> dict[str, int]:
    found: dict[str, int] = cuda.runtime().live()
    return found


def nothing() -> dict[str, int]:
    return {"memory": 0, "pinned": 0, "streams": 0, "graphs": 0}


# Runs


def test_every_shape_of_a_profile_is_served_and_nothing_is_left(fake: Fake, tmp_path: Path) -> None:
    session = Work(tmp_path, net(tmp_path / "net.onnx"), batch_size=8).load()
    kept = None
    for rows in (3, 8, 1, 5):
        feed = x(rows, rows)
        answers = session.run({"x": feed})
        assert right(answers, feed) and answers["y"].shape == (rows, 16)
        if kept is not None:
            assert right(*kept), "an answer that was given changes in a later run"
        kept = answers, feed
    assert list(session.run({"x": x(2)}, ["z"])) == ["z"]
    assert session.observed().settings["options.cuda_graph"] is False
    session.close()
    session.close()
    assert live() == nothing()
    with pytest.raises(RunFailed, match="closed"):
        session.run({"x": x(1)})
    with pytest.raises(RunFailed, match="closed"):
        session.fork()


def test_fixed_shapes_run_as_one_graph(fake: Fake, tmp_path: Path) -> None:
    session = Work(tmp_path, net(tmp_path / "net.onnx"), shapes={"x": [4, 16]}).load()
    assert session.observed().settings["options.cuda_graph"] is True and live()["graphs"] == 1
    for seed in range(3):
        assert right(session.run({"x": x(4, seed)}), x(4, seed))
    fake.setenv("FAKE_TENSORRT", "run")  # a graph asks TensorRT for nothing any more
    assert right(session.run({"x": x(4, 9)}), x(4, 9))
    session.close()
    assert live() == nothing()


def test_a_graph_is_had_only_where_it_can_be(fake: Fake, tmp_path: Path) -> None:
    path = net(tmp_path / "net.onnx")
    off = Work(tmp_path, path, shapes={"x": [4, 16]}, options={"cuda_graph": False}).load()
    assert off.observed().settings["options.cuda_graph"] is False and right(off.run({"x": x(4)}), x(4))
    with pytest.raises(BuildFailed, match="shapes that are all fixed"):
        Work(tmp_path, path, batch_size=4, options={"cuda_graph": True}).load()
    fake.setenv("FAKE_CUDA", "capture")
    without = Work(tmp_path, path, shapes={"x": [4, 16]}).load()
    assert without.observed().settings["options.cuda_graph"] is False and right(without.run({"x": x(4)}), x(4))
    with pytest.raises(BuildFailed, match="cannot be kept as a CUDA graph") as caught:
        Work(tmp_path, path, shapes={"x": [4, 16]}, options={"cuda_graph": True}).load()
    assert caught.value.where == "$.options.cuda_graph"
    for session in (off, without):
        session.close()
    assert live() == nothing(), "a session that could not be made leaves nothing"


def test_several_contexts_share_an_engine_and_run_at_once(fake: Fake, tmp_path: Path) -> None:
    first = Work(tmp_path, net(tmp_path / "net.onnx"), batch_size=8, instances=3).load()
    sessions = [first, first.fork(), first.fork()]
    assert len({id(session._loaded.engine) for session in sessions}) == 1
    wrong: list[int] = []

    def work(number: int) -> None:
        for turn in range(20):
            feed = x(1 + (number + turn) % 8, number * 100 + turn)
            if not right(sessions[number].run({"x": feed}), feed):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    first.close()
    assert right(sessions[1].run({"x": x(2)}), x(2)), "the others live on"
    for session in sessions:
        session.close()
    assert live() == nothing()


def test_each_range_of_the_config_is_a_profile_that_is_switched_to(fake: Fake, tmp_path: Path) -> None:
    shapes = {"N": [{"min": 1, "opt": 2, "max": 3}, {"min": 8, "max": 8}]}
    session = Work(tmp_path, net(tmp_path / "net.onnx"), shapes=shapes).load()
    for rows in (2, 8, 3, 3, 8, 1):
        assert right(session.run({"x": x(rows, rows)}), x(rows, rows))
    with pytest.raises(UsageError, match="no optimisation profile"):
        session.run({"x": x(5)})
    session.close()
    assert live() == nothing()


def test_outputs_are_written_into_the_callers_arrays(fake: Fake, tmp_path: Path) -> None:
    session = Work(tmp_path, net(tmp_path / "net.onnx"), batch_size=4).load()
    into = {"z": np.empty((3, 16), np.float32)}
    session.run_into({"x": x(3)}, into)
    assert np.array_equal(into["z"], x(3) + x(3))
    with pytest.raises(OtherShape):
        session.run_into({"x": x(2)}, into)
    session.close()


def test_an_output_whose_shape_the_numbers_decide_gets_memory_while_it_runs(fake: Fake, tmp_path: Path) -> None:
    path = save(
        tmp_path / "nonzero.onnx", [h.make_node("NonZero", ["x"], ["y"])], [("x", T.FLOAT, ["N", 4])],
        [("y", T.INT64, [2, None])],
    )  # fmt: skip
    session = Work(tmp_path, path, batch_size=3).load()
    for feed in (np.eye(3, 4, dtype=np.float32), np.ones((2, 4), np.float32), np.zeros((1, 4), np.float32)):
        assert np.array_equal(session.run({"x": feed})["y"], np.array(np.nonzero(feed)))
    session.close()
    assert live() == nothing()


def test_dtypes_come_and_go_as_they_are(fake: Fake, tmp_path: Path) -> None:
    kinds = [(T.FLOAT, "f4"), (T.FLOAT16, "f2"), (T.INT64, "i8"), (T.INT32, "i4"), (T.BOOL, "?"), (T.INT8, "i1")]
    nodes = [h.make_node("Identity", [f"x{n}"], [f"y{n}"]) for n in range(len(kinds))]
    ports = [[(f"{side}{n}", kind, ["N", 3]) for n, (kind, _) in enumerate(kinds)] for side in "xy"]
    session = Work(tmp_path, save(tmp_path / "kinds.onnx", nodes, ports[0], ports[1]), batch_size=2).load()
    feeds = {f"x{n}": np.array([[0, 1, 2], [5, 0, 7]]).astype(kind) for n, (_, kind) in enumerate(kinds)}
    answers = session.run(feeds)
    for n, (_, kind) in enumerate(kinds):
        assert answers[f"y{n}"].dtype == np.dtype(kind) and np.array_equal(answers[f"y{n}"], feeds[f"x{n}"])
    session.close()


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
    assert [v.answer for v in found] == [Answer.YES, Answer.NO, *[Answer.YES] * 3]
    assert found[1].reason == "no importer for Relu"
    with pytest.raises(Unsupported) as caught:
        work.compile()
    assert caught.value.nodes == (1,)
    fake.setenv("FAKE_TENSORRT", "stop=Relu")
    found = work.adapter.select_operators(work.model, work.context).verdicts
    expected = [Answer.YES, Answer.NO, *[Answer.PROVISIONAL] * 3]
    assert [v.answer for v in found] == expected, "what comes behind is asked again"
    fake.setenv("FAKE_TENSORRT", "input")
    found = work.adapter.select_operators(work.model, work.context).verdicts
    assert {v.answer for v in found} == {Answer.NO} and "an input has a type" in found[0].reason


@pytest.mark.parametrize(
    ("fault", "error", "words"),
    [
        ("null-builder", NotAvailable, "no builder: CUDA initialization failure"),
        ("null-parser", NotAvailable, "no ONNX parser"),
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
        tmp_path / "reshape.onnx", [h.make_node("Reshape", ["x", "s"], ["y"])],
        [("x", T.FLOAT, [4, 4]), ("s", T.INT64, [2])], [("y", T.FLOAT, None)],
    )  # fmt: skip
    with pytest.raises(BuildFailed, match="numbers of the input 's' decide shapes"):
        Work(tmp_path, path).compile()


def test_an_open_shape_without_a_profile_is_said(fake: Fake, tmp_path: Path) -> None:
    work = Work(tmp_path, net(tmp_path / "net.onnx"))
    found = work.adapter.select_operators(work.model, work.context).verdicts
    assert {v.answer for v in found} == {Answer.NO} and "nothing bounds axis 0: state shapes" in found[0].reason
    with pytest.raises(BuildFailed, match="optimisation profiles.*nothing bounds axis 0"):
        work.compile()
    assert "there is none for x: nothing bounds axis 0" in work.adapter.notes(work.model)[0]


# Loading and running


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


@pytest.mark.parametrize("room", [100, 3000, 5000])
def test_a_device_with_too_little_memory_is_refused_and_left_as_it_was(fake: Fake, tmp_path: Path, room: int) -> None:
    """For the context's scratch of 4,096 bytes, or for what is fed beside it."""
    work = Work(tmp_path, net(tmp_path / "net.onnx"), shapes={"x": [16, 16]})
    artifact = work.compile()
    fake.setenv("FAKE_CUDA", f"memory={room}")
    with pytest.raises(MemoryRefused, match="the device has not the memory: \\d+ bytes"):
        work.adapter.load(artifact, work.context)
    assert live() == nothing()


def test_a_run_that_needs_more_memory_than_there_is_fails_and_the_next_is_served(fake: Fake, tmp_path: Path) -> None:
    session = Work(tmp_path, net(tmp_path / "net.onnx"), batch_size=64).load()
    assert right(session.run({"x": x(2)}), x(2))
    fake.setenv("FAKE_CUDA", "memory=8000")
    with pytest.raises(MemoryRefused):
        session.run({"x": x(64)})
    assert right(session.run({"x": x(2, 7)}), x(2, 7))
    session.close()
    assert live() == nothing()


def test_no_memory_for_an_open_output_is_an_error_of_that_run(fake: Fake, tmp_path: Path) -> None:
    node = h.make_node("NonZero", ["x"], ["y"])
    path = save(tmp_path / "nonzero.onnx", [node], [("x", T.FLOAT, ["N", 400])], [("y", T.INT64, [2, None])])
    session = Work(tmp_path, path, batch_size=2).load()
    assert session.run({"x": np.eye(1, 400, dtype=np.float32)})["y"].shape == (2, 1)
    fake.setenv("FAKE_CUDA", "memory=8000")
    with pytest.raises(MemoryRefused):
        session.run({"x": np.ones((1, 400), np.float32)})
    session.close()


def test_failures_of_a_run_say_why(fake: Fake, tmp_path: Path) -> None:
    session = Work(tmp_path, net(tmp_path / "net.onnx"), batch_size=4).load()
    with pytest.raises(UsageError, match="no optimisation profile of the engine admits") as caught:
        session.run({"x": x(5)})
    assert caught.value.candidates == ("x 1x16 .. 4x16 (best at 4x16)",)
    fake.setenv("FAKE_TENSORRT", "run")
    with pytest.raises(RunFailed, match="cannot run: cask failure"):
        session.run({"x": x(2)})
    fake.delenv("FAKE_TENSORRT")
    assert right(session.run({"x": x(2)}), x(2))
    session.close()
    fake.setenv("FAKE_TENSORRT", "null-context")
    with pytest.raises(NotAvailable, match="no execution context"):
        Work(tmp_path, net(tmp_path / "net.onnx"), batch_size=4).load()
    assert live() == nothing()


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
