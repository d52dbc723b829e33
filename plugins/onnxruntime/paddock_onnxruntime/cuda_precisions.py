"""What a device computes in through ONNX Runtime's CUDA provider: a product in each precision, run and compared."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paddock.plan import Precision, Verdict

from paddock_onnxruntime.cuda_session import CudaOptions, astray, placed, session
from paddock_onnxruntime.named import Source, name_nodes
from paddock_onnxruntime.nvidia import Gpu
from paddock_onnxruntime.session import short

if TYPE_CHECKING:
    import numpy as np

SOURCE = "a product that was run on the device"
SINCE = {Precision.FP16: (5, 3), Precision.BF16: (8, 0)}
"""By precision the compute capability from which a device has arithmetic in it (CUDA C++ Programming Guide)."""
ALLOWED: Mapping[Precision, float] = {Precision.FP32: 1e-5, Precision.FP16: 4e-3, Precision.BF16: 3e-2}
"""The largest error of the product, relative to its largest element. In TF32 float32 would be off by 3e-4 and more."""
_EXTENT = 64
_TYPES = {Precision.FP32: "FLOAT", Precision.FP16: "FLOAT16", Precision.BF16: "BFLOAT16"}


def precisions(gpu: Gpu) -> dict[Precision, Verdict]:
    """A verdict for each precision that the adapter declares; imports onnxruntime and takes memory of the device."""
    return {precision: _verdict(precision, gpu) for precision in _TYPES}


def _verdict(precision: Precision, gpu: Gpu) -> Verdict:
    since = SINCE.get(precision, (0, 0))
    if gpu.capability < since:
        shown, wanted = (".".join(map(str, version)) for version in (gpu.capability, since))
        return Verdict.no(f"compute capability {shown}: {precision} needs {wanted}", "the driver")
    try:
        error = _error(precision, gpu.index)
    except Exception as raised:  # onnxruntime raises classes of its own that share only this base
        return Verdict.no(f"a product in {precision} does not run: {short(raised)}", SOURCE)
    if not error <= ALLOWED[precision]:
        return Verdict.no(f"a product in {precision} is off by {error:.1e} of the largest element", SOURCE)
    return Verdict.yes(f"off by {error:.1e} of the largest element", SOURCE)


def _error(precision: Precision, device: int) -> float:
    """The largest error of the product of seeded random numbers, relative to the largest element."""
    import numpy as np

    rng = np.random.default_rng(0)
    fed, weights = (rng.uniform(-1, 1, shape).astype(np.float32) for shape in ((4, _EXTENT), (_EXTENT, _EXTENT)))
    proto = product(precision, weights)
    name_nodes(proto)
    made = session(Source(proto.SerializeToString(), Path()), CudaOptions(), device, {})
    left = astray(placed(made), frozenset())
    if left:
        raise RuntimeError(f"it is left to the CPU: {', '.join(left.values())}")
    found = made.run(None, {"x": fed})[0].astype(np.float64)
    expected = fed.astype(np.float64) @ weights.astype(np.float64)
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def product(precision: Precision, weights: np.ndarray[Any, Any]) -> Any:
    """A model of x times `weights` in a precision, whose input and output are float32."""
    from onnx import TensorProto, helper, numpy_helper

    kind = getattr(TensorProto, _TYPES[precision])
    steps = [("x", "xn", kind), ("w", "wn", kind)]
    nodes = [helper.make_node("Cast", [fed], [made], to=to) for fed, made, to in steps]
    nodes.append(helper.make_node("MatMul", ["xn", "wn"], ["yn"]))
    nodes.append(helper.make_node("Cast", ["yn"], ["y"], to=TensorProto.FLOAT))
    border = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4, weights.shape[1]]) for name in ("x", "y")]
    border[0] = helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, weights.shape[0]])
    graph = helper.make_graph(nodes, "product", border[:1], border[1:], [numpy_helper.from_array(weights, "w")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
