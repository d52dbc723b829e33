"""Tensors on the device in and out, on the fake; and that the real `cuda.core` has what is used of it."""

from __future__ import annotations

import ctypes
import gc
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from paddock.errors import Exhausted, NotAvailable, UsageError
from paddock_tensorrt import cuda, tensors
from tensorrt_models import T, Work, h, net, save
from tensorrt_typed import bindings

Fake = pytest.MonkeyPatch


class Tensor:
    """What torch or cupy would hold: memory of the device with an interface to it."""

    def __init__(self, array: Any, strides: tuple[int, ...] | None = None, device: int = 0) -> None:
        self.memory = cuda.Memory(array.nbytes)
        self.device = device
        ctypes.memmove(self.memory.address, np.ascontiguousarray(array).ctypes.data, array.nbytes)
        self.__cuda_array_interface__ = {
            "shape": array.shape, "typestr": array.dtype.str, "data": (self.memory.address, False), "strides": strides,
            "version": 3,
        }  # fmt: skip


def on_host(tensor: Any) -> Any:
    told = tensor.__cuda_array_interface__
    found = np.empty(told["shape"], told["typestr"])
    ctypes.memmove(found.ctypes.data, told["data"][0], found.nbytes)
    return found


def x(rows: int) -> Any:
    return np.random.default_rng(rows).standard_normal((rows, 16)).astype(np.float32)


def live() -> int:
    gc.collect()
    found: dict[str, int] = cuda.runtime().live()
    return found["memory"]


@pytest.mark.parametrize("fields", [{"batch_size": 8}, {"shapes": {"x": [4, 16]}}])
def test_tensors_are_read_and_left_where_they_lie(fake: Fake, tmp_path: Path, fields: Any) -> None:
    session = Work(tmp_path, net(tmp_path / "net.onnx"), **fields).load()
    before = live()
    feed = Tensor(x(4))
    copied: list[Any] = []
    fake.setattr(cuda, "copy_in", lambda *a: copied.append(a))
    fake.setattr(cuda, "copy_out", lambda *a: copied.append(a))
    found = session.run_on_device({"x": feed})
    other = session.run_on_device({"x": Tensor(x(4) * 2)}, ["z"])
    assert not copied and list(other) == ["z"]
    fake.undo()
    assert np.array_equal(on_host(found["z"]), x(4) * 2), "the next run leaves it alone"
    assert np.allclose(on_host(found["y"]).sum(axis=1), 1, atol=1e-5)
    assert found["z"].__dlpack_device__() == (2, 0) and found["z"].__dlpack__(stream=None).ptr > 0
    assert (found["z"].shape, str(found["z"].dtype)) == ((4, 16), "float32")
    del found, other, feed
    assert live() == before + 2, "memory goes with the tensors, but for what nobody read: it is for the next answers"
    assert np.array_equal(session.run({"x": x(4)})["z"], x(4) * 2), "and arrays are served as before"
    session.close()
    assert live() == 0


def test_an_open_output_stays_on_the_device_too(fake: Fake, tmp_path: Path) -> None:
    node = h.make_node("NonZero", ["x"], ["y"])
    path = save(tmp_path / "nonzero.onnx", [node], [("x", T.FLOAT, ["N", 4])], [("y", T.INT64, [2, None])])
    session = Work(tmp_path, path, batch_size=3).load()
    first = session.run_on_device({"x": Tensor(np.eye(3, 4, dtype=np.float32))})["y"]
    session.run_on_device({"x": Tensor(np.ones((3, 4), np.float32))})
    assert np.array_equal(on_host(first), [[0, 1, 2], [0, 1, 2]])
    session.close()


def test_an_output_that_tensorrt_writes_on_the_host_is_given_on_the_device(fake: Fake, tmp_path: Path) -> None:
    nodes = [h.make_node("Shape", ["x"], ["s"]), h.make_node("Relu", ["x"], ["y"])]
    outputs = [("s", T.INT64, [2]), ("y", T.FLOAT, ["N", 16])]
    path = save(tmp_path / "shape.onnx", nodes, [("x", T.FLOAT, ["N", 16])], outputs)
    fake.setenv("FAKE_TENSORRT", "host=s")
    session = Work(tmp_path, path, batch_size=8).load()
    found = session.run_on_device({"x": Tensor(x(3))})
    other = session.run_on_device({"x": Tensor(x(5))}, ["s"])
    assert list(on_host(found["s"])) == [3, 16] and list(on_host(other["s"])) == [5, 16]
    assert np.array_equal(on_host(found["y"]), np.maximum(x(3), 0))
    fake.setenv("FAKE_TENSORRT", "host=x")
    fed = Work(tmp_path, path, batch_size=8).load()
    with pytest.raises(UsageError, match="is read in the host's memory by this engine"):
        fed.run_on_device({"x": Tensor(x(3))})
    assert list(fed.run({"x": x(3)})["s"]) == [3, 16]
    for held in (session, fed):
        held.close()
    del found, other
    assert live() == 0


def test_memory_of_answers_is_used_again_behind_who_read_them(fake: Fake, tmp_path: Path) -> None:
    session = Work(tmp_path, net(tmp_path / "net.onnx"), batch_size=8).load()
    feed, calls = Tensor(x(4)), cuda.runtime().calls
    for turn in range(4):
        calls.clear()
        found = session.run_on_device({"x": feed})
        assert found["z"].__dlpack__(stream=1).shape == (4, 16), "as torch asks in its default stream"
        assert calls.count("malloc") == (2 if turn == 0 else 0)
        assert calls.count("follow default") == (0 if turn == 0 else 2) and calls[-1] == "wait"
        if turn == 3:
            address = found["z"]._memory.address
        del found
    small = session.run_on_device({"x": Tensor(x(1))})
    assert small["y"]._memory.nbytes == 64, "a small answer does not hold much memory"
    held = [session.run_on_device({"x": feed}) for _ in range(3)]
    assert len({answer[name]._memory.address for answer in held for name in "yz"}) == 6
    assert address in {answer[name]._memory.address for answer in held for name in "yz"}
    assert session.observed().peak_bytes > 0
    session.close()
    del held, small, feed
    assert live() == 0, "what is let go after the session is freed"


@pytest.mark.parametrize("stream", [-1, 77])
def test_what_is_read_in_other_streams_is_never_used_again(fake: Fake, tmp_path: Path, stream: int) -> None:
    session = Work(tmp_path, net(tmp_path / "net.onnx"), batch_size=8).load()
    calls = cuda.runtime().calls
    for _ in range(3):
        calls.clear()
        found = session.run_on_device({"x": Tensor(x(4))})
        assert found["z"].__dlpack__(stream=stream) and found["y"].__cuda_array_interface__
        assert calls.count("malloc") == 3
        del found
        gc.collect()
        assert calls.count("free") == 3, "it waits for all of the device"
    session.close()
    assert live() == 0


def test_what_is_kept_gives_way_to_what_is_wanted(fake: Fake, tmp_path: Path) -> None:
    session = Work(tmp_path, net(tmp_path / "net.onnx"), batch_size=64).load()
    before = live()
    for rows in (2, 4, 8, 16, 32):
        session.run_on_device({"x": Tensor(x(rows))})
    assert live() <= before + 4 + 2, "no more than twice the outputs are kept, beside what came back last"
    feed = Tensor(x(64))
    fake.setenv("FAKE_CUDA", "memory=17000")
    found = session.run_on_device({"x": feed})
    assert np.array_equal(on_host(found["z"]), x(64) * 2)
    with pytest.raises(Exhausted, match="the device has not the memory: 4096 bytes"):
        session.run_on_device({"x": feed})
    del found
    assert np.array_equal(on_host(session.run_on_device({"x": feed})["z"]), x(64) * 2)
    session.close()
    del feed
    assert live() == 0


def test_what_cannot_be_read_where_it_lies_is_refused(fake: Fake, tmp_path: Path) -> None:
    session = Work(tmp_path, net(tmp_path / "net.onnx"), batch_size=8).load()
    turned = Tensor(np.ones((16, 16), np.float32), strides=(4, 64))
    turned.__cuda_array_interface__["shape"] = (8, 16)
    whole = Tensor(x(4))
    part = Tensor(x(3))
    part.__cuda_array_interface__["data"] = (whole.memory.address + 64, False)

    class Needy:
        """As a tensor of torch that takes part in a gradient, in its older versions."""

        @property
        def __cuda_array_interface__(self) -> Any:
            raise RuntimeError("use tensor.detach() first")

    for feed, words in (
        (x(2), "lies in the host's memory"),
        (Tensor(x(2), device=1), "lies on device 1"),
        ([1, 2], "cannot be read where it lies"),
        (Tensor(x(2).astype(np.float16)), "is float16, the model takes float32"),
        (Tensor(x(2).reshape(-1)), "has the shape \\[32\\]"),
        (turned, "not dense and row-major"),
        (part, "lies at an address that is no multiple of 256 bytes"),
        (Needy(), "cannot be read where it lies: use tensor.detach"),
        (Tensor(x(9)), "no optimisation profile"),
    ):
        with pytest.raises(UsageError, match=words):
            session.run_on_device({"x": feed})
    session.close()


@pytest.mark.long
def test_a_deployment_hands_tensors_through(fake: Fake, tmp_path: Path) -> None:
    from paddock.deployment import deploy

    path = net(tmp_path / "net.onnx")
    with deploy(path, {"hardware": "gpu", "backend": "tensorrt", "batch_size": 4, "instances": 2}) as deployment:
        answers = deployment.run_on_device({"x": Tensor(x(3))})
        assert np.array_equal(on_host(answers["z"]), x(3) * 2) and list(answers) == ["y", "z"]
        assert list(deployment.run_on_device({"x": Tensor(x(3))}, ["y"])) == ["y"]
        with pytest.raises(UsageError, match="missing 'x' and unknown 'q'"):
            deployment.run_on_device({"q": Tensor(x(3))})
        with pytest.raises(UsageError, match="no output 'q'"):
            deployment.run_on_device({"x": Tensor(x(3))}, ["q"])
        with pytest.raises(UsageError, match="has the shape"):
            deployment.run_on_device({"x": Tensor(x(3)[0])})
    with (
        deploy(path, {"hardware": "cpu", "backend": "onnxruntime", "batch_size": 4}) as deployment,
        pytest.raises(UsageError, match="the adapter takes arrays of the host only"),
    ):
        deployment.run_on_device({"x": Tensor(x(3))})


def test_strides_are_judged_by_what_they_step_over() -> None:
    assert tensors._dense((2, 3, 4), (12, 4, 1)) and tensors._dense((1, 3), (99, 1)) and tensors._dense((), ())
    assert not tensors._dense((2, 3), (1, 2)) and not tensors._dense((2, 3), (4, 1))


def test_the_real_core_has_what_is_used_and_tells_an_array_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(bindings("cuda")))
    for name in [name for name in sys.modules if name.partition(".")[0] == "cuda"]:
        monkeypatch.delitem(sys.modules, name)
    core = tensors._core()
    array = np.zeros((2, 3), np.float32)
    view = core.StridedMemoryView.from_any_interface(array, stream_ptr=-1)
    assert view.ptr == array.ctypes.data and tuple(view.shape) == (2, 3) and view.dtype == np.float32
    assert not view.is_device_accessible and view.device_id == -1
    assert view.strides is None or tensors._dense((2, 3), tuple(view.strides))
    owner = cuda.Memory.__new__(cuda.Memory)
    buffer = core.Buffer.from_handle(array.ctypes.data, array.nbytes, owner=owner)
    assert (buffer.handle, buffer.size, buffer.owner) == (array.ctypes.data, array.nbytes, owner)
    try:
        made = core.StridedMemoryView.from_buffer(buffer, (2, 3), dtype=np.dtype("float32"))
    except Exception as error:  # it asks the driver where the memory is
        assert "NVIDIA driver library" in str(error)
        made = view
    assert made.ptr == array.ctypes.data and callable(made.__dlpack__) and callable(made.__dlpack_device__)


def test_without_the_core_it_says_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.core", None)
    with pytest.raises(NotAvailable, match="tensors on the device need cuda-core") as caught:
        tensors._core()
    assert "paddock-tensorrt[device]" in str(caught.value.remedy)
