"""Whole models of the architectures that are deployed, a few KB each: seeded weights, open batch, as ONNX.

No two rows of a batch are alike, and every output depends on every input that it should: answers that were mixed up,
dropped or left over from an earlier run differ.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from paddock.testing.singles import IR, OPSET

Dims = Sequence[int | str]


class Draft:
    """A model being written: operators in order, weights drawn from one seed."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.nodes: list[Any] = []
        self.stored: list[Any] = []
        self.inputs: list[Any] = []
        self._rng = np.random.default_rng(list(name.encode()))

    def input(self, name: str, shape: Dims, dtype: str = "FLOAT") -> str:
        """Something the caller feeds."""
        from onnx import TensorProto, helper

        self.inputs.append(helper.make_tensor_value_info(name, getattr(TensorProto, dtype), list(shape)))
        return name

    def weight(self, *shape: int, scale: float | None = None) -> str:
        """Normal numbers, by default divided by the root of how many are summed."""
        fan_in = shape[0] if len(shape) == 2 else int(np.prod(shape[1:]))
        drawn = self._rng.standard_normal(shape) * (fan_in**-0.5 if scale is None else scale)
        return self.constant(drawn.astype(np.float32))

    def positive(self, *shape: int) -> str:
        """Numbers around 1."""
        return self.constant(self._rng.uniform(0.5, 1.5, shape).astype(np.float32))

    def constant(self, array: Any) -> str:
        """A constant."""
        from onnx import numpy_helper

        name = f"c{len(self.stored)}"
        self.stored.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def ints(self, *values: int) -> str:
        """An int64 vector."""
        return self.constant(np.array(values, np.int64))

    def __call__(self, op: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        """One operator; its output's name, or all of them where there are several."""
        from onnx import helper

        names = [f"v{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op, list(inputs), names, f"{op}_{len(self.nodes)}", **attributes))
        return names[0] if outputs == 1 else names

    def save(self, path: Path, **outputs: str) -> Path:
        """Writes the model with these outputs, by the names that callers know."""
        from onnx import TensorProto, checker, helper, save, shape_inference

        given = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
        renamed = {value: name for name, value in outputs.items()}
        for node in self.nodes:  # an output gets its name where it is made: no operator is there for that alone
            for names in (node.input, node.output):
                names[:] = [renamed.get(name, name) for name in names]
        graph = helper.make_graph(self.nodes, self.name, self.inputs, given, self.stored)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR)
        model = shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
        checker.check_model(model)
        save(model, path)
        return path


def mlp(path: Path) -> Path:
    """Two layers with biases and a rectifier."""
    d = Draft("mlp")
    x = d.input("x", ("batch", 16))
    hidden = d("Relu", d("Gemm", x, d.weight(16, 33), d.weight(33, scale=0.3)))
    return d.save(path, y=d("Gemm", hidden, d.weight(33, 10), d.weight(10, scale=0.3)))


def residual(path: Path) -> Path:
    """A small residual convolutional network with normalisation."""
    d = Draft("residual")
    x = d.input("image", ("batch", 3, 15, 13))
    x = d("Relu", _normed(d, d("Conv", x, d.weight(8, 3, 3, 3), pads=[1, 1, 1, 1]), 8))
    inner = d("Relu", _normed(d, d("Conv", x, d.weight(8, 8, 3, 3), pads=[1, 1, 1, 1]), 8))
    inner = _normed(d, d("Conv", inner, d.weight(8, 8, 3, 3), pads=[1, 1, 1, 1]), 8)
    x = d("MaxPool", d("Relu", d("Add", x, inner)), kernel_shape=[2, 2], strides=[2, 2])
    x = d("Flatten", d("GlobalAveragePool", x))
    return d.save(path, scores=d("Gemm", x, d.weight(8, 10), d.weight(10, scale=0.3)))


def depthwise(path: Path) -> Path:
    """Depthwise separable convolutions with strides, clipped at 6."""
    d = Draft("depthwise")
    x = d.input("image", ("batch", 3, 17, 17))
    six = (d.constant(np.float32(0)), d.constant(np.float32(6)))
    x = d("Clip", d("Conv", x, d.weight(8, 3, 3, 3), strides=[2, 2], pads=[1, 1, 1, 1]), *six)
    x = d("Clip", d("Conv", x, d.weight(8, 1, 3, 3), group=8, pads=[1, 1, 1, 1]), *six)
    x = d("Clip", d("Conv", x, d.weight(12, 8, 1, 1), d.weight(12, scale=0.2)), *six)
    return d.save(path, features=d("ReduceMean", x, axes=[2, 3], keepdims=0))


def transformer(path: Path) -> Path:
    """One encoder block: two heads of attention, normalisation, a gated product; batch and length open."""
    d = Draft("transformer")
    x = d.input("x", ("batch", "length", 16))
    heads = []
    for _ in range(3):
        made = d("Reshape", d("MatMul", x, d.weight(16, 16)), d.ints(0, 0, 2, 8))
        heads.append(d("Transpose", made, perm=[0, 2, 1, 3]))
    query, key, value = heads
    scores = d("MatMul", query, d("Transpose", key, perm=[0, 1, 3, 2]))
    weights = d("Softmax", d("Mul", scores, d.constant(np.float32(8**-0.5))), axis=-1)
    mixed = d("Transpose", d("MatMul", weights, value), perm=[0, 2, 1, 3])
    x = d("Add", x, d("MatMul", d("Reshape", mixed, d.ints(0, 0, 16)), d.weight(16, 16)))
    x = d("LayerNormalization", x, d.positive(16), d.weight(16, scale=0.1), axis=-1)
    inner = d("MatMul", x, d.weight(16, 32))
    inner = d("MatMul", d("Mul", inner, d("Sigmoid", inner)), d.weight(32, 16))
    return d.save(path, y=d("Add", x, inner))


def recurrent(path: Path) -> Path:
    """A GRU over a sequence, and a layer on its last state."""
    d = Draft("recurrent")
    x = d.input("x", (7, "batch", 6))
    parts = (d.weight(1, 24, 6), d.weight(1, 24, 8), d.weight(1, 48, scale=0.1))
    _, last = d("GRU", x, *parts, outputs=2, hidden_size=8, linear_before_reset=1)
    return d.save(path, y=d("MatMul", d("Squeeze", last, d.ints(0)), d.weight(8, 5)))


def recommender(path: Path) -> Path:
    """Two embeddings, their product and a layer: integers in, a probability out."""
    d = Draft("recommender")
    user, item = (d.input(name, ("batch",), "INT64") for name in ("user", "item"))
    one, other = (d("Gather", d.weight(n, 8, scale=1), ids, axis=0) for n, ids in ((50, user), (90, item)))
    joined = d("Concat", one, other, d("Mul", one, other), axis=1)
    hidden = d("Relu", d("Gemm", joined, d.weight(24, 16), d.weight(16, scale=0.3)))
    return d.save(path, score=d("Sigmoid", d("Gemm", hidden, d.weight(16, 1), d.weight(1, scale=0.3))))


def segmentation(path: Path) -> Path:
    """Down and up again, with the way around: a class for each pixel."""
    d = Draft("segmentation")
    x = d.input("image", ("batch", 3, 12, 16))
    fine = d("Relu", d("Conv", x, d.weight(6, 3, 3, 3), pads=[1, 1, 1, 1]))
    coarse = d("Relu", d("Conv", fine, d.weight(8, 6, 3, 3), strides=[2, 2], pads=[1, 1, 1, 1]))
    up = d("ConvTranspose", coarse, d.weight(8, 6, 2, 2), strides=[2, 2])
    both = d("Concat", fine, up, axis=1)
    return d.save(path, classes=d("Softmax", d("Conv", both, d.weight(4, 12, 1, 1)), axis=1))


def two_by_two(path: Path) -> Path:
    """Two inputs of different sizes and two outputs of one, one of which needs only one of them.

    The order of neither is the alphabet's.
    """
    d = Draft("two_by_two")
    right, left = d.input("right", ("batch", 5)), d.input("left", ("batch", 9))
    one = d("Relu", d("MatMul", left, d.weight(9, 7)))
    both = d("Add", one, d("MatMul", right, d.weight(5, 7)))
    return d.save(path, single=d("MatMul", one, d.weight(7, 7)), joined=d("Relu", both))


def wide(path: Path) -> Path:
    """Seventeen tokens a row, 130 numbers each: more than fits into one tile or register, and a multiple of neither."""
    d = Draft("wide")
    x = d.input("tokens", ("batch", 17, 130))
    hidden = d("Relu", d("Add", d.weight(37, scale=0.3), d("MatMul", x, d.weight(130, 37))))
    pooled = d("ReduceMean", hidden, axes=[-2], keepdims=0)
    return d.save(path, y=d("Gemm", pooled, d.weight(37, 5), d.weight(5, scale=0.3)))


ZOO: Mapping[str, Callable[[Path], Path]] = MappingProxyType(
    {
        made.__name__: made
        for made in (mlp, two_by_two, residual, depthwise, transformer, recurrent, recommender, segmentation, wide)
    }
)
"""By name what writes the model; plainest first."""


def _normed(d: Draft, x: str, channels: int) -> str:
    statistics = d.weight(channels, scale=0.2), d.positive(channels)
    normed: str = d("BatchNormalization", x, d.positive(channels), d.weight(channels, scale=0.2), *statistics)
    return normed
