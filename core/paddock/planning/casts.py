"""Which nodes compute in the narrow type, and the fewest casts that this takes. Reads the graph only; changes nothing.

A node that is kept stays wide; a product or convolution (ALLOW) that is not becomes narrow; all others take the side
that needs the fewest casts inside the model, the narrow one where both need as many. That is a minimum cut: the cut's
two sides are wide and narrow, and it cuts one arc for each cast. Casts at the model's own inputs and outputs are not
counted: they come with the type that was asked for. Each value is cast at most once to each type, for all its readers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from paddock.graph import Graph
from paddock.planning.classes import OperatorClasses, Role
from paddock.planning.mincut import INFINITE, Network

WIDE = "float32"


@dataclass(frozen=True, slots=True)
class Ports:
    """Where one node can take the narrow type: positions of `Node.inputs` and `Node.outputs`.

    `free` inputs are read in whatever type they have (Shape). Without `inputs` and `outputs` the node stays as it is,
    for `reason`; "" where it has no float32 tensor at all.
    """

    inputs: frozenset[int] = frozenset()
    outputs: frozenset[int] = frozenset()
    free: frozenset[int] = frozenset()
    reason: str = ""

    @property
    def movable(self) -> bool:
        """Whether the node can be narrow at all."""
        return bool(self.inputs or self.outputs)


@dataclass(frozen=True)
class Casts:
    """The type of every node and value, decided.

    `narrow` nodes compute in the narrow type, all others as they did, each for its reason; `down` and `up` are the
    values that are cast, to the narrow type and to float32; `stored` are the initializers kept in the narrow type.
    """

    narrow: frozenset[int]
    reasons: Mapping[int, str]
    down: frozenset[int]
    up: frozenset[int]
    stored: frozenset[int]
    """Wanted in the narrow type only. One that is wanted in both is stored wide, once, and cast."""


@dataclass(frozen=True)
class CastRequest:
    """What decides: the nodes kept wide and why, the operators' classes, the type of the model's border."""

    narrow: str
    """`float16` or `bfloat16`."""
    classes: OperatorClasses
    keep: Mapping[int, str] = field(default_factory=dict)
    reach: Mapping[int, float] = field(default_factory=dict)
    """The largest magnitude that was seen of each value, by index, where it was measured."""
    narrow_border: bool = False
    """Whether inputs and outputs are of the narrow type too."""
    storage_only: bool = False
    """Whether nothing but the weights is narrow: they are stored so, and cast back for whoever reads them."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a narrow type holds: magnitudes from `overflow` round to infinity, up to `vanish` to zero."""

    largest: str
    overflow: float
    vanish: float


LIMITS: Mapping[str, Limits] = {
    "float16": Limits("65,504", 65520.0, 2.0**-25),
    "bfloat16": Limits("3.39e38", 2.0**128 - 2.0**119, 2.0**-134),
}
"""IEEE 754 binary16, and its binary32 cut to 16 bits; halfway to the next number rounds to the even one."""


_SQUARING = frozenset(
    {
        "GroupNormalization", "InstanceNormalization", "LayerNormalization", "LpNormalization",
        "MeanVarianceNormalization", "RMSNormalization", "ReduceL2",
    }
)  # fmt: skip
"""Operators that square their first input before they sum it: a variance leaves the type long before the values do."""


def out_of_range(graph: Graph, ports: Mapping[int, Ports], request: CastRequest) -> dict[int, str]:
    """The nodes that would read, write or square inside a value that the narrow type does not hold, each with it."""
    found: dict[int, str] = {}
    for node in graph.nodes:
        own = ports[node.index]
        touched = [v for at, v in enumerate(node.inputs) if at in own.inputs]
        touched += [v for at, v in enumerate(node.outputs) if at in own.outputs]
        known = [(v, request.reach[v]) for v in touched if v is not None and v in request.reach]
        reasons = [beyond(f"{graph.values[value].name!r}", reach, request.narrow) for value, reach in known]
        if node.type in _SQUARING and known and known[0][0] == node.inputs[0]:
            value, reach = known[0]
            reasons.append(beyond(f"the square of {graph.values[value].name!r}", reach * reach, request.narrow))
        found.update((node.index, reason) for reason in reversed(reasons) if reason)  # the first one stays
    return found


def beyond(name: str, reach: float, narrow: str) -> str:
    """Why the type does not hold a value of this magnitude; "" where it does."""
    limits = LIMITS[narrow]
    if not math.isfinite(reach):  # an infinity of its own is one in any type
        return ""
    if reach >= limits.overflow:
        return f"{name} reaches {reach:.3g}: {narrow} ends at {limits.largest}"
    if 0 < reach <= limits.vanish:
        return f"{name} stays under {reach:.1g}: in {narrow} all of it is 0"
    return ""


def plan_casts(graph: Graph, ports: Mapping[int, Ports], request: CastRequest) -> Casts:
    """The casts for a model whose nodes have these ports (by index, all of them)."""
    if request.storage_only:
        return _storage(graph, ports, request)
    readers = _readers(graph, ports)
    sides = _sides(graph, ports, request, readers)
    narrow = frozenset(index for index, side in sides.items() if side)
    made_narrow = {
        value
        for node in graph.nodes
        if node.index in narrow
        for position, value in enumerate(node.outputs)
        if value is not None and position in ports[node.index].outputs
    }
    floats = {i for i, v in enumerate(graph.values) if v.dtype == WIDE and v.kind == "tensor"}
    if request.narrow_border:
        made_narrow |= {value for value in graph.inputs if value in floats}
    down: set[int] = set()
    up: set[int] = set()
    stored: set[int] = set()
    for value in floats:
        read = readers.get(value, ())
        by_narrow = any(side is not None and side in narrow for side in read)
        by_wide = any(side is None or side not in narrow for side in read)
        if value in graph.outputs:
            by_narrow, by_wide = by_narrow or request.narrow_border, by_wide or not request.narrow_border
        if value in graph.initializers and by_narrow and not by_wide:
            stored.add(value)
        elif value in made_narrow and by_wide:
            up.add(value)
        elif value not in made_narrow and by_narrow:
            down.add(value)
    reasons = _reasons(graph, ports, request, narrow)
    return Casts(narrow, reasons, frozenset(down), frozenset(up), frozenset(stored))


def _storage(graph: Graph, ports: Mapping[int, Ports], request: CastRequest) -> Casts:
    """Every weight narrow that the type holds, except where the border or a body wants it as it is."""
    captured = {value for node in graph.nodes for value in node.captures}
    read = _readers(graph, ports).keys()
    stored = set()
    for value in graph.initializers:
        reach = request.reach.get(value, math.inf)
        held = math.isfinite(reach) and not beyond("", reach, request.narrow)
        if graph.values[value].dtype == WIDE and held and value not in captured and value not in graph.outputs:
            stored.add(value)
    reasons = {
        node.index: "its weights are stored narrow; it computes as before"
        for node in graph.nodes
        if stored.intersection(value for value in node.inputs if value is not None)
    }
    return Casts(frozenset(), reasons, frozenset(), frozenset(stored & read), frozenset(stored))


def _readers(graph: Graph, ports: Mapping[int, Ports]) -> dict[int, list[int | None]]:
    """For each value, the movable nodes that read it there where they can be narrow, and None for all other readers."""
    found: dict[int, list[int | None]] = {}
    for node in graph.nodes:
        own = ports[node.index]
        for position, value in enumerate(node.inputs):
            if value is not None and position not in own.free:
                found.setdefault(value, []).append(node.index if position in own.inputs else None)
        for value in node.captures:
            found.setdefault(value, []).append(None)
    return found


def _sides(
    graph: Graph, ports: Mapping[int, Ports], request: CastRequest, readers: Mapping[int, list[int | None]]
) -> dict[int, bool]:
    """Whether each node is narrow."""
    settled: dict[int, bool] = {}
    for node in graph.nodes:
        if not ports[node.index].movable or node.index in request.keep:
            settled[node.index] = False
        elif request.classes.role(node.type) is Role.ALLOW:
            settled[node.index] = True
    open_nodes = [node.index for node in graph.nodes if node.index not in settled]
    if not open_nodes:
        return settled
    wide, narrow = 0, 1
    vertices = {index: 2 + at for at, index in enumerate(open_nodes)}

    def vertex(index: int | None) -> int:
        if index is None or index not in vertices:
            return narrow if index is not None and settled[index] else wide
        return vertices[index]

    arcs: list[tuple[int, int, int]] = []
    fresh = 2 + len(open_nodes)
    for node in graph.nodes:
        for position, value in enumerate(node.outputs):
            if value is None or graph.values[value].dtype != WIDE:
                continue
            maker = vertex(node.index if position in ports[node.index].outputs else None)
            read = {vertex(reader) for reader in readers.get(value, ())}
            if not read or read == {maker}:
                continue
            at_border = value in graph.outputs  # its cast there serves all readers of that type
            if not (at_border and not request.narrow_border):
                arcs.append((fresh, maker, 1))  # narrow made, wide read
                arcs += [(reader, fresh, INFINITE) for reader in read]
                fresh += 1
            if not (at_border and request.narrow_border):
                arcs.append((maker, fresh, 1))  # wide made, narrow read
                arcs += [(fresh, reader, INFINITE) for reader in read]
                fresh += 1
    for value in graph.initializers:  # stored as it is read; where both types are, one of them is a cast
        read = {vertex(reader) for reader in readers.get(value, ())}
        if graph.values[value].dtype == WIDE and len(read) > 1 and value not in graph.outputs:
            arcs.append((fresh, fresh + 1, 1))
            arcs += [(reader, fresh, INFINITE) for reader in read]
            arcs += [(fresh + 1, reader, INFINITE) for reader in read]
            fresh += 2
    network = Network(fresh)
    for tail, head, capacity in arcs:
        network.add(tail, head, capacity)
    on_wide = network.source_side(wide, narrow)
    return {**settled, **{index: not on_wide[at] for index, at in vertices.items()}}


def _reasons(graph: Graph, ports: Mapping[int, Ports], request: CastRequest, narrow: frozenset[int]) -> dict[int, str]:
    found = {}
    for node in graph.nodes:
        own, role = ports[node.index], request.classes.role(node.type)
        if node.index in narrow:
            found[node.index] = "a product: always worth it" if role is Role.ALLOW else "as what stands around it"
        elif not own.movable:
            found[node.index] = own.reason
        else:
            found[node.index] = request.keep.get(node.index) or "as what stands around it: fewer casts"
    return found
