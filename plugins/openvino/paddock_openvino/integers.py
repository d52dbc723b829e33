"""Which integer arithmetic OpenVINO's CPU plugin gets wrong, measured on 2026.4.1 against onnx's reference.

The plugin computes 64-bit and uint32 integers in int32, and int16 and uint16 in int32 without wrapping between
operators; it saturates int8 and uint8, rounds their quotients, and computes some int32 operators in float32, which
is exact up to 2**24. What it does to values that it only moves, selects or compares is right. So arithmetic is
followed forward through the graph: each value has a bound and an origin, and arithmetic on what a caller feeds is
refused unless its bound shows that the answer stays right. Arithmetic on shapes and constants alone is trusted: it
does not depend on what is fed, and the comparison with the reference covers it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

from paddock.graph import Graph, Node
from paddock.plan import Verdict

SOURCE = "measured on OpenVINO 2026.4.1, CPU"

WIDE = ("int64", "uint64", "uint32", "float64")
"""The dtypes that OpenVINO's CPU plugin computes in 32 bits: int32, and float32 for float64."""

INTEGERS = frozenset({"int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"})
_OUTGROWN = frozenset({"int64", "uint64", "uint32"})
_NARROW: Mapping[str, int] = {"bool": 1, "int8": 2**7, "uint8": 2**8 - 1, "int16": 2**15, "uint16": 2**16 - 1}
_FLOATS: Mapping[str, int] = {"float16": 65504}

INDEX = 2**20
"""The bound of extents, positions and counts: what tensors of a sensible size hold."""
EXACT = 2**24
"""Up to here float32 holds every integer."""
ANY = 2**31
"""No more is known than that it fits 32 bits, which the session checks of 64-bit feeds."""


class Origin(IntEnum):
    """What a value depends on, apart from constants."""

    CONSTANT = 0
    SHAPES = 1
    FED = 2


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a value: no element is beyond `bound` (of floats nothing is known)."""

    bound: int
    origin: Origin


# Operators that pass values on, and at which of their inputs those lie (the rest are axes, indices, conditions).
_FIRST = (0,)
_MOVES: Mapping[str, tuple[int, ...] | None] = {
    **dict.fromkeys(
        (
            "CenterCropPad", "Compress", "ConstantOfShape", "DepthToSpace", "Dropout", "Expand", "Flatten", "Gather",
            "GatherElements", "GatherND", "Identity", "MaxPool", "Reshape", "ReverseSequence", "Slice", "SpaceToDepth",
            "Split", "SplitToSequence", "Squeeze", "Tile", "TopK", "Transpose", "Trilu", "Unique", "Unsqueeze",
            "Resize", "SequenceAt",
        ),
        _FIRST,
    ),
    **dict.fromkeys(("Scatter", "ScatterElements", "ScatterND", "Pad"), (0, 2)),
    **dict.fromkeys(("Clip", "Concat", "ConcatFromSequence", "Max", "Min", "Range", "SequenceConstruct"), None),
    "Where": (1, 2),
    "OneHot": (2,),
}  # fmt: skip
_BITWISE = frozenset({"BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor"})
_COMPARES = frozenset({"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"})
_COUNTS = frozenset({"ArgMax", "ArgMin", "NonMaxSuppression", "NonZero", "Shape", "Size"})
_FRESH = frozenset({"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform"} | {
    "RandomUniformLike"})  # fmt: skip
_QUANTIZED = frozenset(
    {"ConvInteger", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "QLinearConv", "QLinearMatMul"}
    | {"QuantizeLinear"}
)
_GROWS_BY_ADDING = frozenset({"Add", "Sub", "Sum"})
_SHRINKS = frozenset({"Abs", "Div", "Mean", "Mod", "Neg", "ReduceMax", "ReduceMean", "ReduceMin", "Relu"})
_SUMS = frozenset({"CumSum", "ReduceL1", "ReduceSum"})
_WRAPS = frozenset({"Abs", "Add", "BitShift", "CumSum", "Mul", "Neg", "Sub", "Sum", "EyeLike", "Sign"})
"""What int32 arithmetic computes in int32, and so right: the rest goes through float32 or saturates."""
_MEASURED = (
    _GROWS_BY_ADDING
    | _SHRINKS
    | _SUMS
    | _WRAPS
    | _BITWISE
    | frozenset({"Einsum", "Gemm", "MatMul", "PRelu", "Pow", "ReduceL2", "ReduceProd", "ReduceSumSquare"})
    | frozenset({"ScatterElements"})
)
"""What was measured to be wrong for some integer dtype."""
_IN_FLOAT = frozenset({"MaxPool", "Resize", "ReverseSequence", "Trilu"})
"""Moves that go through float32."""
_UNBOUNDED_READERS = frozenset({"Clip", "Max", "Min"})


class Integers:
    """The forward pass over a graph and the bodies in it.

    Args:
        graph: The graph, or a body.
        constants: The largest magnitude in each integer constant whose content is known, by the value's name.
        outer: What is known of the enclosing graph's values, by name.
    """

    def __init__(
        self, graph: Graph, constants: Mapping[str, int] | None = None, outer: Mapping[str, Known] | None = None
    ) -> None:
        self.graph = graph
        self.constants = constants or {}
        fed = set(graph.inputs)
        self.known: dict[int, Known] = {}
        for index, value in enumerate(graph.values):
            if index in fed:
                self.known[index] = Known(_bound_of(value.dtype), Origin.FED)
            elif index in graph.initializers:
                self.known[index] = self._constant(index)
            elif outer is not None and value.name in outer:
                self.known[index] = outer[value.name]
        self.refusals: dict[int, str] = {}
        for node in graph.nodes:
            reason = self._visit(node)
            if reason is not None:
                self.refusals[node.index] = reason

    def verdict(self, node: Node) -> Verdict | None:
        """The no for this node, if its numbers could be wrong."""
        reason = self.refusals.get(node.index)
        return None if reason is None else Verdict.no(reason, SOURCE)

    def computed_wide(self) -> tuple[str, ...]:
        """The 64-bit values that are computed from what is fed, as "NAME (DTYPE)", bodies included."""
        found: list[str] = []
        for node in self.graph.nodes:
            for index in node.outputs:
                value = self.graph.values[index] if index is not None else None
                if value and index is not None and value.dtype in WIDE and self.known[index].origin is Origin.FED:
                    found.append(f"{value.name} ({value.dtype})")
            for body in node.subgraphs:
                found += Integers(body, self.constants, self._by_name()).computed_wide()
        return tuple(dict.fromkeys(found))

    def _by_name(self) -> dict[str, Known]:
        return {self.graph.values[index].name: known for index, known in self.known.items()}

    def _constant(self, index: int) -> Known:
        value = self.graph.values[index]
        return Known(self.constants.get(value.name, min(INDEX, _bound_of(value.dtype))), Origin.CONSTANT)

    def _dtype(self, index: int | None) -> str | None:
        return None if index is None else self.graph.values[index].dtype

    def _visit(self, node: Node) -> str | None:
        """Records what is known of the node's outputs; the reason why it must not run, if there is one."""
        reads = [i for i in (*node.inputs, *node.captures) if i is not None]
        found = [self.known.get(i, Known(ANY, Origin.FED)) for i in reads]
        origin = max((known.origin for known in found), default=Origin.CONSTANT)
        if node.op in _FRESH or node.subgraphs:
            origin = Origin.FED
        elif node.op in ("Shape", "Size"):
            origin = Origin.SHAPES
        positions = _MOVES.get(node.op) or (_FIRST if node.op in _SUMS or node.op.startswith("Reduce") else None)
        data = [
            (self.known.get(i, Known(ANY, Origin.FED)).bound, self._dtype(i))
            for at, i in enumerate(node.inputs)
            if i is not None and (positions is None or at in positions)
        ]
        bounds = [bound for bound, dtype in data if dtype in INTEGERS or dtype == "bool"]
        out = next((self._dtype(o) for o in node.outputs if o is not None), None)
        reason: str | None = None
        result = ANY
        if node.subgraphs:
            reason = self._bodies(node)
        elif node.domain not in ("", "ai.onnx"):
            reason = None if out not in INTEGERS else _unknown(node.type, out)
        elif origin is not Origin.FED:
            # A narrow one that depends on shapes could still be cut.
            if origin is Origin.SHAPES and out in _NARROW and out != "bool" and node.op not in _MOVES:
                reason = self._judge(node, out, data, bounds)[1]
            result = INDEX
        else:
            result, reason = self._judge(node, out, data, bounds)
        for at, index in enumerate(node.outputs):
            if index is None:
                continue
            if node.op == "Constant":
                self.known[index] = self._constant(index)
                continue
            positioned = node.op in _COUNTS or (at > 0 and node.op in ("TopK", "MaxPool", "Unique"))
            bound = INDEX if positioned else result
            self.known[index] = Known(min(bound, max(_bound_of(self._dtype(index)), 1)), origin)
        return reason

    def _bodies(self, node: Node) -> str | None:
        for body in node.subgraphs:
            inner = Integers(body, self.constants, self._by_name())
            for each in body.nodes:
                if each.index in inner.refusals:
                    return f"in its body, {each.label}: {inner.refusals[each.index]}"
        return None

    def _judge(
        self, node: Node, out: str | None, data: list[tuple[int, str | None]], bounds: list[int]
    ) -> tuple[int, str | None]:
        """The bound of the result, and the reason for a no."""
        most = max(bounds, default=ANY)
        if most > ANY and node.op not in _UNBOUNDED_READERS:
            return ANY, f"it reads a constant beyond 32 bits, and {_COMPUTES}; {_REMEDY}"
        most = min(most, ANY)
        if node.op == "Cast":
            return self._cast(data[0], out) if data else (ANY, None)
        if out not in INTEGERS or node.op in _COUNTS or node.op in _QUANTIZED or node.op in _COMPARES:
            return ANY, None
        if node.op in _MOVES and node.attributes.get("reduction", "none") in ("none", "max", "min"):
            if node.op in _IN_FLOAT and most > EXACT and out not in _NARROW:
                return most, _float32(node.op, out)
            return most, None
        if node.op in ("Sign", "EyeLike"):
            return 1, None
        if node.op in _BITWISE and not (node.op == "BitwiseNot" and out.startswith("uint")):
            return (most if node.op == "BitwiseAnd" and out.startswith("uint") else ANY), None
        if node.op not in _MEASURED:
            return _bound_of(out), _unknown(node.type, out)
        if out in _NARROW:
            return _NARROW[out], (
                f"OpenVINO's CPU plugin saturates, rounds or does not wrap {node.op} of {out}; "
                "export it with float32 arithmetic, or use another backend"
            )
        result = self._grown(node, bounds)
        # INDEX stands for sizes, so nothing fits that grows beyond EXACT by what is known of it.
        if result <= EXACT and not (out.startswith("uint") and node.op in ("Sub", "Neg", "BitwiseNot")):
            return result, None
        if out in _OUTGROWN:
            return ANY, f"{node.op} of {out} values that are fed: {_COMPUTES}; {_REMEDY}"
        if node.op in _WRAPS or (node.op == "ScatterElements" and node.attributes.get("reduction") == "add"):
            return ANY, None
        return ANY, _float32(node.op, out)

    def _cast(self, source: tuple[int, str | None], out: str | None) -> tuple[int, str | None]:
        bound, dtype = source
        if out not in INTEGERS or dtype is None:
            return (1 if out == "bool" else ANY), None
        if dtype not in INTEGERS and dtype != "bool":
            bound = _FLOATS.get(dtype, 2 * ANY)
        signed = dtype.startswith(("int", "float"))
        if out in _NARROW:
            if bound <= _NARROW[out] - out.startswith("int") and not (signed and out.startswith("uint")):
                return bound, None
            return _NARROW[out], (
                f"OpenVINO's CPU plugin saturates or does not wrap a Cast from {dtype} to {out}; "
                "export it without that Cast, or use another backend"
            )
        if out in _OUTGROWN and bound > ANY:
            return ANY, f"a Cast from {dtype} to {out} can leave 32 bits: {_COMPUTES}; {_REMEDY_CAST}"
        if out in _OUTGROWN and out.startswith("uint") and signed:
            return ANY, f"a Cast of negative {dtype} to {out} leaves 32 bits: {_COMPUTES}; {_REMEDY_CAST}"
        return min(bound, ANY), None

    def _grown(self, node: Node, bounds: list[int]) -> int:
        """How large the result of this arithmetic can get; positions stay positions under small factors."""
        most = max(bounds, default=ANY)
        if most >= ANY:
            return 2 * ANY
        if node.op in _SHRINKS:
            return most
        if node.op in _GROWS_BY_ADDING:
            return INDEX if INDEX in bounds and most == INDEX else sum(bounds)
        if node.op == "Mul":
            rest = math.prod(bound for bound in bounds if bound != INDEX)
            return (INDEX if rest <= 2**8 else 2 * ANY) if INDEX in bounds else rest
        if node.op in _SUMS:
            count = self._elements(node.inputs[0])
            return INDEX if most <= 1 else 2 * ANY if count is None else most * count
        return 2 * ANY

    def _elements(self, index: int | None) -> int | None:
        """At most how many elements a tensor has, if that is bounded."""
        shape = None if index is None else self.graph.values[index].shape
        ranges = [self.graph.range_of(dim) for dim in shape] if shape is not None else [None]
        return None if None in ranges else math.prod(r.max for r in ranges if r is not None)


_COMPUTES = "OpenVINO's CPU plugin computes it in int32, which saturates or wraps"
_REMEDY = "export it with int32 or float32 values, or use another backend"
_REMEDY_CAST = "export it with a Cast to int32, or use another backend"


def _float32(op: str, dtype: str) -> str:
    return (
        f"OpenVINO's CPU plugin computes {op} of {dtype} in float32, which is wrong beyond 2**24 and saturates; "
        "export it with float32 values, or use another backend"
    )


def _unknown(op: str, dtype: str) -> str:
    return (
        f"{op} of {dtype} is not among the integer operators that OpenVINO's CPU plugin was shown to compute right; "
        "export it with float32 values, or use another backend"
    )


def _bound_of(dtype: str | None) -> int:
    return _NARROW.get(dtype or "", ANY)
