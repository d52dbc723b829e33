"""What an OpenVINO device computes in, read from what it compiled rather than from what it says it can."""

from __future__ import annotations

from typing import Any

from paddock.machine import cpu
from paddock.plan import Verdict

from paddock_openvino.sdk import core, openvino

_NARROW = frozenset({"i8", "u8"})
_PRODUCTS = ("FullyConnected", "MatMul", "Convolution", "Deconvolution", "Subgraph")
"""Kinds of executed nodes that do the work of a quantised model."""


def computes_int8(compiled: Any) -> bool:
    """Whether any product of a compiled model runs in int8, by its execution graph."""
    for op in compiled.get_runtime_model().get_ordered_ops():
        facts = op.get_rt_info()
        kind, precision = facts["layerType"].astype(str), facts["runtimePrecision"].astype(str)
        if kind in _PRODUCTS and precision in _NARROW:
            return True
    return False


def int8(device: str) -> Verdict:
    """Whether a quantised product runs in int8 on a device: one is compiled and looked at."""
    source = "the execution graph of a quantised product"
    try:
        found = computes_int8(core().compile_model(_product(), device, {"INFERENCE_PRECISION_HINT": "f32"}))
    except RuntimeError as error:
        return Verdict.no(f"it does not compile there: {str(error).splitlines()[-1]}", source)
    if not found:
        return Verdict.no("a quantised product is computed in floats", source)
    flags = cpu()[1] if device.startswith("CPU") else ()
    fast = [flag for flag in ("amx_int8", "avx512_vnni", "avx_vnni", "i8mm") if flag in flags]
    if device.startswith("CPU") and not fast:
        return Verdict.yes("without VNNI: in 16-bit products, with weights of 7 bits so that none saturates", source)
    return Verdict.yes(f"with {fast[0]}" if fast else "", source)


def _product() -> Any:
    """A convolution of a fake-quantised input and int8 weights, as a Q/DQ model comes out of the frontend."""
    import numpy as np

    opset = openvino().opset13
    rng = np.random.default_rng(0)
    fed = opset.parameter([1, 16, 8, 8], np.float32, name="x")
    low, high = (opset.constant(np.array(value, np.float32)) for value in (0.0, 2.55))
    quantised = opset.fake_quantize(fed, low, high, low, high, 256)
    stored = opset.constant(rng.integers(-63, 64, (16, 16, 3, 3)).astype(np.int8))
    weights = opset.multiply(opset.convert(stored, "f32"), opset.constant(np.full((16, 1, 1, 1), 0.01, np.float32)))
    product = opset.convolution(quantised, weights, [1, 1], [1, 1], [1, 1], [1, 1])
    return openvino().Model([opset.relu(product)], [fed], "quantised product")
