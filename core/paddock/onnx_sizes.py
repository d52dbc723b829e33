"""The sizes that onnx's own inference leaves open: shapes that a model computes from the shapes of its inputs.

With every input at its largest, what is computed from shapes alone is computed here, node by node, until nothing more
becomes known. Exporters write hundreds of such nodes, and onnx 1.17 does not carry numbers through all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from paddock.graph import Graph
from paddock.model import Model
from paddock.onnx_tensors import all_tensors, load_small, parse

_ELEMENTS = 4096
"""What has more elements than this is no shape and is not computed."""
_ROUNDS = 64
_COMPUTED = frozenset(
    {
        "Abs", "Add", "And", "Cast", "Ceil", "Concat", "Constant", "Div", "Equal", "Flatten", "Floor", "Gather",
        "Greater", "GreaterOrEqual", "Identity", "Less", "LessOrEqual", "Max", "Min", "Mod", "Mul", "Neg", "Not",
        "Or", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceSum", "Reshape", "ScatterElements", "ScatterND", "Shape",
        "Sign", "Size", "Slice", "Split", "Squeeze", "Sub", "Sum", "Transpose", "Unsqueeze", "Where",
    }
)  # fmt: skip
"""What exporters compute shapes by; all give at most as many elements as they are given, or as these broadcast to."""
_GROWING: Mapping[str, Callable[..., float]] = {
    "ConstantOfShape": lambda shape: float(np.prod(shape, dtype=float)),
    "Expand": lambda data, shape: float(np.prod(shape, dtype=float)) * max(1, data.size),
    "Tile": lambda data, repeats: float(np.prod(repeats, dtype=float)) * data.size,
    "Range": lambda start, limit, delta: abs((float(limit) - float(start)) / float(delta)) if delta else np.inf,
}
"""The same that may give more: the number of elements, at most, from the operands."""


def sized(model: Model) -> Graph:
    """`model.graph` with the extents of its values as they are with every input at its largest, as far as they follow.

    What follows from the data itself, such as the number of elements that are not zero, stays unknown. An input of
    unknown rank, or a dimension that nothing bounds, leaves all as it is.
    """
    graph = model.graph
    largest = _largest(graph)
    if largest is None or all(graph.nbytes(value) is not None for value in range(len(graph.values))):
        return graph
    found = _infer(model, largest)
    values = list(graph.values)
    for index, value in enumerate(values):
        shape = found.get(value.name)
        if index not in graph.initializers and shape is not None and graph.nbytes(index) is None:
            values[index] = replace(value, shape=shape)
    return replace(graph, values=tuple(values))


def _largest(graph: Graph) -> Mapping[str, Sequence[int]] | None:
    found: dict[str, Sequence[int]] = {}
    for value in graph.input_values:
        ranges = [graph.range_of(dim) for dim in value.shape] if value.shape is not None else [None]
        extents = [bound.max for bound in ranges if bound is not None]
        if len(extents) < len(ranges) or value.kind != "tensor":
            return None
        found[value.name] = extents
    return found


def _infer(model: Model, largest: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
    """The static shapes of the main graph's values by name."""
    from onnx import shape_inference

    path = model.files["model"]
    proto = parse(path)
    load_small(path, list(all_tensors(proto)))
    del proto.graph.value_info[:]
    for port in proto.graph.input:
        if port.name in largest:
            _state(port, largest[port.name])
    for port in proto.graph.output:
        port.type.tensor_type.ClearField("shape")
    constants = _Constants(proto)
    for _ in range(_ROUNDS):
        inferred = shape_inference.infer_shapes(proto, data_prop=True).graph
        ports = (*inferred.input, *inferred.value_info, *inferred.output)
        shapes = {port.name: shape for port in ports if (shape := _static(port)) is not None}
        if not constants.compute(shapes):
            break
    return shapes


def _state(port: Any, extents: Sequence[int]) -> None:
    for dim, extent in zip(port.type.tensor_type.shape.dim, extents, strict=True):
        dim.Clear()
        dim.dim_value = extent


def _static(port: Any) -> tuple[int, ...] | None:
    kind = port.type.tensor_type
    if port.type.WhichOneof("value") != "tensor_type" or not kind.HasField("shape"):
        return None
    if not all(dim.HasField("dim_value") and dim.dim_value >= 0 for dim in kind.shape.dim):
        return None
    return tuple(dim.dim_value for dim in kind.shape.dim)


class _Constants:
    """The small values of a model that are known before it runs; `compute` adds those that follow from them."""

    def __init__(self, proto: Any) -> None:
        from onnx import numpy_helper

        self._proto = proto
        self._opsets = list(proto.opset_import)
        self._known: dict[str, Any] = {}
        for tensor in proto.graph.initializer:
            stored = not tensor.external_data and tensor.data_location == tensor.DEFAULT
            if stored and math.prod(tensor.dims) <= _ELEMENTS:
                self._known[tensor.name] = numpy_helper.to_array(tensor)

    def compute(self, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        """Makes a constant of each node that only needs constants, or a known shape; whether there were any."""
        changed = False
        for node in self._proto.graph.node:
            names = [name for name in node.output if name]
            if all(name in self._known for name in names):
                continue
            answers = self._answers(node, shapes)
            if answers is None:
                continue
            self._known.update(zip(names, answers, strict=True))
            changed = changed or node.op_type != "Constant"
            if len(names) == 1 and node.op_type != "Constant":
                self._replace(node, names[0])
        return changed

    def _answers(self, node: Any, shapes: Mapping[str, tuple[int, ...]]) -> list[Any] | None:
        if node.op_type == "Shape" and node.input[0] in shapes:
            whole = shapes[node.input[0]]
            ends = {attribute.name: attribute.i for attribute in node.attribute}
            return [np.array(whole[ends.get("start", 0) : ends.get("end", len(whole))], np.int64)]
        if node.op_type not in _COMPUTED | _GROWING.keys() or any(n and n not in self._known for n in node.input):
            return None
        if node.op_type in _GROWING:
            try:
                elements = _GROWING[node.op_type](*(self._known[name] for name in node.input))
            except (TypeError, ValueError):  # it is given more or less than the operator takes
                return None
            if not elements <= _ELEMENTS:
                return None
        return self._evaluated(node)

    def _evaluated(self, node: Any) -> list[Any] | None:
        from onnx import helper
        from onnx.reference import ReferenceEvaluator

        try:
            inputs = [helper.make_empty_tensor_value_info(name) for name in dict.fromkeys(node.input) if name]
            outputs = [helper.make_empty_tensor_value_info(name) for name in node.output if name]
            graph = helper.make_graph([node], "node", inputs, outputs)
            model = helper.make_model(graph, opset_imports=self._opsets)
            with np.errstate(all="ignore"):
                found = ReferenceEvaluator(model).run(None, {n: self._known[n] for n in node.input if n})
        except Exception:  # the evaluator raises anything; such a value stays unknown
            return None
        plain = all(isinstance(array, np.ndarray | np.generic) and np.size(array) <= _ELEMENTS for array in found)
        return [np.asarray(array) for array in found] if plain else None

    def _replace(self, node: Any, name: str) -> None:
        from onnx import helper, numpy_helper

        made = helper.make_node("Constant", [], list(node.output), value=numpy_helper.from_array(self._known[name]))
        node.CopyFrom(made)
