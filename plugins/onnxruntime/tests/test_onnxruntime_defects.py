"""defects.json of cpu/onnxruntime: each entry is still true of the onnxruntime installed, and no wider than it must be.

A test that fails here because the numbers are right is good news: the entry's `versions` need an end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper as h
from paddock.config import HardwareConfig
from paddock.defects import load
from paddock.model import Model
from paddock.onnx_format import OnnxFormat
from paddock.spi import ResolvedConfig
from paddock_onnxruntime.adapter import CpuOnnxRuntime
from paddock_onnxruntime.session import OnnxRuntimeOptions

ort = pytest.importorskip("onnxruntime")


rng = np.random.default_rng(0)
RIGHT = 1e-5
"""A float32 result is right within this part of the largest one; what is listed as wrong misses it."""


@dataclass(frozen=True)
class Case:
    """One operator with what is fed to it and the standard's answer."""

    op: str
    feeds: Mapping[str, Any]
    answer: Any
    attributes: Mapping[str, Any] = field(default_factory=dict)
    inputs: tuple[str, ...] = ()
    constants: Mapping[str, Any] = field(default_factory=dict)
    opset: int = 20

    def model(self) -> Any:
        node = h.make_node(self.op, list(self.inputs or self.feeds), ["y"], **self.attributes)
        kinds = {name: h.np_dtype_to_tensor_dtype(array.dtype) for name, array in self.feeds.items()}
        answer = np.asarray(self.answer)
        graph = h.make_graph(
            [node],
            "graph",
            [h.make_tensor_value_info(name, kinds[name], array.shape) for name, array in self.feeds.items()],
            [h.make_tensor_value_info("y", h.np_dtype_to_tensor_dtype(answer.dtype), None)],
            [onnx.numpy_helper.from_array(np.asarray(array), name) for name, array in self.constants.items()],
        )
        return h.make_model(graph, opset_imports=[h.make_opsetid("", self.opset)], ir_version=9)

    def is_right(self) -> bool:
        """Whether onnxruntime itself, without Paddock, gives the answer."""
        settings = ort.SessionOptions()
        settings.log_severity_level = 4
        session = ort.InferenceSession(self.model().SerializeToString(), settings, providers=["CPUExecutionProvider"])
        (got,) = session.run(None, dict(self.feeds))
        wanted = np.asarray(self.answer)
        if wanted.dtype == object:
            return bool((got == wanted).all())
        return got.shape == wanted.shape and bool(np.abs(got - wanted).max() <= RIGHT * np.abs(wanted).max())


def spectrum(x: Any) -> Any:
    found = np.fft.fft(x.astype(np.float64), axis=1)
    return np.stack([found.real, found.imag], -1).astype(np.float32)


def dft(length: int, opset: int = 17) -> Case:
    x = rng.standard_normal((1, length, 1)).astype(np.float32)
    return Case("DFT", {"x": x}, spectrum(x[..., 0]), {"axis": 1}, opset=opset)


def stft(frame: int) -> Case:
    x = rng.standard_normal((1, 2 * frame, 1)).astype(np.float32)
    frames = x[0, :, 0].reshape(2, frame)
    constants = {"step": np.array(frame), "length": np.array(frame)}
    answer = spectrum(frames)[None, :, : frame // 2 + 1]
    return Case("STFT", {"x": x}, answer, inputs=("x", "step", "", "length"), constants=constants)


def average(**attributes: int) -> Case:
    x = np.array([[[1, 3, 5, 7, 9]]], np.float32)
    last = 4.5 if attributes.get("count_include_pad") else 9
    return Case(
        "AveragePool", {"x": x}, np.array([[[2, 6, last]]], np.float32),
        {"kernel_shape": [2], "strides": [2], "ceil_mode": 1, **attributes}, opset=19,
    )  # fmt: skip


def unpool(shape: tuple[int, ...] | None) -> Case:
    """Positions of a 4 by 4 tensor, which is then the corner of a larger one."""
    answer = np.zeros(shape or (1, 1, 4, 4), np.float32)
    answer[0, 0, [1, 1, 3, 3], [1, 3, 1, 3]] = [5, 6, 7, 8]
    feeds = {
        "x": np.array([[[[5, 6], [7, 8]]]], np.float32),
        "at": np.array([[[[5, 7], [13, 15]]]], np.int64),
    }
    constants = {"shape": np.array(shape, np.int64)} if shape else {}
    attributes = {"kernel_shape": [2, 2], "strides": [2, 2]}
    return Case("MaxUnpool", feeds, answer, attributes, (*feeds, *constants), constants)


def digits(dtype: str) -> Case:
    x = np.array([0.6048455238342285], dtype)
    return Case("Cast", {"x": x}, np.array([str(x[0])], object), {"to": onnx.TensorProto.STRING})


def row(*numbers: float) -> Any:
    return np.array([[numbers]], np.float32)


def transposed(kernel: int, stride: int, **attributes: Any) -> Case:
    """Two elements, each of them followed by what the stride leaves between them."""
    answer = np.zeros(2 * stride)
    for at in (0, stride):
        answer[at : at + kernel] += 1
    feeds = {"x": row(1, 1), "w": np.ones((1, 1, kernel), np.float32)}
    return Case("ConvTranspose", feeds, row(*answer), {"strides": [stride], "auto_pad": "SAME_UPPER", **attributes})


WRONG = {
    "convtranspose-same-narrow": [transposed(1, 2), transposed(2, 3)],
    "pool-same-dilated": [
        Case(
            "MaxPool",
            {"x": row(*range(9))},
            row(2, 3, 4, 5, 6, 7, 8, 7, 8),
            {"kernel_shape": [3], "dilations": [2], "auto_pad": "SAME_UPPER"},
        )
    ],
    "reduce-nothing-to-do": [
        Case(f"Reduce{name}", {"x": row(-1, 2)}, row(-1, 2), {"noop_with_empty_axes": 1})
        for name in ("L1", "L2", "SumSquare")
    ],
    "cast-string-digits": [digits("float64"), digits("float32")],
    "dft-odd-length": [dft(1000), dft(500)],
    "stft-odd-frame": [stft(400)],
    "averagepool-ceil-counts-pad": [average(count_include_pad=1)],
    "maxunpool-output-shape": [unpool((1, 1, 5, 5))],
}
RELATED = {
    "convtranspose to twice the extent": transposed(2, 2, kernel_shape=[2]),
    "reduction of all": Case("ReduceL1", {"x": row(-1, 2)}, row(3)),
    "cast of integers": Case("Cast", {"x": np.array([7])}, np.array(["7"], object), {"to": onnx.TensorProto.STRING}),
    "dft of 1024": dft(1024),
    "averagepool that does not count pads": average(),
    "averagepool that rounds down": Case(
        "AveragePool", {"x": np.ones((1, 1, 4), np.float32)}, np.array([[[0.5, 1, 0.5]]], np.float32),
        {"kernel_shape": [2], "strides": [2], "pads": [1, 1], "count_include_pad": 1}, opset=19,
    ),
    "maxunpool to its own shape": unpool(None),
}  # fmt: skip


def defects_of(case: Case, folder: Path) -> dict[str, tuple[int, ...]]:
    path = folder / "model.onnx"
    onnx.save(case.model(), path)
    model = Model("onnx", {"model": path}, "test", OnnxFormat().read({"model": path}))
    config = HardwareConfig.load({"hardware": "cpu", "backend": "onnxruntime"})
    adapter = CpuOnnxRuntime(ResolvedConfig(config, OnnxRuntimeOptions(), 1), None)
    return {remedy.name: remedy.nodes for remedy in adapter.known_defects(model) if remedy.applied}


def test_every_entry_is_tried() -> None:
    assert set(WRONG) == {d.name for d in load("paddock_onnxruntime") if d.sdk == "onnxruntime"}


@pytest.mark.parametrize(("name", "case"), [(name, case) for name, cases in WRONG.items() for case in cases])
def test_what_is_listed_is_still_wrong_and_kept_off(name: str, case: Case, tmp_path: Path) -> None:
    assert not case.is_right()
    assert defects_of(case, tmp_path) == {name: (0,)}


@pytest.mark.parametrize("name", RELATED)
def test_related_forms_are_right_and_taken(name: str, tmp_path: Path) -> None:
    assert RELATED[name].is_right()
    assert defects_of(RELATED[name], tmp_path) == {}


def test_a_length_that_is_an_input_is_not_told_from_the_graph(tmp_path: Path) -> None:
    x = rng.standard_normal((1, 16, 1)).astype(np.float32)
    constants = {"length": np.array(1000)}
    padded = np.pad(x[..., 0], [(0, 0), (0, 984)])
    case = Case("DFT", {"x": x}, spectrum(padded), {"axis": 1}, ("x", "length"), constants, 17)
    assert not case.is_right() and defects_of(case, tmp_path) == {"dft-odd-length": (0,)}
