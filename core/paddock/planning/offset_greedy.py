"""Greedy offset assignment: one pass in order of time that always ends soon, and first fit in any order of buffers."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from paddock.planning.offset_problem import Problem

FirstFit = Callable[[NDArray[np.int32], float], "NDArray[np.int64] | None"]
"""Order of all positions and a deadline (perf_counter) to offsets in units, or None where the time was too short."""


def by_time(problem: Problem) -> NDArray[np.int64]:
    """int64[buffers] offsets in units: best fit in order of time, as a run-time allocator would do; O(n log n)."""
    lower, upper, size, unit = (a.tolist() for a in (problem.lower, problem.upper, problem.size, problem.alignment))
    offsets = [0] * len(problem)
    holes: list[tuple[int, int]] = []  # (size, start), sorted
    ends: dict[int, int] = {}  # end of a hole -> its start
    starts: dict[int, int] = {}  # and back
    top = 0

    def open_hole(start: int, end: int) -> None:
        if start < end:
            insort(holes, (end - start, start))
            starts[start], ends[end] = end, start

    def close_hole(start: int) -> int:
        end = starts.pop(start)
        del ends[end]
        del holes[bisect_left(holes, (end - start, start))]
        return end

    dying = iter(sorted(range(len(problem)), key=upper.__getitem__))
    dead = next(dying, None)
    for at in range(len(problem)):  # sorted by lower
        while dead is not None and upper[dead] <= lower[at]:
            start, end = offsets[dead], offsets[dead] + size[dead]
            if end in starts:
                end = close_hole(end)
            if start in ends:
                start = ends[start]
                close_hole(start)
            open_hole(start, end)
            dead = next(dying, None)
        # The smallest hole that holds it wherever it starts; short of these the end of the arena.
        found = bisect_left(holes, (size[at] + unit[at] - 1, 0))
        if found < len(holes):
            start = holes[found][1]
            end = close_hole(start)
        else:
            start = ends.get(top, top)
            if start < top:
                close_hole(start)
            end = top = max(top, -(-start // unit[at]) * unit[at] + size[at])
        offset = -(-start // unit[at]) * unit[at]
        offsets[at] = offset
        open_hole(start, offset)
        open_hole(offset + size[at], end)
    return np.array(offsets, np.int64)


def first_fit(problem: Problem) -> FirstFit:
    """First fit for this problem: each buffer in turn at the lowest offset that those before it leave free."""
    lower, upper, size, unit = (a.tolist() for a in (problem.lower, problem.upper, problem.size, problem.alignment))

    def fit(order: NDArray[np.int32], deadline: float) -> NDArray[np.int64] | None:
        offsets = np.zeros(len(problem), np.int64)
        placed: list[tuple[int, int, int, int]] = []  # (offset, end, lower, upper), sorted
        for at in order.tolist():
            if perf_counter() > deadline:
                return None
            born, dies, wanted, multiple = lower[at], upper[at], size[at], unit[at]
            offset = 0
            for start, end, other_born, other_dies in placed:
                if other_born < dies and born < other_dies and end > offset:
                    if offset + wanted <= start:
                        break
                    offset = -(-end // multiple) * multiple
            offsets[at] = offset
            insort(placed, (offset, offset + wanted, born, dies))
        return offsets

    return fit


def orders(problem: Problem) -> Iterator[NDArray[np.int32]]:
    """Orders of buffers that are known to do well: by size, area, lifetime and what lives beside them."""
    length, size = problem.upper - problem.lower, problem.size
    beside = _most_beside(problem)
    # lexsort's last key counts most.
    for keys in (
        (problem.lower, -length, -size),
        (problem.lower, -length * size.astype(float)),
        (-size, -length),
        (-size, -length, -beside),
        (-size * length.astype(float), -beside),
        (-size, problem.lower),
    ):
        yield np.lexsort(keys).astype(np.int32)


def squeaky(problem: Problem, fit: FirstFit, goal: int, deadline: float, seed: int = 0) -> Iterator[NDArray[np.int64]]:
    """Better and better offsets by moving what ended too high to the front (squeaky wheel optimisation).

    Ends at the deadline, or once `goal` bytes are reached.
    """
    random = np.random.default_rng(seed)
    best: int | None = None
    starts = list(orders(problem))
    rank = np.empty(len(problem))
    while perf_counter() < deadline:
        order = starts.pop(0) if starts else _shaken(problem, random)
        rank[order] = np.arange(len(problem), dtype=float)
        calm = 0
        while calm < 20:
            offsets = fit(np.argsort(rank, kind="stable").astype(np.int32), deadline)
            if offsets is None:
                return
            height = problem.height(offsets)
            calm += 1
            if best is None or height < best:
                best, calm = height, 0
                yield offsets
            if height <= goal:
                return
            ends = (offsets + problem.size) * problem.unit - problem.padding
            loud = ends > goal + (height - goal) * random.uniform(0.0, 0.9)
            rank[loud] -= random.uniform(0.05, 0.5) * len(problem)
            rank = np.argsort(np.argsort(rank, kind="stable")).astype(float)


def _shaken(problem: Problem, random: np.random.Generator) -> NDArray[np.int32]:
    weight = random.uniform(0.0, 1.0)
    score = np.log(problem.size) + weight * np.log(problem.upper - problem.lower)
    return np.argsort(-(score + random.normal(0.0, 0.3, len(problem)))).astype(np.int32)


def _most_beside(problem: Problem) -> NDArray[np.int64]:
    """int64[buffers]: the greatest sum of sizes alive at one of a buffer's steps, itself included."""
    lower, upper, sections = problem.sections
    change = np.zeros(sections + 1, np.int64)
    np.add.at(change, lower, problem.size)
    np.add.at(change, upper, -problem.size)
    levels = [np.cumsum(change)]
    while (1 << len(levels)) <= sections:  # the maxima of runs of 2, 4, 8, ...
        step = 1 << (len(levels) - 1)
        levels.append(np.maximum(levels[-1][:-step], levels[-1][step:]))
    power = np.frexp((upper - lower).astype(float))[1] - 1
    result = np.empty(len(problem), np.int64)
    for p in np.unique(power).tolist():
        at = power == p
        result[at] = np.maximum(levels[p][lower[at]], levels[p][upper[at] - (1 << p)])
    return result
