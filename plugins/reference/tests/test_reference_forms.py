"""Forms of everyday operators: where cpu/reference and onnxruntime both take one, they agree on it.

ONNX's node tests try one or two forms of an operator. What either is known to get wrong has been refused by then.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator
from paddock.config import HardwareConfig
from paddock.model import Model
from paddock.onnx_format import OnnxFormat
from paddock.spi import Adapter, Context, NoOptions, ResolvedConfig
from paddock_reference.adapter import ReferenceAdapter

ort = pytest.importorskip("onnxruntime")
onnxruntime_adapter = pytest.importorskip("paddock_onnxruntime.adapter")


@dataclass(frozen=True)
class Form:
    """One node with what is fed to it; None stands for an input left out."""

    op: str
    feeds: tuple[Any, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    opset: int = 17
    outputs: int = 1

    def __str__(self) -> str:
        return f"{self.op}-{self.opset} {dict(self.attributes)} {[np.shape(x) for x in self.feeds if x is not None]}"


def forms() -> Iterator[Form]:
    """All of them, from one seed."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> Any:
        return rng.standard_normal(shape).astype(np.float32)

    pads: list[dict[str, Any]] = [{}, *({"auto_pad": kind} for kind in ("SAME_UPPER", "SAME_LOWER", "VALID"))]
    for extents, kernel in (((9,), (3,)), ((6, 7), (3, 2))):
        n, x = len(extents), normal(1, 4, *extents)
        for stride, dilation, pad in itertools.product((1, 2, 3), (1, 2), (*pads, {"pads": [1] * 2 * n})):
            steps = {"strides": [stride] * n, "dilations": [dilation] * n, **pad}
            for group in (1, 2):
                yield Form("Conv", (x, normal(4, 4 // group, *kernel), normal(4)), {**steps, "group": group})
                yield Form("ConvTranspose", (x, normal(4, 2, *kernel)), {**steps, "group": group})
            for op, up in itertools.product(("MaxPool", "AveragePool", "LpPool"), (0, 1)):
                if not (up and pad.get("auto_pad")):
                    yield Form(op, (x,), {**steps, "kernel_shape": list(kernel), "ceil_mode": up}, 19)
            yield Form("MaxPool", (x,), {**steps, "kernel_shape": list(kernel)}, 12, 2)
    for opset in (7, 9, 11, 13, 17):
        for shape in ((2, 3), (2, 3, 4), (1, 3, 2, 2)):
            for op, axis in itertools.product(("Softmax", "LogSoftmax", "Hardmax"), (None, 0, 1, -1)):
                if opset > 9 or axis != -1:
                    yield Form(op, (normal(*shape),), {} if axis is None else {"axis": axis}, opset)
            statistics = (normal(3), normal(3), normal(3), np.abs(normal(3)) + 1)
            yield Form("BatchNormalization", (normal(*shape), *statistics), {"epsilon": 0.1}, opset)
        yield Form("LRN", (normal(2, 3, 4, 4),), {"size": 3}, opset)
        yield Form("Gemm", (normal(4, 3), normal(2, 4), normal(2)), {"transA": 1, "transB": 1, "alpha": 0.5}, opset)
    for op, opset, keep in itertools.product(("L1", "L2", "LogSumExp", "Max", "Mean", "Prod"), (11, 18), (0, 1)):
        for axes in ([-1], [0, 2], None):
            at = () if axes is None or opset == 11 else (np.array(axes),)
            given = {"axes": axes} if axes and opset == 11 else {}
            yield Form(f"Reduce{op}", (normal(2, 3, 4), *at), {"keepdims": keep, **given}, opset)
            if opset == 18:
                yield Form(f"Reduce{op}", (normal(2, 3, 4), *at), {"noop_with_empty_axes": 1}, opset)
    for mode, coordinates in itertools.product(
        ("nearest", "linear", "cubic"), ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel")
    ):
        for extents in ((10, 18), (3, 4), (8, 1)):
            attributes = {"mode": mode, "coordinate_transformation_mode": coordinates}
            sizes = np.array([1, 2, *extents])
            yield Form("Resize", (normal(1, 2, 5, 6), None, None, sizes), attributes, 13)
    for axis, reduction in itertools.product((0, 1, -1), ("none", "add", "mul", "min", "max")):
        where = rng.permutation(2).reshape(1, 2) if axis else np.array([[1, 2], [0, 1]])
        yield Form(
            "ScatterElements", (normal(3, 5), where, normal(*where.shape)), {"axis": axis, "reduction": reduction}, 18
        )
        yield Form("ScatterND", (normal(3, 5), np.array([[1, -1]]), normal(1)), {"reduction": reduction}, 18)
        yield Form("Gather", (normal(3, 5), np.array([[0, -1]])), {"axis": axis}, 13)
        yield Form("GatherElements", (normal(3, 2), rng.integers(-2, 2, (3, 2))), {"axis": axis}, 13)
        yield Form("CumSum", (normal(3, 5), np.array(axis)), {"exclusive": 1, "reverse": 1}, 14)
        yield Form("TopK", (rng.permutation(15).reshape(3, 5).astype(np.uint8), np.array([2])), {"axis": axis}, 11, 2)
        yield Form("TopK", (normal(3, 5), np.array([2])), {"axis": axis, "largest": 0}, 11, 2)
        yield Form("LayerNormalization", (normal(3, 5), normal(*(3, 5)[axis:])), {"axis": axis})
    for op, gates in (("RNN", 1), ("GRU", 3), ("LSTM", 4)):
        for direction, opset in itertools.product(("forward", "reverse"), (7, 14)):
            weights = (normal(3, 2, 4), normal(1, gates * 5, 4), normal(1, gates * 5, 5))
            yield Form(op, weights, {"hidden_size": 5, "direction": direction}, opset, 2)
    for p in (1, 2):
        yield Form("LpNormalization", (normal(3, 4),), {"p": p})
    yield Form("GlobalMaxPool", (normal(2, 3, 4),))


def model_of(form: Form, folder: Path) -> tuple[Model, onnx.ModelProto, dict[str, Any]]:
    names = ["" if x is None else f"i{at}" for at, x in enumerate(form.feeds)]
    feeds = {name: np.asarray(x) for name, x in zip(names, form.feeds, strict=True) if x is not None}
    outputs = [f"o{at}" for at in range(form.outputs)]
    graph = helper.make_graph(
        [helper.make_node(form.op, names, outputs, **form.attributes)],
        "graph",
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
            for name, x in feeds.items()
        ],
        [helper.make_empty_tensor_value_info(name) for name in outputs],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", form.opset)], ir_version=8)
    proto = onnx.shape_inference.infer_shapes(proto)
    path = folder / "model.onnx"
    onnx.save(proto, path)
    return Model("onnx", {"model": path}, "test", OnnxFormat().read({"model": path})), proto, feeds


def takes(adapter: Adapter, model: Model, folder: Path) -> bool:
    known = any(remedy.nodes for remedy in adapter.known_defects(model))
    return not known and adapter.select_operators(model, Context(folder, folder)).verdicts[0].usable


@pytest.mark.long
def test_both_agree_on_every_form_that_both_take(tmp_path: Path) -> None:
    made: list[Adapter] = []
    for backend, kind, options in (
        ("reference", ReferenceAdapter, NoOptions()),
        ("onnxruntime", onnxruntime_adapter.CpuOnnxRuntime, onnxruntime_adapter.OnnxRuntimeOptions()),
    ):
        config = HardwareConfig.load({"hardware": "cpu", "backend": backend})
        made.append(kind(ResolvedConfig(config, options, 1), None))
    settings = ort.SessionOptions()
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    settings.log_severity_level = 4
    settings.intra_op_num_threads = 1
    tried, wrong = set(), []
    for form in forms():
        model, proto, feeds = model_of(form, tmp_path)
        if not all(takes(adapter, model, tmp_path) for adapter in made):
            continue
        session = ort.InferenceSession(proto.SerializeToString(), settings, providers=["CPUExecutionProvider"])
        try:
            wanted = session.run(None, feeds)
        except Exception:  # onnxruntime's own, of many kinds: loud, and so no wrong answer
            continue
        try:
            got = [np.asarray(result) for result in ReferenceEvaluator(proto).run(None, feeds)]
        except Exception as error:
            wrong.append(f"{form}: {error}")
            continue
        tried.add(form.op)
        same = [
            a.shape == b.shape and np.allclose(a, b, rtol=1e-3, atol=1e-5) for a, b in zip(got, wanted, strict=True)
        ]
        if not all(same):
            wrong.append(str(form))
    assert wrong == []
    assert tried >= {"Conv", "ConvTranspose", "MaxPool", "AveragePool", "Softmax", "Gemm", "Resize", "LSTM", "TopK"}
