"""Minimum cuts of small directed graphs: Dinic's method (1970), blocking flows along shortest paths, iteratively."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

INFINITE = 1 << 40


class Network:
    """A directed graph with whole capacities; vertices are numbered from 0."""

    def __init__(self, vertices: int) -> None:
        self._heads: list[int] = []
        self._left: list[int] = []  # what each arc still takes; arc i ^ 1 is the way back of arc i
        self._arcs: list[list[int]] = [[] for _ in range(vertices)]

    def add(self, tail: int, head: int, capacity: int) -> None:
        """An arc from `tail` to `head`."""
        self._arcs[tail].append(len(self._heads))
        self._arcs[head].append(len(self._heads) + 1)
        self._heads += (head, tail)
        self._left += (capacity, 0)

    def source_side(self, source: int, sink: int) -> list[bool]:
        """For each vertex, whether it is on the source's side of a minimum cut: of the one whose side is smallest."""
        while (levels := self._levels(source))[sink] >= 0:
            self._block(source, sink, levels)
        return [level >= 0 for level in levels]

    def _levels(self, source: int) -> list[int]:
        levels = [-1] * len(self._arcs)
        levels[source] = 0
        ahead = deque([source])
        while ahead:
            vertex = ahead.popleft()
            for arc in self._arcs[vertex]:
                head = self._heads[arc]
                if self._left[arc] and levels[head] < 0:
                    levels[head] = levels[vertex] + 1
                    ahead.append(head)
        return levels

    def _block(self, source: int, sink: int, levels: Sequence[int]) -> None:
        """Fills paths that go up one level with each arc until none is left."""
        tried = [0] * len(self._arcs)
        path: list[int] = []
        vertex = source
        while True:
            if vertex == sink:
                room = min(self._left[arc] for arc in path)
                for arc in path:
                    self._left[arc] -= room
                    self._left[arc ^ 1] += room
                full = next(at for at, arc in enumerate(path) if not self._left[arc])
                vertex = self._heads[path[full] ^ 1]
                del path[full:]
                continue
            arcs = self._arcs[vertex]
            while tried[vertex] < len(arcs):
                arc = arcs[tried[vertex]]
                if self._left[arc] and levels[self._heads[arc]] == levels[vertex] + 1:
                    break
                tried[vertex] += 1
            if tried[vertex] < len(arcs):
                path.append(arcs[tried[vertex]])
                vertex = self._heads[path[-1]]
            elif path:
                vertex = self._heads[path.pop() ^ 1]
                tried[vertex] += 1
            else:
                return
