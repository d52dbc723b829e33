"""Checks offsets by other means than they were found: a sweep over time with the buffers alive sorted by offset."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Collection
from math import gcd

from paddock.errors import PaddockError
from paddock.planning.offsets import Allocation, Buffer


def verify_allocation(buffers: Collection[Buffer], allocation: Allocation) -> None:
    """Raises `PaddockError` where an allocation is not right, which is always a defect of Paddock's own.

    Right is: each buffer has exactly one offset, a whole number, not negative and a multiple of its alignment; no two
    that are alive at the same step share a byte; the height is where the highest ends; the bound is no less than the
    sizes alive at any one step add up to and no more than the height; what is claimed to be necessary lies between
    the two; and the whole takes no more than all buffers in a row, each with its gap of alignment.
    """
    wanted = [buffer.id for buffer in buffers]
    _must(len(set(wanted)) == len(wanted), "two buffers have one id")
    _must(set(allocation.offsets) == set(wanted), "it does not give one offset for each buffer")
    highest = row = 0
    for buffer in buffers:
        offset = allocation.offsets[buffer.id]
        _must(type(offset) is int and offset >= 0, f"buffer {buffer.id!r} lies at {offset!r}")
        _must(offset % buffer.alignment == 0, f"buffer {buffer.id!r} at {offset} is not aligned to {buffer.alignment}")
        highest = max(highest, offset + buffer.size)
        row += buffer.size + buffer.alignment - 1
    _must(allocation.height == highest, f"the height is {highest}, not {allocation.height}")
    _must(highest <= row, "it takes more than all buffers in a row")
    most, rounded = _sweep(buffers, allocation)
    _must(allocation.bound >= most, f"the bound {allocation.bound} is less than the {most} bytes alive at once")
    _must(allocation.bound <= rounded, f"the bound {allocation.bound} is more than all that is alive at once, rounded")
    _must(allocation.bound <= allocation.at_least <= highest, "what is claimed to be necessary is out of its range")


def _sweep(buffers: Collection[Buffer], allocation: Allocation) -> tuple[int, int]:
    """The largest sums of sizes alive at once, as they are and rounded; checks each buffer against its neighbours."""
    events: list[tuple[int, int, int]] = []  # (time, 0 for an end and 1 for a start, position)
    sized = [buffer for buffer in buffers if buffer.size]
    common = gcd(*(buffer.alignment for buffer in sized)) or 1
    for position, buffer in enumerate(sized):
        events += ((buffer.lower, 1, position), (buffer.upper, 0, position))
    alive: list[tuple[int, int, int]] = []  # (offset, end, position), sorted: neighbours are the only ones to collide
    total = rounded_total = most = rounded_most = 0
    for _, starts, position in sorted(events):
        buffer = sized[position]
        offset = allocation.offsets[buffer.id]
        entry = (offset, offset + buffer.size, position)
        rounded = (buffer.size + common - 1) // common * common
        if not starts:
            del alive[bisect_left(alive, entry)]
            total, rounded_total = total - buffer.size, rounded_total - rounded
            continue
        at = bisect_left(alive, entry)
        for other in alive[max(at - 1, 0) : at + 1]:
            _must(
                other[1] <= entry[0] or entry[1] <= other[0],
                f"buffers {sized[other[2]].id!r} and {buffer.id!r} overlap while both are alive",
            )
        insort(alive, entry)
        total, rounded_total = total + buffer.size, rounded_total + rounded
        most, rounded_most = max(most, total), max(rounded_most, rounded_total)
    return most, rounded_most


def _must(holds: bool, problem: str) -> None:
    if not holds:
        raise PaddockError(f"the offsets are not right: {problem}", remedy="please report this, with the buffers")
