"""The shapes inside an ONNX model at given shapes of its inputs, told without running it.

onnx's own inference carries shapes through operators, but not all of the numbers that exporters compute from shapes
(Shape, Gather, Concat and the like, feeding a Reshape, Range, Slice, Tile). Here the nodes are taken in their order:
onnx infers each one's types in a model of that node alone, with what is known before it; what follows from constants
and known shapes is then computed by onnx's reference evaluator, and is a constant for whatever reads it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from paddock.errors import ModelError
from paddock.graph import Graph
from paddock.onnx_tensors import all_tensors, graphs_of, load_small, nodes_of, parse

ELEMENTS = 4096
"""What has more elements than this is no shape, and is not computed."""

_RANDOM = frozenset(
    {
        "Bernoulli", "Dropout", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike",
        "TrainingInfo",
    }
)  # fmt: skip

_SELECTING = frozenset({"Compress", "NonZero", "Unique"})
"""Operators whose results no inference can size, and that give no more than a few times what they take."""

_ALIKE = frozenset({"GroupNormalization"})
"""Operators that onnx's inference lacks (onnx 1.17), and whose result is like their first operand."""

_MISTOLD = frozenset({"STFT"})
"""Operators that onnx's inference gets wrong (onnx 1.17: as long as if it were not one-sided)."""

_PLAIN = (
    "BOOL", "DOUBLE", "FLOAT", "FLOAT16", "INT16", "INT32", "INT64", "INT8", "UINT16", "UINT32", "UINT64", "UINT8",
)  # fmt: skip
"""The types that onnx's evaluator reads as NumPy does; it reads bfloat16 wrongly (onnx 1.17)."""

Shapes = Mapping[str, tuple[int, ...]]


def shapes_at(path: Path, graph: Graph, inputs: Shapes) -> dict[int, tuple[int, ...]]:
    """The shapes of the tensors of `graph`, read from the file `path`, by value index; `inputs` by name.

    An input that is not named keeps the extents that the file states. What follows from data, such as the number of
    elements that are not zero, is left out; so is what only operators tell that onnx does not know, unless the file
    states it. Raises `ModelError` where an input is unknown or its shape is not one that the file declares.
    """
    proto = parse(path)
    if len(proto.graph.node) != len(graph.nodes):
        raise ModelError("has changed since it was read", where=str(path))
    load_small(path, list(all_tensors(proto)))
    found = _Inference(proto, _checked(proto.graph, inputs, path)).run()
    shapes = {}
    for index, value in enumerate(graph.values):
        shape = found.get(value.name)
        if shape is not None and value.kind == "tensor":
            shapes[index] = shape
    return shapes


class _Inference:
    """One pass over the nodes of a model, which it changes; `types` and `constants` grow by value name."""

    def __init__(self, proto: Any, inputs: Shapes) -> None:
        self._proto = _inlined(proto)
        graph = self._proto.graph
        self._symbols = _bound(graph.input, inputs)
        self._stated = {info.name: self._open(info.type) for info in (*graph.value_info, *graph.output)}
        self._types: dict[str, Any] = {}
        self._constants: dict[str, Any] = {}
        for info in graph.input:
            self._types[info.name] = self._open(info.type)
            if info.name in inputs:
                _state(self._types[info.name].tensor_type, inputs[info.name])

    def run(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the main graph's tensors by name, where every extent is known."""
        self._constants_of(self._proto.graph)
        self._walk(self._proto.graph.node)
        shapes = {name: _static(type_) for name, type_ in self._types.items()}
        return {name: shape for name, shape in shapes.items() if shape is not None}

    def _constants_of(self, graph: Any) -> None:
        for sparse in graph.sparse_initializer:
            self._types[sparse.values.name] = _tensor_type(sparse.values.data_type, sparse.dims)
        for tensor in graph.initializer:
            self._types[tensor.name] = _tensor_type(tensor.data_type, tensor.dims)
            if tensor.data_location != tensor.EXTERNAL and tensor.data_type in _plain():
                self._keep(tensor)

    def _walk(self, nodes: Any) -> None:
        for node in nodes:
            branch = self._branch(node)
            if branch is not None:
                self._take(node, branch)
                continue
            alone = self._alone(node)
            inferred = {} if node.op_type in _MISTOLD else _inferred(alone)
            if node.op_type in _ALIKE and not node.domain and node.input[0] in self._types:
                inferred = {node.output[0]: self._types[node.input[0]]}
            for name in filter(None, node.output):
                self._types[name] = _merged(inferred.get(name), self._stated.get(name))
            for tensor in self._computed(node, alone):
                self._types[tensor.name] = _tensor_type(tensor.data_type, tensor.dims)
                self._keep(tensor)

    def _branch(self, node: Any) -> Any:
        """The body that an If takes, where its condition is a constant."""
        from onnx import numpy_helper

        if node.domain or node.op_type != "If" or node.input[0] not in self._constants:
            return None
        holds = bool(numpy_helper.to_array(self._constants[node.input[0]]).all())
        name = "then_branch" if holds else "else_branch"
        return next((attribute.g for attribute in node.attribute if attribute.name == name), None)

    def _take(self, node: Any, branch: Any) -> None:
        """Walks the body of an If, whose results are then the node's."""
        self._constants_of(branch)
        self._walk(branch.node)
        for name, inner in zip(node.output, branch.output, strict=False):
            self._types[name] = _merged(self._types.get(inner.name), self._stated.get(name))
            if inner.name in self._constants:
                constant = type(self._constants[inner.name])()
                constant.CopyFrom(self._constants[inner.name])
                constant.name = name
                self._constants[name] = constant

    def _keep(self, tensor: Any) -> None:
        if math.prod(tensor.dims) <= ELEMENTS:
            self._constants[tensor.name] = tensor

    def _open(self, type_: Any) -> Any:
        """A copy of a type with the extents of its symbols, which are left open where the inputs do not tell them."""
        copy = type(type_)()
        copy.CopyFrom(type_)
        for dim in _dims(copy):
            if dim.dim_param in self._symbols:
                dim.dim_value = self._symbols[dim.dim_param]
            elif dim.WhichOneof("value") != "dim_value" or dim.dim_value < 0:
                dim.Clear()
        return copy

    def _alone(self, node: Any) -> Any:
        """A model of this node only: what it and its bodies read are inputs with their types, or constants."""
        import onnx

        model = onnx.ModelProto(ir_version=onnx.IR_VERSION, opset_import=self._proto.opset_import)
        model.graph.name = "node"
        model.graph.node.append(node)
        for name in dict.fromkeys(_reads(node)):
            if name in self._constants:
                model.graph.initializer.append(self._constants[name])
            elif name in self._types:
                model.graph.input.add(name=name, type=self._types[name])
        return model

    def _computed(self, node: Any, alone: Any) -> list[Any]:
        """The results of a node as constants, where they follow from constants or from a shape; else nothing."""
        if node.domain or node.op_type in _RANDOM or any(True for _ in graphs_of(node)):
            return []
        if node.op_type in ("Shape", "Size"):
            shape = _static(self._types.get(node.input[0]))
            return [] if shape is None else [_of_shape(node, shape)]
        stored = [attribute.t for attribute in node.attribute if attribute.HasField("t")]
        if alone.graph.input or any(tensor.data_location == tensor.EXTERNAL for tensor in stored):
            return []
        results = [(name, self._types[name]) for name in node.output if name]
        shapes = [_static(type_) for _, type_ in results]
        small = all(math.prod(shape) <= ELEMENTS for shape in shapes if shape is not None)
        if not small or (None in shapes and node.op_type not in _SELECTING):
            return []
        return _evaluated(alone, dict(results))


# Types: copies of onnx's TypeProto in which every extent is a number or open.


def _static(type_: Any) -> tuple[int, ...] | None:
    """The extents of a tensor type, None where one is open or it is none."""
    if type_ is None or type_.WhichOneof("value") not in ("tensor_type", "sparse_tensor_type"):
        return None
    tensor = getattr(type_, type_.WhichOneof("value"))
    if not tensor.HasField("shape") or not all(dim.HasField("dim_value") for dim in tensor.shape.dim):
        return None
    return tuple(dim.dim_value for dim in tensor.shape.dim)


def _dims(type_: Any) -> Iterator[Any]:
    """Every dimension of a type, those of what a sequence or an optional holds included."""
    kind = type_.WhichOneof("value")
    if kind in ("sequence_type", "optional_type"):
        yield from _dims(getattr(type_, kind).elem_type)
    elif kind in ("tensor_type", "sparse_tensor_type"):
        yield from getattr(type_, kind).shape.dim


def _tensor_type(dtype: int, extents: Iterable[int]) -> Any:
    import onnx

    made = onnx.TypeProto()
    made.tensor_type.elem_type = dtype
    _state(made.tensor_type, extents)
    return made


def _state(tensor: Any, extents: Iterable[int]) -> None:
    tensor.shape.Clear()
    tensor.shape.SetInParent()  # a scalar has a shape without dimensions
    for extent in extents:
        tensor.shape.dim.add(dim_value=extent)


@cache
def _plain() -> frozenset[int]:
    import onnx

    return frozenset(onnx.TensorProto.DataType.Value(name) for name in _PLAIN)


def _merged(inferred: Any, stated: Any) -> Any:
    """What inference tells, and what it leaves open as the file states it, unless they contradict each other."""
    import onnx

    if inferred is None or stated is None:
        return inferred or stated or onnx.TypeProto()
    if inferred.WhichOneof("value") != "tensor_type" or stated.WhichOneof("value") != "tensor_type":
        return inferred
    ours, theirs = inferred.tensor_type, stated.tensor_type
    if not ours.HasField("shape"):
        ours.shape.CopyFrom(theirs.shape) if theirs.HasField("shape") else None
    elif len(ours.shape.dim) == len(theirs.shape.dim):
        pairs = list(zip(ours.shape.dim, theirs.shape.dim, strict=True))
        if all(a.dim_value == b.dim_value for a, b in pairs if a.HasField("dim_value") and b.HasField("dim_value")):
            for a, b in pairs:
                a.MergeFrom(b)
    return inferred


def _bound(infos: Iterable[Any], inputs: Shapes) -> dict[str, int]:
    """The extents of the symbols in the inputs' types; a symbol with two extents is left out."""
    found: dict[str, set[int]] = {}
    for info in infos:
        dims = info.type.tensor_type.shape.dim
        for dim, extent in zip(dims, inputs.get(info.name, ()), strict=False):
            if dim.dim_param:
                found.setdefault(dim.dim_param, set()).add(extent)
    return {symbol: extents.pop() for symbol, extents in found.items() if len(extents) == 1}


def _checked(graph: Any, inputs: Shapes, path: Path) -> Shapes:
    """`inputs`, where each is one of the model's and has the rank and the fixed extents that the file states."""
    constants = {tensor.name for tensor in graph.initializer}
    stated = {info.name: info.type.tensor_type for info in graph.input if info.name not in constants}
    for name, shape in inputs.items():
        if name not in stated:
            raise ModelError(f"has no input {name!r}", where=str(path), candidates=sorted(stated))
        dims = [
            dim.dim_value if dim.WhichOneof("value") == "dim_value" and dim.dim_value >= 0 else dim.dim_param or "?"
            for dim in stated[name].shape.dim
        ]
        fits = not stated[name].HasField("shape") or len(dims) == len(shape)
        wrong = (extent for dim, extent in zip(dims, shape, strict=False) if isinstance(dim, int) and dim != extent)
        if not fits or any(True for _ in wrong) or min(shape, default=0) < 0:
            listed = ", ".join(map(str, dims))
            raise ModelError(f"takes {name!r} as [{listed}], not as {list(shape)}", where=str(path))
    return inputs


# Nodes, one at a time.


def _inlined(proto: Any) -> Any:
    """The model without functions of its own, whose bodies compute shapes as any other node does."""
    from onnx import inliner

    if not proto.functions:
        return proto
    try:
        return inliner.inline_local_functions(proto)
    except Exception:  # onnx raises anything here; then the functions' results stay open
        return proto


def _reads(node: Any) -> Iterator[str]:
    """The names that a node and its bodies read, those that are made inside included."""
    yield from filter(None, node.input)
    for body in graphs_of(node):
        yield from (name for inner in nodes_of(body.node) for name in inner.input if name)
        yield from (info.name for info in body.output)


def _inferred(alone: Any) -> dict[str, Any]:
    """The types of the results of the node in this model, by name; extents that onnx calls by symbols are open."""
    from onnx import shape_inference

    try:
        found = shape_inference.infer_shapes(alone, data_prop=True).graph.value_info
    except Exception:  # onnx raises anything for a node that contradicts its operands; it tells nothing then
        return {}
    for info in found:
        for dim in _dims(info.type):
            if dim.WhichOneof("value") != "dim_value" or dim.dim_value < 0:
                dim.Clear()
    return {info.name: info.type for info in found}


def _of_shape(node: Any, shape: tuple[int, ...]) -> Any:
    """What Shape or Size gives for a tensor of this shape, as a constant."""
    from onnx import numpy_helper

    ends = {attribute.name: attribute.i for attribute in node.attribute}
    part = shape[ends.get("start", 0) : ends.get("end", len(shape))]
    array = np.array(math.prod(shape) if node.op_type == "Size" else part, np.int64)
    return numpy_helper.from_array(array, node.output[0])


def _evaluated(alone: Any, results: Mapping[str, Any]) -> list[Any]:
    """The results of the node in this model, all of whose operands are constants; nothing where they contradict."""
    from onnx import numpy_helper
    from onnx.reference import ReferenceEvaluator

    for name in results:
        alone.graph.output.add(name=name)
    try:
        with np.errstate(all="ignore"):
            arrays = ReferenceEvaluator(alone).run(None, {})
        tensors = [numpy_helper.from_array(np.asarray(a), n) for n, a in zip(results, arrays, strict=True)]
    except Exception:  # the evaluator raises anything; such a value is no constant then
        return []
    fits = all(
        tensor.data_type in _plain()
        and tensor.data_type == results[tensor.name].tensor_type.elem_type
        and _static(results[tensor.name]) in (tuple(tensor.dims), None)
        for tensor in tensors
    )
    return tensors if fits else []
