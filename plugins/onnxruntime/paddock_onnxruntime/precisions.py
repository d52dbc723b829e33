"""What ONNX Runtime's CPU provider computes in, found out rather than assumed.

float16 models load everywhere: where a kernel is missing, onnxruntime casts to float32 around the node and takes the
casts out again, so that nothing is computed in float16. Its registry tells whether there is a kernel; for int8, a small
model is run and what is left of it looked at.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from paddock.machine import cpu
from paddock.plan import Precision, Verdict

from paddock_onnxruntime.kernels import REGISTRY, registry

_INT8 = ("QLinear", "Integer", "QGemm", "QAttention")
_STORES = {Precision.FP16: "float16", Precision.BF16: "bfloat16"}


def computes_int8(kinds: Iterable[str]) -> bool:
    """Whether any of these operators of an optimised graph computes in int8."""
    return any(mark in kind for kind in kinds for mark in _INT8)


def precisions() -> dict[Precision, Verdict]:
    """A verdict for each precision, on this host; imports onnxruntime and onnx."""
    found = {Precision.FP32: Verdict.yes("every float32 kernel of onnxruntime computes in it", REGISTRY)}
    for precision, dtype in _STORES.items():
        found[precision] = _narrow(dtype, precision)
    return {**found, Precision.INT8: _int8()}


def _narrow(dtype: str, precision: Precision) -> Verdict:
    """Whether there is a matrix product in this type, without which a precision is none."""
    kernels = registry().kernels.get(("", "MatMul"), ())
    if any(dtype in types for kernel in kernels for types in kernel.types.values()):
        return Verdict.yes(f"it has a MatMul kernel for {dtype}", REGISTRY)
    what = "stores it and computes in float32" if precision is Precision.FP16 else "has no MatMul for it"
    remedy = f'"precision": "fp32" with "storage": "{precision}" halves the weights'
    return Verdict.no(f"{dtype} on this CPU: onnxruntime {what}; {remedy}", REGISTRY)


def _int8() -> Verdict:
    source = "a quantised product that was built, and looked at"
    kinds = _left_of(_product())
    if not computes_int8(kinds):
        return Verdict.no(f"a quantised matrix product is computed by {', '.join(sorted(kinds))}", source)
    flags = cpu()[1]
    fast = [flag for flag in ("amx_int8", "avx512_vnni", "avx_vnni", "i8mm") if flag in flags]
    how = f"with {fast[0]}" if fast else "without VNNI: in 16-bit products, exact and not as fast"
    return Verdict.yes(how, source)


def _left_of(proto: Any) -> set[str]:
    """The operators that are left of a model after onnxruntime's optimisation."""
    import onnx
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4
    with tempfile.TemporaryDirectory() as folder:
        settings.optimized_model_filepath = str(Path(folder) / "left.onnx")
        onnxruntime.InferenceSession(proto.SerializeToString(), settings, providers=["CPUExecutionProvider"])
        return {node.op_type for node in onnx.load(settings.optimized_model_filepath).graph.node}


def _product() -> Any:
    """A model with one quantised matrix product: DequantizeLinear of both operands, MatMul, QuantizeLinear."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    weights: Mapping[str, Any] = {
        "scale": np.array(0.02, np.float32),
        "zero": np.array(128, np.uint8),
        "w": np.arange(-32, 32, dtype=np.int8).reshape(8, 8),
        "wscale": np.array(0.01, np.float32),
        "wzero": np.array(0, np.int8),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "wscale", "wzero"], ["wd"]),
        helper.make_node("MatMul", ["d", "wd"], ["m"]),
        helper.make_node("QuantizeLinear", ["m", "scale", "zero"], ["mq"]),
        helper.make_node("DequantizeLinear", ["mq", "scale", "zero"], ["y"]),
    ]
    border = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4, 8]) for name in ("x", "y")]
    graph = helper.make_graph(
        nodes, "product", border[:1], border[1:], [numpy_helper.from_array(a, n) for n, a in weights.items()]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
