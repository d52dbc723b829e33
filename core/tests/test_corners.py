"""Extents at which memory is planned, and that are drawn: admitted, and nothing that is admitted takes more."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paddock.errors import ConfigError
from paddock.graph import Choice, Graph, Range, Value
from paddock.planning.corners import ALTERNATIVES, corners, drawn
from paddock.planning.shapes import admits

SYMBOLS = ("a", "b", "c")


@st.composite
def ranges(draw: Any) -> Range:
    low = draw(st.integers(1, 9))
    high = draw(st.integers(low, 12))
    return Range(low, low, high)


def bounded(choices: tuple[Choice, ...], free: Mapping[str, Range]) -> Graph:
    """A graph of one input of [a, b, c, 2], its bounds as the config's shapes make them of these choices."""
    bounds = dict(free)
    for choice in choices:
        for symbol in choice[0]:
            every = [alternative[symbol] for alternative in choice]
            spans = tuple(sorted({(r.min, r.max) for r in every}))
            low, high = min(r.min for r in every), max(r.max for r in every)
            bounds[symbol] = Range(low, every[0].opt, high, spans if len(spans) > 1 else ())
    return Graph((), (Value("x", "uint8", (*SYMBOLS, 2)),), (0,), (0,), bounds=bounds, choices=choices)


@st.composite
def graphs(draw: Any) -> Graph:
    """All symbols bounded, any two of them coupled."""
    free = {symbol: draw(ranges()) for symbol in SYMBOLS}
    coupled = draw(st.sampled_from([(), ("a", "b"), ("b", "c"), SYMBOLS]))
    alternatives = st.lists(st.fixed_dictionaries({s: ranges() for s in coupled}), min_size=2, max_size=4)
    return bounded((tuple(draw(alternatives)),) if coupled else (), free)


@given(graphs(), st.integers(0, 99))
def test_what_is_drawn_is_admitted_and_below_a_corner(graph: Graph, seed: int) -> None:
    tops = corners(graph)
    assert all(admits(graph, corner) for corner in tops[:-1])
    largest = graph.nbytes(0) or 0
    for extents in drawn(graph, 8, seed):
        assert extents.keys() == graph.bounds.keys() and admits(graph, extents)
        assert any(all(extents[s] <= top[s] for s in SYMBOLS) for top in tops)
        assert 2 * math.prod(extents.values()) <= largest
    assert largest == max(2 * math.prod(corner.values()) for corner in tops), "no larger than some request has"
    again = drawn(graph, 8, seed)
    assert again == drawn(graph, 8, seed) and all(extents not in again[:n] for n, extents in enumerate(again))


def test_no_corner_is_below_another_but_the_least() -> None:
    one, two, three = ({"a": Range(1, 1, a), "b": Range(1, 1, b)} for a, b in ((1, 512), (64, 16), (64, 8)))
    graph = bounded(((one, two, three),), {"c": Range(2, 3, 4)})
    assert corners(graph) == [{"a": 1, "b": 512, "c": 4}, {"a": 64, "b": 16, "c": 4}, {"a": 1, "b": 1, "c": 2}]
    assert graph.nbytes(0) == 64 * 16 * 4 * 2
    assert corners(replace(graph, choices=(), bounds={})) == [{}]
    assert corners(bounded((), {"a": Range(3, 3, 3)})) == [{"a": 3}]
    assert drawn(replace(graph, choices=(), bounds={}), 5) == []


def test_of_more_alternatives_than_are_looked_at_the_largest_extents_stand_for_all() -> None:
    many = tuple({"a": Range(1, 1, n), "b": Range(1, 1, 200 - n)} for n in range(1, ALTERNATIVES + 3))
    assert corners(bounded((many,), {}))[0] == {"a": ALTERNATIVES + 2, "b": 199}


def test_choices_that_nothing_satisfies_are_told() -> None:
    one, other = {"a": Range(1, 1, 2), "b": Range(1, 1, 2)}, {"a": Range(5, 5, 6), "c": Range(1, 1, 1)}
    with pytest.raises(ConfigError, match="no shape satisfies"):
        corners(bounded(((one, one), (other, other)), {}))
