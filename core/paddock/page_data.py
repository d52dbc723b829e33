"""What the page's script draws from, as plain JSON data by column: boxes, edges, values, segments, their buffers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from paddock.graph import BITS, Graph, Node
from paddock.memory_plan import SegmentMemory
from paddock.model import Model, origins
from paddock.occupancy import occupancy, operator_of
from paddock.page_layout import arrange
from paddock.plan import Plan

Traces = Mapping[int, Mapping[str, Sequence[int]]]
"""By segment: for names of values in its own graph, the nodes of the user's model that they come from."""

_SHORT = {
    "float64": "f64", "float32": "f32", "float16": "f16", "bfloat16": "bf16", "float8e4m3fn": "f8", "float8e5m2": "f8",
    "int64": "i64", "int32": "i32", "int16": "i16", "int8": "i8", "int4": "i4", "uint8": "u8", "uint4": "u4",
    "bool": "bool", "string": "str",
}  # fmt: skip
_LETTER, _SMALL, _BORDER, _NARROWEST, _WIDEST = 7.2, 6.1, 24.0, 52.0, 210.0
"""Widths on the page in pixels: of a letter in a box and below it, of a box beside its text, of a box."""


def traces(target: Model, root: Model) -> dict[str, tuple[int, ...]]:
    """For each value that a segment's model makes, the nodes of the user's model that its node came from."""
    found: dict[str, tuple[int, ...]] = {}
    for node in target.graph.nodes:
        came = tuple(sorted(origins(target, node.index, root)))
        found.update((target.graph.values[v].name, came) for v in node.outputs if v is not None)
    return found


def _short(dtype: str) -> str:
    """`f32`; `f16/f32` of a node that became several, which compute in different types."""
    return "/".join(_SHORT.get(name, name) for name in dtype.split(" and "))


class _Texts:
    """Each text once; data refers to it by its index."""

    def __init__(self) -> None:
        self.index: dict[str, int] = {}

    def __call__(self, text: str) -> int:
        return self.index.setdefault(text, len(self.index))


def page_data(graph: Graph, plan: Plan, traced: Traces | None = None) -> dict[str, Any]:
    """Everything that the graph and the memory pictures show.

    Boxes are the graph's inputs, its nodes, and its outputs, in this order; -1 stands for none and for unknown.
    """
    return _Data(graph, plan, traced or {}).build()


class _Data:
    def __init__(self, graph: Graph, plan: Plan, traced: Traces) -> None:
        self.graph = graph
        self.plan = plan
        self.traced = traced
        self.text = _Texts()
        self.fed = tuple(v for v in dict.fromkeys(graph.inputs) if v not in graph.initializers)
        self.first = len(self.fed)
        """The box of node 0."""
        self.last = self.first + len(graph.nodes)
        """The box of the first output."""
        position = {node.index: at for at, node in enumerate(graph.nodes)}
        self.box_of = {index: self.first + at for index, at in position.items()}
        self.maker = {v: self.box_of[node.index] for node in graph.nodes for v in node.outputs if v is not None}
        self.maker.update({value: box for box, value in enumerate(self.fed)})
        self.placed = {found.node: found for found in plan.placement.nodes}
        self.computes = {found.node: found for found in plan.precision.nodes}
        self.segment_of = {node: segment.index for segment in plan.placement.segments for node in segment.nodes}
        names = (*(s.adapter for s in plan.placement.segments), *(n.adapter for n in plan.placement.nodes))
        self.adapters = list(dict.fromkeys((*names, *(s.adapter for s in plan.memory.segments))))

    def build(self) -> dict[str, Any]:
        graph, text = self.graph, self.text
        shown = [v for v in range(len(graph.values)) if v in self.maker or v in graph.outputs]
        number = {value: at for at, value in enumerate(shown)}
        values = self._values(shown)
        boxes = self._boxes(number)
        edges, read = self._edges()
        slots = [max(boxes["w"][b], self._caption(b) * _SMALL) for b in range(len(boxes["w"]))]
        drawing = arrange(slots, edges, range(self.first))
        boxes |= {"x": [round(x) for x in drawing.centers], "layer": list(drawing.layers)}
        data = {
            "inputs": self.first,
            "nodes": len(graph.nodes),
            "boxes": boxes,
            "values": values,
            "edges": {
                "from": [a for a, _ in edges],
                "to": [b for _, b in edges],
                "values": [[number[v] for v in read[edge]] for edge in edges],
                "bends": [[round(c, 1) for point in bends for c in point] for bends in drawing.bends],
            },
            "extent": [round(drawing.left), round(drawing.right), drawing.depth],
            "adapters": self.adapters,
            "segments": [
                {"index": s.index, "adapter": self.adapters.index(s.adapter)} for s in self.plan.placement.segments
            ],
            "memory": [self._memory(segment) for segment in self.plan.memory.segments],
        }
        return {"text": list(text.index), **data}

    def _boxes(self, number: Mapping[int, int]) -> dict[str, list[Any]]:
        graph, text = self.graph, self.text
        rows = [self._end(value, "input", [], [number[value]]) for value in self.fed]
        rows += [self._node(node, number) for node in graph.nodes]
        rows += [self._end(value, "output", [number[value]], []) for value in graph.outputs]
        names = ("label", "type", "name", "index", "segment", "adapter", "answer", "reason", "source", "dtype", "why")
        columns: dict[str, list[Any]] = {name: [row[i] for row in rows] for i, name in enumerate(names)}
        columns |= {
            "in": [row[11] for row in rows],
            "out": [row[12] for row in rows],
            "held": [row[13] for row in rows],
        }
        texts = list(text.index)
        columns["w"] = [round(min(_WIDEST, max(_NARROWEST, len(texts[row[0]]) * _LETTER + _BORDER)), 1) for row in rows]
        return columns

    def _end(self, value: int, kind: str, takes: list[int], gives: list[int]) -> tuple[Any, ...]:
        text = self.text
        name = self.graph.values[value].name
        nothing = text("")
        return (
            text(name), text(f"graph {kind}"), text(name), -1, -1, -1, "", nothing, nothing, nothing, nothing,
            takes, gives, [0, 0],
        )  # fmt: skip

    def _node(self, node: Node, number: Mapping[int, int]) -> tuple[Any, ...]:
        text, graph = self.text, self.graph
        placed, computes = self.placed.get(node.index), self.computes.get(node.index)
        constants = [v for v in node.inputs if v is not None and v in graph.initializers]
        reads = dict.fromkeys(v for v in (*node.inputs, *node.captures) if v is not None and v in number)
        return (
            text(node.op.rpartition(".")[2] or node.op),
            text(node.type),
            text(node.name),
            node.index,
            self.segment_of.get(node.index, -1),
            self.adapters.index(placed.adapter) if placed else -1,
            placed.verdict.answer.value if placed else "",
            text(placed.reason if placed else ""),
            text(placed.verdict.source if placed else ""),
            text(computes.dtype if computes else ""),
            text(computes.reason if computes else ""),
            [number[v] for v in reads],
            [number[v] for v in node.outputs if v is not None and v in number],
            [len(constants), sum(graph.initializers[v] for v in constants)],
        )

    def _values(self, shown: Sequence[int]) -> dict[str, list[Any]]:
        """`dtype` as the plan has it made, `stated` as the model states it."""
        graph, text = self.graph, self.text
        casts: dict[str, list[str]] = {}
        for name, dtype in self.plan.precision.casts:
            casts.setdefault(name, []).append(dtype)
        columns: dict[str, list[Any]] = {
            name: [] for name in ("name", "dtype", "stated", "short", "shape", "bytes", "maker", "casts")
        }
        for value in shown:
            found = graph.values[value]
            stated = found.dtype or ""
            made = self._made_in(value)
            size = graph.nbytes(value)
            if size is not None and made in BITS and stated in BITS:
                size = -(-size * BITS[made] // BITS[stated])
            columns["name"].append(text(found.name))
            columns["dtype"].append(text(made))
            columns["stated"].append(text(stated))
            columns["short"].append(text(_short(made)))
            columns["shape"].append(text(self._shape(value)))
            columns["bytes"].append(-1 if size is None else size)
            columns["maker"].append(self.maker.get(value, -1))
            columns["casts"].append([text(dtype) for dtype in casts.get(found.name, ())])
        return columns

    def _made_in(self, value: int) -> str:
        stated = self.graph.values[value].dtype or ""
        box = self.maker.get(value, -1)
        if stated != "float32" or not self.first <= box < self.last:
            return stated
        node = self.graph.nodes[box - self.first]
        found = self.computes.get(node.index)
        return found.dtype if found and found.dtype else stated

    def _shape(self, value: int) -> str:
        shape = self.graph.values[value].shape
        if shape is None:
            return "?"
        ranges = [self.graph.range_of(dim) for dim in shape]
        extents = [
            str(dim) if isinstance(dim, int) else f"{found.max}" if found else str(dim or "?")
            for dim, found in zip(shape, ranges, strict=True)
        ]
        return "\u00d7".join(extents) or "scalar"

    def _caption(self, box: int) -> int:
        """Letters of what stands below a box: the type and shape of the first value it gives."""
        if box >= self.last:
            return 0
        value = self.fed[box] if box < self.first else next(
            (v for v in self.graph.nodes[box - self.first].outputs if v is not None), None
        )  # fmt: skip
        if value is None:
            return 0
        made = self._made_in(value)
        return min(26, len(_short(made)) + 1 + len(self._shape(value)))

    def _edges(self) -> tuple[list[tuple[int, int]], dict[tuple[int, int], list[int]]]:
        read: dict[tuple[int, int], list[int]] = {}
        for node in self.graph.nodes:
            for value in dict.fromkeys((*node.inputs, *node.captures)):
                if value is not None and value in self.maker:
                    read.setdefault((self.maker[value], self.box_of[node.index]), []).append(value)
        for at, value in enumerate(self.graph.outputs):
            if value in self.maker:
                read.setdefault((self.maker[value], self.last + at), []).append(value)
        return list(read), read

    def _memory(self, segment: SegmentMemory) -> dict[str, Any]:
        text = self.text
        found = occupancy(segment.layout)
        return {
            "segment": segment.segment,
            "adapter": self.adapters.index(segment.adapter),
            "kind": segment.kind,
            "nodes": max(segment.nodes, found.end),
            "arena": segment.arena,
            "bound": segment.bound,
            "proven": segment.proven,
            "by": segment.planned_by,
            "unknown": segment.unknown,
            "peaks": list(found.peaks),
            "positions": list(found.positions),
            "alive": list(found.alive),
            "buffers": {
                "values": [[text(name) for name in b.values] for b in segment.layout],
                "label": [text(b.op) for b in segment.layout],
                "op": [text(operator_of(b)) for b in segment.layout],
                "lower": [b.lower for b in segment.layout],
                "upper": [b.upper for b in segment.layout],
                "offset": [b.offset for b in segment.layout],
                "size": [b.size for b in segment.layout],
                "boxes": self._links(segment),
            },
        }

    def _links(self, segment: SegmentMemory) -> list[list[int]]:
        """For each buffer the boxes that make it: by what was traced, or by a name that only one of the segment has."""
        inside = {s.index: set(s.nodes) for s in self.plan.placement.segments}.get(segment.segment)
        named: dict[str, list[int]] = {}
        for value, box in self.maker.items():
            node = self.graph.nodes[box - self.first].index if self.first <= box < self.last else None
            if node is not None and (inside is None or node in inside):
                named.setdefault(self.graph.values[value].name, []).append(box)
        traced = self.traced.get(segment.segment, {})
        links: list[list[int]] = []
        for buffer in segment.layout:
            found: dict[int, None] = {}
            for name in buffer.values:
                if name in traced:
                    found.update((self.box_of[node], None) for node in traced[name] if node in self.box_of)
                elif len(named.get(name, ())) == 1:
                    found[named[name][0]] = None
            links.append(list(found))
        return links
