"""Extents at which memory is planned, and that are drawn: admitted, and nothing that is admitted takes more."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paddock.errors import ConfigError
from paddock.graph import Choice, Graph, Range, Value
from paddock.planning.corners import CORNERS, corners, drawn
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
    tops = corners(graph, mixed=False)
    assert all(admits(graph, corner) for corner in tops)
    largest = graph.nbytes(0) or 0
    for extents in drawn(graph, 8, seed):
        assert extents.keys() == graph.bounds.keys() and admits(graph, extents)
        assert any(all(extents[s] <= top[s] for s in SYMBOLS) for top in tops)
        assert 2 * math.prod(extents.values()) <= largest
    assert largest == max(2 * math.prod(corner.values()) for corner in tops), "no larger than some request has"
    again = drawn(graph, 8, seed)
    assert again == drawn(graph, 8, seed) and all(extents not in again[:n] for n, extents in enumerate(again))


@given(graphs(), st.integers(0, 99))
def test_what_falls_with_some_symbols_is_largest_at_a_mixed_corner(graph: Graph, seed: int) -> None:
    every = corners(graph)
    assert every[: len(corners(graph, mixed=False))] == corners(graph, mixed=False)
    for sign in itertools.product((1, -1), repeat=len(SYMBOLS)):
        largest = max(sum(f * corner[s] for f, s in zip(sign, SYMBOLS, strict=True)) for corner in every)
        for extents in drawn(graph, 8, seed):
            assert sum(f * extents[s] for f, s in zip(sign, SYMBOLS, strict=True)) <= largest


def test_no_corner_is_below_another_alternatives() -> None:
    one, two, three = ({"a": Range(1, 1, a), "b": Range(1, 1, b)} for a, b in ((1, 512), (64, 16), (64, 8)))
    graph = bounded(((one, two, three),), {"c": Range(2, 3, 4)})
    assert corners(graph, mixed=False) == [{"a": 1, "b": 512, "c": 4}, {"a": 64, "b": 16, "c": 4}]
    assert graph.nbytes(0) == 64 * 16 * 4 * 2
    assert {"a": 1, "b": 1, "c": 2} in corners(graph)
    assert corners(replace(graph, choices=(), bounds={})) == [{}]
    assert corners(bounded((), {"a": Range(3, 3, 3)})) == [{"a": 3}]
    assert drawn(replace(graph, choices=(), bounds={}), 5) == []


def test_symbols_that_belong_together_are_drawn_together() -> None:
    graph = bounded((), {"a": Range(1, 1, 9), "b": Range(1, 1, 9), "c": Range(2, 3, 4)})
    assert all(extents["a"] == extents["b"] for extents in drawn(graph, 20, together=("a", "b")))


def test_of_many_symbols_each_is_alone_at_its_least_and_at_its_largest() -> None:
    every = corners(Graph((), (), (), (), bounds={name: Range(1, 1, 9) for name in "abcdefg"}))
    assert len(every) == 1 + 7 + 7 + 1


@pytest.mark.parametrize("count", [CORNERS, CORNERS + 1])
def test_of_more_corners_than_are_planned_the_largest_extents_stand_for_all(count: int) -> None:
    many = tuple({"a": Range(n, n, n), "b": Range(count + 1 - n, 1, count + 1 - n)} for n in range(1, count + 1))
    graph = bounded((many,), {"c": Range(1, 1, 1)})
    found = corners(graph, mixed=False)
    if count <= CORNERS:
        assert sorted(corner["a"] for corner in found) == [*range(1, count + 1)]
    else:
        assert found == [{"a": count, "b": count, "c": 1}]
    assert graph.nbytes(0) == 2 * max(n * (count + 1 - n) for n in range(1, count + 1)), "of any of them, not of all"


def test_of_more_alternatives_than_are_looked_at_the_largest_of_each_choice_come_first() -> None:
    pairs = (("a", "b"), ("c", "d"), ("e", "f"))
    choices = tuple(tuple({s: Range(1, 1, n), t: Range(1, 1, n)} for n in range(1, 21)) for s, t in pairs)
    graph = Graph((), (), (), (), bounds={s: Range(1, 1, 20) for s in "abcdef"}, choices=choices)
    assert corners(graph, mixed=False) == [dict.fromkeys("abcdef", 20)]
    assert all(admits(graph, extents) for extents in drawn(graph, 30))


def test_choices_that_nothing_satisfies_are_told() -> None:
    one, other = {"a": Range(1, 1, 2), "b": Range(1, 1, 2)}, {"a": Range(5, 5, 6), "c": Range(1, 1, 1)}
    with pytest.raises(ConfigError, match="no shape satisfies"):
        corners(bounded(((one, one), (other, other)), {}))
