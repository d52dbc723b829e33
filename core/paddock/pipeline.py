"""Several segments as one deployment: their sessions run in order, and what crosses a border lies in one buffer.

A *lane* is one session of every segment with the buffers between them; it answers one request at a time, and there are
as many as the config's `instances`. Where a border's shape is fixed, its buffer is made once and bound by the sessions
that can (`Session.bind`): one writes where the next reads. Elsewhere the array that one session returns is fed to the
next as it is.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import numpy as np

from paddock.errors import PaddockError, RunFailed
from paddock.graph import Graph, Value
from paddock.host import ExecutionHost, InProcessHost, Outputs, ServingHost, Threads
from paddock.planning import cost
from paddock.planning.operators import carried
from paddock.spi import Arrays, Observed, Threading
from paddock.workshop import Part

Array = np.ndarray[Any, Any]

_LOWEST_FIRST = ("int8", "fp16", "bf16", "fp32")

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

    @classmethod
    def of(cls, part: Part, graph: Graph) -> Stage:
        """The stage of a part of the model with this graph."""
        segment, target = part.segment, part.target.graph
        home = part.workshop.resolved.registered.adapter.concurrency.threading is Threading.HOME
        return cls(
            part.workshop.name,
            part.label,
            tuple(zip(segment.inputs, (v.name for v in target.input_values), strict=True)),
            tuple(zip(segment.outputs, (v.name for v in target.output_values), strict=True)),
            tuple(graph.values[v] for v in segment.outputs),
            not home and sum(cost.work(graph, graph.nodes[n]) for n in segment.nodes) >= _WORTH_A_THREAD,
            home,
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
        made_in = {value: number for number, stage in enumerate(stages) for value, _ in stage.outputs}
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

    def run(self, feeds: Arrays, stages: Sequence[_Run], pool: ThreadPoolExecutor | None) -> Outputs:
        """One request through the stages, whose answers are by value index; the outputs are the caller's."""
        graph = self.graph
        values: dict[int, Array] = {index: feeds[graph.values[index].name] for index in graph.inputs}
        for wave, dead in zip(self.waves, self.dead, strict=True):
            others = [n for n in wave[1:] if self.stages[n].heavy] if pool is not None else []
            if not others or pool is None:
                for number in wave:
                    values.update(stages[number](values))
            else:
                futures = [pool.submit(stages[n], values.copy()) for n in others]
                try:
                    made = [stages[n](values) for n in wave if n not in others]
                finally:
                    wait(futures)  # nothing of this request runs on once it is answered
                for answer in (*made, *(future.result() for future in futures)):
                    values.update(answer)
            for value in dead:
                values.pop(value, None)
        given = set(graph.inputs)
        return {
            graph.values[v].name: values[v].copy() if v in given and isinstance(values[v], np.ndarray) else values[v]
            for v in graph.outputs
        }


@dataclass(frozen=True)
class _Run:
    """One stage of one lane: how it is called, and what lies in buffers."""

    stage: Stage
    run: _Runner
    bound_inputs: frozenset[str] = frozenset()
    buffered: Mapping[int, Array] | None = None
    """Outputs that the session writes into buffers instead of returning them."""

    def __call__(self, values: Mapping[int, Array]) -> dict[int, Array]:
        feeds = {name: values[v] for v, name in self.stage.inputs if name not in self.bound_inputs}
        adapter, label = self.stage.adapter, self.stage.label
        try:
            answer: object = self.run(feeds)
        except PaddockError as error:
            if label not in error.problem:  # a host in this process names it by itself
                error.problem = f"{error.problem}; in {label} on {adapter}"
            raise
        if not isinstance(answer, dict):
            raise RunFailed(f"{adapter} returned a {type(answer).__name__}, not a dict of arrays, in {label}")
        buffered = self.buffered or {}
        try:
            return {
                v: buffered[v] if v in buffered else self._checked(answer[name], kind)
                for (v, name), kind in zip(self.stage.outputs, self.stage.kinds, strict=True)
            }
        except KeyError as missing:
            raise RunFailed(f"{adapter} left out the output {missing} of {label}") from None

    def _checked(self, found: Any, kind: Value) -> Any:
        """What a session gives for a value, dense, of its dtype and rank: the next session must not be blamed."""
        if not carried(kind):
            return found
        if not isinstance(found, np.ndarray):
            raise self._foreign(kind, f"a {type(found).__name__}, not an array")
        if kind.dtype != "string" and found.dtype != kind.dtype:
            raise self._foreign(kind, f"{found.dtype}, not {kind.dtype}")
        if kind.shape is not None and found.ndim != len(kind.shape):
            raise self._foreign(kind, f"rank {found.ndim} {list(found.shape)}, not rank {len(kind.shape)}")
        return found if found.flags.c_contiguous else np.ascontiguousarray(found)

    def _foreign(self, kind: Value, what: str) -> RunFailed:
        return RunFailed(f"{self.stage.adapter} gave {what} for {kind.name!r}, in {self.stage.label}")


class _Runner:
    """Calls one instance of a host."""

    def __init__(self, host: InProcessHost | ExecutionHost, instance: int) -> None:
        self._host = host
        self._instance = instance

    def __call__(self, feeds: Arrays) -> Outputs:
        if isinstance(self._host, InProcessHost):
            return self._host.run_on(self._instance, feeds)
        return self._host.run(feeds)


def run_through(flow: Flow, hosts: Sequence[ExecutionHost], feeds: Arrays) -> Outputs:
    """One request through sessions that live elsewhere, one after another: for first tries in children."""
    return flow.run(feeds, [_Run(s, _Runner(h, 0)) for s, h in zip(flow.stages, hosts, strict=True)], None)


class Pipeline(ServingHost):
    """The segments of a deployment in this process.

    Args:
        flow: The way of the data.
        hosts: One for each stage, each with `instances` sessions; closed by `close`.
        instances: How many lanes.
        name: For errors.
    """

    def __init__(self, flow: Flow, hosts: Sequence[InProcessHost], instances: int, name: str) -> None:
        self._flow = flow
        self._hosts = hosts
        self._name = name
        self._lanes = [self._lane(instance) for instance in range(instances)]
        self._free: queue.SimpleQueue[list[_Run] | None] = queue.SimpleQueue()
        for lane in self._lanes:
            self._free.put(lane)
        beside = max(sum(flow.stages[n].heavy for n in wave[1:]) for wave in flow.waves)
        self._beside = ThreadPoolExecutor(beside * instances, f"paddock {name} beside") if beside else None
        self._threads = Threads(instances, name)
        self._home = threading.get_ident() if any(stage.home for stage in flow.stages) else None
        self._closing = threading.Lock()

    def run(self, feeds: Arrays, outputs: Sequence[str] | None = None) -> Outputs:
        self._threads.check()
        if self._home is not None and threading.get_ident() != self._home:
            return self._threads.submit(self._run, feeds, outputs).result()
        return self._run(feeds, outputs)

    def submit(self, feeds: Arrays, outputs: Sequence[str] | None = None) -> Future[Outputs]:
        return self._threads.submit(self._run, feeds, outputs)

    def run_on(self, instance: int, feeds: Arrays) -> Outputs:
        return self._flow.run(feeds, self._lanes[instance], self._beside)

    def observed(self) -> Observed:
        """The nodes of all sessions, and the settings of those on the adapter asked for.

        Where these differ the setting names all values; the precision is the lowest that any of them computes in.
        """
        every = [host.observed() for host in self._hosts]
        asked = [found for stage, found in zip(self._flow.stages, every, strict=True) if stage.adapter == self._name]
        settings: dict[str, Any] = {}
        for name in dict.fromkeys(name for found in asked for name in found.settings):
            values: list[Any] = []
            for value in (found.settings[name] for found in asked if name in found.settings):
                if value not in values:  # not a set: what an option holds need not be hashable
                    values.append(value)
            if name == "precision" and all(value in _LOWEST_FIRST for value in values):
                values = sorted(values, key=_LOWEST_FIRST.index)[:1]
            settings[name] = values[0] if len(values) == 1 else " and ".join(map(str, values))
        nodes, peaks = [found.nodes for found in every], [found.peak_bytes for found in every]
        return Observed(
            settings,
            sum(n for n in nodes if n is not None) if None not in nodes else None,
            sum(p for p in peaks if p is not None) if None not in peaks else None,
        )

    def check_closing(self) -> None:
        self._threads.check_closing()

    def close(self) -> None:
        """Waits for the requests inside, then closes every segment's sessions; the first failure is raised."""
        self.check_closing()
        with self._closing:  # a second caller returns when the first is done
            if not self._threads.close():
                return
            for _ in self._lanes:
                self._free.get()
            self._free.put(None)
            if self._beside is not None:
                self._beside.shutdown(wait=True)
            failed: PaddockError | None = None
            for host in self._hosts:
                try:
                    host.close()
                except PaddockError as error:
                    failed = failed or error
        if failed is not None:
            raise failed

    def _run(self, feeds: Arrays, outputs: Sequence[str] | None) -> Outputs:
        lane = self._free.get()
        if lane is None:
            self._free.put(None)
            raise self._threads.is_closed()
        try:
            found = self._flow.run(feeds, lane, self._beside)
        finally:
            self._free.put(lane)
        return found if outputs is None else {name: found[name] for name in outputs}

    def _lane(self, instance: int) -> list[_Run]:
        """A lane's stages, with the borders of fixed shape bound to buffers by those sessions that can."""
        graph = self._flow.graph
        border = {*graph.inputs, *graph.outputs}
        written: dict[int, Array] = {}
        lane = []
        for stage, host in zip(self._flow.stages, self._hosts, strict=True):
            offered = {name: written[v] for v, name in stage.inputs if v in written}
            made = {name: _buffer(graph, v) for v, name in stage.outputs if v not in border}
            fresh = {name: buffer for name, buffer in made.items() if buffer is not None}
            bound = host.bind(instance, {**offered, **fresh}) if offered or fresh else frozenset()
            written.update({v: fresh[name] for v, name in stage.outputs if name in fresh and name in bound})
            buffered = {v: fresh[name] for v, name in stage.outputs if name in fresh and name in bound}
            lane.append(_Run(stage, _Runner(host, instance), frozenset(offered) & bound, buffered))
        return lane


def _buffer(graph: Graph, value: int) -> Array | None:
    """An array for a value of fixed shape; None where it has none, or holds objects."""
    found = graph.values[value]
    if found.shape is None or not carried(found) or found.dtype == "string":
        return None
    extents = [dim for dim in found.shape if isinstance(dim, int)]
    return np.zeros(extents, found.dtype) if len(extents) == len(found.shape) else None
