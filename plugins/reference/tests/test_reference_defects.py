"""defects.json of cpu/reference: each entry is still true of the onnx installed, and no wider than it must be.

A test that fails here because the numbers are right is good news: the entry's `versions` need an end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx.backend.test.loader import load_model_tests
from onnx.reference import ReferenceEvaluator
from paddock.config import HardwareConfig
from paddock.defects import load
from paddock.model import Model
from paddock.onnx_format import OnnxFormat
from paddock.spi import Context, NoOptions, ResolvedConfig
from paddock_reference.adapter import ReferenceAdapter

rng = np.random.default_rng(0)


def normal(*shape: int) -> Any:
    return rng.standard_normal(shape).astype(np.float32)


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def relu(x: Any) -> Any:
    return np.maximum(x, 0)


@dataclass(frozen=True)
class Case:
    """One operator with what is fed to it, and the standard's first output."""

    op: str
    feeds: Mapping[str, Any]
    answer: Any
    attributes: Mapping[str, Any] = field(default_factory=dict)
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ("y",)
    opset: int = 19

    def model(self) -> onnx.ModelProto:
        node = helper.make_node(self.op, list(self.inputs or self.feeds), list(self.outputs), **self.attributes)
        kinds = {name: helper.np_dtype_to_tensor_dtype(np.asarray(array).dtype) for name, array in self.feeds.items()}
        answer = helper.np_dtype_to_tensor_dtype(np.asarray(self.answer).dtype)
        graph = helper.make_graph(
            [node],
            "graph",
            [helper.make_tensor_value_info(name, kinds[name], np.shape(self.feeds[name])) for name in self.feeds],
            [
                helper.make_tensor_value_info(name, TensorProto.INT64 if name == "at" else answer, None)
                for name in self.outputs
            ],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=9)

    def is_right(self) -> bool:
        """Whether the evaluator itself, without Paddock, gives the answer."""
        return is_right(self.model(), self.feeds, self.answer)


def is_right(model: onnx.ModelProto, feeds: Mapping[str, Any], answer: Any) -> bool:
    try:
        got = ReferenceEvaluator(model).run(None, dict(feeds))[0]
    except Exception:  # it raises whatever NumPy and Python raise
        return False
    if got.dtype != answer.dtype and answer.dtype.kind != "f":
        return False
    return got.shape == answer.shape and np.allclose(got, answer, rtol=1e-5, atol=1e-6)


def lstm(
    f: Callable[[Any], Any] = sigmoid, clip: float = 0, forget: bool = False, outputs: int = 1, **attributes: Any
) -> Case:
    """Two steps of an LSTM for two sequences."""
    x, w, r = normal(2, 2, 4), normal(1, 12, 4), normal(1, 12, 3)
    state, cell, steps = np.zeros((2, 3), np.float32), np.zeros((2, 3), np.float32), []
    for step in x:
        gates = step @ w[0].T + state @ r[0].T
        gates = np.clip(gates, -clip, clip) if clip else gates
        i, o, forgets, c = np.split(gates, 4, -1)
        i, o = f(i), f(o)
        forgets = 1 - i if forget else f(forgets)
        cell = forgets * cell + i * np.tanh(c)
        state = o * np.tanh(cell)
        steps.append(state)
    names = ("y", "last", "cell")[:outputs]
    attributes = {"hidden_size": 3, **attributes, **({"clip": clip} if clip else {})}
    return Case("LSTM", {"x": x, "w": w, "r": r}, np.stack(steps)[:, None], attributes, outputs=names, opset=14)


def rnn(direction: str = "forward", lengths: tuple[int, ...] = ()) -> Case:
    """Three steps for two sequences; where there are lengths, the rest is nothing."""
    x, w, r = normal(3, 2, 4), normal(2, 5, 4), normal(2, 5, 5)
    found = []
    for which, back in enumerate({"forward": [False], "reverse": [True], "bidirectional": [False, True]}[direction]):
        state, steps = np.zeros((2, 5), np.float32), np.zeros((3, 2, 5), np.float32)
        for at in (2, 1, 0) if back else (0, 1, 2):
            state = np.tanh(x[at] @ w[which].T + state @ r[which].T)
            steps[at] = state
        found.append(steps)
    answer = np.stack(found, 1)
    for sequence, length in enumerate(lengths):
        answer[length:, :, sequence] = 0
    feeds = {"x": x, "w": w[: len(found)], "r": r[: len(found)]}
    inputs: tuple[str, ...] = ("x", "w", "r")
    if lengths:
        feeds["lengths"], inputs = np.array(lengths, np.int32), (*inputs, "", "lengths")
    return Case("RNN", feeds, answer, {"hidden_size": 5, "direction": direction}, inputs, opset=14)


def product(scale: float) -> Case:
    a, b = np.array([[100, 50]], np.int8), np.array([[100], [100]], np.int8)
    answer = np.clip(np.rint(15000 * scale), -128, 127).astype(np.int8).reshape(1, 1)
    feeds = {
        "a": a, "as": np.float32(scale), "az": np.int8(0), "b": b, "bs": np.float32(1), "bz": np.int8(0),
        "ys": np.float32(1), "yz": np.int8(0),
    }  # fmt: skip
    return Case("QLinearMatMul", feeds, answer, opset=10)


def pool(op: str, kernel: int, stride: int, answer: list[float]) -> Case:
    x = np.array([[[1, 3, 5, 7]]], np.float32)
    attributes = {"kernel_shape": [kernel], "strides": [stride], "ceil_mode": 1}
    return Case(op, {"x": x}, np.array([[answer]], np.float32), attributes)


def batchnorm(opset: int, **attributes: Any) -> Case:
    x = normal(2, 3, 4, 4)
    feeds = {"x": x, **{name: 0.1 + rng.random(3).astype(np.float32) for name in ("scale", "bias", "mean", "var")}}
    scale, bias, mean, var = (feeds[name].reshape(1, 3, 1, 1) for name in ("scale", "bias", "mean", "var"))
    answer = (scale * (x - mean) / np.sqrt(var + 1e-5) + bias).astype(np.float32)
    return Case("BatchNormalization", feeds, answer, attributes, opset=opset)


def lrn(rows: int) -> Case:
    """Four channels, each divided by what it and its neighbours are."""
    x = normal(rows, 4, 2, 2)
    squares = np.pad(x**2, [(0, 0), (1, 1), (0, 0), (0, 0)])
    sums = squares[:, :-2] + squares[:, 1:-1] + squares[:, 2:]
    answer = (x / (1 + 3 / 3 * sums) ** 0.75).astype(np.float32)
    return Case("LRN", {"x": x}, answer, {"size": 3, "alpha": 3.0})


def softmax(op: str, *shape: int, opset: int = 9, **attributes: int) -> Case:
    """As before opset 13: over all axes from `axis` on, as one."""
    x = normal(*shape)
    rows = x.reshape(int(np.prod(shape[: attributes.get("axis", 1) % len(shape)])), -1)
    shares = np.exp(rows) / np.exp(rows).sum(1, keepdims=True)
    largest = np.eye(rows.shape[1], dtype=np.float32)[rows.argmax(1)]
    answer = {"Softmax": shares, "LogSoftmax": np.log(shares), "Hardmax": largest}[op]
    return Case(op, {"x": x}, answer.reshape(shape), attributes, opset=opset)


def corners(**sizes: Any) -> Case:
    """Four elements to two, the corners of the four."""
    feeds = {"x": np.array([[1, 2, 3, 4]], np.float32), **sizes}
    inputs = ("x", "", "scales") if "scales" in sizes else ("x", "", "", "sizes")
    attributes = {"mode": "linear", "coordinate_transformation_mode": "align_corners"}
    return Case("Resize", feeds, np.array([[1, 4]], np.float32), attributes, inputs)


def one(op: str, x: Any, answer: Any, *more: Any, opset: int = 19, skip: int = 0, **attributes: Any) -> Case:
    """A node fed with x and `more`, of which the first `skip` inputs after x are left out."""
    arrays = [np.asarray(array) for array in (answer, x, *more)]
    answer, x, *more_ = (array.astype(np.float32) if array.dtype == np.float64 else array for array in arrays)
    feeds = {"x": x, **{f"i{at}": array for at, array in enumerate(more_)}}
    names = ("x", *[""] * skip, *list(feeds)[1:])
    outputs = ("y", "at") if op == "TopK" else ("y",)
    return Case(op, feeds, answer, attributes, names, outputs, opset)


def row(*numbers: float) -> Any:
    return np.array([[numbers]], np.float32)


def loop(conditioned: bool) -> Case:
    """Three times plus one."""
    body = helper.make_graph(
        [helper.make_node("Add", ["a", "x"], ["b"]), helper.make_node("Identity", ["go"], ["on"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("a", TensorProto.FLOAT, [1]),
        ],
        [helper.make_tensor_value_info("on", TensorProto.BOOL, []), helper.make_tensor_value_info("b", 1, [1])],
    )
    feeds = {"n": np.array(3), "go_": np.array(True), "x": np.ones(1, np.float32)}
    names = ("n", "go_" if conditioned else "", "x")
    return Case("Loop", feeds, np.full(1, 4, np.float32), {"body": body}, names)


def convolved(op: str, edges: tuple[int, int], stride: int = 1, **attributes: Any) -> Case:
    """Nine elements, three at a time."""
    x = np.arange(1, 10)
    padded = np.pad(x, edges)
    answer = [padded[at : at + 3] @ [1, 2, 3] for at in range(0, len(padded) - 2, stride)]
    kind, result = (np.uint8, np.int32) if op == "ConvInteger" else (np.float32, np.float32)
    w = np.array([[[1, 2, 3]]], kind)
    given = {**attributes, **({"strides": [stride]} if stride != 1 else {})}
    return one(op, x.reshape(1, 1, 9).astype(kind), np.array([[answer]], result), w, **given)


def crop(scale: float) -> Case:
    """The corners of the whole, as one region."""
    region, scales = np.array([0, 1], np.float32), np.array([scale], np.float32)
    attributes: dict[str, Any] = {"mode": "linear", "coordinate_transformation_mode": "tf_crop_and_resize"}
    return one("Resize", np.arange(5, dtype=np.float32), np.array([0, 4], np.float32), region, scales, **attributes)


CEIL: dict[str, Any] = {"ceil_mode": 1, "kernel_shape": [3], "strides": [3]}
UP: dict[str, Any] = {"auto_pad": "SAME_UPPER"}
NO_AXES = np.zeros(0, np.int64)

WRONG = {
    "loop-without-condition": [loop(False)],
    "conv-auto-pad": [
        convolved("Conv", (0, 0), auto_pad="VALID"),
        convolved("ConvInteger", (0, 0), auto_pad="VALID"),
        convolved("Conv", (0, 0), 3, auto_pad="SAME_UPPER"),
    ],
    "convtranspose-groups": [
        one("ConvTranspose", [[[1.0], [2.0]]], [[[11.0], [22.0]]], np.ones((2, 1, 1)), [10.0, 20.0], group=2),
        one("ConvTranspose", np.ones((1, 4, 1)), np.full((1, 4, 1), 2.0), np.ones((4, 2, 1)), group=2),
    ],
    "convtranspose-output-shape": [
        one("ConvTranspose", row(1, 2), row(1, 3, 2), np.ones((1, 1, 3), np.float32), strides=[1], output_shape=[3])
    ],
    "maxpool-same-lower": [
        one("MaxPool", row(*range(9)), row(1, 3, 5, 7, 8), kernel_shape=[3], strides=[2], auto_pad="SAME_LOWER")
    ],
    "pool-auto-pad-dilated": [
        one("AveragePool", row(*range(9)), row(2, 3, 4, 5, 6), kernel_shape=[3], dilations=[2], auto_pad="VALID")
    ],
    "pool-ceil-shifts": [one("AveragePool", row(1, 2, 3, 9), row(2, 9), **CEIL)],
    "globalmaxpool-rank": [one("GlobalMaxPool", row(1, 2), row(2))],
    "scatterelements-mul": [
        one("ScatterElements", [5.0, 1.0], [30.0, 1.0], [0, 0], [2.0, 3.0], reduction="mul"),
        one("ScatterElements", [[[[[5.0]]]]], [[[[[2.0]]]]], [[[[[0]]]]], [[[[[2.0]]]]]),
    ],
    "lpnormalization-signs": [one("LpNormalization", [1.0, -3.0], [0.25, -0.75], p=1)],
    "reduce-nothing-to-do": [
        one(f"Reduce{name}", [[1.0, 2.0]], [[1.0, 2.0]], NO_AXES, noop_with_empty_axes=1) for name in ("Max", "Mean")
    ],
    "integer-sums": [
        one("CumSum", np.ones(2, np.int32), np.array([1, 2], np.int32), np.array(0)),
        one("ReduceSumSquare", np.ones(2, np.int32), np.array([2], np.int32)),
        one("ReduceLogSum", np.ones(1, np.int64), np.zeros(1, np.int64)),
        one("ReduceLogSumExp", np.ones(1, np.int64), np.ones(1, np.int64)),
    ],
    "topk-unsigned": [
        one("TopK", np.array([[0, 1, 2]], np.uint8), np.array([[2]], np.uint8), [1]),
        one("TopK", row(0, 1, 2), row(2), [1], sorted=0),
    ],
    "rnn-before-14": [replace(rnn(), opset=7)],
    "roialign-before-16": [
        one(
            "RoiAlign",
            np.arange(4.0, dtype=np.float32).reshape(1, 1, 2, 2),
            np.full((1, 1, 1, 1), 1.5, np.float32),
            np.array([[0, 0, 1, 1]], np.float32),
            [0],
            opset=10,
            sampling_ratio=1,
        )
    ],
    "unique-places": [
        one("Unique", [[2.0, 1.0, 1.0], [0.0, 5.0, 1.0]], [[2.0, 1.0, 1.0], [0.0, 5.0, 1.0]], axis=1, sorted=0)
    ],
    "not-implemented-forms": [
        one("Upsample", row(1, 2), row(1, 1, 2, 2), opset=7, scales=[1.0, 1.0, 2.0]),
        one("Upsample", row(1), row(1, 1), np.array([1, 1, 2], np.float32), opset=9, mode="linear"),
        one("Resize", row(1), row(1, 1), np.array([1, 1, 2], np.float32), opset=10),
        one("GridSample", [[[[1.0]]]], [[[[1.0]]]], [[[[0.0, 0.0]]]], opset=16, mode="bilinear"),
        one("LayerNormalization", [[1.0, 3.0]], [[-1.0, 1.0]], [1.0, 1.0], stash_type=0),
    ],
    "resize-fractional-crop": [crop(0.5)],
    "recurrent-direction": [rnn("reverse"), rnn("bidirectional")],
    "recurrent-lengths": [rnn(lengths=(3, 1))],
    "recurrent-settings": [
        lstm(clip=0.1),
        lstm(f=relu, activations=["Relu", "Tanh", "Tanh"]),
        lstm(forget=True, input_forget=1),
    ],
    "lstm-cell": [lstm(outputs=3)],
    "qlinearmatmul-wraps": [product(1.0)],
    "batchnorm-before-14": [batchnorm(9), batchnorm(13, momentum=0.5), batchnorm(8)],
    "lrn-channels": [lrn(1), lrn(3), lrn(5)],
    "softmax-before-13": [
        softmax("Softmax", 1, 5, 1, 1),
        softmax("Softmax", 2, 3, 4, axis=1, opset=12),
        softmax("Softmax", 2, 3, axis=0),
        softmax("Softmax", 2, 3, axis=-2, opset=11),
        softmax("LogSoftmax", 2, 3, 4),
        softmax("Hardmax", 2, 3, 4, axis=0),
    ],
    "pool-late-window": [pool("AveragePool", 1, 2, [1, 5]), pool("LpPool", 1, 2, [1, 5])],
    "hard-sigmoid-widened": [
        one("HardSigmoid", np.array([1, -4], np.float16), np.array([0.7, 0], np.float16)),
        one("HardSwish", np.array([3, -4], np.float16), np.array([3, 0], np.float16)),
    ],
    "resize-fractional-corners": [corners(scales=np.array([1, 0.6], np.float32))],
}
RELATED = {
    "loop with a condition": loop(True),
    "conv without pads": convolved("Conv", (0, 0)),
    "conv with pads and a stride": convolved("Conv", (1, 1), 2, pads=[1, 1]),
    "conv to the same extent": convolved("Conv", (1, 1), auto_pad="SAME_UPPER"),
    "convtranspose": one("ConvTranspose", row(1, 2), row(1, 3, 3, 2), np.ones((1, 1, 3), np.float32)),
    "maxpool upwards": one("MaxPool", row(*range(9)), row(1, 3, 5, 7, 8), kernel_shape=[3], strides=[2], **UP),
    "maxpool with a stride": one(
        "MaxPool", row(*range(9)), row(1, 3, 5, 7, 8), kernel_shape=[3], strides=[2], pads=[1, 1]
    ),
    "globalmaxpool of an image": one("GlobalMaxPool", [row(1, 2)], [row(2)]),
    "scatterelements": one("ScatterElements", [5.0, 1.0], [10.0, 1.0], [0, 0], [2.0, 3.0], reduction="add"),
    "lpnormalization": one("LpNormalization", [3.0, -4.0], [0.6, -0.8]),
    "reduction of all": one("ReduceMax", [1.0, 2.0], [2.0]),
    "cumsum": one("CumSum", [1.0, 2.0], [1.0, 3.0], np.array(0)),
    "topk": one("TopK", row(0, 1, 2), row(2), [1]),
    "rnn": rnn(),
    "lstm": lstm(outputs=2),
    "lstm with its own activations": lstm(activations=["Sigmoid", "Tanh", "Tanh"]),
    "batchnorm from 14 on": batchnorm(14),
    "batchnorm that keeps its statistics": batchnorm(9, momentum=1.0),
    "batchnorm for inference": batchnorm(6, is_test=1),
    "softmax of a matrix": softmax("Softmax", 2, 3),
    "softmax over the last axis": softmax("Softmax", 2, 3, 4, axis=-1, opset=11),
    "softmax from 13 on": softmax("Softmax", 2, 3, 4, axis=-1, opset=13),
    "logsoftmax of a matrix": softmax("LogSoftmax", 2, 3, axis=1),
    "averagepool that rounds up": pool("AveragePool", 3, 2, [3, 6]),
    "maxpool with a late window": pool("MaxPool", 1, 2, [1, 5]),
    "hardswish": one("HardSwish", [3.0, -4.0], [3.0, 0.0]),
    "resize to sizes": corners(sizes=np.array([1, 2])),
}


def adapter() -> ReferenceAdapter:
    config = HardwareConfig.load({"hardware": "cpu", "backend": "reference"})
    return ReferenceAdapter(ResolvedConfig(config, NoOptions(), threads=1), None)


def defects_of(path: Path) -> dict[str, tuple[int, ...]]:
    model = Model("onnx", {"model": path}, "test", OnnxFormat().read({"model": path}))
    return {remedy.name: remedy.nodes for remedy in adapter().known_defects(model) if remedy.applied}


def saved(case: Case, folder: Path) -> Path:
    onnx.save(case.model(), folder / "model.onnx")
    return folder / "model.onnx"


NODE_TESTS = {"adam-several": "test_adam_multiple", "scan-before-9": "test_scan_sum"}
"""Entries for which ONNX's own case is the smallest model."""


def test_every_entry_is_tried() -> None:
    assert {*WRONG, *NODE_TESTS} == {defect.name for defect in load("paddock_reference")}


@pytest.mark.parametrize(("name", "case"), [(name, case) for name, cases in WRONG.items() for case in cases])
def test_what_is_listed_is_still_wrong_and_kept_off(name: str, case: Case, tmp_path: Path) -> None:
    assert not case.is_right()
    assert defects_of(saved(case, tmp_path)) == {name: (0,)}


@pytest.mark.parametrize("name", NODE_TESTS)
def test_the_standards_own_case_is_still_wrong_and_kept_off(name: str) -> None:
    folder = next(Path(c.model_dir) for c in load_model_tests(kind="node") if c.name == NODE_TESTS[name])
    model = onnx.load(folder / "model.onnx")
    data = folder / "test_data_set_0"
    tensors = {
        path.stem: onnx.numpy_helper.to_array(TensorProto.FromString(path.read_bytes())) for path in data.glob("*.pb")
    }
    feeds = {value.name: tensors[f"input_{i}"] for i, value in enumerate(model.graph.input) if value.name}
    assert not is_right(model, feeds, tensors["output_0"])
    assert defects_of(folder / "model.onnx") == {name: (0,)}


@pytest.mark.parametrize("name", RELATED)
def test_related_forms_are_right_and_taken(name: str, tmp_path: Path) -> None:
    assert RELATED[name].is_right()
    assert defects_of(saved(RELATED[name], tmp_path)) == {}


def test_a_function_that_runs_a_listed_operator_is_refused(tmp_path: Path) -> None:
    """The graph shows the call alone, so that no pattern can look into it."""
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("me", 1)]
    body = [helper.make_node("LpPool", ["a"], ["b"], kernel_shape=[2])]
    function = helper.make_function("me", "F", ["a"], ["b"], body, opsets)
    graph = helper.make_graph(
        [helper.make_node("F", ["x"], ["y"], domain="me")],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, 3])],
    )
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8, functions=[function]), path)
    model = Model("onnx", {"model": path}, "test", OnnxFormat().read({"model": path}))
    (verdict,) = adapter().select_operators(model, Context(tmp_path, tmp_path)).verdicts
    assert not verdict.usable and "LpPool" in verdict.reason
