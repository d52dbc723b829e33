"""Offset assignment in plain numbers: lifetimes, sizes in units, what heights are possible, independent parts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from heapq import heappop, heappush
from math import gcd

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Problem:
    """Buffers by position, sorted by (lower, upper); positive sizes and alignments; half-open lifetimes.

    Attributes:
        lower: int64[buffers], the first step of each lifetime.
        upper: int64[buffers], the first step after it.
        size: int64[buffers], in units, rounded up.
        alignment: int64[buffers], in units.
        unit: Bytes a unit; every offset worth trying is a whole number of units.
        padding: int64[buffers], bytes by which `size * unit` is more than the size asked for.
    """

    lower: NDArray[np.int64]
    upper: NDArray[np.int64]
    size: NDArray[np.int64]
    alignment: NDArray[np.int64]
    unit: int
    padding: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.lower)

    @cached_property
    def bound(self) -> int:
        """Bytes that any assignment needs.

        The greatest sum of sizes alive at once, each rounded up to the common divisor of all alignments: only the
        topmost need not be rounded, so that the largest padding among those alive is taken off again.
        """
        events = np.argsort(np.concatenate([self.upper, self.lower]), kind="stable")  # ends before starts
        buffers = len(self)
        if not self.padding.any():
            changes = np.concatenate([-self.size, self.size])[events]
            return int(np.cumsum(changes).max(initial=0)) * self.unit
        sizes, paddings, uppers, lowers = (a.tolist() for a in (self.size, self.padding, self.upper, self.lower))
        live: list[tuple[int, int]] = []  # (-padding, upper), dropped once it is on top and over
        total = best = 0
        for event in events.tolist():
            if event < buffers:
                total -= sizes[event]
                continue
            at = event - buffers
            total += sizes[at]
            heappush(live, (-paddings[at], uppers[at]))
            while live[0][1] <= lowers[at]:
                heappop(live)
            best = max(best, total * self.unit + live[0][0])
        return best

    def height(self, offsets: NDArray[np.int64]) -> int:
        """Bytes that offsets in units take."""
        return int(((offsets + self.size) * self.unit - self.padding).max(initial=0))

    def above(self, height: int) -> int:
        """The least height in bytes over `height` at which an assignment can end."""
        return min((height + padding) // self.unit * self.unit + self.unit - padding for padding in self._paddings)

    @cached_property
    def _paddings(self) -> list[int]:
        return [int(padding) for padding in np.unique(self.padding)]

    @cached_property
    def sections(self) -> tuple[NDArray[np.int32], NDArray[np.int32], int]:
        """int32[buffers] lower and upper numbered by distinct times, and the number of sections between these."""
        times, numbers = np.unique(np.concatenate([self.lower, self.upper]), return_inverse=True)
        numbered: NDArray[np.int32] = numbers.astype(np.int32)
        return numbered[: len(self)].copy(), numbered[len(self) :].copy(), max(len(times) - 1, 0)

    def parts(self) -> Iterator[NDArray[np.int64]]:
        """The positions of each part of the timeline that shares no step with another."""
        if not len(self):
            return
        reached = np.maximum.accumulate(self.upper)
        cuts = np.flatnonzero(self.lower[1:] >= reached[:-1]) + 1
        yield from np.split(np.arange(len(self)), cuts)

    def part(self, positions: NDArray[np.int64]) -> Problem:
        """The problem of these buffers alone, in the same units."""
        return Problem(
            self.lower[positions],
            self.upper[positions],
            self.size[positions],
            self.alignment[positions],
            self.unit,
            self.padding[positions],
        )


def in_units(lower: Sequence[int], upper: Sequence[int], size: Sequence[int], alignment: Sequence[int]) -> Problem:
    """Byte sizes (positive) and alignments to units: alignments that all offsets keep anyway become 1.

    Offsets are multiples of the common divisor of the alignments. Where each alignment divides the common divisor of
    the sizes rounded up to that, stacks of buffers keep all alignments by themselves.
    """
    step = gcd(*alignment) or 1
    padded = [-(-s // step) for s in size]
    multiples = [a // step for a in alignment]
    common = gcd(*padded) or 1
    if all(common % multiple == 0 for multiple in set(multiples)):
        padded = [p // common for p in padded]
        multiples = [1] * len(multiples)
    else:
        common = 1
    unit = step * common
    return Problem(
        np.array(lower, np.int64),
        np.array(upper, np.int64),
        np.array(padded, np.int64),
        np.array(multiples, np.int64),
        unit,
        np.array([p * unit - s for p, s in zip(padded, size, strict=True)], np.int64),
    )
