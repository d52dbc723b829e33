"""The way of the data through the segments of a deployment: what is called in what order, and what lies where.

Where the feeds of a run tell the shape of what crosses a border, the session is given a place in the arena to write
into (`Session.run_into`). Elsewhere the array that one session returns is fed to the next as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import numpy as np

from paddock.arena import Arena, ArenaPlan, plan_arena
from paddock.errors import OtherShape, PaddockError, RunFailed
from paddock.graph import Graph, Value
from paddock.host import ExecutionHost, InProcessHost, Outputs
from paddock.planning import cost
from paddock.planning.operators import carried
from paddock.spi import Arrays, Threading, other_shape
from paddock.workshop import Part

Array = np.ndarray[Any, Any]

_WORTH_A_THREAD = 200.0
"""The work, in microseconds as `paddock.planning.cost` estimates it, from which a segment gets a thread of its own
beside another that could run at the same time; handing over to a thread takes some 45."""


@dataclass(frozen=True)
class Stage:
    """A segment's place in the pipeline: value indices with the names that its session knows them by."""

    adapter: str
    label: str
    inputs: tuple[tuple[int, str], ...]
    outputs: tuple[tuple[int, str], ...]
    kinds: tuple[Value, ...]
    """What each output is."""
    heavy: bool = True
    """Whether it is worth a thread of its own beside another."""
    home: bool = False
    """Whether each new thread that calls it costs much (`Threading.HOME`)."""
    given: frozenset[int] = frozenset()
    """The outputs that are the model's own: arrays that the caller gets."""

    @classmethod
    def of(cls, part: Part, graph: Graph) -> Stage:
        """The stage of a part of the model with this graph."""
        segment, target = part.segment, part.target.graph
        kind = part.workshop.resolved.registered.adapter.concurrency
        home = kind.threading is Threading.HOME and not part.workshop.isolated
        return cls(
            part.workshop.name,
            part.label,
            tuple(zip(segment.inputs, (v.name for v in target.input_values), strict=True)),
            tuple(zip(segment.outputs, (v.name for v in target.output_values), strict=True)),
            tuple(graph.values[v] for v in segment.outputs),
            not home and sum(cost.work(graph, graph.nodes[n]) for n in segment.nodes) >= _WORTH_A_THREAD,
            home,
            frozenset(graph.outputs) & frozenset(segment.outputs),
        )


@dataclass(frozen=True)
class Flow:
    """The way of the data through the stages, by value index; frozen, for any number of lanes.

    `waves` are sets of stages that need nothing of each other; `dead[i]` are the values that nobody needs after wave i.
    """

    graph: Graph
    stages: tuple[Stage, ...]
    waves: tuple[tuple[int, ...], ...]
    dead: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, parts: Sequence[Part], graph: Graph) -> Flow:
        """The flow of a placement's parts, in the order of their segments."""
        stages = tuple(Stage.of(part, graph) for part in parts)
        # An input may be an output as well, and is then made nowhere.
        fed = {*graph.inputs}
        made_in = {v: number for number, stage in enumerate(stages) for v, _ in stage.outputs if v not in fed}
        level: list[int] = []
        for stage in stages:
            level.append(1 + max((level[made_in[v]] for v, _ in stage.inputs if v in made_in), default=-1))
        waves = [tuple(n for n, found in enumerate(level) if found == wave) for wave in range(max(level) + 1)]
        last = {v: level[n] for n, stage in enumerate(stages) for v, _ in (*stage.outputs, *stage.inputs)}
        for number, stage in enumerate(stages):
            last.update({v: max(last[v], level[number]) for v, _ in stage.inputs})
        kept = {*graph.outputs}
        dead = [tuple(v for v, at in last.items() if at == wave and v not in kept) for wave in range(len(waves))]
        return cls(graph, stages, tuple(waves), tuple(dead))

    def arena(self, instances: int) -> ArenaPlan:
        """The memory for what passes between the stages, by wave; and for staging copies of the inputs."""
        at = {number: wave for wave, numbers in enumerate(self.waves) for number in numbers}
        spans: dict[int, tuple[int, int]] = {}
        for number, stage in enumerate(self.stages):
            spans.update((v, (at[number], at[number])) for v, _ in stage.outputs)
        for number, stage in enumerate(self.stages):
            for v, _ in stage.inputs:
                if v in spans:
                    spans[v] = spans[v][0], max(spans[v][1], at[number])
        return plan_arena(self.graph, spans, instances)

    def run(
        self, feeds: Arrays, stages: Sequence[StageRun], pool: ThreadPoolExecutor | None, into: Arrays | None = None
    ) -> Outputs:
        """One request through the stages, whose answers are by value index; the outputs are the caller's."""
        graph = self.graph
        places = {v: into[graph.values[v].name] for v in graph.outputs if graph.values[v].name in into} if into else {}
        extents = _extents(graph, feeds) if any(run.dynamic for run in stages) else {}
        values: dict[int, Array] = {index: feeds[graph.values[index].name] for index in graph.inputs}
        for wave, dead in zip(self.waves, self.dead, strict=True):
            others = [n for n in wave[1:] if self.stages[n].heavy] if pool is not None else []
            if not others or pool is None:
                for number in wave:
                    values.update(stages[number](values, places, extents))
            else:
                futures = [pool.submit(stages[n], values.copy(), places, extents) for n in others]
                try:
                    made = [stages[n](values, places, extents) for n in wave if n not in others]
                finally:
                    wait(futures)  # nothing of this request runs on once it is answered
                for answer in (*made, *(future.result() for future in futures)):
                    values.update(answer)
            for value in dead:
                values.pop(value, None)
        if into:
            for v, place in places.items():
                _fill(place, values[v], graph.values[v].name)
            return {graph.values[v].name: place for v, place in places.items()}
        given = set(graph.inputs)
        return {
            graph.values[v].name: values[v].copy() if v in given and isinstance(values[v], np.ndarray) else values[v]
            for v in graph.outputs
        }


Places = Mapping[int, Array]
"""Arrays for outputs of the model, by value: the caller's own."""


@dataclass(frozen=True)
class StageRun:
    """One stage of one lane: how it is called, and what lies in buffers."""

    stage: Stage
    run: Caller
    bound_inputs: frozenset[str] = frozenset()
    buffered: Mapping[int, Array] | None = None
    """Outputs that the session writes into buffers instead of returning them."""
    arena: Arena | None = None
    lane: int = 0
    dynamic: bool = False
    """Whether buffers of its outputs take their shape from the feeds of each run."""

    def __call__(self, values: Mapping[int, Array], places: Places, extents: Mapping[str, int]) -> dict[int, Array]:
        feeds = {name: values[v] for v, name in self.stage.inputs if name not in self.bound_inputs}
        adapter, label = self.stage.adapter, self.stage.label
        into = self._into(places, extents) or {}
        try:
            answer: object = self._answer(feeds, into, places)
        except OtherShape:
            raise  # the caller's array does not fit, for which no segment is to blame
        except PaddockError as error:
            if label not in error.problem:  # a host in this process names it by itself
                error.problem = f"{error.problem}; in {label} on {adapter}"
            raise
        if not isinstance(answer, dict):
            raise RunFailed(f"{adapter} returned a {type(answer).__name__}, not a dict of arrays, in {label}")
        buffered = self.buffered or {}
        try:
            return {
                v: buffered[v] if v in buffered else self._checked(answer[name], kind, into.get(name))
                for (v, name), kind in zip(self.stage.outputs, self.stage.kinds, strict=True)
            }
        except KeyError as missing:
            raise RunFailed(f"{adapter} left out the output {missing} of {label}") from None

    def _answer(self, feeds: Arrays, into: Arrays, places: Places) -> object:
        if not into:
            return self.run(feeds)
        try:
            return self.run(feeds, into)
        except OtherShape as error:
            for (v, name), kind in zip(self.stage.outputs, self.stage.kinds, strict=True):
                if name == error.output and v in places:
                    raise other_shape(kind.name, error.given, error.found) from None
            return self.run(feeds)  # the place was a guess by the graph, which says another shape: it goes on as it is

    def _into(self, places: Places, extents: Mapping[str, int]) -> dict[str, Array] | None:
        """A place for every output that is not bound; None where one has none, since all are computed at once.

        It is the caller's array, the arena's or, for an output of the model that the caller gets, a new one.
        """
        if not places and not self.dynamic:
            return None
        found: dict[str, Array] = {}
        for (v, name), kind in zip(self.stage.outputs, self.stage.kinds, strict=True):
            if self.buffered and v in self.buffered:
                continue
            place = places.get(v)
            if place is None:
                shape = resolved(kind, extents)
                place = self.arena.border(self.lane, v, shape) if shape is not None and self.arena is not None else None
                if place is None and shape is not None and v in self.stage.given:
                    place = np.empty(shape, kind.dtype)
            if place is None:
                return None
            found[name] = place
        return found or None

    def _checked(self, found: Any, kind: Value, place: Array | None) -> Any:
        """What a session gives for a value, dense, of its dtype and rank: the next session must not be blamed.

        What lies in the arena at no place that it was given is a view of what the session was fed: other values get
        these bytes, so it is copied.
        """
        if place is not None and found is place:
            return found
        if not carried(kind):
            return found
        if not isinstance(found, np.ndarray):
            raise self._foreign(kind, f"a {type(found).__name__}, not an array")
        if kind.dtype != "string" and found.dtype != kind.dtype:
            raise self._foreign(kind, f"{found.dtype}, not {kind.dtype}")
        if kind.shape is not None and found.ndim != len(kind.shape):
            raise self._foreign(kind, f"rank {found.ndim} {list(found.shape)}, not rank {len(kind.shape)}")
        if not found.flags.owndata and self.arena is not None and self.arena.holds(found):
            return found.copy()
        return found if found.flags.c_contiguous else np.ascontiguousarray(found)

    def _foreign(self, kind: Value, what: str) -> RunFailed:
        return RunFailed(f"{self.stage.adapter} gave {what} for {kind.name!r}, in {self.stage.label}")


class Caller:
    """Calls one instance of a host."""

    def __init__(self, host: InProcessHost | ExecutionHost, instance: int) -> None:
        self._host = host
        self._instance = instance

    def __call__(self, feeds: Arrays, into: Arrays | None = None) -> Outputs:
        if isinstance(self._host, InProcessHost):
            return self._host.run_on(self._instance, feeds, into)
        return self._host.run(feeds)


def run_through(flow: Flow, hosts: Sequence[ExecutionHost], feeds: Arrays) -> Outputs:
    """One request through sessions that live elsewhere, one after another: for first tries in children."""
    return flow.run(feeds, [StageRun(s, Caller(h, 0)) for s, h in zip(flow.stages, hosts, strict=True)], None)


def resolved(kind: Value, extents: Mapping[str, int]) -> tuple[int, ...] | None:
    """The shape of a value with these extents; None where a dimension is not among them, or it is no plain tensor."""
    if kind.shape is None or not carried(kind) or kind.dtype == "string":
        return None
    found = [extents.get(dim) if isinstance(dim, str) else dim for dim in kind.shape]
    known = tuple(dim for dim in found if dim is not None)
    return known if len(known) == len(found) else None


def _extents(graph: Graph, feeds: Arrays) -> dict[str, int]:
    """The extent of each symbolic dimension of the inputs in these feeds."""
    found: dict[str, int] = {}
    for value in graph.input_values:
        if value.kind == "tensor" and value.shape is not None:
            found.update(
                (dim, extent)
                for dim, extent in zip(value.shape, feeds[value.name].shape, strict=True)
                if isinstance(dim, str)
            )
    return found


def _fill(place: Array, found: Array, name: str) -> None:
    """Sees to it that an output stands in the caller's array."""
    if found is place:
        return
    if place.shape != found.shape:
        raise other_shape(name, place.shape, found.shape)
    place[...] = found
