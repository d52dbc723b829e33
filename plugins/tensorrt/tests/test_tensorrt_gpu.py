"""gpu/tensorrt on a GPU: skipped with the reason where there is none. Not yet run anywhere."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from paddock.deployment import deploy
from paddock_tensorrt import cuda
from tensorrt_models import T, h, net, save

pytestmark = pytest.mark.gpu("gpu/tensorrt")


def x(rows: int) -> Any:
    return np.random.default_rng(rows).standard_normal((rows, 16)).astype(np.float32)


def free() -> int:
    """Bytes that the device has left."""
    gc.collect()
    status, left, _ = cuda.runtime().cudaMemGetInfo()
    assert int(status) == 0
    return int(left)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("fields", [{"batch_size": 8}, {"shapes": {"x": [4, 16]}}], ids=["profile", "graph"])
def test_a_model_is_verified(precision: str, fields: dict[str, Any], tmp_path: Path) -> None:
    config = {"hardware": "gpu", "backend": "tensorrt", "precision": precision, **fields}
    with deploy(net(tmp_path / "net.onnx"), config) as deployment:
        assert deployment.report.outcome == "passed"
        settings = deployment.plan.settings
        assert {s.effective for s in settings if s.name == "precision"} <= {precision, None}
        answers = deployment.run({"x": x(4)})
        np.testing.assert_allclose(answers["z"], 2 * x(4), rtol=1e-2)


def test_indices_and_what_only_the_numbers_shape(tmp_path: Path) -> None:
    """A graph's first run is on zeros, or an index would lie anywhere; and memory is asked for while it runs."""
    nodes = [h.make_node("Gather", ["table", "i"], ["y"])]
    table = {"table": np.arange(8, dtype=np.float32)}
    path = save(tmp_path / "gather.onnx", nodes, [("i", T.INT64, [3])], [("y", T.FLOAT, [3])], table)
    samples = [{"i": np.array([n, 0, 2])} for n in range(2)]
    with deploy(path, {"hardware": "gpu", "backend": "tensorrt"}, samples=samples) as deployment:
        assert list(deployment.run({"i": np.array([7, 0, 2])})["y"]) == [7, 0, 2]
    node = h.make_node("NonZero", ["x"], ["y"])
    path = save(tmp_path / "nonzero.onnx", [node], [("x", T.FLOAT, ["N", 4])], [("y", T.INT64, [2, None])])
    drawn = np.random.default_rng(0)
    samples = [{"x": (drawn.random((3, 4)) > share).astype(np.float32)} for share in (0.3, 0.6)]
    with deploy(path, {"hardware": "gpu", "backend": "tensorrt", "batch_size": 3}, samples=samples) as deployment:
        for feed in (np.eye(3, 4, dtype=np.float32), np.ones((2, 4), np.float32)):
            assert np.array_equal(deployment.run({"x": feed})["y"], np.array(np.nonzero(feed)))


def test_tensors_of_the_device_are_served_where_they_lie(tmp_path: Path) -> None:
    pytest.importorskip("cuda.core")
    config = {"hardware": "gpu", "backend": "tensorrt", "batch_size": 8}
    with deploy(net(tmp_path / "net.onnx"), config) as deployment:
        first = deployment.run_on_device({"x": _there(x(4))})["z"]
        again = deployment.run_on_device({"x": first})["z"]
        assert again.__dlpack_device__() == (2, 0)
        np.testing.assert_allclose(_here(again), 4 * x(4), rtol=1e-5)


def test_nothing_is_left_on_the_device(tmp_path: Path) -> None:
    config = {"hardware": "gpu", "backend": "tensorrt", "batch_size": 8, "instances": 2}
    path = net(tmp_path / "net.onnx")
    for turn in range(3):
        with deploy(path, config) as deployment:
            deployment.run({"x": x(8)})
        if turn == 0:
            before = free()
    assert free() >= before - (1 << 20)


class _There:
    def __init__(self, memory: cuda.Memory, array: Any) -> None:
        self.memory = memory
        data = (memory.address, False)
        self.__cuda_array_interface__ = {
            "shape": array.shape, "typestr": array.dtype.str, "data": data, "strides": None, "version": 3,
        }  # fmt: skip


def _there(array: Any) -> Any:
    stream, memory, staged = cuda.Stream(), cuda.Memory(array.nbytes), cuda.Pinned(array.nbytes)
    staged.of(array.dtype, array.shape)[...] = array
    cuda.copy_in(memory.address, staged.address, array.nbytes, stream)
    stream.wait()
    return _There(memory, array)


def _here(tensor: Any) -> Any:
    told = tensor.__cuda_array_interface__
    dtype, shape = np.dtype(told["typestr"]), tuple(told["shape"])
    nbytes = int(np.prod(shape)) * dtype.itemsize
    stream, staged = cuda.Stream(), cuda.Pinned(nbytes)
    cuda.copy_out(staged.address, told["data"][0], nbytes, stream)
    stream.wait()
    return staged.of(dtype, shape).copy()
