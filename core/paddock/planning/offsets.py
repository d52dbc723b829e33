"""Offset assignment: where in one arena each buffer lies, so that no two that are alive at once overlap.

Greedy orders first, which reach the bound on most real graphs; then a complete search (`offset_search.cpp`), which
stops at the bound, as soon as a capacity holds everything, or at the time given. Where that was not built, orders are
improved step by step instead.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from paddock.errors import UsageError
from paddock.planning.offset_greedy import by_time, first_fit, orders, squeaky
from paddock.planning.offset_problem import Problem, in_units
from paddock.planning.offset_search import compiled_first_fit, descend, searchable

MOST = 1 << 62
"""The sum of all sizes and alignments must stay under this; what is computed with fits in int64."""

GRACE = 1.0
"""Seconds that a large problem may take longer than it was given, for greedy by size; others end on time."""


@dataclass(frozen=True, slots=True)
class Buffer:
    """`size` bytes at a multiple of `alignment` bytes, alive in the half-open `[lower, upper)` of whole time steps."""

    id: Hashable
    lower: int
    upper: int
    size: int
    alignment: int = 1


@dataclass(frozen=True)
class Allocation:
    """Offsets in bytes by buffer id; buffers of no size lie at 0.

    Attributes:
        offsets: One offset for each buffer.
        height: Bytes that the arena takes: the largest `offset + size`.
        bound: `lower_bound` of the buffers.
        at_least: Bytes that any assignment is proven to take, from `bound` up to `height`. Over a capacity that was
            given, it is the proof that nothing fits; a `height` over the capacity alone is none.
        method: What found the offsets: "time", "greedy", "orders" or "search".
    """

    offsets: Mapping[Hashable, int]
    height: int
    bound: int
    at_least: int
    method: str = field(default="", compare=False)

    @property
    def proven(self) -> bool:
        """Whether `height` is proven to be the least possible; nothing else is claimed by it."""
        return self.height <= self.at_least


def lower_bound(buffers: Iterable[Buffer]) -> int:
    """Bytes that any assignment takes: the largest sum of sizes alive at once.

    With alignments, sizes count as rounded up to the greatest common divisor of all alignments (every offset is a
    multiple of it), except for the buffer on top: the largest rounding among those alive is taken off again.
    """
    return _problem(_checked(buffers))[1].bound


def allocate(buffers: Sequence[Buffer], capacity: int | None = None, seconds: float = 1.0) -> Allocation:
    """Offsets of the least height found within `seconds`.

    Args:
        buffers: Any number, in any order.
        capacity: Bytes to stay within: the search stops at the first offsets that do. Where none are found, the best
            that were found come back, higher than the capacity, with `at_least` over it if nothing can fit.
        seconds: How long to go on while the result is not proven to be the best. A first pass in order of time is
            always finished (60,000 buffers take it about a second), and one by size may take `GRACE` seconds more.

    Raises:
        UsageError: A buffer is malformed (the message names it), or capacity or seconds are.
    """
    started = perf_counter()
    if capacity is not None and (not _whole(capacity) or capacity < 0):
        raise UsageError(f"the capacity is {capacity!r}", remedy="give a whole number of bytes, or None")
    if not isinstance(seconds, (int, float)) or not (isfinite(seconds) and seconds >= 0):
        raise UsageError(f"the time to search is {seconds!r}", remedy="give a number of seconds, 0 or more")
    checked = _checked(buffers)
    used, problem = _problem(checked)
    level = max(problem.bound, capacity or 0)
    if capacity is not None and problem.bound > capacity:
        seconds = 0.0  # refused already: a greedy result tells by how much
    # Parts that share no step lie over one another: only the highest counts, and the others need not get below it.
    parts = sorted((_Part(problem, positions) for positions in problem.parts()), key=lambda part: -part.height)
    for number, part in enumerate(parts):
        now = perf_counter()
        share = max(started + seconds - now, 0.0) / (len(parts) - number)
        part.improve(level, now + share, started + seconds + GRACE, keen=1 if capacity is None else 4)
        level = max(level, part.height)
        if capacity is not None and part.at_least > capacity:
            break
    else:
        _finish(parts, max(problem.bound, capacity or 0), started + seconds)
    offsets: dict[Hashable, int] = {buffer.id: 0 for buffer in checked}
    for part in parts:
        for position, offset in zip(part.positions.tolist(), part.offsets.tolist(), strict=True):
            offsets[used[position].id] = offset * problem.unit
    highest = max(parts, key=lambda part: part.height, default=None)
    return Allocation(
        offsets,
        height=highest.height if highest else 0,
        bound=problem.bound,
        at_least=max((part.at_least for part in parts), default=0),
        method=highest.method if highest else "time",
    )


def _finish(parts: Sequence[_Part], goal: int, deadline: float) -> None:
    """The time that low parts left over goes to the highest one, for as long as it is the one that counts."""
    while parts and perf_counter() < deadline:
        highest = max(parts, key=lambda part: part.height)
        level = max((part.height for part in parts if part is not highest), default=0)
        least = max(part.at_least for part in parts)
        if highest.height <= max(goal, least):
            return
        highest.improve(max(goal, min(level, highest.height - 1)), deadline, deadline, keen=1)


def _whole(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _checked(buffers: Iterable[Buffer]) -> list[Buffer]:
    checked = list(buffers)
    seen: set[Hashable] = set()
    total = 0
    for buffer in checked:
        problem = None
        if not all(map(_whole, (buffer.lower, buffer.upper, buffer.size, buffer.alignment))):
            problem = "its lifetime, size and alignment must be whole numbers"
        elif buffer.size < 0:
            problem = f"its size is {buffer.size}"
        elif buffer.upper <= buffer.lower:
            problem = f"its lifetime [{buffer.lower}, {buffer.upper}) is empty"
        elif buffer.alignment < 1:
            problem = f"its alignment is {buffer.alignment}"
        elif buffer.id in seen:
            problem = "its id stands there twice"
        elif not -MOST < buffer.lower < buffer.upper < MOST:
            problem = f"its lifetime [{buffer.lower}, {buffer.upper}) is out of range"
        elif (total := total + int(buffer.size) + int(buffer.alignment)) >= MOST:
            problem = "with it, the sizes come to more than can be counted"
        if problem is not None:
            raise UsageError(problem, where=f"buffer {buffer.id!r}")
        seen.add(buffer.id)
    return checked


def _problem(buffers: Sequence[Buffer]) -> tuple[list[Buffer], Problem]:
    """The buffers that have a size, in order of time, and their problem."""
    used = sorted((b for b in buffers if b.size), key=lambda b: (b.lower, b.upper))
    return used, in_units(
        [b.lower for b in used],
        [b.upper for b in used],
        [int(b.size) for b in used],
        [int(b.alignment) for b in used],
    )


class _Part:
    """The best offsets so far of the buffers at some positions."""

    def __init__(self, problem: Problem, positions: NDArray[np.int64]) -> None:
        self.positions = positions
        self.problem = problem.part(positions)
        self.offsets = by_time(self.problem)
        self.height = self.problem.height(self.offsets)
        self.at_least = self.problem.bound
        self.method = "time"

    def improve(self, goal: int, deadline: float, last: float, keen: int) -> None:
        """Goes on until the goal, the proven least or the deadline; the first order may take until `last`."""
        if self._done(goal) or perf_counter() >= last:
            return
        fit = compiled_first_fit(self.problem) or first_fit(self.problem)
        for number, order in enumerate(orders(self.problem)):
            offsets = fit(order, deadline if number else last)
            if offsets is None:
                return
            self._take(offsets, "greedy")
            if self._done(goal):
                return
        if searchable(self.problem):
            for better, least in descend(self.problem, self.height, self.at_least, goal, deadline, keen):
                self.at_least = max(self.at_least, least)
                if better is not None:
                    self._take(better, "search")
        else:
            for offsets in squeaky(self.problem, fit, max(goal, self.at_least), deadline):
                self._take(offsets, "orders")

    def _done(self, goal: int) -> bool:
        return self.height <= max(goal, self.at_least)

    def _take(self, offsets: NDArray[np.int64], method: str) -> None:
        height = self.problem.height(offsets)
        if height < self.height:
            self.offsets, self.height, self.method = offsets, height, method
