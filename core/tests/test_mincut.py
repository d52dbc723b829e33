"""Minimum cuts against networkx's maximum flows, on random graphs."""

from __future__ import annotations

import random
from itertools import pairwise

import networkx
import pytest
from paddock.planning.mincut import INFINITE, Network

Arcs = list[tuple[int, int, int]]


def side_of(vertices: int, arcs: Arcs, source: int = 0, sink: int = 1) -> set[int]:
    network = Network(vertices)
    for tail, head, capacity in arcs:
        network.add(tail, head, capacity)
    return {vertex for vertex, inside in enumerate(network.source_side(source, sink)) if inside}


def cut_by(arcs: Arcs, side: set[int]) -> int:
    return sum(capacity for tail, head, capacity in arcs if tail in side and head not in side)


def expected(vertices: int, arcs: Arcs, source: int = 0, sink: int = 1) -> tuple[int, set[int]]:
    """The flow, and what the source still reaches when it is full: the smallest of all minimum cuts' sides."""
    graph = networkx.DiGraph()
    graph.add_nodes_from(range(vertices))
    for tail, head, capacity in arcs:
        before = graph.edges[tail, head]["capacity"] if graph.has_edge(tail, head) else 0
        graph.add_edge(tail, head, capacity=before + capacity)
    value, flow = networkx.maximum_flow(graph, source, sink)
    left = networkx.DiGraph()
    left.add_nodes_from(range(vertices))
    for tail, head, data in graph.edges(data=True):
        if flow[tail][head] < data["capacity"]:
            left.add_edge(tail, head)
        if flow[tail][head]:
            left.add_edge(head, tail)
    return value, {source, *networkx.descendants(left, source)}


@pytest.mark.parametrize("seed", range(150))
def test_random_graphs_are_cut_as_networkx_cuts_them(seed: int) -> None:
    rng = random.Random(seed)
    vertices = rng.randint(2, 14)
    arcs = [
        (tail, head, rng.choice((0, 1, 1, 2, 5, INFINITE if rng.random() < 0.2 else 1)))
        for _ in range(rng.randint(0, 4 * vertices))
        if (tail := rng.randrange(vertices)) != (head := rng.randrange(vertices)) and (tail, head) != (0, 1)
    ]
    side = side_of(vertices, arcs)
    value, smallest = expected(vertices, arcs)
    assert 0 in side and 1 not in side
    assert cut_by(arcs, side) == value
    assert side == smallest


def test_parallel_arcs_add_up_and_loops_do_no_harm() -> None:
    arcs = [(0, 2, 1), (0, 2, 1), (2, 2, 7), (2, 1, 3)]
    assert side_of(3, arcs) == {0}


def test_what_the_source_does_not_reach_is_on_the_sinks_side() -> None:
    assert side_of(4, [(0, 2, 1), (3, 2, 1)]) == {0, 2}
    assert side_of(2, []) == {0}


def test_a_long_chain_needs_no_recursion() -> None:
    count = 20_000
    chain = [0, *range(2, count), 1]
    arcs = [(a, b, 2) for a, b in pairwise(chain)]
    arcs[count // 2] = (*arcs[count // 2][:2], 1)
    assert side_of(count, arcs) == set(chain[: count // 2 + 1])


def test_a_flow_that_must_be_taken_back_is() -> None:
    """The shortest path uses the middle arc, and the best flow does not."""
    arcs = [(0, 2, 1), (0, 3, 1), (2, 3, 1), (2, 4, 1), (3, 5, 1), (4, 6, 1), (6, 1, 1), (5, 1, 1)]
    value, smallest = expected(7, arcs)
    assert value == 2
    assert side_of(7, arcs) == smallest
