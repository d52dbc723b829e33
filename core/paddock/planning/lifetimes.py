"""From a graph to buffers with lifetimes: which values share memory, and from when to when each is alive.

Positions are those of execution: node i runs at position i, a value is alive in the half-open [made, last read + 1).
Inputs, outputs and constants are no intermediates, nor is what only views them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from paddock.graph import Graph, Node
from paddock.planning.aliasing import Aliasing
from paddock.planning.offsets import Buffer, allocate

BODY_SECONDS = 0.05
"""How long a layout is searched for in one body of a control flow."""


@dataclass(frozen=True)
class Lifetimes:
    """The intermediates of a graph in bytes: `buffers` with the values that live in each, by index, in order of making.

    A buffer without values is what the body of a control flow takes for itself. `makers` names for each buffer's id the
    node that makes the first of it; `unshared` is the sum of all values with no memory shared; `unknown` counts the
    values whose size the graph does not tell.
    """

    buffers: tuple[tuple[Buffer, tuple[int, ...]], ...]
    makers: Mapping[int, str]
    io: int
    unshared: int
    unknown: int


def lifetimes(graph: Graph, aliasing: Aliasing | None = None) -> Lifetimes:
    """The buffers of `graph`'s intermediates, every bounded dimension at its largest."""
    return _Sharing(graph, aliasing or Aliasing()).found()


class _Sharing:
    """Values that share memory as sets, each with its first and last position and its size."""

    def __init__(self, graph: Graph, aliasing: Aliasing) -> None:
        self.graph = graph
        self.aliasing = aliasing
        self.outside = {*graph.inputs, *graph.outputs, *graph.initializers}
        self.made = {v: node.index for node in graph.nodes for v in node.outputs if v is not None}
        self.last = _last_reads(graph)
        sizes = {v: graph.nbytes(v) for v in (*self.made, *graph.inputs)}
        self.unknown = sum(
            size is None and graph.values[v].kind == "tensor" and v not in graph.initializers
            for v, size in sizes.items()
        )
        self.bytes = {v: sizes[v] or 0 for v in sizes}
        self.size = dict(self.bytes)
        """By root, of all that shares its memory."""
        self.root = {v: v for v in self.made}
        self.members: dict[int, list[int]] = {v: [v] for v in self.made}
        self.lower = dict(self.made)
        self.upper = {v: max(self.last.get(v, at), at) + 1 for v, at in self.made.items()}
        self.writes: dict[int, list[int]] = {v: [] for v in self.made}
        """Positions at which a root's memory is written over."""
        self.late: dict[int, list[int]] = {}
        """Positions at which what is joined in a root's memory is written over as a whole."""
        self.fixed = set(self.outside)
        """Roots whose memory lies outside: what is joined to them is no intermediate."""

    def found(self) -> Lifetimes:
        graph = self.graph
        unshared = sum(self.bytes[v] for v in self.made if v not in self.outside)
        for node in graph.nodes:
            self._view(node)
        for node in graph.nodes:
            self._write_over(node)
        self._join_all()
        buffers: list[tuple[Buffer, tuple[int, ...]]] = []
        makers: dict[int, str] = {}
        for root, members in self.members.items():
            if root in self.fixed:
                continue
            number = len(buffers)
            values = tuple(sorted(members, key=lambda v: (self.made[v], v)))
            makers[number] = graph.nodes[self.made[values[0]]].label
            buffers.append((Buffer(number, self.lower[root], self.upper[root], self.size[root]), values))
        for node in graph.nodes:
            body = max((_height(inner, self.aliasing) for inner in node.subgraphs), default=0)
            if body:
                unshared += body
                makers[len(buffers)] = node.label
                buffers.append((Buffer(len(buffers), node.index, node.index + 1, body), ()))
        ends = {*graph.inputs, *graph.outputs} - {*graph.initializers}
        io = sum(self.bytes.get(v, 0) for v in ends)
        return Lifetimes(tuple(buffers), makers, io, unshared, self.unknown)

    def _view(self, node: Node) -> None:
        if node.type not in self.aliasing.views or not node.inputs or not node.outputs:
            return
        source, result = node.inputs[0], node.outputs[0]
        if source is None or result is None or result in self.graph.outputs:
            return  # what goes out is written where it is wanted
        if source not in self.root:
            if source in self.outside:
                self.fixed.add(self.root[result])
        elif self.bytes[source] == self.bytes[result]:
            self._merge(source, result)

    def _write_over(self, node: Node) -> None:
        if node.type not in self.aliasing.in_place or not node.outputs or node.subgraphs:
            return
        result = node.outputs[0]
        if result is None or self.root[result] in self.fixed:
            return
        values = self.graph.values
        for source in node.inputs:
            if source is None or source not in self.root or self.root[source] in self.fixed:
                continue
            same = values[source].shape == values[result].shape and values[source].dtype == values[result].dtype
            dies = self.upper[self.root[source]] == node.index + 1
            whole = self.size[self.root[source]] == self.bytes[result] == self.size[self.root[result]]
            if same and dies and whole and self.root[source] != self.root[result]:
                self._merge(source, result)
                self.writes[self.root[result]].append(node.index)
                return

    def _join_all(self) -> None:
        joins = [node for node in self.graph.nodes if node.type in self.aliasing.joins]
        if not joins:
            return
        alive = np.zeros(len(self.graph.nodes) + 1, np.int64)
        for root in self.members:
            if root not in self.fixed:
                alive[self.lower[root] : self.upper[root]] += self.size[root]
        early = {v: tuple(self.writes[self.root[v]]) for v in self.made}
        for node in reversed(joins):  # the largest of a chain first: the others then lie inside of it
            self._join(node, alive, early)

    def _join(
        self, node: Node, alive: np.ndarray[tuple[int], np.dtype[np.int64]], early: Mapping[int, Sequence[int]]
    ) -> None:
        """Writes the inputs of a concatenation into its output from the start, where that lowers the peak around it."""
        result = node.outputs[0] if node.outputs else None
        if result is None or self.root[result] in self.fixed or not self._leading(node, result):
            return
        sources = [v for v in node.inputs if v is not None]
        roots = [self.root.get(v) for v in sources]
        whole = all(r is not None and self.bytes[v] == self.size[r] for v, r in zip(sources, roots, strict=True))
        if not whole or len({*roots}) != len(roots) or self.root[result] in roots or self.fixed & {*roots}:
            return
        if sum(self.bytes[v] for v in sources) != self.bytes[result]:
            return
        inner = [r for r in roots if r is not None]
        target = self.root[result]
        # What is written over an input after this node would spoil the output, and the other way round.
        late = [*self.late.get(target, ()), *(at for at in early[result] if at > node.index)]
        if any(at > node.index for v in sources for at in early[v]) or any(r in self.late for r in inner):
            return
        if any(self.upper[r] > at for r in inner for at in late):
            return
        begin = min(self.lower[r] for r in inner)
        end = max(self.upper[r] for r in (*inner, target))
        window = alive[begin:end].copy()
        for r in (*inner, target):
            window[self.lower[r] - begin : self.upper[r] - begin] -= self.size[r]
        window += self.size[target]
        if window.max() < alive[begin:end].max():
            alive[begin:end] = window
            size = self.size[target]
            for r in inner:
                self._merge(r, result)
            self.size[self.root[result]] = size
            self.late[self.root[result]] = late

    def _leading(self, node: Node, result: int) -> bool:
        """Whether every axis before the one that is joined along has extent 1."""
        shape = self.graph.values[result].shape
        axis = node.attributes.get(self.aliasing.joins[node.type])
        if shape is None or not isinstance(axis, int) or not -len(shape) <= axis < len(shape):
            return False
        return all(dim == 1 for dim in shape[: axis % len(shape)])

    def _merge(self, one: int, other: int) -> None:
        """Makes two values share one memory; the earlier root stays."""
        kept, gone = self.root[one], self.root[other]
        if kept == gone:
            return
        for value in self.members.pop(gone):
            self.root[value] = kept
            self.members[kept].append(value)
        self.lower[kept] = min(self.lower[kept], self.lower[gone])
        self.upper[kept] = max(self.upper[kept], self.upper[gone])
        self.size[kept] = max(self.size[kept], self.size[gone])
        self.writes[kept] += self.writes.pop(gone)
        if gone in self.fixed:
            self.fixed.add(kept)


def _height(graph: Graph, aliasing: Aliasing) -> int:
    """What a body takes beside what it captures: the height of its intermediates, and its outputs."""
    inner = lifetimes(graph, aliasing)
    made = {v for node in graph.nodes for v in node.outputs}
    outputs = sum(graph.nbytes(v) or 0 for v in set(graph.outputs) if v in made)
    return allocate([buffer for buffer, _ in inner.buffers], seconds=BODY_SECONDS).height + outputs


def _last_reads(graph: Graph) -> dict[int, int]:
    found: dict[int, int] = {}
    for node in graph.nodes:
        reads: Iterable[int | None] = (*node.inputs, *node.captures)
        found.update((v, node.index) for v in reads if v is not None)
    return found
