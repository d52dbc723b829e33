"""The state machine from an engine to answers, and each way to fail, on the fake of TensorRT and CUDA.

What is computed is right by onnxruntime on the CPU, and proves nothing of a GPU: it shows that copies, shapes,
profiles, addresses and memory are handled as TensorRT asks.
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from paddock.errors import (
    BuildFailed,
    ConfigError,
    Exhausted,
    MemoryRefused,
    NotAvailable,
    OtherShape,
    RunFailed,
    UsageError,
)
from paddock_tensorrt import cuda
from tensorrt_models import T, Work, adapter_of, h, live, net, nothing, right, save, x

Fake = pytest.MonkeyPatch


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
    wanted = Work(tmp_path, path, batch_size=4, options={"cuda_graph": True})
    there, here = wanted.adapter, adapter_of(wanted.config, None)
    for ask in (there.select_operators, here.select_operators):  # before anything is built
        with pytest.raises(ConfigError, match="shapes that are all fixed, and these are open: x 1x16 .. 4x16") as early:
            ask(wanted.model, wanted.context)
        assert early.value.where == "$.options.cuda_graph"
    with pytest.raises(ConfigError, match="shapes that are all fixed"):
        wanted.compile()
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


# Loading and running


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
    with pytest.raises(Exhausted, match="the device has not the memory: 4096 bytes") as caught:
        session.run({"x": x(64)})
    assert "smaller requests" in str(caught.value.remedy)
    with pytest.raises(Exhausted, match="the device has not the memory: 4096 bytes"):
        session.run_into({"x": x(64)}, {"z": np.empty((64, 16), np.float32)})
    assert right(session.run({"x": x(2, 7)}), x(2, 7))
    session.close()
    assert live() == nothing()


def test_no_memory_for_an_open_output_is_an_error_of_that_run(fake: Fake, tmp_path: Path) -> None:
    node = h.make_node("NonZero", ["x"], ["y"])
    path = save(tmp_path / "nonzero.onnx", [node], [("x", T.FLOAT, ["N", 400])], [("y", T.INT64, [2, None])])
    session = Work(tmp_path, path, batch_size=2).load()
    assert session.run({"x": np.eye(1, 400, dtype=np.float32)})["y"].shape == (2, 1)
    fake.setenv("FAKE_CUDA", "memory=8000")
    with pytest.raises(Exhausted, match="the device has not the memory: 6400 bytes"):
        session.run({"x": np.ones((1, 400), np.float32)})
    fake.delenv("FAKE_CUDA")
    assert session.run({"x": np.ones((1, 400), np.float32)})["y"].shape == (2, 400)
    fake.setenv("FAKE_TENSORRT", "untold")
    with pytest.raises(RunFailed, match="has not told the shape of the output 'y'"):
        session.run({"x": np.eye(1, 400, dtype=np.float32)})
    session.close()
    assert live() == nothing()


def test_a_request_never_fails_for_the_scratch_of_its_profile(fake: Fake, tmp_path: Path) -> None:
    """That of the largest is had when the session is made, or the session is refused."""
    shapes = {"N": [{"min": 1, "opt": 2, "max": 3}, {"min": 8, "max": 8}]}
    work = Work(tmp_path, net(tmp_path / "net.onnx"), shapes=shapes)
    artifact = work.compile()
    fake.setenv("FAKE_CUDA", "memory=6000")
    with pytest.raises(MemoryRefused, match="the device has not the memory: 8192 bytes"):
        work.adapter.load(artifact, work.context)
    assert live() == nothing()
    fake.setenv("FAKE_CUDA", "memory=10000")
    session = work.adapter.load(artifact, work.context)
    for rows in (2, 8, 1):
        assert right(session.run({"x": x(rows)}), x(rows))
    session.close()


def test_a_profile_that_is_refused_is_not_taken_for_the_one_in_use(fake: Fake, tmp_path: Path) -> None:
    shapes = {"N": [{"min": 1, "opt": 2, "max": 3}, {"min": 8, "max": 8}]}
    session = Work(tmp_path, net(tmp_path / "net.onnx"), shapes=shapes).load()
    assert right(session.run({"x": x(2)}), x(2))
    fake.setenv("FAKE_TENSORRT", "take-profile")
    for _ in range(2):
        with pytest.raises(RunFailed, match="does not take optimisation profile 1: no such profile now"):
            session.run({"x": x(8)})
    fake.delenv("FAKE_TENSORRT")
    for rows in (8, 2):
        assert right(session.run({"x": x(rows)}), x(rows))
    session.close()


def gather(path: Path) -> Path:
    """`y` = table[i], i [3]: an index that is not there is an error."""
    table = {"table": np.arange(8, dtype=np.float32)}
    node = h.make_node("Gather", ["table", "i"], ["y"])
    return save(path, [node], [("i", T.INT64, [3])], [("y", T.FLOAT, [3])], table)


def test_the_run_before_a_graph_is_one_on_zeros(fake: Fake, tmp_path: Path) -> None:
    session = Work(tmp_path, gather(tmp_path / "gather.onnx")).load()
    assert session.observed().settings["options.cuda_graph"] is True
    assert list(session.run({"i": np.array([7, 0, 2])})["y"]) == [7, 0, 2]
    session.close()


@pytest.mark.parametrize("options", [{}, {"cuda_graph": True}])
def test_a_session_whose_first_run_fails_is_not_handed_out(fake: Fake, tmp_path: Path, options: Any) -> None:
    work = Work(tmp_path, gather(tmp_path / "gather.onnx"), options=options)
    artifact = work.compile()
    for name, fault, words in (
        ("FAKE_TENSORRT", "run", "the engine cannot be run: TensorRT cannot run: cask failure"),
        ("FAKE_TENSORRT", "infer", "the engine cannot be run: .*the shapes contradict each other"),
        ("FAKE_CUDA", "wait", "cudaErrorIllegalAddress"),
        ("FAKE_CUDA", "capture,capture-breaks", "cudaErrorIllegalAddress|cannot be kept as a CUDA graph"),
    ):
        with fake.context() as faults:
            faults.setenv(name, fault)
            with pytest.raises(BuildFailed, match=words):
                work.adapter.load(artifact, work.context)
        assert live() == nothing(), fault


def test_copies_and_run_are_waited_for_once(fake: Fake, tmp_path: Path) -> None:
    """Of outputs whose shapes the numbers decide, too: these are told when the run is put into the stream."""
    first = Work(tmp_path, net(tmp_path / "net.onnx"), batch_size=8).load()
    node = h.make_node("NonZero", ["x"], ["y"])
    path = save(tmp_path / "nonzero.onnx", [node], [("x", T.FLOAT, ["N", 16])], [("y", T.INT64, [2, None])])
    second = Work(tmp_path, path, batch_size=8).load()
    calls = cuda.runtime().calls
    for session in (first, second):
        session.run({"x": x(8)})
        calls.clear()
        session.run({"x": x(8)})
        assert calls == ["wait"], "and nothing is allocated"
        session.close()


def test_what_fails_leaves_no_copy_under_way(fake: Fake, tmp_path: Path) -> None:
    session = Work(tmp_path, net(tmp_path / "net.onnx"), batch_size=8).load()
    session.run({"x": x(2)})
    fake.setenv("FAKE_TENSORRT", "run")
    with pytest.raises(RunFailed):
        session.run({"x": x(8)})
    assert not any(stream.work for stream in cuda.runtime().streams.values())
    session.close()


@pytest.mark.parametrize("error", ["cudaErrorMemoryAllocation", "cudaErrorNotSupported", "cudaErrorNotPermitted"])
def test_where_pages_do_not_stay_copies_are_slower(
    fake: Fake, tmp_path: Path, error: str, caplog: pytest.LogCaptureFixture
) -> None:
    fake.setenv("FAKE_CUDA", f"pinned={error}")
    for fields in ({"batch_size": 4}, {"shapes": {"x": [4, 16]}}):
        with caplog.at_level(logging.WARNING, "paddock.tensorrt"):
            session = Work(tmp_path, net(tmp_path / "net.onnx"), **fields).load()
        assert right(session.run({"x": x(4)}), x(4))
        session.close()
    assert live() == nothing() and f"is not pinned, so that copies take longer: fake CUDA: {error}" in caplog.text
    fake.setenv("FAKE_CUDA", "pinned=cudaErrorIllegalAddress")
    with pytest.raises(RunFailed, match="cudaErrorIllegalAddress"):
        cuda.Pinned(16)


def test_outputs_that_tensorrt_writes_on_the_host_are_served(fake: Fake, tmp_path: Path) -> None:
    nodes = [h.make_node("Shape", ["x"], ["s"]), h.make_node("Relu", ["x"], ["y"])]
    outputs = [("s", T.INT64, [2]), ("y", T.FLOAT, ["N", 16])]
    path = save(tmp_path / "shape.onnx", nodes, [("x", T.FLOAT, ["N", 16])], outputs)
    fake.setenv("FAKE_TENSORRT", "host=s")
    session = Work(tmp_path, path, batch_size=8).load()
    for rows in (3, 8):
        assert list(session.run({"x": x(rows)})["s"]) == [rows, 16]
    session.close()
    assert live() == nothing()


def test_failures_of_a_run_say_why(fake: Fake, tmp_path: Path) -> None:
    session = Work(tmp_path, net(tmp_path / "net.onnx"), batch_size=4).load()
    with pytest.raises(UsageError, match="no optimisation profile of the engine admits") as caught:
        session.run({"x": x(5)})
    assert caught.value.candidates == ("x 1x16 .. 4x16 (best at 4x16)",)
    fake.setenv("FAKE_TENSORRT", "run")
    with pytest.raises(RunFailed, match="cannot run: cask failure"):
        session.run({"x": x(2)})
    fake.setenv("FAKE_TENSORRT", "infer")
    with pytest.raises(RunFailed, match=r"cannot tell the outputs' shapes \(.*\): the shapes contradict each other"):
        session.run({"x": x(2)})
    fake.setenv("FAKE_TENSORRT", "run-memory")
    with pytest.raises(Exhausted, match="cannot run: .*out of memory"):
        session.run({"x": x(2)})
    fake.delenv("FAKE_TENSORRT")
    assert right(session.run({"x": x(2)}), x(2))
    session.close()
    fake.setenv("FAKE_TENSORRT", "null-context")
    with pytest.raises(NotAvailable, match="no execution context"):
        Work(tmp_path, net(tmp_path / "net.onnx"), batch_size=4).load()
    assert live() == nothing()
