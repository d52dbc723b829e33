"""A model cut by force into segments on one adapter, and what that costs; runs in a child process."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from paddock.child import Children
from paddock.compile import build
from paddock.flow import Flow
from paddock.graph import Graph
from paddock.host import InProcessHost, ServingHost
from paddock.pipeline import Pipeline
from paddock.plan import Segment
from paddock.planning.partition import reads
from paddock.prepare import Prepared, prepare
from paddock.reading import adapted, extracted
from paddock.spi import Session
from paddock.workshop import Part

COUNTS = (2, 8, 32)


def measure(adapter: str, model: Path, blocks: int) -> list[dict[str, float]]:
    """A row for each number of segments, the first uncut; times in milliseconds, borders and copies in microseconds."""
    hardware, _, backend = adapter.partition("/")
    config = {"hardware": hardware, "backend": backend, "batch_size": 1, "shapes": {"image": [1, 3, 224, 224]}}
    feeds = {"image": np.random.default_rng(0).standard_normal((1, 3, 224, 224), dtype=np.float32)}
    with ExitStack() as stack:
        children = stack.enter_context(Children())
        prepared = prepare(model, config, children=children)
        stack.callback(prepared.discard)
        graph = prepared.origin.graph
        cut = {count: _segments(graph, adapter, count) for count in COUNTS}
        calls: dict[int, Callable[[], Any]] = {}
        clocks = {count: _Clock() for count in (1, *COUNTS)}
        hosts: list[ServingHost] = [_loaded(prepared, prepared.parts, clocks[1])]
        hosts += [_loaded(prepared, _parts(prepared, s, children), clocks[count]) for count, s in cut.items()]
        for count, host in zip((1, *COUNTS), hosts, strict=True):
            stack.callback(host.close)
            names = prepared.target if count == 1 else prepared.origin
            given = {names.graph.input_values[0].name: feeds["image"]}
            calls[count] = partial(host.run, given)
        _agree([call() for call in calls.values()])
        times, ours = _interleaved(calls, clocks, blocks)
        copies = {count: _copy(graph, segments) for count, segments in cut.items()}
    rows = []
    for count in calls:
        extra = sorted(one - whole for one, whole in zip(times[count], times[1], strict=True))
        border = statistics.median(extra) * 1e3 / (count - 1) if count > 1 else 0.0
        ms = statistics.median(times[count])
        ratio = statistics.median(one / whole for one, whole in zip(times[count], times[1], strict=True))
        own = (statistics.median(ours[count]) - statistics.median(ours[1])) * 1e3 / max(1, count - 1)
        row = {
            "segments": count,
            "ms": ms,
            "ratio": ratio,
            "border": border,
            "copy": copies.get(count, 0.0),
            "own": own,
        }
        rows.append({name: float(value) for name, value in row.items()})
    return rows


def _segments(graph: Graph, adapter: str, count: int) -> list[Segment]:
    """The graph in `count` segments of like size, each cut behind a relu where nothing else crosses."""
    last_read = {v: node.index for node in graph.nodes for v in reads(node)}
    made_in = {v: node.index for node in graph.nodes for v in node.outputs if v is not None}
    cuts, alive = [], set[int]()
    for node in graph.nodes:
        alive |= {v for v in node.outputs if v is not None and last_read.get(v, -1) > node.index}
        alive = {v for v in alive if last_read[v] > node.index}
        if node.op.rpartition(".")[2].lower() == "relu" and len(alive) == 1:
            cuts.append(node.index + 1)
    if len(cuts) < count - 1:
        # Within a block the shortcut crosses as well.
        relus = [n.index + 1 for n in graph.nodes if n.op.rpartition(".")[2].lower() == "relu"]
        cuts = relus[:-1]
    step = len(cuts) / count
    chosen = sorted({cuts[min(len(cuts) - 1, round(step * (i + 1)) - 1)] for i in range(count - 1)})
    bounds = [0, *chosen, len(graph.nodes)]
    found = []
    for number, (low, high) in enumerate(itertools.pairwise(bounds)):
        inside = range(low, high)
        used = dict.fromkeys(v for n in inside for v in reads(graph.nodes[n]) if v not in graph.initializers)
        inputs = tuple(v for v in used if made_in.get(v, -1) < low)
        needed = {v for v in graph.outputs if made_in[v] in inside}
        needed |= {v for v in made_in if made_in[v] in inside and last_read.get(v, -1) >= high}
        found.append(Segment(number, adapter, tuple(inside), inputs, tuple(sorted(needed, key=made_in.__getitem__))))
    return found


def _parts(prepared: Prepared, segments: Sequence[Segment], children: Children) -> list[Part]:
    (whole,) = prepared.parts
    workshop = whole.workshop
    found = []
    for segment in segments:
        source = extracted(prepared.origin, segment, prepared.registry, children)
        target = adapted(source, workshop.resolved.registered.adapter, prepared.registry, children)
        found.append(Part(segment, workshop, target, (), whole.remedies, whole.precision, {}, False))
    return found


class _Clock:
    """Seconds spent inside sessions."""

    def __init__(self) -> None:
        self.seconds = 0.0


class _Timed(Session):
    """A session whose time is taken, to tell an SDK's share from Paddock's."""

    def __init__(self, inner: Session, clock: _Clock) -> None:
        self._inner = inner
        self._clock = clock

    def run(self, feeds: Any, outputs: Any = None) -> Any:
        begun = time.perf_counter()
        found = self._inner.run(feeds, outputs)
        self._clock.seconds += time.perf_counter() - begun
        return found

    def bind(self, buffers: Any) -> frozenset[str]:
        return self._inner.bind(buffers)

    def close(self) -> None:
        self._inner.close()


def _loaded(prepared: Prepared, parts: Sequence[Part], clock: _Clock) -> ServingHost:
    hosts = []
    for part, artifact in zip(parts, build(prepared.plan, parts), strict=True):
        adapter, context = part.workshop.adapter(), part.context

        def load(adapter: Any = adapter, artifact: Any = artifact, context: Any = context) -> Any:
            return _Timed(adapter.load(artifact, context), clock)

        hosts.append(InProcessHost(load, adapter.concurrency.threading, 1, part.name))
    if len(parts) == 1:
        return hosts[0]
    return Pipeline(Flow.of(parts, prepared.origin.graph), hosts, 1, prepared.plan.adapter)


def _agree(answers: Sequence[Mapping[str, Any]]) -> None:
    first = next(iter(answers[0].values()))
    for answer in answers[1:]:
        np.testing.assert_allclose(next(iter(answer.values())), first, rtol=1e-3, atol=1e-4)


def _interleaved(
    calls: Mapping[int, Callable[[], Any]], clocks: Mapping[int, _Clock], blocks: int
) -> tuple[dict[int, list[float]], dict[int, list[float]]]:
    """Milliseconds of each call in each block, and how many of them outside of sessions.

    All calls of a block follow each other, beginning elsewhere each time.
    """
    order = list(calls)
    for call in calls.values():
        for _ in range(3):
            call()
    times: dict[int, list[float]] = {count: [] for count in calls}
    ours: dict[int, list[float]] = {count: [] for count in calls}
    for block in range(blocks):
        turn = block % len(order)
        for count in order[turn:] + order[:turn]:
            clocks[count].seconds = 0.0
            begun = time.perf_counter()
            calls[count]()
            spent = time.perf_counter() - begun
            times[count].append(spent * 1e3)
            ours[count].append((spent - clocks[count].seconds) * 1e3)
    return times, ours


def _copy(graph: Graph, segments: Sequence[Segment]) -> float:
    """Microseconds that copying what crosses a border takes, on average over the borders."""
    sizes = [graph.nbytes(v) or 0 for segment in segments[1:] for v in segment.inputs]
    buffers = [(np.zeros(size, np.uint8), np.ones(size, np.uint8)) for size in sizes]
    found = []
    for _ in range(21):
        begun = time.perf_counter()
        for target, source in buffers:
            np.copyto(target, source)
        found.append((time.perf_counter() - begun) * 1e6)
    return statistics.median(found) / (len(segments) - 1)
