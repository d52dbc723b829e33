"""From who runs each node to segments: the fewest runs of nodes that each owner can compile as one unit.

Segments come from scheduling, not from growing and repairing: nodes are taken in a topological order that stays with
one owner for as long as anything of that owner is ready, and a segment is what was taken between two changes. Being an
interval of a topological order, each segment is convex and the segments have no cycle, whatever the graph. For two
owners the better of the two beginnings has the fewest segments that are possible; for more, what the schedule leaves
apart and could stand together is joined. Linear in nodes and edges.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from paddock.graph import Graph, Node

_MANY = 1024
"""From how many segments on another beginning, which may save one of them, is not worth its time."""
_JOINABLE = 256
"""Up to how many segments are tried for joining, which takes time by their square."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A segment before it has an index: `nodes` in order, `copies` the constant nodes of others that it reads."""

    owner: int
    nodes: tuple[int, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    copies: tuple[int, ...] = ()


def reads(node: Node) -> tuple[int, ...]:
    """The values that a node needs: its operands and what its bodies capture, each once."""
    return tuple(dict.fromkeys(v for v in (*node.inputs, *node.captures) if v is not None))


def producers(graph: Graph) -> dict[int, int]:
    """The node that makes each value which a node makes."""
    return {value: node.index for node in graph.nodes for value in node.outputs if value is not None}


class Partitioner:
    """Cuts one graph, for any answer to who runs what; what does not depend on that is found once.

    Args:
        graph: Nodes in topological order.
        constants: Nodes without inputs whose output may be made anew in every segment that reads it. They go to the
            first segment that does, whatever their owner, and the others get copies.
    """

    def __init__(self, graph: Graph, constants: Collection[int] = ()) -> None:
        self.graph = graph
        self.reads = [reads(node) for node in graph.nodes]
        self.made_by = producers(graph)
        ends = set(graph.outputs)
        read = {value for values in self.reads for value in values} if constants else set()
        # A constant that is an output of the model, or that nobody reads, is a node like any other.
        self.free = {
            n for n in constants if all(v in read and v not in ends for v in graph.nodes[n].outputs if v is not None)
        }
        made_by, free = self.made_by, self.free
        self.before: list[list[int]] = [
            [] if node in free else list({n for v in values if (n := made_by.get(v, -1)) >= 0 and n not in free})
            for node, values in enumerate(self.reads)
        ]
        self.after: list[list[int]] = [[] for _ in graph.nodes]
        for reader, needed in enumerate(self.before):
            for other in needed:
                self.after[other].append(reader)

    def pieces(self, owners: Sequence[int], quick: bool = False) -> tuple[Piece, ...]:
        """The segments for these owners of the nodes, each after those whose values it reads.

        Args:
            owners: Who runs each node.
            quick: Whether one beginning will do, for a placement that is still going to change.
        """
        present = sorted({owner for node, owner in enumerate(owners) if node not in self.free})
        groups: list[list[int]] = []
        for first in present:
            found = _greedy(owners, self.before, self.after, self.free, first)
            groups = found if not groups or len(found) < len(groups) else groups
            if quick or len(groups) > _MANY:
                break
        return tuple(self._pieces(_joined(groups, owners, self.before), owners))

    def intervals(self, positions: Sequence[int]) -> tuple[Piece, ...]:
        """The nodes in the order in which they stand, cut before these positions; the owner is the piece's number."""
        bounds = [0, *positions, len(self.graph.nodes)]
        groups = [[n for n in range(low, high) if n not in self.free] for low, high in itertools.pairwise(bounds)]
        owners = [number for number, (low, high) in enumerate(itertools.pairwise(bounds)) for _ in range(low, high)]
        return tuple(self._pieces(groups, owners))

    def _pieces(self, groups: list[list[int]], owners: Sequence[int]) -> Iterator[Piece]:
        graph, made_by, free = self.graph, self.made_by, self.free
        home = [-1] * len(graph.nodes)
        for number, group in enumerate(groups):
            for node in group:
                home[node] = number
        crossing = self._crossing(home)
        owned: set[int] = set()
        given: set[int] = set()
        for number, group in enumerate(groups):
            wanted = {made_by[v] for n in group for v in self.reads[n] if made_by.get(v) in free} if free else set()
            copies = wanted & owned
            nodes = sorted({*group, *(wanted - owned)})
            owned |= wanted
            inputs = dict.fromkeys(
                v
                for n in nodes
                for v in self.reads[n]
                if v not in graph.initializers
                and ((maker := made_by.get(v, -1)) < 0 or (home[maker] != number and maker not in wanted))
            )
            outputs = [v for n in nodes for v in graph.nodes[n].outputs if v is not None and v in crossing]
            given.update(outputs)
            if number == len(groups) - 1:
                # An output that is a constant of the model is nobody's work; somebody has to hand it out.
                outputs += [v for v in dict.fromkeys(graph.outputs) if v in graph.initializers and v not in given]
            if not outputs:  # nobody reads what it makes, and a model without outputs is none
                outputs = [v for v in graph.nodes[nodes[-1]].outputs if v is not None][:1]
            owner = owners[group[0]]
            yield Piece(owner, tuple(nodes), tuple(inputs), tuple(outputs), tuple(sorted(copies)))

    def _crossing(self, home: Sequence[int]) -> set[int]:
        """The values that leave the segment in which they are made."""
        found = set(self.graph.outputs)
        made_by, free = self.made_by, self.free
        for node, values in enumerate(self.reads):
            here = home[node]
            if here >= 0:
                for value in values:
                    maker = made_by.get(value, -1)
                    if maker >= 0 and home[maker] != here and maker not in free:
                        found.add(value)
        return found


def _greedy(
    owners: Sequence[int], before: list[list[int]], after: list[list[int]], free: set[int], first: int
) -> list[list[int]]:
    """Groups of nodes, beginning with owner `first` if it can; each takes all that is ready of its owner."""
    waiting = [len(needed) for needed in before]
    ready: dict[int, list[int]] = {}
    for node, count in enumerate(waiting):
        if not count and node not in free:
            ready.setdefault(owners[node], []).append(node)
    groups: list[list[int]] = []
    owner = first
    while ready:
        if owner not in ready:
            # The owner of most of what is ready: the others' turns then find more of theirs waiting.
            owner = max(ready, key=lambda candidate: (len(ready[candidate]), -candidate))
        stack, group = ready.pop(owner), list[int]()
        while stack:
            node = stack.pop()
            group.append(node)
            for reader in after[node]:
                waiting[reader] -= 1
                if not waiting[reader]:
                    (stack if owners[reader] == owner else ready.setdefault(owners[reader], [])).append(reader)
        groups.append(group)
    return groups


def _joined(groups: list[list[int]], owners: Sequence[int], before: list[list[int]]) -> list[list[int]]:
    """Groups of one owner put together where no path leads from one to the other through a third."""
    if len({owners[group[0]] for group in groups}) < 3 or len(groups) > _JOINABLE:
        return groups  # two owners' schedules leave nothing to join
    while True:
        edges = _edges(groups, before)
        found = _joinable(groups, owners, edges)
        if found is None:
            return _ordered(groups, edges)
        early, late = found
        groups = [g for i, g in enumerate(groups) if i not in found] + [groups[early] + groups[late]]
        groups = _ordered(groups, _edges(groups, before))


def _edges(groups: list[list[int]], before: list[list[int]]) -> list[set[int]]:
    """For each group the groups that it reads from."""
    home = {node: number for number, group in enumerate(groups) for node in group}
    return [{home[n] for node in group for n in before[node]} - {number} for number, group in enumerate(groups)]


def _joinable(groups: list[list[int]], owners: Sequence[int], edges: list[set[int]]) -> tuple[int, int] | None:
    above = [0] * len(groups)  # as bits: all groups that one depends on
    for number, direct in enumerate(edges):
        for other in direct:
            above[number] |= above[other] | 1 << other
    for late in range(len(groups)):
        for early in range(late - 1, -1, -1):
            if owners[groups[early][0]] != owners[groups[late][0]]:
                continue
            between = any(above[other] >> early & 1 for other in range(early + 1, late) if above[late] >> other & 1)
            if not between:
                return early, late
    return None


def _ordered(groups: list[list[int]], edges: list[set[int]]) -> list[list[int]]:
    """The groups in a topological order, the one with the smallest node first among those that are ready."""
    waiting = [len(direct) for direct in edges]
    after: list[list[int]] = [[] for _ in groups]
    for number, direct in enumerate(edges):
        for other in direct:
            after[other].append(number)
    ready = [(min(groups[n]), n) for n, count in enumerate(waiting) if not count]
    heapq.heapify(ready)
    found = []
    while ready:
        _, number = heapq.heappop(ready)
        found.append(groups[number])
        for reader in after[number]:
            waiting[reader] -= 1
            if not waiting[reader]:
                heapq.heappush(ready, (min(groups[reader]), reader))
    return found
