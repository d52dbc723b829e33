"""Where each node of an ONNX graph can take another float type, by the operators' own schemas.

A schema ties tensors together by type variables (onnx.defs of onnx 1.17). A node can be narrow where every variable
that is float32 in it, and that it cannot keep apart, admits the narrow type at the model's opset.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from paddock.graph import Graph, Node
from paddock.planning.casts import WIDE, Ports

RETYPED: Mapping[str, str] = {"Cast": "to", "Constant": "value", "ConstantOfShape": "value"}
"""Operators whose output's type is an attribute: narrow, they make the narrow type themselves."""

_ANY = frozenset({"Shape", "Size"})
_APART = {"Dropout": "T1", "LayerNormalization": "U", "Resize": "T2"}
"""Type variables that stay as they are: a ratio, statistics whose type `stash_type` says, regions of interest."""
_NEVER = {
    "QuantizeLinear": "part of a quantisation that stands in the model",
    "DequantizeLinear": "part of a quantisation that stands in the model",
    "DynamicQuantizeLinear": "part of a quantisation that stands in the model",
    "RandomNormal": "draws other numbers in another type",
    "RandomNormalLike": "draws other numbers in another type",
    "RandomUniform": "draws other numbers in another type",
    "RandomUniformLike": "draws other numbers in another type",
    "Bernoulli": "draws other numbers in another type",
    "Multinomial": "draws other numbers in another type",
    "EyeLike": "an attribute says its type",
    "BlackmanWindow": "an attribute says its type",
    "HammingWindow": "an attribute says its type",
    "HannWindow": "an attribute says its type",
    "MelWeightMatrix": "an attribute says its type",
    "MeanVarianceNormalization": "the standard composes it with float32 constants",
}
STEERING: Mapping[str, frozenset[int]] = {
    "DequantizeLinear": frozenset({1}),
    "NonMaxSuppression": frozenset({3, 4}),
    "QLinearConv": frozenset({1, 4, 6}),
    "QLinearMatMul": frozenset({1, 4, 6}),
    "QuantizeLinear": frozenset({1}),
    "Range": frozenset({0, 1, 2}),
    "Resize": frozenset({1, 2}),
    "Upsample": frozenset({1}),
}
"""Inputs whose numbers decide extents or steps: rounded, they change more than one number. They are no weights."""
_LAYOUT: Mapping[str, frozenset[int]] = {
    "ConstantOfShape": frozenset({0}),
    "Expand": frozenset({1}),
    "EyeLike": frozenset({0}),
    "Gather": frozenset({1}),
    "Pad": frozenset({1, 3}),
    "Reshape": frozenset({1}),
    "Resize": frozenset({1, 2, 3}),
    "Slice": frozenset({1, 2, 3, 4}),
    "Squeeze": frozenset({1}),
    "Tile": frozenset({1}),
    "Unsqueeze": frozenset({1}),
}
"""Inputs that say where elements go, not what they are."""
_DTYPES = {"float16": "tensor(float16)", "bfloat16": "tensor(bfloat16)"}


def ports(graph: Graph, narrow: str, functions: frozenset[str] = frozenset()) -> dict[int, Ports]:
    """The ports of every node, by index; `functions` are the types that the model defines itself."""
    of_extents = _of_extents(graph)
    found = {node.index: _ports(graph, node, narrow, functions) for node in graph.nodes}
    wide = Ports(reason="counts in extents or positions, which a narrow type rounds")
    return {index: wide if index in of_extents and own.movable else own for index, own in found.items()}


def _of_extents(graph: Graph) -> set[int]:
    """The nodes whose numbers are made of the extents of tensors and of constants alone."""
    extents: set[int] = set()
    constants = set(graph.initializers)
    found = set()
    for node in graph.nodes:
        made = {value for value in node.outputs if value is not None}
        layout = _LAYOUT.get(node.type, frozenset())
        read = {value for at, value in enumerate(node.inputs) if value is not None and at not in layout}
        placed = {value for at, value in enumerate(node.inputs) if value is not None and at in layout}
        if node.type in _ANY:
            extents |= made
        elif node.subgraphs or not read <= extents | constants or not placed <= extents | constants:
            continue  # a look-up of the caller's own indices gives the caller's own numbers
        elif read & extents:
            extents |= made
            found.add(node.index)
        else:
            constants |= made
    return found


def _ports(graph: Graph, node: Node, narrow: str, functions: frozenset[str]) -> Ports:
    floats_in = {at for at, value in enumerate(node.inputs) if _wide(graph, value)}
    floats_out = {at for at, value in enumerate(node.outputs) if _wide(graph, value)}
    if node.op in _ANY and not node.domain:
        return Ports(free=frozenset(floats_in))
    if not floats_in and not floats_out:
        return Ports(reason="" if not node.subgraphs else "bodies of control flow are not cast")
    if node.subgraphs:
        return Ports(reason="bodies of control flow are not cast")
    if any(v is not None and graph.values[v].kind != "tensor" for v in (*node.inputs, *node.outputs)):
        return Ports(reason="it takes or gives a sequence or an optional")
    if node.type in _NEVER:
        return Ports(reason=_NEVER[node.type])
    inside = not node.domain and node.type not in functions  # elsewhere, attributes are of the inputs' type
    schema = _schema(node.op, graph.opsets.get("")) if inside else None
    if schema is None:
        return Ports(reason="it is no operator of the default domain: its types are not known")
    if node.op == "Constant" and "sparse_value" in node.attributes:
        return Ports(reason="sparse constants stay as they are")
    return _by_schema(graph, node, schema, narrow)


def _by_schema(graph: Graph, node: Node, schema: Any, narrow: str) -> Ports:
    floats_in = {at for at, value in enumerate(node.inputs) if _wide(graph, value)}
    floats_out = {at for at, value in enumerate(node.outputs) if _wide(graph, value)}
    allowed = {c.type_param_str: frozenset(c.allowed_type_strs) for c in schema.type_constraints}
    inputs = dict(enumerate(_variables(schema.inputs, len(node.inputs))))
    outputs = dict(enumerate(_variables(schema.outputs, len(node.outputs))))
    moved = {inputs[at] for at in floats_in} | {outputs[at] for at in floats_out}
    moved = {variable for variable in moved if variable in allowed and variable != _APART.get(node.op)}
    if not moved:
        return Ports(reason="the standard fixes its types to float32")
    lacking = sorted(v for v in moved if _DTYPES[narrow] not in allowed[v])
    if lacking:
        return Ports(reason=f"{node.type} takes no {narrow} in the model's opset (its {', '.join(lacking)})")
    tied = [v for at, v in enumerate(node.inputs) if inputs[at] in moved]
    tied += [v for at, v in enumerate(node.outputs) if outputs[at] in moved]
    if any(value is not None and graph.values[value].dtype is None for value in tied):
        return Ports(reason="the types of its values are not all known")
    return Ports(
        frozenset(at for at in floats_in if inputs[at] in moved),
        frozenset(at for at in floats_out if outputs[at] in moved),
    )


def _variables(formal: Any, count: int) -> Iterator[str]:
    """The type variable of each actual input or output; the last formal one may stand for many."""
    for at in range(count):
        yield formal[min(at, len(formal) - 1)].type_str


def _wide(graph: Graph, value: int | None) -> bool:
    return value is not None and graph.values[value].dtype == WIDE and graph.values[value].kind == "tensor"


def casts_to(narrow: str, opset: int | None) -> bool:
    """Whether the standard's Cast knows the type at this opset; None: where the model does not import it.

    Before opset 6 it tells its type as text, which shape inference does not read.
    """
    schema = None if opset is None or opset < 6 else _schema("Cast", opset)
    return schema is not None and all(_DTYPES[narrow] in c.allowed_type_strs for c in schema.type_constraints)


@cache
def _schema(op: str, opset: int | None) -> Any:
    import onnx

    try:
        return onnx.defs.get_schema(op, opset or 1)
    except onnx.defs.SchemaError:
        return None
