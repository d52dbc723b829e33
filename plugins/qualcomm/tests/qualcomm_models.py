"""Small models for the tests of `npu/qualcomm`, made with seeded weights, and what the standard's reference answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto as T
from onnx import helper as h
from paddock.graph import Range
from paddock.model import Model
from paddock.onnx_format import OnnxFormat


def proto(
    nodes: Sequence[Any], inputs: Sequence[Any], outputs: Sequence[Any], held: Mapping[str, Any] | None = None,
    opset: int = 17,
) -> Any:  # fmt: skip
    """A model; inputs and outputs are (name, dtype, shape)."""
    graph = h.make_graph(
        nodes,
        "graph",
        [h.make_tensor_value_info(*i) for i in inputs],
        [h.make_tensor_value_info(*o) for o in outputs],
        [onnx.numpy_helper.from_array(np.asarray(w), n) for n, w in (held or {}).items()],
    )
    return h.make_model(graph, opset_imports=[h.make_opsetid("", opset)], ir_version=8)


def model_of(content: Any, folder: Path, **extents: int) -> Model:
    """The model as Paddock reads it, the symbols named in `extents` fixed."""
    path = folder / "model.onnx"
    onnx.save(content, path)
    format = OnnxFormat()
    files = format.complete({"model": path})
    graph = format.read(files).with_bounds({symbol: Range(n, n, n) for symbol, n in extents.items()})
    return Model("onnx", files, "test", graph)


def reference(content: Any, **feeds: Any) -> Any:
    """The first output by onnxruntime's CPU provider."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4
    inner = onnxruntime.InferenceSession(content.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    return inner.run(None, feeds)[0]


def conv_net(dtype: Any = np.float32) -> Any:
    """Convolutions with a branch, pooled: `x` [1, 3, 16, 16] to `y` [1, 10]."""
    rng = np.random.default_rng(0)

    def weights(*shape: int) -> Any:
        return (rng.standard_normal(shape) * (2 / np.prod(shape[1:])) ** 0.5).astype(dtype)

    nodes = [
        h.make_node("Conv", ["x", "w1", "b1"], ["c1"], pads=[1] * 4),
        h.make_node("Relu", ["c1"], ["r1"]),
        h.make_node("MaxPool", ["r1"], ["p1"], kernel_shape=[2, 2], strides=[2, 2]),
        h.make_node("Conv", ["p1", "w2", "b2"], ["c2"], pads=[1] * 4),
        h.make_node("Relu", ["c2"], ["r2"]),
        h.make_node("Conv", ["p1", "w3"], ["c3"]),
        h.make_node("Add", ["r2", "c3"], ["a"]),
        h.make_node("GlobalAveragePool", ["a"], ["g"]),
        h.make_node("Flatten", ["g"], ["f"]),
        h.make_node("Gemm", ["f", "w4", "b4"], ["y"], transB=1),
    ]
    held = {
        "w1": weights(8, 3, 3, 3),
        "b1": weights(8, 1)[:, 0],
        "w2": weights(16, 8, 3, 3),
        "b2": weights(16, 1)[:, 0],
    }
    held |= {"w3": weights(16, 8, 1, 1), "w4": weights(10, 16), "b4": weights(10, 1)[:, 0]}
    kind = T.FLOAT16 if dtype is np.float16 else T.FLOAT
    return proto(nodes, [("x", kind, [1, 3, 16, 16])], [("y", kind, [1, 10])], held)


def encoder(dtype: Any = np.float32, width: int = 32, heads: int = 4, length: int = 8) -> Any:
    """One block of a transformer's encoder: `x` [1, length, width] to `y` of the same shape."""
    rng = np.random.default_rng(0)
    nodes: list[Any] = []
    held: dict[str, Any] = {
        "split": np.array([1, length, heads, width // heads], np.int64),
        "joined": np.array([1, length, width], np.int64),
        "scale": np.array((width // heads) ** -0.5, dtype),
        **{name: np.ones(width, dtype) for name in ("g1", "g2")},
        **{name: np.zeros(width, dtype) for name in ("s1", "s2")},
    }

    def add(op: str, *fed: str, **attributes: Any) -> str:
        nodes.append(h.make_node(op, fed, [f"v{len(nodes)}"], **attributes))
        return f"v{len(nodes) - 1}"

    def dense(fed: str, rows: int, columns: int) -> str:
        name = f"w{len(held)}"
        held[name] = (rng.standard_normal((rows, columns)) * rows**-0.5).astype(dtype)
        held[f"{name}b"] = (rng.standard_normal(columns) * 0.1).astype(dtype)
        return add("Add", add("MatMul", fed, name), f"{name}b")

    normal = add("LayerNormalization", "x", "g1", "s1", axis=-1)
    parts = [add("Reshape", dense(normal, width, width), "split") for _ in range(3)]
    q, v = (add("Transpose", parts[i], perm=[0, 2, 1, 3]) for i in (0, 2))
    k = add("Transpose", parts[1], perm=[0, 2, 3, 1])
    scores = add("Softmax", add("Mul", add("MatMul", q, k), "scale"), axis=-1)
    mixed = add("Reshape", add("Transpose", add("MatMul", scores, v), perm=[0, 2, 1, 3]), "joined")
    inner = add("Add", "x", dense(mixed, width, width))
    wide = add("Relu", dense(add("LayerNormalization", inner, "g2", "s2", axis=-1), width, 4 * width))
    nodes.append(h.make_node("Add", [inner, dense(wide, 4 * width, width)], ["y"]))
    kind = T.FLOAT16 if dtype is np.float16 else T.FLOAT
    border = [(name, kind, [1, length, width]) for name in ("x", "y")]
    return proto(nodes, border[:1], border[1:], held)
