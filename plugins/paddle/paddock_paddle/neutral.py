"""From a PIR program to Paddock's neutral graph.

Parameters become initializers, feeds inputs, fetches outputs; what is left are the operations, in the program's order.
Values have no names in a program: they are called `OPERATION.N.RESULT` for the N-th operation of that kind, as
paddle2onnx calls them, and a fetched value by its fetch, as Paddle's predictor does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from paddock.errors import ModelError
from paddock.graph import Dim, Graph, Node, Shape, Value

from paddock_paddle.pir import Block, Op, Program, Type
from paddock_paddle.shapes import Site, carried

FEEDS = frozenset({"pd_op.data", "pd_op.feed"})
FETCH = "pd_op.fetch"
PARAMETER = "builtin.parameter"

LIST_LIMIT = 64
"""Attributes that are longer lists than this are summarised as {"list": length}."""

_CONSTANTS: Mapping[str, str] = {"pd_op.full": "value", "pd_op.full_int_array": "value"}

SYMBOLS = "symbols"
"""An attribute that only segments cut out of a program have on a feed: the extents' symbols there, "" where unknown."""

BATCH = "batch"
"""The symbol of axis 0 of every input on which it is dynamic."""


@dataclass(frozen=True)
class Neutral:
    """The graph, and where its parts stood: `nodes[i]` is the position of node i among the top block's operations."""

    graph: Graph
    nodes: tuple[int, ...]


def neutral(program: Program, name: str) -> Neutral:
    """The graph of a program; raises `ModelError` where two feeds or two fetches have one name."""
    # A segment's border has the names of the model that it was cut from, whose operations were counted otherwise.
    border = frozenset(_name(op) for op in program.block.ops if op.name in FEEDS or op.name == FETCH)
    builder = _Builder(program, {}, border)
    fetches: list[tuple[int, str, int]] = []
    for position, op in enumerate(program.block.ops):
        if op.name in FEEDS:
            builder.feed(op)
        elif op.name == FETCH:
            fetches.append((_column(op), _name(op), position))
        else:
            builder.operation(op, position)
    fetches.sort()
    for what, names in (("inputs", builder.input_names), ("outputs", [fetch[1] for fetch in fetches])):
        twice = [found for found, count in Counter(names).items() if count > 1]
        if twice:
            raise ModelError(f"has two {what} called {twice[0]!r}")
    if not fetches:
        raise ModelError("has no output (no pd_op.fetch)")
    for _, fetch, position in fetches:
        builder.fetch(program.block.ops[position], fetch, position)
    return Neutral(builder.graph(name), tuple(builder.positions))


def _name(op: Op) -> str:
    name = op.attributes.get("name")
    if not isinstance(name, str) or not name:
        raise ModelError(f"has a {op.name} without a name")
    return name


def _column(op: Op) -> int:
    column = op.attributes.get("col")
    if type(column) is not int or len(op.inputs) != 1 or not op.inputs[0]:
        raise ModelError(f"has a {op.name} without a column or an operand")
    return column


@dataclass
class _Builder:
    """Builds the graph of one block; `outer` holds what the enclosing blocks know, by value id."""

    program: Program
    outer: Mapping[int, tuple[Value, Any]]
    taken: frozenset[str] = frozenset()
    """The names of inputs and outputs, which no other value gets."""
    values: list[Value] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)
    initializers: dict[int, int] = field(default_factory=dict)
    captured: dict[int, None] = field(default_factory=dict)
    """Ids of values that come from outside, in order of their first use."""
    parts: dict[int, tuple[Shape | None, ...]] = field(default_factory=dict)
    """By value id, the shapes of a sequence's parts."""
    constants: dict[int, Sequence[int]] = field(default_factory=dict)
    known: dict[int, int] = field(default_factory=dict)
    """Value id -> index in `values`."""
    counts: Counter[str] = field(default_factory=Counter)
    fetched: set[int] = field(default_factory=set)

    @property
    def input_names(self) -> list[str]:
        return [self.values[index].name for index in self.inputs]

    def feed(self, op: Op) -> None:
        name = _name(op)
        ((identity, kind),) = self._results(op, 1)
        if kind.shape is None:
            raise ModelError(f"has an input {name!r} that is no tensor")
        symbols = op.attributes.get(SYMBOLS) or [_symbol(name, axis) for axis in range(len(kind.shape))]
        shape = tuple((symbols[axis] or f"{name}.{axis}") if dim == -1 else dim for axis, dim in enumerate(kind.shape))
        self.inputs.append(self._define(identity, Value(name, kind.dtype, shape)))

    def argument(self, identity: int, kind: Type) -> None:
        """A value that enters a body: the state of a loop, of which only fixed extents are certain."""
        shape = None if kind.shape is None else tuple(None if dim == -1 else dim for dim in kind.shape)
        value = Value(f"state.{len(self.inputs)}", kind.dtype, shape, kind.kind)
        self.inputs.append(self._define(identity, value))

    def operation(self, op: Op, position: int) -> None:
        number = self.counts[op.name]
        self.counts[op.name] += 1
        if op.name == PARAMETER:
            ((identity, kind),) = self._results(op, 1)
            name = op.attributes["parameter_name"]
            index = self._define(identity, Value(name, kind.dtype, kind.shape))
            saved = self.program.parameters.get(name)
            self.initializers[index] = saved.nbytes if saved is not None else 0
            return
        reads = tuple(self._read(identity) if identity else None for identity in op.inputs)
        bodies = [self._body(block) for block in op.blocks]
        captures = dict.fromkeys(self._read(identity) for _, ids in bodies for identity in ids)
        site = self._site(op)
        writes: list[int | None] = []
        for result, (identity, kind) in enumerate(op.outputs):
            if kind.kind == "none" or not identity:
                writes.append(None)
                continue
            label = f"{op.name}.{number}.{result}"
            label += ".inner" if label in self.taken else ""
            shape = self._shape(op, site, result, kind, identity)
            writes.append(self._define(identity, Value(label, kind.dtype, shape, kind.kind)))
        self._remember_constant(op)
        attributes = _plain(op.attributes)
        if op.name == "pd_op.gather" and len(op.inputs) > 2 and (axis := self.constants.get(op.inputs[2])):
            attributes["axis"] = axis[0]  # Paddle passes it as an operand; whoever reads the graph looks here
        self._node(op.name, position, reads, writes, attributes, bodies, captures)

    def fetch(self, op: Op, name: str, position: int) -> None:
        """Names the value that a fetch takes; one that has a name already keeps the fetch as a node of its own."""
        identity = op.inputs[0]
        index = self._read(identity)
        value = self.values[index]
        named = index in self.inputs or index in self.initializers or identity in self.fetched
        if not named:
            self.values[index] = Value(name, value.dtype, value.shape, value.kind)
        elif index in self.inputs or identity in self.fetched or value.name != name:
            copy = len(self.values)
            self.values.append(Value(name, value.dtype, value.shape, value.kind))
            self._node(FETCH, position, (index,), [copy], {}, [], {})
            index = copy
        self.fetched.add(identity)
        self.outputs.append(index)

    def graph(self, name: str = "") -> Graph:
        return Graph(
            tuple(self.nodes), tuple(self.values), tuple(self.inputs), tuple(self.outputs), self.initializers, name
        )

    def _node(
        self,
        op: str,
        position: int,
        reads: tuple[int | None, ...],
        writes: Sequence[int | None],
        attributes: dict[str, Any],
        bodies: Sequence[tuple[Graph, Sequence[int]]],
        captures: Mapping[int, None],
    ) -> None:
        layer = attributes.pop("struct_name", "")
        node = Node(
            len(self.nodes),
            op,
            reads,
            tuple(writes),
            layer if isinstance(layer, str) else "",
            "",
            attributes,
            tuple(graph for graph, _ in bodies),
            tuple(captures),
        )
        self.nodes.append(node)
        self.positions.append(position)

    def _body(self, block: Block) -> tuple[Graph, Sequence[int]]:
        """A body of control flow and the ids of the values that it takes from outside."""
        around = {identity: (self.values[index], self._facts(identity)) for identity, index in self.known.items()}
        inner = _Builder(self.program, {**self.outer, **around})
        for identity, kind in block.arguments:
            inner.argument(identity, kind)
        for position, op in enumerate(block.ops):
            if op.name == "cf.yield":
                inner.outputs = [inner._read(identity) for identity in op.inputs]
            else:
                inner.operation(op, position)
        return inner.graph(), tuple(inner.captured)

    def _facts(self, identity: int) -> Any:
        return self.parts.get(identity), self.constants.get(identity)

    def _read(self, identity: int) -> int:
        if identity not in self.known:
            value, (parts, constant) = self.outer[identity]
            self.captured[identity] = None
            self._define(identity, value)
            if parts is not None:
                self.parts[identity] = parts
            if constant is not None:
                self.constants[identity] = constant
        return self.known[identity]

    def _define(self, identity: int, value: Value) -> int:
        self.known[identity] = len(self.values)
        self.values.append(value)
        return self.known[identity]

    def _results(self, op: Op, count: int) -> tuple[tuple[int, Type], ...]:
        if len(op.outputs) != count:
            raise ModelError(f"has a {op.name} with {len(op.outputs)} results")
        return op.outputs

    def _site(self, op: Op) -> tuple[list[Shape | None], list[Sequence[int] | None]]:
        """Shapes and constants of the operands, sequences taken apart."""
        shapes: list[Shape | None] = []
        constants: list[Sequence[int] | None] = []
        for identity in op.inputs:
            parts = self.parts.get(identity)
            if parts is not None:
                shapes.extend(parts)
                constants.extend([None] * len(parts))
            else:
                shapes.append(self.values[self.known[identity]].shape if identity else None)
                constants.append(self.constants.get(identity))
        return shapes, constants

    def _shape(
        self,
        op: Op,
        site: tuple[list[Shape | None], list[Sequence[int] | None]],
        result: int,
        kind: Type,
        identity: int,
    ) -> Shape | None:
        shapes, constants = site
        if op.name == "builtin.combine":
            self.parts[identity] = tuple(shapes)
            return None
        if op.name == "builtin.split" and kind.shape is not None and result < len(shapes):
            inner = shapes[result]
            return inner if inner is not None and len(inner) == len(kind.shape) else _fixed(kind.shape)
        if kind.kind == "sequence":
            self.parts[identity] = tuple(
                None if part.shape is None else carried(op.name, Site(shapes, constants, op.attributes, part.shape))
                for part in kind.parts
            )
            return None
        if kind.shape is None:
            return None
        if result or op.blocks:
            return _fixed(kind.shape)
        return carried(op.name, Site(shapes, constants, op.attributes, kind.shape))

    def _remember_constant(self, op: Op) -> None:
        key = _CONSTANTS.get(op.name)
        if key is None or len(op.outputs) != 1 or op.inputs:
            return
        found = op.attributes.get(key)
        listed = found if isinstance(found, list) else [found]
        whole = [int(item) for item in listed if isinstance(item, (int, float)) and item == int(item)]
        if len(whole) == len(listed):
            self.constants[op.outputs[0][0]] = whole


def _symbol(name: str, axis: int) -> Dim:
    return BATCH if axis == 0 else f"{name}.{axis}"


def _fixed(shape: tuple[int, ...]) -> Shape:
    return tuple(None if dim == -1 else dim for dim in shape)


def _plain(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: {"list": len(value)} if isinstance(value, list) and len(value) > LIST_LIMIT else value
        for name, value in attributes.items()
    }
