"""The memory of a whole deployment: each segment's prediction with its adapter's own figures; other batch sizes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property

from paddock.arena import ArenaPlan
from paddock.child import Children
from paddock.config import HardwareConfig
from paddock.errors import BuildFailed, MemoryRefused, ModelError, NotAvailable
from paddock.flow import Flow
from paddock.graph import Graph, Range
from paddock.host import building
from paddock.machine import available
from paddock.memory_plan import Footprint, MemoryPlan, SegmentMemory
from paddock.model import Model
from paddock.planning import memory
from paddock.planning.corners import corners
from paddock.reading import carried_bounds, shapes_at
from paddock.registry import Registry
from paddock.spi import Device
from paddock.workshop import Part


@dataclass(frozen=True)
class Budgeter:
    """Predicts what the parts of a plan take.

    Args:
        parts: The segments, in their adapters' formats.
        whole: The model as the user gave it, with the config's bounds.
        config: As read.
        device: The device of the adapter asked for, whose memory the budget is about.
        registry: For the formats, which know what operators share and what shapes follow.
        children: Where these are asked.
    """

    parts: tuple[Part, ...]
    whole: Model
    config: HardwareConfig
    device: Device
    registry: Registry
    children: Children

    @property
    def origin(self) -> Graph:
        """The model's graph, with the config's bounds."""
        return self.whole.graph

    @cached_property
    def flow(self) -> Flow:
        """The way of the data through the parts."""
        return Flow.of(self.parts, self.origin)

    @cached_property
    def arena(self) -> ArenaPlan:
        """Paddock's own memory: what is planned here is what is allocated."""
        return self.flow.arena(self.config.instances)

    def plan(self) -> MemoryPlan:
        """The prediction for the largest shapes that the config admits."""
        return self._plan(self.origin, [self._told(*self._at(corner)) for corner in self._corners()], memory.SECONDS)

    def largest_graphs(self) -> list[Graph]:
        """The parts' graphs with the shapes that their values have at the first of the corners, as far as told."""
        return self._told(*self._at(self._corners()[0]))

    def rough(self) -> MemoryPlan:
        """The same without asking anybody for shapes, and with greedy layouts only: for a plan that is only tried."""
        return self._plan(self.origin, [[part.target.graph for part in self.parts]], 0)

    def at_batch(self, batch: int) -> MemoryPlan:
        """The prediction if the batch were of this size; with greedy layouts only, since many sizes are tried."""
        found = []
        for corner, fits in zip(self._corners(batch), self._fits, strict=True):
            told = [{v: shape for v, fit in one.items() if (shape := _at(fit, batch))} for one in fits]
            found.append([_shaped(g, t) for g, t in zip(self._at(corner)[1], told, strict=True)])
        return self._plan(self._batched(batch), found, 0)

    def _batched(self, batch: int) -> Graph:
        """The model's graph with another batch size."""
        bounds = {**self.origin.bounds, **dict.fromkeys(self.batch, Range(1, batch, batch))}
        return replace(self.origin, bounds=bounds)

    def _corners(self, batch: int | None = None) -> list[Mapping[str, int]]:
        """The extents at which it may take the most, with the config's batch size or another; always as many."""
        if batch is None:
            return corners(self.origin, self._unsized)
        small = corners(self._batched(_SMALL), self._unsized)
        return [{**c, **dict.fromkeys((s for s in self.batch if c[s] == _SMALL), batch)} for c in small]

    @cached_property
    def _unsized(self) -> bool:
        """Whether formats must tell sizes: whatever the graph tells by itself grows with each symbol."""
        graphs = [part.target.graph for part in self.parts]
        return any(g.nbytes(v) is None for g in graphs for node in g.nodes for v in node.outputs if v is not None)

    def _at(self, corner: Mapping[str, int]) -> tuple[Graph, list[Graph]]:
        """The model's graph and the parts' with these extents as their largest."""
        bounds = {**self.origin.bounds, **{s: _up_to(self.origin.bounds[s], extent) for s, extent in corner.items()}}
        origin = replace(self.origin, bounds=bounds)
        graphs = []
        for part in self.parts:
            graph = part.target.graph
            borders = [origin.values[v] for v in part.segment.inputs]
            bounds = {**graph.bounds, **carried_bounds(borders, origin, graph)}
            graphs.append(replace(graph, bounds=bounds))
        return origin, graphs

    @cached_property
    def _fits(self) -> list[list[dict[int, Fit]]]:
        """For each corner and part, the extents of values as linear functions of the batch size, where they are."""
        found = []
        for number in range(len(self._corners(_BATCHES[0]))):
            asked = [self._shapes(*self._at(self._corners(batch)[number])) for batch in _BATCHES]
            parts: list[dict[int, Fit]] = []
            for part in range(len(self.parts)):
                first, *others = (told[part] for told in asked)
                fits = {v: _fit([shape, *(other.get(v, ()) for other in others)]) for v, shape in first.items()}
                parts.append({v: fit for v, fit in fits.items() if fit is not None})
            found.append(parts)
        return found

    def _told(self, origin: Graph, graphs: Sequence[Graph]) -> list[Graph]:
        """The parts' graphs, with the shapes that formats tell in place of their own."""
        return list(map(_shaped, graphs, self._shapes(origin, graphs)))

    def _shapes(self, origin: Graph, graphs: Sequence[Graph]) -> list[Mapping[int, tuple[int, ...]]]:
        """For each part, the shapes of its values at the extents of `origin`, as far as formats tell."""
        borders: Mapping[int, tuple[int, ...]] = {}
        if len(graphs) > 1:
            borders = self._asked(self.whole.with_graph(origin), {})
        found = []
        for part, graph in zip(self.parts, graphs, strict=True):
            inputs = zip(part.segment.inputs, graph.input_values, strict=True)
            known = {value.name: borders[v] for v, value in inputs if v in borders}
            found.append(self._asked(part.target.with_graph(graph), known))
        return found

    def _asked(self, model: Model, known: Mapping[str, tuple[int, ...]]) -> Mapping[int, tuple[int, ...]]:
        """What a model's format tells; nothing where an input is neither known nor bounded."""
        graph = model.graph
        inputs = dict(known)
        for value in graph.input_values:
            if value.name in inputs:
                continue
            ranges = [found for dim in value.shape or () if (found := graph.range_of(dim)) is not None]
            if value.kind != "tensor" or value.shape is None or len(ranges) != len(value.shape):
                return {}
            inputs[value.name] = tuple(found.max for found in ranges)
        try:
            return shapes_at(model, inputs, self.registry, self.children)
        except ModelError:
            return {}  # extents that contradict each other at their largest: what the graph tells has to do

    @cached_property
    def available(self) -> int | None:
        """Bytes that can be taken: of the device's memory or, where it works in that, of the host's; read once."""
        return available(self.device.memory, self.device.memory_kind)

    @property
    def batch(self) -> tuple[str, ...]:
        """The symbols on axis 0 of the model's inputs that the config's batch size bounds; none where none is free."""
        leading = {value.shape[0] for value in self.origin.input_values if value.shape}
        return tuple(sorted(dim for dim in leading if isinstance(dim, str))) if self.config.batch_size else ()

    def largest(self, budget: int) -> int | None:
        """The largest batch size that is sure to stay within `budget` bytes; None where none is, or none is free."""
        if not self.batch or self.at_batch(1).most is None:
            return None

        def needs(batch: int) -> float:
            most = self.at_batch(batch).most
            return math.inf if most is None else most

        return memory.largest_batch(needs, budget)

    def settled_batch(self, plan: MemoryPlan) -> tuple[int, str]:
        """What `batch_size: "max"` comes to, and why.

        Raises `MemoryRefused` where not even one sample fits, `NotAvailable` where nobody can tell what does.
        """
        budgets = dict(memory.budgets(plan, self.available))
        for what in budgets.keys() - {memory.LIMIT}:
            budgets[what] = int(budgets[what] * _SHARE)  # what is free now need not be while it is served
        if not budgets:
            raise NotAvailable(
                f"nobody can tell how large a batch fits: the memory of {self.device.name} is not known",
                where="$.batch_size", remedy="state a batch_size, or memory.limit",
            )  # fmt: skip
        what, budget = min(budgets.items(), key=lambda item: item[1])
        one = self.at_batch(1)
        if one.most is None:
            raise NotAvailable(
                f"nobody can tell how large a batch is sure to fit: {_unbounded(one)}",
                where="$.batch_size", remedy="state a batch_size: it is measured before it is served",
            )  # fmt: skip
        batch = self.largest(budget)
        if batch is None:
            memory.check_budget(one, self.available)
            raise MemoryRefused(
                f"not even one sample is sure to fit: it may take {memory.readable(one.most)}, "
                f"over {what} of {memory.readable(budget)}",
                where="$.batch_size",
                candidates=memory.contributors(one),
                remedy="state a batch_size: it is then measured before it is served",
            )
        if batch == memory.BIGGEST_BATCH:
            return batch, f'batch_size "max" is {batch}, the largest that is tried: {what} would hold more'
        share = "" if what == memory.LIMIT else f"{_SHARE:.0%} of "
        return batch, f'batch_size "max" is {batch}: the largest that is sure to stay within {share}{what}'

    def _plan(self, origin: Graph, corners: Sequence[Sequence[Graph]], seconds: float) -> MemoryPlan:
        """The prediction with each part at that of the corners where it takes the most."""
        instances = self.config.instances
        segments = []
        for part, graphs in zip(self.parts, zip(*corners, strict=True), strict=True):
            graph = graphs[0]
            if len(graphs) > 1:
                graph = max(graphs, key=lambda graph: _taken(self._segment(part, graph, 0)))
            segments.append(self._segment(part, graph, seconds))
        arena = self.arena if origin is self.origin else Flow.of(self.parts, origin).arena(instances)
        return MemoryPlan(tuple(segments), arena.nbytes, instances, self.device.memory_kind, self.config.memory.limit)

    def _segment(self, part: Part, graph: Graph, seconds: float) -> SegmentMemory:
        workshop = part.workshop
        kind = workshop.resolved.registered.adapter
        found = memory.predict(graph, self.registry.formats[part.target.format].aliasing, seconds)
        made = replace(
            found,
            segment=part.segment.index,
            adapter=workshop.name,
            kind=workshop.resolved.device.memory_kind,
            planned_by="backend" if kind.plans_memory else "none",
            instances=self.config.instances,
            shares_weights=kind.concurrency.shares_weights and not part.workshop.isolated,
            isolated=part.workshop.isolated,
            footprint=_footprint(part, part.target.with_graph(graph)),
        )
        if made.most is not None and made.most < made.least:
            least, most = memory.readable(made.least), memory.readable(made.most)
            raise _untrue(workshop.name, f"a bound of {most}: weights, inputs and outputs alone are {least}")
        return made


def _up_to(bound: Range, extent: int) -> Range:
    """What is left of a range where `extent` is the largest."""
    spans = tuple((low, min(high, extent)) for low, high in bound.spans if low <= extent)
    return Range(min(bound.min, extent), extent, extent, spans)


def _taken(segment: SegmentMemory) -> tuple[float, int]:
    """What to order a segment's predictions by: what it takes at most or, where that is not known, by its graph."""
    return math.inf if segment.most is None else segment.most, segment.arena + segment.io


def _unbounded(plan: MemoryPlan) -> str:
    """Why a plan has no upper bound."""
    silent = [segment.adapter for segment in plan.here if segment.footprint is None]
    if silent:
        return f"{', '.join(dict.fromkeys(silent))} does not say what its sessions take at most"
    return f"the sizes of {plan.unknown} values are not known; state shapes for what else is open"


Fit = tuple[tuple[int, int], ...]
"""For each dimension (a, c): its extent is a times the batch size, plus c."""

_BATCHES = (2, 3, 5)
_SMALL = 2
"""A batch size with more than one extent, to tell the largest from the least by."""
_SHARE = 0.9
"""Of what is free on a device: what `batch_size: "max"` may take where the config sets no limit."""


def _fit(shapes: Sequence[tuple[int, ...]]) -> Fit | None:
    """The linear function through a value's shapes at `_BATCHES`; None where it is none."""
    if len({len(shape) for shape in shapes}) != 1:
        return None
    found: list[tuple[int, int]] = []
    for extents in zip(*shapes, strict=True):
        slope = (extents[1] - extents[0]) // (_BATCHES[1] - _BATCHES[0])
        start = extents[0] - slope * _BATCHES[0]
        if any(slope * batch + start != extent for batch, extent in zip(_BATCHES, extents, strict=True)):
            return None
        found.append((slope, start))
    return tuple(found)


def _at(fit: Fit, batch: int) -> tuple[int, ...] | None:
    """The shape at a batch size; None where an extent would be below 0."""
    shape = tuple(slope * batch + start for slope, start in fit)
    return shape if all(extent >= 0 for extent in shape) else None


def _shaped(graph: Graph, told: Mapping[int, tuple[int, ...]]) -> Graph:
    """The graph with these shapes in place of what it says of them."""
    if not told:
        return graph
    values = tuple(replace(value, shape=told.get(index, value.shape)) for index, value in enumerate(graph.values))
    return replace(graph, values=values)


def _footprint(part: Part, target: Model) -> Footprint | None:
    """The adapter's own figures, checked; None where it has none."""
    workshop = part.workshop
    adapter = workshop.adapter()
    found: object = building(f"{workshop.name}: planning memory", lambda: adapter.footprint(target, part.precision))
    if found is None:
        return None
    if not isinstance(found, Footprint):
        raise _untrue(workshop.name, f"a {type(found).__name__}, not a Footprint")
    for name, figure in asdict(found).items():
        if type(figure) not in (int, float) or not (math.isfinite(figure) and figure >= 0):
            raise _untrue(workshop.name, f"{figure!r} for {name}, not a number of 0 or more")
    return found


def _untrue(name: str, what: str) -> BuildFailed:
    return BuildFailed(f"{name}: footprint() returned {what}", remedy="report this to the plugin's author")
