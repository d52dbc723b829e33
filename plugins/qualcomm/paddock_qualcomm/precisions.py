"""What the HTP backend computes in, found out rather than assumed: a product in each precision, compiled and run."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paddock.plan import Precision, Verdict
from paddock_onnxruntime.named import Source

from paddock_qualcomm.asking import Compiled, build
from paddock_qualcomm.sdk import session

if TYPE_CHECKING:
    import numpy as np

SOURCE = "a product that was compiled, looked at and run"
_WIDE = 1e-5
"""The largest error of a product in float32, relative to its largest element; in float16 it is 4e-4 or more."""
_EXTENT = 64


def computed(compiled: Compiled, soc_model: int | None) -> Precision | None:
    """The narrowest precision that any product of a graph computes in; None where it has no product that tells.

    Compiled for a given chip, float32 is computed in float16 (2.7.0, whatever `enable_htp_fp16_precision` says).
    """
    if any(dtype in compiled.products for dtype in ("fixed uint8", "fixed int8")):
        return Precision.INT8
    if "float16" in compiled.products or (soc_model is not None and "float32" in compiled.products):
        return Precision.FP16
    return Precision.FP32 if "float32" in compiled.products else None


def precisions() -> dict[Precision, Verdict]:
    """A verdict for each precision that the adapter declares; imports onnxruntime and its QNN provider."""
    return {precision: _verdict(precision) for precision in (Precision.FP32, Precision.FP16, Precision.INT8)}


def _verdict(precision: Precision) -> Verdict:
    with tempfile.TemporaryDirectory(prefix="paddock-qnn-") as folder:
        context = Path(folder) / "context.onnx"
        proto, weights = _product(precision)
        found = build(Source(proto.SerializeToString(), Path(folder)), None, context)
        if isinstance(found, str):
            return Verdict.no(f"a product in {precision} does not compile: {found}", SOURCE)
        told = computed(found, None)
        if told is not precision:
            return Verdict.no(f"its graph computes a product in {told or 'nothing that it tells'}", SOURCE)
        error = _error(session(context), weights)
    if precision is Precision.FP32 and error > _WIDE:
        return Verdict.no(f"a product in float32 is off by {error:.1e}: it is computed in a narrower type", SOURCE)
    return Verdict.yes(f"off by {error:.1e} of the largest element", SOURCE)


def _error(made: Any, weights: np.ndarray[Any, Any]) -> float:
    """The largest error of the product of seeded random numbers, relative to the largest element."""
    import numpy as np

    fed = np.random.default_rng(1).uniform(-1, 1, (4, _EXTENT)).astype(np.float32)
    dtype = np.float16 if made.get_inputs()[0].type == "tensor(float16)" else np.float32
    expected = fed.astype(np.float64) @ weights.astype(np.float64)
    found = made.run(None, {"x": fed.astype(dtype)})[0].astype(np.float64)
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def _product(precision: Precision) -> tuple[Any, np.ndarray[Any, Any]]:
    """A model of one matrix product, and the matrix that it holds."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    weights = np.random.default_rng(0).uniform(-1, 1, (_EXTENT, _EXTENT)).astype(np.float32)
    kind = TensorProto.FLOAT16 if precision is Precision.FP16 else TensorProto.FLOAT
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    held: Mapping[str, Any] = {"w": weights.astype(np.float16 if precision is Precision.FP16 else np.float32)}
    if precision is Precision.INT8:
        nodes, held = _quantised(weights)
    border = [helper.make_tensor_value_info(name, kind, [4, _EXTENT]) for name in ("x", "y")]
    graph = helper.make_graph(
        nodes, "product", border[:1], border[1:], [numpy_helper.from_array(a, n) for n, a in held.items()]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), weights


def _quantised(weights: np.ndarray[Any, Any]) -> tuple[list[Any], dict[str, Any]]:
    """The same product between QuantizeLinear and DequantizeLinear, for operands and sums in one range each."""
    import numpy as np
    from onnx import helper

    largest = float(_EXTENT) / 3
    scales = {"xs": 2 / 255, "ws": 2 / 255, "ys": 2 * largest / 255}
    held: dict[str, Any] = {name: np.array(value, np.float32) for name, value in scales.items()}
    held["zero"] = np.array(128, np.uint8)
    held["w"] = np.clip(np.round(weights / held["ws"]) + 128, 0, 255).astype(np.uint8)
    steps = [("QuantizeLinear", "x", "xs", "xq"), ("DequantizeLinear", "xq", "xs", "xd")]
    steps += [("DequantizeLinear", "w", "ws", "wd")]
    nodes = [helper.make_node(op, [fed, scale, "zero"], [made]) for op, fed, scale, made in steps]
    nodes.append(helper.make_node("MatMul", ["xd", "wd"], ["m"]))
    for op, fed, made in (("QuantizeLinear", "m", "yq"), ("DequantizeLinear", "yq", "y")):
        nodes.append(helper.make_node(op, [fed, "ys", "zero"], [made]))
    return nodes, held
