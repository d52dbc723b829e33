"""Bisection: what it finds is enough and holds nothing superfluous, in few runs, whatever the fault's structure."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paddock.planning.bisection import Oracle, TooManyRunsError, smallest

Clauses = Sequence[frozenset[int]]
PLENTY = 10_000


class Fault:
    """Passes where of every clause at least one element is out; counts what it is asked."""

    def __init__(self, clauses: Clauses) -> None:
        self.clauses = clauses
        self.asked: list[frozenset[int]] = []

    def __call__(self, out: frozenset[int]) -> bool:
        self.asked.append(out)
        return all(clause & out for clause in self.clauses)


@st.composite
def faults(draw: st.DrawFn) -> tuple[list[int], Clauses]:
    """Elements in any order and numbering, and clauses over them."""
    elements = draw(st.lists(st.integers(0, 500), min_size=1, max_size=60, unique=True))
    clause = st.frozensets(st.sampled_from(elements), min_size=1, max_size=4)
    return elements, draw(st.lists(clause, max_size=6))


@given(faults())
@settings(max_examples=200, deadline=None)
def test_what_is_found_is_enough_and_nothing_of_it_superfluous(fault: tuple[list[int], Clauses]) -> None:
    elements, clauses = fault
    passes = Fault(clauses)
    oracle = Oracle(passes, PLENTY)
    found = smallest(elements, oracle)
    assert found is not None and found <= set(elements)
    assert all(clause & found for clause in clauses)
    for element in found:
        assert not all(clause & (found - {element}) for clause in clauses), element
    assert len(passes.asked) == len(set(passes.asked)) == oracle.runs
    # For each element a cut by halving, the runs before it and after it, and one to see whether it can be left in.
    each = math.ceil(math.log2(len(elements))) + 3
    assert oracle.runs <= 2 + len(clauses) * each


@given(st.integers(1, 3000), st.data())
@settings(max_examples=60, deadline=None)
def test_one_culprit_takes_few_runs(count: int, data: st.DataObject) -> None:
    culprit = data.draw(st.integers(0, count - 1))
    oracle = Oracle(Fault([frozenset({culprit})]), PLENTY)
    assert smallest(range(count), oracle) == frozenset({culprit})
    assert oracle.runs <= 2 * math.log2(count) + 4


@given(st.integers(2, 1000), st.data())
@settings(max_examples=50, deadline=None)
def test_of_two_that_are_wrong_together_one_is_enough(count: int, data: st.DataObject) -> None:
    pair = data.draw(st.frozensets(st.integers(0, count - 1), min_size=2, max_size=2))
    oracle = Oracle(Fault([pair]), PLENTY)
    found = smallest(range(count), oracle)
    assert found is not None and len(found) == 1 and found < pair
    assert oracle.runs <= 2 * math.log2(count) + 4


def test_nothing_where_all_is_well() -> None:
    oracle = Oracle(Fault([]), PLENTY)
    assert smallest(range(9), oracle) == frozenset() and oracle.runs == 1
    assert smallest([], Oracle(Fault([]), PLENTY)) == frozenset()


@pytest.mark.parametrize("count", [0, 1, 9])
def test_none_where_nothing_helps(count: int) -> None:
    """The fault is in what cannot be moved."""
    oracle = Oracle(Fault([frozenset({-1})]), PLENTY)
    assert smallest(range(count), oracle) is None and oracle.runs <= 2


@given(faults(), st.integers(0, 12))
@settings(max_examples=100, deadline=None)
def test_the_limit_holds(fault: tuple[list[int], Clauses], limit: int) -> None:
    elements, clauses = fault
    free = Oracle(Fault(clauses), PLENTY)
    smallest(elements, free)
    passes = Fault(clauses)
    oracle = Oracle(passes, limit)
    if free.runs <= limit:
        assert smallest(elements, oracle) is not None
    else:
        with pytest.raises(TooManyRunsError):
            smallest(elements, oracle)
        assert oracle.runs == len(passes.asked) == limit


def test_a_fault_that_is_not_monotonic_ends_all_the_same() -> None:
    """Wrong with one node out alone and right with two: what is found passes, whatever lies between."""

    def passes(out: frozenset[int]) -> bool:
        return len(out) >= 2 and len(out) % 2 == 0

    found = smallest(range(8), Oracle(passes, PLENTY))
    assert found is not None and passes(found)


def test_what_can_be_left_in_is_left_in_where_the_fault_is_not_monotonic() -> None:
    """With 0 found first and 1 after it, 1 alone turns out to be enough: more out is not always better."""
    good = [{0, 1, 2}, {0, 1}, {1}]
    assert smallest(range(3), Oracle(lambda out: out in good, PLENTY)) == frozenset({1})
