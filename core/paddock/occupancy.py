"""How many bytes of a layout are alive at each position of the execution, and which buffers make the peak."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from paddock.memory_plan import PlannedBuffer

_LABEL = re.compile(r"^(?:#\d+ )?(\S+)(?: \(.*\))?$", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Occupancy:
    """The bytes alive as steps: `alive[i]` from `positions[i]` up to the next position, the last of them 0.

    Both are empty where there is no buffer that is ever alive.
    """

    positions: tuple[int, ...] = ()
    alive: tuple[int, ...] = ()

    @property
    def peak(self) -> int:
        """The largest sum alive at once, in bytes."""
        return max(self.alive, default=0)

    @property
    def peaks(self) -> tuple[int, int]:
        """Where that is first reached, and where it ends: a half-open range of positions."""
        if not self.peak:
            return 0, 0
        at = self.alive.index(self.peak)
        return self.positions[at], self.positions[at + 1]

    @property
    def end(self) -> int:
        """The position after the last at which anything is alive."""
        return self.positions[-1] if self.positions else 0

    def largest_in(self, columns: int, length: int) -> list[int]:
        """The largest bytes alive in each of `columns` equal parts of [0, length); positions are never averaged.

        A part narrower than a position takes what is alive at the position that it lies in.
        """
        found = [0] * columns
        for i, alive in enumerate(self.alive[:-1]):
            first = self.positions[i] * columns // length
            last = -(-self.positions[i + 1] * columns // length)  # the part that the step ends in still sees it
            for column in range(first, min(last, columns)):
                found[column] = max(found[column], alive)
        return found


def occupancy(layout: Sequence[PlannedBuffer]) -> Occupancy:
    """The bytes alive over the lifetimes of a layout, whatever its offsets."""
    changes: dict[int, int] = {}
    for buffer in layout:
        if buffer.upper > buffer.lower and buffer.size:
            changes[buffer.lower] = changes.get(buffer.lower, 0) + buffer.size
            changes[buffer.upper] = changes.get(buffer.upper, 0) - buffer.size
    positions = tuple(sorted(changes))
    alive: list[int] = []
    for position in positions:
        alive.append((alive[-1] if alive else 0) + changes[position])
    return Occupancy(positions, tuple(alive))


def alive_at(layout: Sequence[PlannedBuffer], position: int) -> list[PlannedBuffer]:
    """The buffers alive at a position, largest first."""
    found = (buffer for buffer in layout if buffer.lower <= position < buffer.upper and buffer.size)
    return sorted(found, key=lambda buffer: (-buffer.size, buffer.offset))


def operator_of(buffer: PlannedBuffer) -> str:
    """The type of the operator that makes a buffer, without the index and name it may be labelled with."""
    found = _LABEL.match(buffer.op)
    return found[1] if found else buffer.op
