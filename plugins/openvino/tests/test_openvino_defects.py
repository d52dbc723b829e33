"""defects.json of cpu/openvino: each entry is still true of the OpenVINO installed, and no wider than it must be.

A test that fails here because the numbers are right is good news: the entry's `versions` need an end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto as T
from onnx import helper as h
from onnx.reference import ReferenceEvaluator
from paddock.config import HardwareConfig
from paddock.defects import load
from paddock.machine import cpu
from paddock.model import Model
from paddock.onnx_format import OnnxFormat
from paddock.plan import Precision, PrecisionPlan, Segment
from paddock.spi import Context, ResolvedConfig, SegmentMemory, SegmentPlan
from paddock_openvino.adapter import CpuOpenVino, CpuOptions
from paddock_openvino.sdk import core

rng = np.random.default_rng(0)
RIGHT = 1e-5
"""A float32 result is right within this part of the largest one; what is listed as wrong misses it."""


@dataclass(frozen=True)
class Case:
    """One operator with what is fed to it; where there is no `answer`, onnx's reference is right and gives it."""

    op: str
    feeds: Mapping[str, Any]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    constants: Mapping[str, Any] = field(default_factory=dict)
    inputs: tuple[str, ...] = ()
    opset: int = 19
    answer: Any = None
    then: Any = None
    """A node that takes y to the output z."""

    def model(self) -> Any:
        quantizes = self.op == "DynamicQuantizeLinear"
        names = ["y", "scale", "zero"] if quantizes else ["y"]
        nodes = [h.make_node(self.op, list(self.inputs or (*self.feeds, *self.constants)), names, **self.attributes)]
        nodes += [self.then] if self.then else []
        kinds = {name: h.np_dtype_to_tensor_dtype(array.dtype) for name, array in self.feeds.items()}
        kind = T.UINT8 if quantizes else next(iter(kinds.values()))
        graph = h.make_graph(
            nodes,
            "graph",
            [h.make_tensor_value_info(name, kinds[name], array.shape) for name, array in self.feeds.items()],
            [h.make_tensor_value_info("z" if self.then else "y", kind, None)],
            [onnx.numpy_helper.from_array(np.asarray(array), name) for name, array in self.constants.items()],
        )
        return h.make_model(graph, opset_imports=[h.make_opsetid("", self.opset)], ir_version=9)

    def is_right(self) -> bool:
        """Whether OpenVINO itself, without Paddock, gives the answer."""
        content = self.model()
        compiled = core().compile_model(
            core().read_model(content.SerializeToString()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
        )
        (got,) = compiled.create_infer_request().infer(list(self.feeds.values()), share_outputs=False).values()
        wanted = self.answer if self.answer is not None else ReferenceEvaluator(content).run(None, dict(self.feeds))[0]
        if got.shape != wanted.shape:
            return False
        with np.errstate(all="ignore"):
            same = (got == wanted) | (np.isnan(got) & np.isnan(wanted))
            largest = np.abs(wanted[np.isfinite(wanted)]).max(initial=0)
            return bool((same | (np.abs(got - wanted) <= RIGHT * largest)).all())


def normal(*shape: int) -> Any:
    return rng.standard_normal(shape).astype(np.float32)


IMAGE = {"x": normal(1, 1, 4, 6)}


def pool(op: str, kernel: int, stride: int, size: int = 5, **attributes: int) -> Case:
    x = normal(1, 1, size, size)
    return Case(op, {"x": x}, {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "ceil_mode": 1, **attributes})


def resize(scales: bool = True, **attributes: Any) -> Case:
    constants = {"scales": np.array([1, 1, 0.5, 0.5], np.float32)}
    if not scales:
        return Case("Resize", IMAGE, attributes, {"sizes": np.array([1, 1, 7, 8])}, ("x", "", "", "sizes"))
    return Case("Resize", IMAGE, attributes, constants, ("x", "", "scales"))


def spectrum(x: Any) -> Any:
    found = np.fft.fft(x.astype(np.float64), axis=1)
    return np.stack([found.real, found.imag], -1).astype(np.float32)


def dft(length: int) -> Case:
    x = normal(1, length, 1)
    return Case("DFT", {"x": x}, {"axis": 1}, opset=17, answer=spectrum(x[..., 0]))


def recurrent(op: str, gates: int, peephole: bool = False, **attributes: Any) -> Case:
    """Two sequences of two steps: with other numbers the reference fails on layout 1."""
    constants: dict[str, Any] = {"w": normal(1, gates * 3, 4), "r": normal(1, gates * 3, 3)}
    inputs = ["x", "w", "r"]
    if peephole:
        constants["p"] = normal(1, 9)
        inputs += ["", "", "", "", "p"]
    x = normal(2, 2, 4)
    return Case(op, {"x": x}, {"hidden_size": 3, **attributes}, constants, tuple(inputs), opset=14)


def forgetful() -> Case:
    """One LSTM step from a given state, where the forget gate is one less the input gate."""
    case = recurrent("LSTM", 4, input_forget=1)
    x, w, r = case.feeds["x"][:1], case.constants["w"][0], case.constants["r"][0]
    state, cell = normal(1, 2, 3), normal(1, 2, 3)
    i, o, _, c = np.split(x[0] @ w.T + state[0] @ r.T, 4, -1)
    i, o = 1 / (1 + np.exp(-i)), 1 / (1 + np.exp(-o))
    answer = (o * np.tanh((1 - i) * cell[0] + i * np.tanh(c)))[None, None]
    constants = {**case.constants, "h": state, "c": cell}
    return replace(case, feeds={"x": x}, constants=constants, inputs=("x", "w", "r", "", "", "h", "c"), answer=answer)


def quantized(first: str, second: str) -> Case:
    """A product of which no element saturates."""
    zeros = {"int8": 0, "uint8": 128}
    a = rng.integers(np.iinfo(first).min, np.iinfo(first).max, (8, 16)).astype(first)
    b = rng.integers(np.iinfo(second).min, np.iinfo(second).max, (16, 8)).astype(second)
    product = (a.astype(int) - zeros[first]) @ (b.astype(int) - zeros[second])
    scale = np.float32(100 / np.abs(product).max())
    constants = {
        "as": np.float32(1), "az": np.array(zeros[first], first), "bs": scale, "bz": np.array(zeros[second], second),
        "ys": np.float32(1), "yz": np.array(zeros[first], first),
    }  # fmt: skip
    inputs = ("a", "as", "az", "b", "bs", "bz", "ys", "yz")
    return Case("QLinearMatMul", {"a": a, "b": b}, {}, constants, inputs, 10)


def narrow(kind: int, **attributes: int) -> Case:
    back = h.make_node("Cast", ["y"], ["z"], to=T.FLOAT)
    return Case("Cast", {"x": np.array([0.5, 1e6], np.float32)}, {"to": kind, **attributes}, then=back)


def tile(rank: int, fed: bool) -> Case:
    x, repeats = normal(*range(2, 2 + rank)), np.array([2] * rank)
    answer = np.tile(x, [2] * rank)
    if fed:
        return Case("Tile", {"x": x, "n": repeats}, answer=answer)
    return Case("Tile", {"x": x}, constants={"n": repeats}, answer=answer)


def empty(op: str, extent: int) -> Case:
    return Case(op, {"x": normal(2, extent, 3)}, {"keepdims": 0}, {"axes": np.array([1])}, opset=20)


def align(mode: str) -> Case:
    constants = {"rois": np.array([[0, 0, 9, 9]], np.float32), "batch": np.array([0])}
    attributes = {"mode": mode, "output_height": 3, "output_width": 3, "sampling_ratio": 2}
    return Case("RoiAlign", {"x": normal(1, 1, 10, 10)}, attributes, constants, opset=16)


def steps() -> Any:
    return np.array([0, 2, -3, -2.5, 1.34, 0.5], np.float32)


def softmax(*shape: int, opset: int = 11, **attributes: int) -> Case:
    """As before opset 13: over all axes from `axis` on, as one."""
    x = normal(*shape)
    rows = np.exp(x.reshape(int(np.prod(shape[: attributes.get("axis", 1) % len(shape)])), -1))
    return Case("Softmax", {"x": x}, attributes, opset=opset, answer=(rows / rows.sum(1, keepdims=True)).reshape(shape))


WRONG = {
    "softmax-before-13": [
        softmax(2, 3, 4),
        softmax(2, 3, 4, axis=-2, opset=12),
        softmax(2, 3, axis=0),
        softmax(2, 3, axis=-2, opset=12),
    ],
    "averagepool-ceil-counts-pad": [pool("AveragePool", 2, 2, count_include_pad=1)],
    "maxpool-late-window": [pool("MaxPool", 1, 2, 4), pool("MaxPool", 2, 3, 3)],
    "cast-float8-saturate": [narrow(T.FLOAT8E4M3FN), narrow(T.FLOAT8E5M2, saturate=1)],
    "dft-axis-input": [
        Case("DFT", {"x": normal(1, 8, 4, 1)}, {}, {"axis": np.array(2)}, ("x", "", "axis"), 20),
        Case("DFT", {"x": normal(1, 8, 4, 1)}, opset=20),
    ],
    "dft-odd-length": [dft(1000), dft(500)],
    "dynamicquantizelinear-reciprocal": [
        Case("DynamicQuantizeLinear", {"x": steps()}, answer=np.array([153, 255, 0, 26, 221, 179], np.uint8))
    ],
    "lstm-peepholes": [recurrent("LSTM", 4, peephole=True)],
    "lstm-input-forget": [forgetful()],
    "recurrent-batchwise": [
        recurrent("RNN", 1, layout=1),
        recurrent("GRU", 3, layout=1),
        recurrent("LSTM", 4, layout=1),
    ],
    "qlinearmatmul-int8": [quantized("int8", "int8")],
    "reduce-nothing": [empty("ReduceMax", 0), empty("ReduceMin", 0)],
    "resize-aspect-ratio": [
        resize(False, mode="nearest", keep_aspect_ratio_policy=policy) for policy in ("not_larger", "not_smaller")
    ],
    "resize-antialias": [resize(mode=mode, antialias=1) for mode in ("linear", "cubic")],
    "resize-exclude-outside": [resize(mode="cubic", exclude_outside=1)],
    "roialign-max": [align("max")],
    "tile-fed-repeats": [tile(4, True), tile(5, True)],
}
RIGHT_WITH = {"qlinearmatmul-int8": "avx512_vnni"}
"""What of the CPU takes OpenVINO another way, which is right; the defect is listed for all, since a plan may travel."""
RELATED = {
    "softmax of opset 9": softmax(2, 3, 4, opset=9),
    "softmax over the last axis": softmax(2, 3, 4, axis=-1),
    "softmax of a matrix": softmax(2, 3),
    "averagepool that does not count pads": pool("AveragePool", 2, 2),
    "maxpool that rounds up": pool("MaxPool", 3, 2, 6),
    "cast that does not saturate": narrow(T.FLOAT8E4M3FN, saturate=0),
    "dft of 1024": dft(1024),
    "lstm": recurrent("LSTM", 4),
    "gru": recurrent("GRU", 3),
    "qlinearmatmul of uint8": quantized("uint8", "uint8"),
    "qlinearmatmul of uint8 and int8": quantized("uint8", "int8"),
    "reduction of something": empty("ReduceMax", 2),
    "sum of nothing": empty("ReduceSum", 0),
    "resize to sizes": resize(False, mode="nearest", keep_aspect_ratio_policy="stretch"),
    "resize by scales": resize(mode="cubic"),
    "roialign": align("avg"),
    "tile of rank 3": tile(3, True),
    "tile by a constant": tile(4, False),
}


def adapter_of() -> CpuOpenVino:
    config = HardwareConfig.load({"hardware": "cpu", "backend": "openvino"})
    return CpuOpenVino(ResolvedConfig(config, CpuOptions(), 1), None)


def model_of(content: Any, folder: Path) -> Model:
    path = folder / "model.onnx"
    onnx.save(content, path)
    return Model("onnx", {"model": path}, "test", OnnxFormat().read({"model": path}))


def defects_of(case: Case, folder: Path) -> dict[str, tuple[int, ...]]:
    found = adapter_of().known_defects(model_of(case.model(), folder))
    return {remedy.name: remedy.nodes for remedy in found if remedy.applied and remedy.name != "openvino-32-bit"}


def test_every_entry_is_tried() -> None:
    assert set(WRONG) == {defect.name for defect in load("paddock_openvino")}


@pytest.mark.parametrize(("name", "case"), [(name, case) for name, cases in WRONG.items() for case in cases])
def test_what_is_listed_is_still_wrong_and_kept_off(name: str, case: Case, tmp_path: Path) -> None:
    if RIGHT_WITH.get(name) not in cpu()[1]:
        assert not case.is_right()
    assert defects_of(case, tmp_path).get(name) == (0,)


@pytest.mark.parametrize("name", RELATED)
def test_related_forms_are_right_and_taken(name: str, tmp_path: Path) -> None:
    assert RELATED[name].is_right()
    assert defects_of(RELATED[name], tmp_path) == {}


# What OpenVINO drops, so that an output is an input.


@pytest.mark.parametrize(
    ("node", "opset"),
    [
        (h.make_node("Dropout", ["x"], ["y"]), 12),
        (h.make_node("Max", ["x"], ["y"]), 13),
        (h.make_node("Sum", ["x"], ["y"]), 13),
        (h.make_node("Identity", ["x"], ["y"]), 13),
    ],
)
def test_an_output_that_is_an_input_keeps_both_names(node: Any, opset: int, tmp_path: Path) -> None:
    more = h.make_node("Add", ["y", "b"], ["z"])
    graph = h.make_graph(
        [node, more],
        "graph",
        [h.make_tensor_value_info(name, T.FLOAT, ["N"]) for name in ("b", "x")],
        [h.make_tensor_value_info(name, T.FLOAT, ["N"]) for name in ("y", "z")],
    )
    content = h.make_model(graph, opset_imports=[h.make_opsetid("", opset)], ir_version=9)
    model, adapter, context = model_of(content, tmp_path), adapter_of(), Context(tmp_path, tmp_path)
    graph_ = model.graph
    segment = Segment(0, adapter.name(), tuple(range(len(graph_.nodes))), graph_.inputs, graph_.outputs)
    plan = SegmentPlan(
        segment,
        PrecisionPlan(Precision.FP32),
        SegmentMemory(),
        verdicts=adapter.select_operators(model, context).verdicts,
    )
    session = adapter.load(adapter.compile(model, plan, context), context)
    for size in (3, 5):
        x, b = normal(size), normal(size)
        got = session.run({"b": b, "x": x})
        assert np.array_equal(got["y"], x) and np.array_equal(got["z"], x + b)
