"""The neutral view of a model: operators in topological order, values with dtype and symbolic shape.

Every format reads into this one structure, and everything that plans (operator selection, precision, memory)
reads only it. Nodes and values are known by index, never by name: SDKs drop and duplicate names.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

Dim = int | str | None
"""One extent: fixed (int), symbolic (str, equal symbols are equal extents), or unknown (None)."""

Shape = tuple[Dim, ...]

BITS: Mapping[str, int] = MappingProxyType(
    {
        "float64": 64, "float32": 32, "float16": 16, "bfloat16": 16,
        "float8e4m3fn": 8, "float8e4m3fnuz": 8, "float8e5m2": 8, "float8e5m2fnuz": 8, "float4e2m1": 4,
        "int64": 64, "int32": 32, "int16": 16, "int8": 8, "int4": 4,
        "uint64": 64, "uint32": 32, "uint16": 16, "uint8": 8, "uint4": 4,
        "bool": 8, "complex64": 64, "complex128": 128,
    }
)  # fmt: skip
"""Bits for one element of each dtype, by NumPy's name where NumPy has one. Strings have no fixed size."""


@dataclass(frozen=True, slots=True)
class Range:
    """The extents that one dimension may take, inclusive; `opt` is the one to tune for."""

    min: int
    opt: int
    max: int
    spans: tuple[tuple[int, int], ...] = ()
    """Where not empty, only these (min, max) are served: buckets, or several profiles."""

    def admits(self, extent: int) -> bool:
        """Whether a run may have this extent here."""
        return any(low <= extent <= high for low, high in self.spans or ((self.min, self.max),))

    @property
    def count(self) -> int:
        """How many extents that is."""
        return sum(high - low + 1 for low, high in self.spans or ((self.min, self.max),))

    @property
    def fixed(self) -> bool:
        """Whether exactly one extent is left."""
        return self.min == self.max

    def __str__(self) -> str:
        if self.fixed:
            return str(self.min)
        spans = self.spans or ((self.min, self.max),)
        return "|".join(str(low) if low == high else f"{low}..{high}" for low, high in spans)


Choice = tuple[Mapping[str, Range], ...]
"""Alternatives of which a run must satisfy one, where the config couples several dimensions."""


@dataclass(frozen=True, slots=True)
class Value:
    """What flows along an edge.

    `dtype` is a key of `BITS`, "string", or None where inference could not tell; `shape` is None where even the
    rank is unknown; `kind` is "tensor", "sequence" or "optional" (of tensors of that dtype).
    """

    name: str
    dtype: str | None = None
    shape: Shape | None = None
    kind: str = "tensor"


@dataclass(frozen=True, slots=True)
class Node:
    """One operator.

    `inputs` holds value indices, None where an optional input is left out; `captures` are the values of the
    enclosing graph that its `subgraphs` (the bodies of control flow) read; attributes are plain JSON data,
    tensors among them summarised as {"tensor": dtype, "shape": [...]}.
    """

    index: int
    op: str
    inputs: tuple[int | None, ...]
    outputs: tuple[int | None, ...]
    name: str = ""
    domain: str = ""
    attributes: Mapping[str, Any] = field(default_factory=dict)
    subgraphs: tuple[Graph, ...] = ()
    captures: tuple[int, ...] = ()

    @property
    def type(self) -> str:
        """The operator with its domain: `MatMul`, `com.microsoft.Gelu`, `pd_op.matmul`."""
        return f"{self.domain}.{self.op}" if self.domain else self.op

    @property
    def label(self) -> str:
        """How messages name it: index, type, and its name where it has one."""
        return f"#{self.index} {self.type}" + (f" ({self.name})" if self.name else "")


@dataclass(frozen=True, slots=True)
class EntryPoint:
    """One way into the graph, such as prefill or decode; today's formats have one, called "main"."""

    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class State:
    """A value kept between runs (a KV cache): read through one input, written through one output."""

    name: str
    input: int
    output: int


@dataclass(frozen=True)
class Graph:
    """A model's operators and values, frozen.

    `initializers` maps the index of each constant value to its size in bytes; `opsets` maps operator domains to
    versions; `bounds` maps symbols to the extents that the config admits (see `with_bounds`), `choices` couples several
    of them; `fixed` holds the symbols that `with_bounds` turned into numbers.
    """

    nodes: tuple[Node, ...]
    values: tuple[Value, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    initializers: Mapping[int, int] = field(default_factory=dict)
    name: str = ""
    opsets: Mapping[str, int] = field(default_factory=dict)
    bounds: Mapping[str, Range] = field(default_factory=dict)
    choices: tuple[Choice, ...] = ()
    fixed: Mapping[str, int] = field(default_factory=dict)
    states: tuple[State, ...] = ()

    @property
    def entry_points(self) -> tuple[EntryPoint, ...]:
        """The named ways in; one until a format brings several."""
        return (EntryPoint("main", self.inputs, self.outputs),)

    @property
    def input_values(self) -> tuple[Value, ...]:
        """The values a caller feeds, in the model's order."""
        return tuple(self.values[i] for i in self.inputs)

    @property
    def output_values(self) -> tuple[Value, ...]:
        """The values a caller gets, in the model's order."""
        return tuple(self.values[i] for i in self.outputs)

    @property
    def weight_bytes(self) -> int:
        """Size of all constants, subgraphs included, in bytes."""
        return sum(self.initializers.values()) + sum(g.weight_bytes for n in self.nodes for g in n.subgraphs)

    def symbols(self) -> tuple[str, ...]:
        """The symbolic dimensions of the inputs, in order of appearance."""
        found: dict[str, None] = {}
        for value in self.input_values:
            found.update((dim, None) for dim in value.shape or () if isinstance(dim, str))
        return tuple(found)

    def range_of(self, dim: Dim) -> Range | None:
        """The extents that `dim` may take, or None where nothing bounds it."""
        if isinstance(dim, int):
            return Range(dim, dim, dim)
        return self.bounds.get(dim) if dim is not None else None

    def with_bounds(self, bounds: Mapping[str, Range]) -> Graph:
        """This graph with these symbols bounded; a symbol left with one extent becomes that number everywhere."""
        fixed = {name: bound.min for name, bound in bounds.items() if bound.fixed}
        values = tuple(
            value
            if value.shape is None
            else replace(value, shape=tuple(fixed.get(d, d) if isinstance(d, str) else d for d in value.shape))
            for value in self.values
        )
        kept = {**self.bounds, **{name: bound for name, bound in bounds.items() if name not in fixed}}
        return replace(self, values=values, bounds=kept, fixed={**self.fixed, **fixed})

    def nbytes(self, value: int, which: str = "max") -> int | None:
        """Size of a value in bytes with every symbol at its "min", "opt" or "max"; None where that is unknown.

        The largest size is one that some alternative of each of the choices has, not that of extents never seen
        together.
        """
        if value in self.initializers:
            return self.initializers[value]
        found = self.values[value]
        if found.shape is None or found.dtype is None or found.dtype not in BITS:
            return None
        ranges = [self.range_of(dim) for dim in found.shape]
        known = [bound for bound in ranges if bound is not None]
        if len(known) != len(ranges):
            return None
        elements: int = math.prod(getattr(bound, which) for bound in known)
        if which == "max":
            dims = list(zip(found.shape, known, strict=True))
            for choice in self.choices:
                coupled = (
                    math.prod(one.get(d, r).max if isinstance(d, str) else r.max for d, r in dims) for one in choice
                )
                elements = min(elements, max(coupled))
        return math.ceil(elements * BITS[found.dtype] / 8)

    def walk(self) -> Iterator[Node]:
        """Every node, the bodies of control flow included."""
        for node in self.nodes:
            yield node
            for graph in node.subgraphs:
                yield from graph.walk()
