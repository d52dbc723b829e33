"""What a deployment really takes: its sessions loaded and run in a fresh process, and the resident peak over runtimes.

Planned by bounds until this was measured once; what was measured is kept in the store and planned by from then on.
"""

from __future__ import annotations

import contextlib
import gc
import json
import math
import os
import pickle
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from pydantic import ConfigDict, NonNegativeInt, PositiveInt, TypeAdapter, ValidationError

from paddock.built import Built
from paddock.cache import Store
from paddock.child import Child
from paddock.errors import ChildFailed, MemoryRefused, NotAvailable, PaddockError
from paddock.flow import resolved
from paddock.host import ServingHost, building
from paddock.machine import host_facts
from paddock.plan import Plan
from paddock.planning.corners import drawn
from paddock.planning.memory import readable
from paddock.prepare import Prepared
from paddock.ready import built_of
from paddock.resident import PERIOD, peak, resident, settled
from paddock.samples import Sample, largest_extents, typical
from paddock.spi import Artifact, Process
from paddock.workshop import SECONDS

ALONE = 2
"""How often each instance runs alone: some backends take more in the second run only."""
STILL, TOGETHER = 3, 12
"""All instances run at once until this many times in a row added nothing, but not more often than that: it is chance
whether their peaks coincide, and what an allocator leaves in pieces grows over the first runs."""
_NOTHING = 0.01
"""The share of the peak that counts as nothing added."""
VARIED, VARYING = 64, 60.0
"""How many shapes run then, in passes until one added nothing, and for how many seconds at most: some backends keep
something for each shape, up to a bound of theirs."""
_KEPT = "footprints"
_HOW = 2
"""Raised when measuring changes: what was measured otherwise before is not taken."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What the sessions of one deployment took in a process of their own, in bytes over `baseline`.

    `baseline` is what was resident with the runtimes imported and nothing loaded, `peak` the largest of loading and
    running, `steady` what was left after the last run. Inputs and outputs of one request of each instance are counted.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    baseline: PositiveInt
    peak: NonNegativeInt
    steady: int
    instances: PositiveInt
    seconds: float
    exact: bool = True
    """Whether the kernel's own mark was read; else the largest of looks 10 milliseconds apart."""


def measure(
    prepared: Prepared, artifacts: Sequence[Artifact], feeds: Sample, limit: int | None = None, seconds: float = SECONDS
) -> Measured:
    """Loads and runs a deployment's artifacts in a fresh child: each instance alone, all at once, at other shapes.

    Args:
        prepared: The plan.
        artifacts: One for each of its parts.
        feeds: One request at its largest shapes, by the names of `prepared.interface`.
        limit: Bytes over the loaded runtimes; the child is ended as soon as it is seen above.
        seconds: How long it may take.

    Raises:
        MemoryRefused: It took more than `limit`.
        BuildFailed, RunFailed: A session could not be loaded or run; `ChildFailed` where it crashed or took too long.
    """
    given = {there: feeds[here] for here, there in prepared.translation.inputs}
    with ExitStack() as stack:
        path = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=prepared.job.work, prefix="footprint-")))
        _write(path / "feeds", given)
        other = drawn(prepared.interface, VARIED, together=prepared.budgeter.batch)
        shapes = tuple(_shapes(prepared, extents) for extents in other)
        built = _here(built_of(prepared, artifacts))
        # Instances in processes of their own take each what one takes alone.
        alone = prepared.config.instances // built.instances
        staged = prepared.budgeter.arena.stretch * built.instances
        work = _Work(built, path / "feeds", shapes, staged + _shared(prepared.plan))
        child = stack.enter_context(Child(f"measuring {prepared.plan.adapter}"))
        pid, baseline = child.call(_settle_here, work, seconds=seconds)
        watch = _Watch(pid, None if limit is None else baseline + limit // alone)
        try:
            with watch:
                found = child.call(_measure_here, seconds=seconds)
        except ChildFailed:
            if watch.seen is None:
                raise
            assert limit is not None
            raise _over((watch.seen - baseline) * alone, limit, "and was ended") from None
        found = replace(
            found, peak=found.peak * alone, steady=found.steady * alone, instances=prepared.config.instances
        )
    if limit is not None and found.peak > limit:
        raise _over(found.peak, limit, "at its peak")
    return found


def _here(built: Built) -> Built:
    """What is loaded of a deployment in one process: all instances, or one where each would have processes of its own.

    Raises `NotAvailable` where its adapters cannot be in one process.
    """
    adapters = {segment.resolved.registered.adapter for segment in built.segments}
    sole = sorted(adapter.name() for adapter in adapters if adapter.process is Process.EXCLUSIVE)
    if sole and len(adapters) > 1:
        raise NotAvailable(
            f"what it takes is measured in one process, and {' and '.join(sole)} must be alone in it",
            where="$.fallback", remedy="leave memory.limit out, or the fallbacks",
        )  # fmt: skip
    return replace(built, instances=1) if any(segment.isolated for segment in built.segments) else built


def _shared(plan: Plan) -> int:
    """Bytes of memory that one instance's isolated sessions share with this process."""
    return sum(segment.io + segment.io // 4 for segment in plan.memory.segments if segment.isolated)


def largest(prepared: Prepared) -> Sample:
    """A request at the largest shapes that the config admits: of the user's own values where there are samples."""
    format, graph = prepared.registry.formats[prepared.origin.format], prepared.interface
    samples = prepared.samples()
    if samples.source == "generated" or not samples.judged:
        return typical(graph, format.gathers, format.transparent, at="max")
    own, extents = samples.judged[0], largest_extents(graph)
    shapes = {value.name: resolved(value, extents) for value in graph.input_values}
    dtypes = {value.name: value.dtype for value in graph.input_values}
    found = {name: _reshaped(array, shapes[name]) for name, array in own.items()}
    return {n: a.astype(dtypes[n]) if shapes[n] is not None and a.dtype != dtypes[n] else a for n, a in found.items()}


def measured_alone(prepared: Prepared, artifacts: Sequence[Artifact]) -> Measured:
    """What a deployment takes at its largest shapes, measured without a limit, and kept; raises as `measure` does."""
    found = measure(prepared, artifacts, largest(prepared))
    keep(prepared, found)
    return found


def known(store: Store, plan: Plan) -> Measured | None:
    """What was measured of a plan on this host before; None where nothing was, or what is kept is no such thing."""
    data = store.get(_KEPT, _key(plan))
    try:
        return None if data is None else _measured().validate_json(json.dumps(data))
    except ValidationError:
        return None  # foreign or damaged: it is measured again, and written over


def keep(prepared: Prepared, found: Measured) -> None:
    """Keeps what was measured for whoever plans the same again."""
    prepared.registry.store.put(_KEPT, _key(prepared.plan), asdict(found))


def _key(plan: Plan) -> list[Any]:
    """The plan, less how its answers are judged, which changes nothing of what it takes."""
    semantics = plan.semantics()
    return [_HOW, {k: v for k, v in semantics.items() if k not in ("verify", "budget")}, host_facts()]


def _shapes(prepared: Prepared, extents: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """The shapes of the inputs at these extents, by the names that the sessions know; without those not bounded."""
    found = {}
    for here, there in zip(prepared.interface.input_values, prepared.target.graph.input_values, strict=True):
        shape = resolved(here, extents)
        if shape is not None:
            found[there.name] = shape
    return found


@cache
def _measured() -> TypeAdapter[Measured]:
    return TypeAdapter(Measured)


def _over(taken: int, limit: int, how: str) -> MemoryRefused:
    return MemoryRefused(
        f"took {readable(taken)} over its runtimes {how}, over the limit of {readable(limit)}",
        where="$.memory.limit",
        remedy="raise memory.limit, or lower batch_size, shapes or instances",
    )


class _Watch:
    """Ends a process as soon as it is seen above `limit` resident bytes; `seen` is then what it had."""

    def __init__(self, pid: int, limit: int | None) -> None:
        self.seen: int | None = None
        self._limit = limit
        self._done = threading.Event()
        self._process = psutil.Process(pid)
        self._thread = threading.Thread(target=self._look, daemon=True)

    def _look(self) -> None:
        with contextlib.suppress(psutil.Error):  # it has ended by itself
            while self._limit is not None and not self._done.wait(PERIOD):
                resident = self._process.memory_info().rss
                if resident > self._limit:
                    self.seen = resident
                    self._process.kill()
                    return

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()


@dataclass(frozen=True)
class _Work:
    """What the child measures.

    `feeds` is a file with the largest request, `shapes` are those of the inputs of further ones, by name; `staged`
    bytes are taken for staging copies.
    """

    built: Built
    feeds: Path
    shapes: tuple[Mapping[str, tuple[int, ...]], ...]
    staged: int


_WORK: list[_Work] = []
"""In the child: what it is to measure."""


def _settle_here(work: _Work) -> tuple[int, int]:
    """(process id, resident bytes) once the runtimes are imported and their waste is given back."""
    _WORK[:] = [work]
    for adapter in {segment.resolved.registered.adapter for segment in work.built.segments}:
        building(f"{adapter.name()}: importing its runtime", adapter.probe_device)
    return os.getpid(), settled()


def _measure_here() -> Measured:
    """Nothing that the parent sends lies in the measured span: the request is read from a file inside of it."""
    work = _WORK[0]
    begun = time.perf_counter()
    baseline = settled()
    with peak() as mark:
        staged = np.ones(work.staged, np.uint8)  # every page of it is written
        host = work.built.load(isolate=False)  # this process may be lost
        requests = [_read(work.feeds) for _ in range(work.built.instances)]
        for instance, feeds in enumerate(requests):
            for _ in range(ALONE):
                host.run_on(instance, feeds)  # its answer is dropped before the next run
        _repeat(host, requests, lambda: mark()[0] - baseline)
        _vary(host, requests, work.shapes, lambda: mark()[0] - baseline)
        if work.shapes:
            _repeat(host, requests, lambda: mark()[0] - baseline)
        gc.collect()
        steady = resident()
        del staged
    highest, exact = mark()
    return Measured(
        baseline=baseline,
        peak=max(0, highest - baseline),
        steady=steady - baseline,
        instances=work.built.instances,
        seconds=round(time.perf_counter() - begun, 3),
        exact=exact,
    )


def _repeat(host: ServingHost, requests: Sequence[Mapping[str, Any]], taken: Callable[[], int]) -> None:
    """All instances at once, until `STILL` times in a row added nothing to the bytes `taken`."""
    still, before = 0, taken()
    for _ in range(TOGETHER):
        _together(host, requests)
        now = taken()
        still, before = still + 1 if now - before <= _NOTHING * before else 0, now
        if still == STILL:
            return


def _vary(
    host: ServingHost,
    requests: Sequence[Mapping[str, Any]],
    shapes: Sequence[Mapping[str, tuple[int, ...]]],
    taken: Callable[[], int],
) -> None:
    """All instances at once at each of these shapes, again and again until one pass added nothing to `taken`."""
    until = time.perf_counter() + VARYING
    while shapes:
        before = taken()
        for shape in shapes:
            if time.perf_counter() > until:
                return
            others = [{name: _reshaped(array, shape.get(name)) for name, array in r.items()} for r in requests]
            sys.stderr.write(f"the inputs have the shapes {dict(shape)}\n")  # its last words, where it crashes
            with contextlib.suppress(PaddockError):  # a shape that the model itself refuses is none that is served
                _together(host, others)
        if taken() - before <= _NOTHING * before:
            return


def _together(host: ServingHost, requests: Sequence[Mapping[str, Any]]) -> None:
    """A request for each instance, all at once; what is answered is dropped when the last is."""
    futures = [host.submit(feeds) for feeds in requests]
    for future in futures:
        future.result()


def _reshaped(array: Any, shape: tuple[int, ...] | None) -> Any:
    """An input's elements in another shape: a view of them where there are enough."""
    if shape is None or not isinstance(array, np.ndarray):
        return array
    count = math.prod(shape)
    elements = array.reshape(-1)[:count] if count <= array.size else np.resize(array, count)
    return elements.reshape(shape)


def _write(path: Path, feeds: Sample) -> None:
    """A request as a file: small things pickled, then the arrays' bytes as they are."""
    buffers: list[pickle.PickleBuffer] = []
    head = pickle.dumps(dict(feeds), protocol=5, buffer_callback=buffers.append)
    with path.open("wb") as file:
        pickle.dump((head, [buffer.raw().nbytes for buffer in buffers]), file)
        for buffer in buffers:
            file.write(buffer.raw())


def _read(path: Path) -> dict[str, Any]:
    """The request, its arrays in memory of their own; reading takes none beside."""
    with path.open("rb", buffering=0) as file:
        head, sizes = pickle.load(file)
        buffers = [bytearray(size) for size in sizes]
        for buffer in buffers:
            view = memoryview(buffer)
            while view:
                view = view[file.readinto(view) or len(view) :]
        feeds: dict[str, Any] = pickle.loads(head, buffers=buffers)
    return feeds
