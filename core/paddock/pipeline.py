"""Several segments as one deployment: their sessions run in order, and what crosses a border lies in one buffer.

A *lane* is one session of every segment with the buffers between them; it answers one request at a time, and there are
as many as the config's `instances`. All buffers are views of one allocation (`paddock.arena`). Where a border's shape
is fixed, it is bound by the sessions that can (`Session.bind`): one writes where the next reads. What is not bound is
told by `paddock.flow`.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from paddock.arena import Arena
from paddock.errors import PaddockError
from paddock.flow import Array, Caller, Flow, StageRun, resolved
from paddock.host import InProcessHost, Outputs, ServingHost, Threads
from paddock.spi import Arrays, Observed

_LOWEST_FIRST = ("int8", "fp16", "bf16", "fp32")


class Pipeline(ServingHost):
    """The segments of a deployment in this process.

    Args:
        flow: The way of the data.
        hosts: One for each stage, each with `instances` sessions; closed by `close`.
        arena: That of the flow, where it is made already.
        instances: How many lanes.
        name: For errors.
    """

    def __init__(
        self, flow: Flow, hosts: Sequence[InProcessHost], instances: int, name: str, arena: Arena | None = None
    ) -> None:
        self._flow = flow
        self._arena = arena or Arena(flow.arena(instances), flow.graph)
        self._hosts = hosts
        self._name = name
        self._lanes = [self._lane(instance) for instance in range(instances)]
        self._free: queue.SimpleQueue[list[StageRun] | None] = queue.SimpleQueue()
        for lane in self._lanes:
            self._free.put(lane)
        self._serving = instances
        beside = max(sum(flow.stages[n].heavy for n in wave[1:]) for wave in flow.waves)
        self._beside = ThreadPoolExecutor(beside * instances, f"paddock {name} beside") if beside else None
        self._threads = Threads(instances, name)
        self._home = threading.get_ident() if any(stage.home for stage in flow.stages) else None
        self._closing = threading.Lock()
        self._ended = False

    def run(self, feeds: Arrays, outputs: Sequence[str] | None = None, into: Arrays | None = None) -> Outputs:
        self._threads.check()
        if self._home is not None and threading.get_ident() != self._home:
            return self._threads.submit(self._run, feeds, outputs, into).result()
        return self._run(feeds, outputs, into)

    def submit(
        self, feeds: Arrays, outputs: Sequence[str] | None = None, into: Arrays | None = None
    ) -> Future[Outputs]:
        return self._threads.submit(self._run, feeds, outputs, into)

    def run_on(self, instance: int, feeds: Arrays, into: Arrays | None = None) -> Outputs:
        return self._flow.run(feeds, self._lanes[instance], self._beside, into)

    @property
    def writes(self) -> bool:
        return any(host.writes for host in self._hosts)

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
            if self._ended:
                return
            self._threads.close()
            while self._serving:  # counted down, so that who was interrupted here can go on with closing
                self._free.get()
                self._serving -= 1
            self._ended = True
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

    def _run(self, feeds: Arrays, outputs: Sequence[str] | None, into: Arrays | None) -> Outputs:
        lane = self._free.get()
        if lane is None:
            self._free.put(None)
            raise self._threads.is_closed()
        try:
            if self.staging is None:
                found = self._flow.run(feeds, lane, self._beside, into)
            else:
                found = self.staging.run(feeds, lambda dense: self._flow.run(dense, lane, self._beside, into))
        finally:
            self._free.put(lane)
        return found if outputs is None else {name: found[name] for name in outputs}

    def _lane(self, instance: int) -> list[StageRun]:
        """A lane's stages, with the borders of fixed shape bound to buffers by those sessions that can."""
        graph = self._flow.graph
        border = {*graph.inputs, *graph.outputs}
        written: dict[int, Array] = {}
        lane = []
        for stage, host in zip(self._flow.stages, self._hosts, strict=True):
            offered = {name: written[v] for v, name in stage.inputs if v in written}
            made = {name: self._buffer(instance, v) for v, name in stage.outputs if v not in border}
            fresh = {name: buffer for name, buffer in made.items() if buffer is not None}
            bound = host.bind(instance, {**offered, **fresh}) if offered or fresh else frozenset()
            written.update({v: fresh[name] for v, name in stage.outputs if name in fresh and name in bound})
            buffered = {v: fresh[name] for v, name in stage.outputs if name in fresh and name in bound}
            dynamic = any(v not in buffered and v in self._arena.plan.borders for v, _ in stage.outputs)
            runner = Caller(host, instance)
            lane.append(StageRun(stage, runner, frozenset(offered) & bound, buffered, self._arena, instance, dynamic))
        return lane

    def _buffer(self, lane: int, value: int) -> Array | None:
        """The arena's place for a value of fixed shape, zeroed; None where it has none."""
        shape = resolved(self._flow.graph.values[value], {})
        place = None if shape is None else self._arena.border(lane, value, shape)
        if place is not None:
            place.fill(0)
        return place
