"""A layered drawing of a directed acyclic graph: each edge goes down, no two boxes overlap. O(boxes + edges) a sweep.

Long edges get a bend in each layer that they pass, one chain of bends for all edges of a box; the longest of all, once
there are too many bends, run down a lane beside the drawing.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import pairwise

GAP = 22.0
"""Between two boxes of a layer, in the units of their widths."""
_BEND_WIDTH = 6.0
_LANE = 9.0
_SWEEPS = 2
_BENDS_PER_BOX = 3

Edge = tuple[int, int]
Point = tuple[float, float]
"""x in the units of the widths, and a layer; halves lie between layers."""


@dataclass(frozen=True, slots=True)
class Drawing:
    """Where everything is: `layers` and `centers` (x) of boxes, and for each edge the points between its ends."""

    layers: tuple[int, ...]
    centers: tuple[float, ...]
    bends: tuple[tuple[Point, ...], ...]
    left: float
    right: float

    @property
    def depth(self) -> int:
        """How many layers there are."""
        return max(self.layers, default=-1) + 1


def arrange(widths: Sequence[float], edges: Sequence[Edge], sources: Collection[int] = ()) -> Drawing:
    """Lays boxes out in layers, from the top down.

    Args:
        widths: Of each box.
        edges: Pairs of boxes, from the lower to the higher index; others are drawn, but nothing is arranged by them.
        sources: The boxes that data enters through. What does not depend on them, and they themselves, stand as low as
            what reads them lets them, so that a constant is beside its reader.
    """
    forward = [edge for edge in dict.fromkeys(edges) if edge[0] < edge[1]]
    layers = _layers(len(widths), forward, sources)
    grid = _Grid(widths, layers, forward)
    for _ in range(_SWEEPS):
        grid.order(down=True)
        grid.order(down=False)
    grid.order(down=True)
    grid.spread()
    left = min((x - w / 2 for x, w in zip(grid.x, grid.widths, strict=True)), default=0.0)
    right = max((x + w / 2 for x, w in zip(grid.x, grid.widths, strict=True)), default=0.0)
    lanes, right = _lanes(grid.far, layers, right)
    bends = tuple(grid.bends(edge, lanes.get(edge[0], right)) for edge in edges)
    return Drawing(tuple(layers), tuple(grid.x[: len(widths)]), bends, left, right)


def _layers(count: int, edges: Sequence[Edge], sources: Collection[int]) -> list[int]:
    below: list[list[int]] = [[] for _ in range(count)]
    for source, target in edges:
        below[source].append(target)
    layers = [0] * count
    reached = [False] * count
    entering = set(sources)
    for box in range(count):
        for target in below[box]:
            layers[target] = max(layers[target], layers[box] + 1)
            reached[target] = reached[target] or reached[box] or box in entering
    for box in reversed(range(count)):
        if not reached[box] and below[box]:
            layers[box] = min(layers[target] for target in below[box]) - 1
    return layers


class _Grid:
    """Boxes and bends by layer, each with its neighbours in the layers above and below."""

    def __init__(self, widths: Sequence[float], layers: Sequence[int], edges: Sequence[Edge]) -> None:
        count = len(widths)
        self.widths = list(widths)
        self.layer = list(layers)
        self.chains: dict[int, list[int]] = {}
        """For each box the bends of its long edges, the first in the layer below it."""
        targets: dict[int, list[int]] = {}
        for source, target in edges:
            targets.setdefault(source, []).append(target)
        spans = {source: max(layers[t] for t in found) - layers[source] - 1 for source, found in targets.items()}
        room = _BENDS_PER_BOX * count + 1000
        self.far: dict[int, int] = {}
        """Boxes whose edges run in a lane, with the lowest layer that they reach."""
        for source in sorted(spans, key=lambda box: (spans[box], box)):
            if spans[source] > room:
                self.far[source] = layers[source] + spans[source] + 1
            elif spans[source]:
                room -= spans[source]
                first = len(self.layer)
                self.chains[source] = list(range(first, first + spans[source]))
                self.layer += range(layers[source] + 1, layers[source] + spans[source] + 1)
                self.widths += [_BEND_WIDTH] * spans[source]
        self.boxes = count
        self.up: list[list[int]] = [[] for _ in self.layer]
        self.down: list[list[int]] = [[] for _ in self.layer]
        for source, chain in self.chains.items():
            for above, under in zip([source, *chain], chain, strict=False):
                self._join(above, under)
        for source, target in edges:
            over = layers[target] - layers[source] - 1
            if not over:
                self._join(source, target)
            elif source in self.chains:
                self._join(self.chains[source][over - 1], target)
        self.rows: list[list[int]] = [[] for _ in range(max(self.layer, default=-1) + 1)]
        for item, layer in enumerate(self.layer):
            self.rows[layer].append(item)
        self.x = [0.0] * len(self.layer)

    def _join(self, above: int, under: int) -> None:
        self.down[above].append(under)
        self.up[under].append(above)

    def order(self, down: bool) -> None:
        """Sorts each layer by the mean place of its neighbours in the one before."""
        near = self.up if down else self.down
        place = [0.0] * len(self.layer)
        for row in self.rows if down else reversed(self.rows):
            for position, item in enumerate(row):
                place[item] = position / len(row)
            keys = {i: sum(place[n] for n in near[i]) / len(near[i]) if near[i] else place[i] for i in row}
            row.sort(key=lambda item: keys[item])
            for position, item in enumerate(row):
                place[item] = position / len(row)

    def spread(self) -> None:
        """Gives each layer, in its order, the x nearest to those of the neighbours at which nothing overlaps."""
        for row in self.rows:
            self._place(row, [0.0] * len(row))
        for near in (self.up, self.down, self.up, self.down, None, self.up):
            for row in reversed(self.rows) if near is self.down else self.rows:
                self._place(row, [self._wanted(item, near) for item in row])

    def _wanted(self, item: int, near: Sequence[Sequence[int]] | None) -> float:
        found = near[item] if near is not None else [*self.up[item], *self.down[item]]
        if not found:
            return self.x[item]
        places = sorted(self.x[other] for other in found)
        return (places[(len(places) - 1) // 2] + places[len(places) // 2]) / 2

    def _place(self, row: Sequence[int], wanted: Sequence[float]) -> None:
        """The least squares of the distances to `wanted` in the given order: neighbours that collide form a block."""
        blocks: list[tuple[float, float, int]] = []  # sum of weighted places, weight, members
        starts = [0.0]
        for left, right in pairwise(row):
            starts.append(starts[-1] + (self.widths[left] + self.widths[right]) / 2 + GAP)
        for item, place, start in zip(row, wanted, starts, strict=True):
            weight = 1.0 if item < self.boxes else 4.0
            total, mass, members = (place - start) * weight, weight, 1
            while blocks and blocks[-1][0] / blocks[-1][1] >= total / mass:
                before = blocks.pop()
                total, mass, members = total + before[0], mass + before[1], members + before[2]
            blocks.append((total, mass, members))
        position = 0
        for total, mass, members in blocks:
            for _ in range(members):
                self.x[row[position]] = total / mass + starts[position]
                position += 1

    def bends(self, edge: Edge, lane: float) -> tuple[Point, ...]:
        """The points of an edge between its ends, without those on a straight line."""
        source, target = edge
        over = self.layer[target] - self.layer[source] - 1
        if over < 1:
            return ()
        if source in self.far:
            return ((lane, self.layer[source] + 0.5), (lane, self.layer[target] - 0.5))
        points = [(self.x[bend], float(self.layer[bend])) for bend in self.chains[source][:over]]
        kept = [
            point
            for before, point, after in zip([None, *points], points, [*points[1:], None], strict=False)
            if before is None or after is None or before[0] != point[0] or after[0] != point[0]
        ]
        return tuple(kept)


def _lanes(far: dict[int, int], layers: Sequence[int], right: float) -> tuple[dict[int, float], float]:
    """A lane for each box of `far`, beside the drawing; lanes are used again further down."""
    lanes: dict[int, float] = {}
    busy: list[tuple[int, int]] = []
    free: list[int] = []
    used = 0
    for source in sorted(far, key=lambda box: (layers[box], box)):
        while busy and busy[0][0] <= layers[source]:
            heappush(free, heappop(busy)[1])
        if free:
            lane = heappop(free)
        else:
            lane, used = used, used + 1
        heappush(busy, (far[source], lane))
        lanes[source] = right + GAP + lane * _LANE
    return lanes, max(lanes.values(), default=right)
