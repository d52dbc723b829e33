"""Paddock's own memory: one allocation for what crosses borders between segments, and for staging copies of inputs.

Each lane of a pipeline has the same layout in a stretch of its own; what is alive in other waves of the stages shares
bytes. A staging copy is made of an input that is not dense; there is room for one request of each instance.
"""

from __future__ import annotations

import math
import queue
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from paddock.graph import Graph, Value
from paddock.planning.offsets import Buffer, allocate
from paddock.planning.operators import carried

Array = np.ndarray[Any, Any]

ALIGNMENT = 64
"""Bytes: a cache line, and the widest vector register."""


@dataclass(frozen=True)
class Slot:
    """A value's place, in bytes from the start of its stretch."""

    offset: int
    size: int


@dataclass(frozen=True)
class ArenaPlan:
    """The slots of a lane, by value, and those of a staging stretch; `instances` of each, all lanes first."""

    borders: Mapping[int, Slot]
    lane: int
    staging: Mapping[int, Slot]
    stretch: int
    instances: int

    @property
    def nbytes(self) -> int:
        """Bytes of the whole allocation."""
        return (self.lane + self.stretch) * self.instances


def plan_arena(graph: Graph, spans: Mapping[int, tuple[int, int]], instances: int) -> ArenaPlan:
    """The arena for `graph`'s inputs, and for the values of `spans` with the first and last wave each is alive in.

    What has no largest size, or no NumPy dtype of fixed size, is left out.
    """
    ends = {*graph.inputs, *graph.outputs}
    inner = {v: span for v, span in spans.items() if v not in ends}
    borders, lane = _layout(graph, inner)
    staging, stretch = _layout(graph, dict.fromkeys(graph.inputs, (0, 0)))
    return ArenaPlan(borders, lane, staging, stretch, instances)


def _layout(graph: Graph, spans: Mapping[int, tuple[int, int]]) -> tuple[Mapping[int, Slot], int]:
    sizes = {v: size for v in spans if (size := reserved(graph, v)) is not None}
    buffers = [Buffer(v, spans[v][0], spans[v][1] + 1, size, ALIGNMENT) for v, size in sizes.items()]
    found = allocate(buffers, seconds=0)  # the same bytes whenever it is planned
    return {v: Slot(found.offsets[v], size) for v, size in sizes.items()}, -(-found.height // ALIGNMENT) * ALIGNMENT


def reserved(graph: Graph, value: int) -> int | None:
    """Bytes to keep for a value at its largest; None where that is not known."""
    found = graph.values[value]
    if found.kind != "tensor" or not carried(found) or found.dtype == "string":
        return None
    return graph.nbytes(value)


class Arena:
    """The allocation itself: the bytes of a plan, handed out as views. Pages that nobody writes take no memory."""

    def __init__(self, plan: ArenaPlan, graph: Graph) -> None:
        self.plan = plan
        self._graph = graph
        raw = np.empty(plan.nbytes + ALIGNMENT, np.uint8)
        start = -raw.ctypes.data % ALIGNMENT
        self._bytes = raw[start : start + plan.nbytes]
        self._staging: queue.SimpleQueue[int] = queue.SimpleQueue()
        for number in range(plan.instances):
            self._staging.put(plan.lane * plan.instances + number * plan.stretch)

    def border(self, lane: int, value: int, shape: Sequence[int]) -> Array | None:
        """The place of a border value in a lane, in this shape; None where it has none or does not fit."""
        slot = self.plan.borders.get(value)
        return None if slot is None else self._view(lane * self.plan.lane, slot, self._graph.values[value], shape)

    def holds(self, array: Array) -> bool:
        """Whether an array may lie in it, in part or whole."""
        return bool(np.may_share_memory(array, self._bytes))

    def stage(self, feeds: Mapping[int, Array]) -> tuple[dict[int, Array], int | None]:
        """Dense copies of inputs by value index, and the stretch that they lie in, to be given back by `release`.

        Where all stretches are in use, or one has no place, the copies are arrays of their own.
        """
        try:
            stretch = self._staging.get_nowait()
        except queue.Empty:
            return {v: np.ascontiguousarray(array) for v, array in feeds.items()}, None
        dense: dict[int, Array] = {}
        for value, array in feeds.items():
            slot, kind = self.plan.staging.get(value), self._graph.values[value]
            place = None
            if slot is not None and array.dtype == kind.dtype:
                place = self._view(stretch, slot, kind, array.shape)
            if place is None:
                dense[value] = np.ascontiguousarray(array)
            else:
                np.copyto(place, array)
                dense[value] = place
        return dense, stretch

    def release(self, stretch: int | None) -> None:
        """Gives a stretch of `stage` back."""
        if stretch is not None:
            self._staging.put(stretch)

    def _view(self, start: int, slot: Slot, kind: Value, shape: Sequence[int]) -> Array | None:
        dtype = np.dtype(kind.dtype)
        if math.prod(shape) * dtype.itemsize > slot.size:
            return None
        return np.ndarray(tuple(shape), dtype, self._bytes, start + slot.offset)
