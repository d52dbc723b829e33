"""The complete search of `offset_search.cpp`, and first fit in the same library; built where there was a compiler."""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Iterator
from functools import cache
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from paddock.planning.offset_greedy import FirstFit
from paddock.planning.offset_problem import Problem

LIBRARY = "paddock.planning._offset_search"
LARGEST = 4000
"""Buffers in a part; the search takes quadratic time for one dive to the first solution."""
LONGEST = 20_000_000
"""Buffers times the sections they live in: the search keeps four bytes for each."""
PATIENCE = 2.0
"""Seconds in one call, after which the interpreter looks for an interrupt."""

UNKNOWN, FOUND, IMPOSSIBLE = 0, 1, 2


@cache
def library() -> ctypes.CDLL | None:
    """The compiled search, or None where it was not built."""
    try:
        spec = importlib.util.find_spec(LIBRARY)
        if spec is None or spec.origin is None:
            return None
        found = ctypes.CDLL(spec.origin)
    except OSError:  # built for another machine or another C++ runtime
        return None
    found.paddock_search_new.restype = ctypes.c_void_p
    found.paddock_search_new.argtypes = (
        ctypes.c_int32, ctypes.c_int32, _ints(np.int32), _ints(np.int32), _ints(np.int64), _ints(np.int64),
        _ints(np.int64), ctypes.c_int64, ctypes.c_uint64,
    )  # fmt: skip
    found.paddock_search_run.restype = ctypes.c_int32
    found.paddock_search_run.argtypes = (
        ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_double, _ints(np.int64)
    )  # fmt: skip
    found.paddock_search_nodes.restype = ctypes.c_int64
    found.paddock_search_nodes.argtypes = (ctypes.c_void_p,)
    found.paddock_search_free.restype = None
    found.paddock_search_free.argtypes = (ctypes.c_void_p,)
    found.paddock_first_fit.restype = ctypes.c_int32
    found.paddock_first_fit.argtypes = (
        ctypes.c_int32, _ints(np.int32), _ints(np.int32), _ints(np.int32), _ints(np.int64), _ints(np.int64),
        ctypes.c_double, _ints(np.int64),
    )  # fmt: skip
    return found


def _ints(kind: type[np.signedinteger]) -> type:
    return np.ctypeslib.ndpointer(dtype=kind, ndim=1, flags="C_CONTIGUOUS")


class Search:
    """One search over several heights: what it learned for one is kept for lower ones. Close it."""

    def __init__(self, problem: Problem, seed: int = 1) -> None:
        found = library()
        if found is None:
            raise RuntimeError("the search was not built")  # callers ask `searchable` first
        self._library = found
        self._problem = problem
        lower, upper, sections = problem.sections
        self._handle = found.paddock_search_new(
            len(problem), sections, lower, upper, problem.size, problem.alignment, problem.padding, problem.unit, seed
        )
        if not self._handle:
            raise MemoryError("no memory for the search of offsets")

    def run(self, height: int, nodes: int, deadline: float) -> tuple[int, NDArray[np.int64] | None]:
        """UNKNOWN, FOUND with offsets in units that end at `height` bytes, or IMPOSSIBLE; up to `nodes` nodes."""
        offsets = np.zeros(len(self._problem), np.int64)
        while (left := deadline - perf_counter()) > 0 and nodes > 0:
            before = self.nodes
            outcome = self._library.paddock_search_run(self._handle, height, nodes, min(left, PATIENCE), offsets)
            if outcome < 0:
                raise MemoryError("no memory for the search of offsets")
            if outcome != UNKNOWN:
                return outcome, offsets if outcome == FOUND else None
            nodes -= max(self.nodes - before, 1)
        return UNKNOWN, None

    @property
    def nodes(self) -> int:
        """Nodes looked at so far."""
        return int(self._library.paddock_search_nodes(self._handle))

    def close(self) -> None:
        """Frees its memory."""
        self._library.paddock_search_free(self._handle)
        self._handle = None


def searchable(problem: Problem) -> bool:
    """Whether the search is there and the problem is not too large for it."""
    if library() is None or len(problem) > LARGEST:
        return False
    lower, upper, _ = problem.sections
    return int((upper - lower).sum(dtype=np.int64)) <= LONGEST


def compiled_first_fit(problem: Problem) -> FirstFit | None:
    """First fit at a hundred times the speed of the interpreter's, or None where it was not built."""
    found = library()
    if found is None:
        return None
    lower, upper, _ = problem.sections

    def fit(order: NDArray[np.int32], deadline: float) -> NDArray[np.int64] | None:
        offsets = np.zeros(len(problem), np.int64)
        left = deadline - perf_counter()
        done = found.paddock_first_fit(
            len(problem), order, lower, upper, problem.size, problem.alignment, left, offsets
        )
        return offsets if done == 1 else None

    return fit


def descend(
    problem: Problem, best: int, least: int, goal: int, deadline: float, keen: int = 1
) -> Iterator[tuple[NDArray[np.int64] | None, int]]:
    """Searches heights under `best` bytes, until `goal` or what is proven to be the least is reached.

    Yields whenever something is known: offsets in units (or None) and the least height that is still possible.
    In turn: the goal itself, with `keen` times the nodes, and two thirds up from there to the best, again and again;
    then all with more nodes.
    """
    straight, between = Search(problem, seed=1), Search(problem, seed=2)
    try:
        nodes = 4000
        while perf_counter() < deadline and best > max(goal, least):
            target = max(goal, least)
            near = (best - target) // 16
            low = target
            while best > low and perf_counter() < deadline:
                if target == max(goal, least):
                    outcome, offsets = straight.run(target, keen * nodes, deadline)
                else:
                    outcome, offsets = between.run(target, nodes, deadline)
                if offsets is not None:
                    best = problem.height(offsets)
                    yield offsets, least
                elif outcome == IMPOSSIBLE:
                    least = problem.above(target)
                    low = max(low, least)
                    yield None, least
                else:
                    low = problem.above(target)
                    if best - low <= near:
                        break
                target = low + (best - 1 - low) * 2 // 3
            nodes *= 2
    finally:
        straight.close()
        between.close()
