"""Narrow arithmetic in software: every result rounded to the type that the model states for it.

NumPy computes float16 itself, element by element in float32, rounded at once; where the evaluator gives float32 for a
value that is stated as float16, it is rounded here. bfloat16, which NumPy does not have, is held in float32: each
result is rounded to the nearest bfloat16. So products and sums accumulate in float32 and round once, as units with
wide accumulators do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from paddock.graph import Graph

Array = np.ndarray[Any, Any]


def to_bfloat16(array: Array) -> Array:
    """float32 elements rounded to the nearest bfloat16, ties to even, and still float32."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)
    return np.where(np.isnan(array), array, rounded).astype(np.float32).reshape(np.shape(array))


def widened(graph: Graph) -> Graph:
    """The graph with the bfloat16 inside it as float32.

    As it is where there is none, or where the model exchanges bfloat16 with its caller: its bits are then all there is.
    """
    inside = any(value.dtype == "bfloat16" for value in graph.values)
    if not inside or any(value.dtype == "bfloat16" for value in (*graph.input_values, *graph.output_values)):
        return graph
    values = tuple(replace(v, dtype="float32") if v.dtype == "bfloat16" else v for v in graph.values)
    return replace(graph, values=values)


def widen_bfloat16(proto: Any) -> None:
    """States every bfloat16 of a model (a ModelProto whose data is all inside) as float32: it is rounded as it runs."""
    import onnx
    from onnx import numpy_helper

    narrow, wide = onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT
    for graph in _graphs(proto.graph):
        for info in (*graph.input, *graph.output, *graph.value_info):
            if info.type.tensor_type.elem_type == narrow:
                info.type.tensor_type.elem_type = wide
        tensors = [*graph.initializer]
        for node in graph.node:
            for attribute in node.attribute:
                tensors += [attribute.t] if attribute.HasField("t") else []
                if attribute.name in ("to", "dtype", "output_dtype") and attribute.i == narrow:
                    attribute.i = wide
        for tensor in tensors:
            if tensor.data_type == narrow:
                # Not by numpy_helper.to_array: of bfloat16 in raw_data, onnx 1.17.0 gives what was in memory before.
                stored = np.frombuffer(tensor.raw_data, "<u2") if tensor.raw_data else np.array(tensor.int32_data)
                array = (stored.astype(np.uint32) << 16).view(np.float32).reshape(tuple(tensor.dims))
                tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def rounding(evaluator: Any, dtypes: Mapping[str, str]) -> None:
    """Makes each node of a ReferenceEvaluator round what it gives.

    Args:
        evaluator: Its nodes are changed.
        dtypes: By name, the values that are "float16" or "bfloat16".
    """
    for node in evaluator.rt_nodes_:
        wanted = [dtypes.get(name) for name in node.output]
        if any(wanted):
            node.run = _rounded(node.run, wanted)


def rounded(value: Any, dtype: str | None) -> Any:
    """One tensor in `dtype`; anything else as it is."""
    if dtype is None or not isinstance(value, (np.ndarray, np.generic)):
        return value
    array = np.asarray(value)
    if dtype == "bfloat16":
        return to_bfloat16(array)
    return array if array.dtype == np.float16 else array.astype(np.float16)


def _rounded(run: Callable[..., Any], wanted: list[str | None]) -> Callable[..., Any]:
    def rounding_run(*inputs: Any, **more: Any) -> Any:
        found = run(*inputs, **more)
        return tuple(rounded(value, dtype) for value, dtype in zip(found, wanted, strict=False))

    return rounding_run


def _graphs(graph: Any) -> Iterator[Any]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graphs(attribute.g)
            for inner in attribute.graphs:
                yield from _graphs(inner)
