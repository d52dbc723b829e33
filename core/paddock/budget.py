"""The memory of a whole deployment: each segment's prediction with its adapter's own figures; other batch sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from paddock.arena import ArenaPlan
from paddock.child import Children
from paddock.config import HardwareConfig
from paddock.errors import BuildFailed, MemoryRefused, ModelError
from paddock.flow import Flow
from paddock.graph import Graph, Range
from paddock.host import building
from paddock.machine import memory_available
from paddock.memory_plan import Footprint, MemoryPlan, SegmentMemory
from paddock.model import Model
from paddock.planning import memory
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
        return self._plan(self.origin, self.largest_graphs(), memory.SECONDS)

    def largest_graphs(self) -> list[Graph]:
        """The parts' graphs with the shapes that their values have at most, as far as they can be told."""
        graphs = [part.target.graph for part in self.parts]
        return list(map(_shaped, graphs, self._told(self.origin, graphs)))

    def rough(self) -> MemoryPlan:
        """The same without asking anybody for shapes, and with greedy layouts only: for a plan that is only tried."""
        return self._plan(self.origin, [part.target.graph for part in self.parts], 0)

    def at_batch(self, batch: int) -> MemoryPlan:
        """The prediction if the batch were of this size; with greedy layouts only, since many sizes are tried."""
        origin, graphs = self._rebounded(batch)
        told = [{v: shape for v, fit in fits.items() if (shape := _at(fit, batch))} for fits in self._fits]
        return self._plan(origin, [_shaped(g, t) for g, t in zip(graphs, told, strict=True)], 0)

    def _rebounded(self, batch: int) -> tuple[Graph, list[Graph]]:
        """The model's graph and the parts' with another batch size."""
        bounds = {**self.origin.bounds, **dict.fromkeys(self.batch, Range(1, batch, batch))}
        origin = replace(self.origin, bounds=bounds)
        graphs = []
        for part in self.parts:
            graph = part.target.graph
            borders = [origin.values[v] for v in part.segment.inputs]
            graphs.append(replace(graph, bounds={**graph.bounds, **carried_bounds(borders, origin, graph)}))
        return origin, graphs

    @cached_property
    def _fits(self) -> list[dict[int, Fit]]:
        """For each part, the extents of its values as linear functions of the batch size, where they are."""
        asked = [self._told(*self._rebounded(batch)) for batch in _BATCHES]
        found: list[dict[int, Fit]] = []
        for number in range(len(self.parts)):
            first, *others = (told[number] for told in asked)
            fits = {v: _fit([shape, *(other.get(v, ()) for other in others)]) for v, shape in first.items()}
            found.append({v: fit for v, fit in fits.items() if fit is not None})
        return found

    def _told(self, origin: Graph, graphs: Sequence[Graph]) -> list[Mapping[int, tuple[int, ...]]]:
        """For each part, the shapes of its values with the model's inputs at their largest, as far as formats tell."""
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

    @property
    def available(self) -> int | None:
        """Bytes that can be taken now: of the device's memory or, where it works in that, of the host's."""
        if self.device.memory_kind != "host":
            return self.device.memory
        return min(self.device.memory or memory_available(), memory_available())

    @property
    def batch(self) -> tuple[str, ...]:
        """The symbols on axis 0 of the model's inputs that the config's batch size bounds; none where none is free."""
        leading = {value.shape[0] for value in self.origin.input_values if value.shape}
        return tuple(sorted(dim for dim in leading if isinstance(dim, str))) if self.config.batch_size else ()

    def largest(self, budget: int) -> int | None:
        """The largest batch size whose prediction stays within `budget` bytes; None where none does, or none is free.

        By the bound where the adapters tell one, else by what is needed at least.
        """
        if not self.batch:
            return None

        def needs(batch: int) -> int:
            plan = self.at_batch(batch)
            return plan.least if plan.most is None else plan.most

        return memory.largest_batch(needs, budget)

    def settled_batch(self, plan: MemoryPlan) -> tuple[int, str]:
        """What `batch_size: "max"` comes to, and why; raises `MemoryRefused` where not even one sample fits."""
        what, budget = min(memory.budgets(plan, self.available).items(), key=lambda item: item[1])
        batch = self.largest(budget)
        if batch is None:
            memory.check_budget(self.at_batch(1), self.available)
            most = self.at_batch(1).most
            raise MemoryRefused(
                f"not even one sample is sure to fit: it may take {memory.readable(most or 0)}, "
                f"over {what} of {memory.readable(budget)}",
                where="$.batch_size",
                candidates=memory.contributors(self.at_batch(1)),
                remedy="state a batch_size: it is then measured before it is served",
            )
        if batch == memory.BIGGEST_BATCH:
            return batch, f'batch_size "max" is {batch}, the largest that is tried: {what} would hold more'
        return batch, f'batch_size "max" is {batch}: the largest that is sure to stay within {what}'

    def _plan(self, origin: Graph, graphs: Sequence[Graph], seconds: float) -> MemoryPlan:
        instances = self.config.instances
        segments = tuple(self._segment(part, graph, seconds) for part, graph in zip(self.parts, graphs, strict=True))
        arena = self.arena if origin is self.origin else Flow.of(self.parts, origin).arena(instances)
        return MemoryPlan(segments, arena.nbytes, instances, self.device.memory_kind, self.config.memory.limit)

    def _segment(self, part: Part, graph: Graph, seconds: float) -> SegmentMemory:
        workshop = part.workshop
        kind = workshop.resolved.registered.adapter
        found = memory.predict(graph, self.registry.formats[part.target.format].aliasing, seconds)
        return replace(
            found,
            segment=part.segment.index,
            adapter=workshop.name,
            kind=workshop.resolved.device.memory_kind,
            planned_by="backend" if kind.plans_memory else "none",
            instances=self.config.instances,
            shares_weights=kind.concurrency.shares_weights,
            footprint=_footprint(part, part.target.with_graph(graph)),
        )


Fit = tuple[tuple[int, int], ...]
"""For each dimension (a, c): its extent is a times the batch size, plus c."""

_BATCHES = (2, 3, 5)


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
    workshop = part.workshop
    adapter = workshop.adapter()
    found: object = building(f"{workshop.name}: planning memory", lambda: adapter.footprint(target, part.precision))
    if found is not None and not isinstance(found, Footprint):
        raise BuildFailed(f"{workshop.name}: footprint() returned a {type(found).__name__}, not a Footprint")
    return found
