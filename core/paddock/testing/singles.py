"""Models of one operator each, as ONNX: small, seeded, with an open batch where the operator has one.

What moves or compares numbers has to be exact in every bit; what computes may differ as far as its precision does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

OPSET, IR = 17, 8


class Grade(StrEnum):
    """How close an answer has to be."""

    EXACT = "exact"
    """Every bit: data movement, comparisons, what rounds nothing."""
    ROUNDED = "rounded"
    """One unit in the last place: a single arithmetic operation."""
    CLOSE = "close"
    """Within the error of the precision: sums, products, functions."""


@dataclass(frozen=True)
class Single:
    """One operator: its inputs by name with shapes, constants, attributes, the ranks of its outputs.

    `kind` is the dtype of the inputs, `dtype` that of the outputs. `sign`: the inputs have to be above zero (1) or
    below it (-1); `scale` and `offset` place them elsewhere, `offset` only in fp32, which alone holds both. The first
    dimension of a shape may be "batch".
    """

    op: str
    grade: Grade
    shapes: Sequence[Sequence[int | str]] = (("batch", 4, 6),)
    constants: Sequence[Any] = ()
    attributes: Mapping[str, Any] = field(default_factory=dict)
    outputs: int = 1
    dtype: str = "float32"
    sign: int = 0
    kind: str = "float32"
    scale: float = 1.0
    offset: float = 0.0

    def placed(self, array: np.ndarray[Any, Any], seed: int) -> np.ndarray[Any, Any]:
        """Drawn numbers put where the operator is to be tried; of the second seed three times as far out.

        Integers get more than 32 bits.
        """
        if array.dtype == np.int64:
            return array * 2**40 - 2**33 + seed
        if array.dtype.kind != "f":
            return array
        spread = array * np.float32(self.scale * (1 + 2 * seed))
        if self.sign:
            return np.float32(self.sign) * (np.abs(spread) + np.float32(0.5))
        return spread + np.float32(self.offset)


_IMAGE = (("batch", 4, 9, 7),)
_ROWS = (("batch", 12),)
_PAIR = (("batch", 4, 6), ("batch", 4, 6))
_PADDED = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}
_E, _R, _C = Grade.EXACT, Grade.ROUNDED, Grade.CLOSE


def _weights(*shape: int, scale: float = 0.0) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng([7, *shape])
    fan_in = int(np.prod(shape[1:])) if len(shape) != 2 else shape[0]
    return np.asarray(rng.standard_normal(shape) * (scale or 1 / np.sqrt(fan_in)), np.float32)


def _ints(*values: int) -> np.ndarray[Any, Any]:
    return np.array(values, np.int64)


def _numbers(*values: float) -> np.ndarray[Any, Any]:
    return np.array(values, np.float32)


def _number(value: float) -> np.ndarray[Any, Any]:
    return np.array(value, np.float32)


def _table() -> dict[str, Single]:
    positive = np.abs(_weights(4, scale=1)) + 0.5
    lstm = (_weights(1, 20, 6), _weights(1, 20, 5), _weights(1, 40, scale=0.1))
    gru = (_weights(1, 15, 6), _weights(1, 15, 5), _weights(1, 30, scale=0.1))
    return {
        "Identity": Single("Identity", _E),
        "Relu": Single("Relu", _E),
        "Neg": Single("Neg", _E),
        "Abs": Single("Abs", _E),
        "Floor": Single("Floor", _E),
        "Ceil": Single("Ceil", _E),
        "Clip": Single("Clip", _E, constants=(_number(-0.5), _number(0.75))),
        "Max": Single("Max", _E, _PAIR),
        "Min": Single("Min", _E, _PAIR),
        "Less": Single("Less", _E, _PAIR, dtype="bool"),
        "Transpose": Single("Transpose", _E, attributes={"perm": [0, 2, 1]}),
        "Reshape": Single("Reshape", _E, constants=(_ints(0, -1),)),
        "Flatten": Single("Flatten", _E),
        "Squeeze": Single("Squeeze", _E, (("batch", 1, 5),), (_ints(1),)),
        "Unsqueeze": Single("Unsqueeze", _E, constants=(_ints(2),)),
        "Concat": Single("Concat", _E, (("batch", 3, 6), ("batch", 2, 6)), attributes={"axis": 1}),
        "Split": Single("Split", _E, constants=(_ints(1, 3),), attributes={"axis": 1}, outputs=2),
        "Slice": Single("Slice", _E, constants=(_ints(1), _ints(6), _ints(2), _ints(2))),
        "Gather": Single("Gather", _E, constants=(_ints(3, 0, 2),), attributes={"axis": 1}),
        "Pad": Single("Pad", _E, constants=(_ints(0, 1, 0, 0, 2, 3), _number(0.25))),
        "Tile": Single("Tile", _E, constants=(_ints(1, 2, 3),)),
        "DepthToSpace": Single("DepthToSpace", _E, (("batch", 8, 3, 5),), attributes={"blocksize": 2}),
        "MaxPool": Single("MaxPool", _E, _IMAGE, attributes={"kernel_shape": [3, 2], "strides": [2, 2]}),
        "ReduceMax": Single("ReduceMax", _E, attributes={"axes": [1], "keepdims": 1}),
        "ArgMax": Single("ArgMax", _E, attributes={"axis": 2, "keepdims": 0}, dtype="int64"),
        "Add": Single("Add", _R, _PAIR),
        "Sub": Single("Sub", _R, _PAIR),
        "Mul": Single("Mul", _R, _PAIR),
        "Div": Single("Div", _R, _PAIR, sign=1),
        "Sqrt": Single("Sqrt", _R, sign=1),
        "LeakyRelu": Single("LeakyRelu", _R, attributes={"alpha": 0.125}),
        "Exp": Single("Exp", _C),
        "Log": Single("Log", _C, sign=1),
        "Erf": Single("Erf", _C),
        "Sigmoid": Single("Sigmoid", _C),
        "Tanh": Single("Tanh", _C),
        "HardSwish": Single("HardSwish", _C),
        "Softmax": Single("Softmax", _C, attributes={"axis": -1}),
        "ReduceMean": Single("ReduceMean", _C, attributes={"axes": [1, 2], "keepdims": 0}),
        "ReduceSum": Single("ReduceSum", _C, constants=(_ints(2),), attributes={"keepdims": 1}),
        "MatMul": Single("MatMul", _C, constants=(_weights(6, 5),)),
        "Gemm": Single("Gemm", _C, _ROWS, (_weights(12, 7), _weights(7, scale=1)), {"alpha": 1.5}),
        "Conv": Single("Conv", _C, _IMAGE, (_weights(5, 4, 3, 3), _weights(5, scale=1)), {"pads": [1, 0, 1, 2]}),
        "Conv, depthwise": Single("Conv", _C, _IMAGE, (_weights(4, 1, 3, 3),), {"group": 4, "strides": [2, 1]}),
        "ConvTranspose": Single("ConvTranspose", _C, _IMAGE, (_weights(4, 3, 2, 2),), {"strides": [2, 2]}),
        "AveragePool": Single("AveragePool", _C, _IMAGE, attributes={"kernel_shape": [2, 3]}),
        "GlobalAveragePool": Single("GlobalAveragePool", _C, _IMAGE),
        "BatchNormalization": Single(
            "BatchNormalization", _C, _IMAGE, (positive, _weights(4, scale=1), _weights(4, scale=0.5), positive)
        ),
        "LayerNormalization": Single("LayerNormalization", _C, constants=(_weights(6, scale=1), _weights(6, scale=1))),
        "Resize": Single("Resize", _C, (("batch", 2, 3, 2),), (None, _numbers(1, 1, 2, 2)), {"mode": "linear"}),
        # Where fast kernels take a short cut; those for whole tiles where extents are powers of two.
        "Gemm, wide": Single("Gemm", _C, ((17, 130),), (_weights(130, 37), _weights(37, scale=1))),
        "MatMul, wide": Single("MatMul", _C, (("batch", 9, 130),), (_weights(130, 71),)),
        "Gemm, many rows": Single("Gemm", _C, ((300, 12),), (_weights(12, 7),)),
        "Gemm, whole tiles": Single("Gemm", _C, ((64, 128),), (_weights(128, 64), _weights(64, scale=1))),
        "MatMul, whole tiles": Single("MatMul", _C, (("batch", 64, 128),), (_weights(128, 128),)),
        "Conv, whole tiles": Single("Conv", _C, (("batch", 64, 8, 8),), (_weights(64, 64, 3, 3),), {"pads": [1] * 4}),
        "Gemm, transposed weights": Single(
            "Gemm", _C, _ROWS, (_weights(7, 12, scale=0.3), _weights(7, scale=1)), {"transB": 1}
        ),
        "Gemm, square weights transposed": Single("Gemm", _C, _ROWS, (_weights(12, 12),), {"transB": 1}),
        "Gemm, rows transposed": Single("Gemm", _C, ((12, 5),), (_weights(12, 7),), {"transA": 1}),
        "Conv, dilated": Single("Conv", _C, _IMAGE, (_weights(5, 4, 3, 3),), {"dilations": [2, 2], "pads": [2] * 4}),
        "Conv, grouped": Single("Conv", _C, _IMAGE, (_weights(6, 2, 3, 3),), {"group": 2}),
        "Concat, negative axis": Single("Concat", _E, (("batch", 3, 6), ("batch", 3, 2)), attributes={"axis": -1}),
        "Gather, negative axis": Single("Gather", _E, constants=(_ints(5, 0, 2),), attributes={"axis": -1}),
        "Gather, negative indices": Single("Gather", _E, constants=(_ints(-1, 0, -3),), attributes={"axis": 1}),
        "Split, negative axis": Single("Split", _E, constants=(_ints(2, 4),), attributes={"axis": -1}, outputs=2),
        "Slice, backwards": Single("Slice", _E, constants=(_ints(-1), _ints(-6), _ints(-1), _ints(-2))),
        "ReduceMean, negative axis": Single("ReduceMean", _C, attributes={"axes": [-2], "keepdims": 0}),
        "Softmax, inner axis": Single("Softmax", _C, attributes={"axis": 1}),
        "Softmax, first axis": Single("Softmax", _C, ((5, 4, 6),), attributes={"axis": 0}),
        "Softmax, far apart": Single("Softmax", _C, attributes={"axis": -1}, scale=60.0),
        "Add, left broadcast": Single("Add", _R, ((6,), ("batch", 4, 6))),
        "Sub, left broadcast": Single("Sub", _R, ((4, 1), ("batch", 4, 6))),
        "Mul, both broadcast": Single("Mul", _R, (("batch", 1, 6), (4, 1))),
        "Add, channels": Single("Add", _R, (*_IMAGE, (4, 1, 1))),
        "Mul, channels on the left": Single("Mul", _R, ((1, 4, 1, 1), *_IMAGE)),
        "Sub, constant channels": Single("Sub", _R, _IMAGE, (_numbers(0.5, -1.25, 2, 0.125).reshape(1, 4, 1, 1),)),
        # Numbers below zero: the padding is none of them. Those above differ by whether it counts.
        "MaxPool, padded": Single("MaxPool", _E, _IMAGE, attributes=_PADDED, sign=-1),
        "AveragePool, padded": Single("AveragePool", _C, _IMAGE, attributes=_PADDED, sign=1),
        "AveragePool, padding counted": Single(
            "AveragePool", _C, _IMAGE, attributes={**_PADDED, "count_include_pad": 1}, sign=1
        ),
        "LayerNormalization, far from zero": Single(
            "LayerNormalization", _C, constants=(_weights(6, scale=1), _weights(6, scale=1)), offset=50.0
        ),
        "Transpose, large integers": Single(
            "Transpose", _E, attributes={"perm": [0, 2, 1]}, dtype="int64", kind="int64"
        ),
        "Add, large integers": Single("Add", _E, _PAIR, dtype="int64", kind="int64"),
        "Less, large integers": Single("Less", _E, _PAIR, dtype="bool", kind="int64"),
        "ReduceSum, large integers": Single(
            "ReduceSum", _E, constants=(_ints(2),), attributes={"keepdims": 1}, dtype="int64", kind="int64"
        ),
        "LSTM": Single("LSTM", _C, ((5, "batch", 6),), lstm, {"hidden_size": 5}, outputs=2),
        "GRU": Single("GRU", _C, ((5, "batch", 6),), gru, {"hidden_size": 5, "linear_before_reset": 1}, outputs=2),
    }  # fmt: skip


SINGLES: Mapping[str, Single] = MappingProxyType(_table())


def write_single(single: Single, path: Path) -> Path:
    """Writes the model of one operator; the same single gives the same bytes."""
    from onnx import TensorProto, checker, helper, numpy_helper, save, shape_inference

    kinds = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64, "bool": TensorProto.BOOL}
    # Names count down: the order of the alphabet, in which SDKs like to list them, is nowhere the graph's.
    inputs = [f"x{i}" for i in reversed(range(len(single.shapes)))]
    given = [
        helper.make_tensor_value_info(name, kinds[single.kind], list(shape))
        for name, shape in zip(inputs, single.shapes, strict=True)
    ]
    names = ["" if constant is None else f"c{i}" for i, constant in enumerate(single.constants)]
    stored = [numpy_helper.from_array(c, n) for c, n in zip(single.constants, names, strict=True) if n]
    outputs = [f"y{i}" for i in reversed(range(single.outputs))]
    node = helper.make_node(single.op, [*inputs, *names], outputs, **single.attributes)
    # Shapes are inferred, not stated: what a reader finds is what the standard says.
    untyped = [helper.make_tensor_value_info(name, kinds[single.dtype], None) for name in outputs]
    graph = helper.make_graph([node], single.op, given, untyped, stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR)
    model = shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    checker.check_model(model)
    save(model, path)
    return path
