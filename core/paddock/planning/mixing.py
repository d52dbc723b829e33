"""Mixed placement: where a model is cut cheaply, and who is best to run each piece.

A model is cut into a chain of pieces, where few values are live. Every piece is measured on every adapter, and so is
every pair of neighbours, joined on one adapter or with the border between two; the fastest assignment is then a
cheapest path through the chain. After Collage (arXiv 2111.00655), whose candidates are patterns of operators: here they
are cuts, since what a border costs is most of what decides.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from paddock.graph import Graph, Node
from paddock.planning.cost import work
from paddock.planning.operators import carried
from paddock.planning.partition import Partitioner, Piece

PIECES = 6
"""How many pieces a model is cut into at most: so many times adapters are measured, and loaded."""
LIVE = 4
"""How many values may cross a cut: what remains in flight in a decoder, and not the inside of a block."""
_NODE = 1.0
"""Microseconds that a node counts for beside its estimated work, which may be unknown."""

Times = Sequence[Mapping[str, float]]
"""By piece, the seconds of each adapter that takes it."""
Borders = Sequence[Mapping[tuple[str, str], float]]
"""By cut, the seconds that an adapter before it and one behind it (or the same) take beyond those of the two pieces:
what the border costs, or less than nothing where joining them saves something. Pairs that do not run are left out."""


@dataclass(frozen=True, slots=True)
class Cut:
    """A place before the node at `position`; `values` are made before it and read behind it, in `nbytes` bytes."""

    position: int
    values: tuple[int, ...]
    nbytes: int


@dataclass(frozen=True, slots=True)
class Assignment:
    """Who runs each piece, in how many predicted seconds, with so many borders between two adapters."""

    adapters: tuple[str, ...]
    seconds: float
    borders: int


def cut_points(partitioner: Partitioner, most: int = LIVE) -> list[Cut]:
    """Every place where at most `most` values cross, all of which can be handed over as arrays.

    The model's inputs are there for every piece, and constants that pieces get copies of cross nowhere.
    """
    graph, free = partitioner.graph, partitioner.free
    last: dict[int, int] = {}
    for node, values in enumerate(partitioner.reads):
        last.update(
            (v, node) for v in values if (maker := partitioner.made_by.get(v)) is not None and maker not in free
        )
    ends: dict[int, list[int]] = {}
    for value, node in last.items():
        ends.setdefault(node, []).append(value)
    live: dict[int, None] = {}
    bound = 0
    found = []
    for made in graph.nodes[:-1]:
        for value in (v for v in made.outputs if v is not None and v in last):
            live[value] = None
            bound += not carried(graph.values[value])
        for value in ends.get(made.index, ()):
            del live[value]
            bound -= not carried(graph.values[value])
        if not bound and 0 < len(live) <= most:
            found.append(Cut(made.index + 1, tuple(live), sum(graph.nbytes(v, "opt") or 0 for v in live)))
    return found


def cuts(partitioner: Partitioner, pieces: int = PIECES, most: int = LIVE) -> list[Cut]:
    """Up to `pieces` - 1 cuts between pieces of similar work.

    Around each even share it is where the fewest values cross, and the fewest bytes; of equal places one before a
    product with weights, since runtimes fuse what follows a product into it.
    """
    graph = partitioner.graph
    before = [0.0]
    for node in graph.nodes:
        before.append(before[-1] + (0.0 if node.index in partitioner.free else _NODE + work(graph, node)))
    share = before[-1] / pieces
    points = cut_points(partitioner, most)

    def cheapness(cut: Cut, wanted: float) -> tuple[float, ...]:
        begins = _multiplies(graph, graph.nodes[cut.position])
        return len(cut.values), cut.nbytes, not begins, abs(before[cut.position] - wanted)

    found = []
    for number in range(1, pieces):
        near = [p for p in points if number - 0.5 < before[p.position] / share <= number + 0.5]
        if near:
            found.append(min(near, key=lambda p: cheapness(p, number * share)))
    return found


def _multiplies(graph: Graph, node: Node) -> bool:
    """Whether a node reads a weight of several dimensions."""
    weights = [graph.values[v] for v in node.inputs if v is not None and v in graph.initializers]
    return any(weight.shape is not None and len(weight.shape) > 1 for weight in weights)


def assign(times: Times, borders: Borders, least: int = 0) -> Assignment | None:
    """The fastest assignment of a chain's pieces, by dynamic programming; of equal ones one with the fewest borders.

    `least` is 1 where only those with a border between two adapters are meant. None where none runs.
    """
    best = {(adapter, 0): Assignment((adapter,), seconds, 0) for adapter, seconds in times[0].items()}
    for piece, border in zip(times[1:], borders, strict=True):
        longer: dict[tuple[str, int], Assignment] = {}
        for way in best.values():
            for adapter, seconds in piece.items():
                price = border.get((way.adapters[-1], adapter))
                if price is None:
                    continue
                count = way.borders + (way.adapters[-1] != adapter)
                found = Assignment((*way.adapters, adapter), way.seconds + price + seconds, count)
                key = adapter, min(count, 1)
                longer[key] = min(longer.get(key, found), found, key=_rank)
        best = longer
    return min((found for found in best.values() if found.borders >= least), key=_rank, default=None)


def predicted(adapters: Sequence[str], times: Times, borders: Borders) -> float | None:
    """The seconds of one assignment; None where a part of it does not run."""
    total = 0.0
    for number, (adapter, piece) in enumerate(zip(adapters, times, strict=True)):
        pair = (adapters[number - 1], adapter)
        if adapter not in piece or (number and pair not in borders[number - 1]):
            return None
        total += piece[adapter] + (borders[number - 1][pair] if number else 0.0)
    return total


def joined(pieces: Sequence[Piece], adapters: Sequence[str]) -> list[tuple[str, tuple[int, ...]]]:
    """The segments that an assignment is meant to become: neighbours on one adapter are one."""
    found: list[tuple[str, tuple[int, ...]]] = []
    for piece, adapter in zip(pieces, adapters, strict=True):
        if found and found[-1][0] == adapter:
            found[-1] = adapter, (*found[-1][1], *piece.nodes)
        else:
            found.append((adapter, piece.nodes))
    return found


def kept_off(
    graph: Graph, segments: Sequence[tuple[str, Collection[int]]], chain: Sequence[str], free: Collection[int]
) -> dict[str, list[str]]:
    """`operators.exclude` for a chain of adapters, so that exactly these segments result: by adapter, "#index TYPE".

    Each node goes to the first of the chain that it is not kept off. Constants are kept off nobody: they go with
    whoever reads them.
    """
    owner = {node: adapter for adapter, nodes in segments for node in nodes if node not in free}
    found: dict[str, list[str]] = {adapter: [] for adapter in chain[:-1]}
    for node in sorted(owner):
        for adapter in chain[: chain.index(owner[node])]:
            found[adapter].append(f"#{node} {graph.nodes[node].type}")
    return {adapter: patterns for adapter, patterns in found.items() if patterns}


def _rank(found: Assignment) -> tuple[float, int]:
    return found.seconds, found.borders
