"""The fewest elements to keep: minimal, never tested twice, and only what has passed."""

from __future__ import annotations

import random

import pytest
from paddock.planning.bisection import Oracle
from paddock.planning.fewest import fewest

Set = frozenset[int]


class Counted:
    """A monotone test: at least one set of `needs` must be kept whole. Remembers what it was asked."""

    def __init__(self, needs: list[Set]) -> None:
        self.needs = needs
        self.asked: list[Set] = []

    def __call__(self, kept: Set) -> bool:
        self.asked.append(kept)
        return self.holds(kept)

    def holds(self, kept: Set) -> bool:
        return any(need <= kept for need in self.needs)


def drawn(rng: random.Random) -> tuple[list[int], Counted]:
    ranked = rng.sample(range(100), rng.randint(1, 30))
    needs = [frozenset(rng.sample(ranked, rng.randint(1, min(5, len(ranked))))) for _ in range(rng.randint(1, 3))]
    return ranked, Counted(needs)


@pytest.mark.parametrize("seed", range(200))
def test_what_is_kept_passes_and_no_element_can_go(seed: int) -> None:
    rng = random.Random(seed)
    ranked, test = drawn(rng)
    weight = {element: rng.random() for element in ranked}
    found = fewest(ranked, weight, Oracle(test, 10_000))
    assert found <= set(ranked)
    assert test.holds(found)
    assert not any(test.holds(found - {element}) for element in found)
    assert len(test.asked) == len(set(test.asked)), "a set was tested twice"
    assert all(asked <= set(ranked) for asked in test.asked)


@pytest.mark.parametrize("seed", range(200))
def test_where_the_runs_are_used_up_a_set_that_passed_is_returned(seed: int) -> None:
    rng = random.Random(seed)
    ranked, test = drawn(rng)
    limit = rng.randint(1, 12)
    found = fewest(ranked, {}, Oracle(test, limit))
    assert len(test.asked) <= limit
    assert found in test.asked or found == set(ranked)
    assert test.holds(found)
    passed = [len(asked) for asked in test.asked if test.holds(asked)]
    assert len(found) == min([*passed, len(ranked)])


def test_no_run_at_all_keeps_everything() -> None:
    assert fewest([3, 1, 2], {}, Oracle(lambda kept: True, 0)) == {1, 2, 3}


def test_nothing_is_kept_where_nothing_need_be() -> None:
    test = Counted([frozenset()])
    assert fewest([1, 2, 3], {}, Oracle(test, 10)) == frozenset()
    assert test.asked == [frozenset()]


def test_heavy_elements_are_dropped_before_light_ones() -> None:
    test = Counted([frozenset({1}), frozenset({2})])
    assert fewest([3, 1, 2], {1: 5.0, 2: 1.0, 3: 9.0}, Oracle(lambda kept: len(kept & {1, 2}) > 0, 99)) == {1}
    either = Counted([frozenset({1, 4}), frozenset({2, 4})])  # 4 is the last: both are in the first cut that passes
    assert fewest([1, 2, 4], {1: 5.0, 2: 1.0}, Oracle(either, 99)) == {2, 4}
    assert fewest([1, 2, 4], {1: 1.0, 2: 5.0}, Oracle(either, 99)) == {1, 4}
    assert test.asked == []


@pytest.mark.parametrize("seed", range(100))
def test_a_test_that_is_not_monotone_still_gets_what_passed(seed: int) -> None:
    rng = random.Random(seed)
    ranked = list(range(rng.randint(2, 12)))
    answers: dict[Set, bool] = {frozenset(): False, frozenset(ranked): True}
    test = Oracle(lambda kept: answers.setdefault(kept, rng.random() < 0.4), 500)
    found = fewest(ranked, {}, test)
    assert answers[found]
    assert not any(answers.get(found - {element}, True) for element in found)


def test_a_few_of_many_take_few_runs() -> None:
    """Three of 512, among the first: the whole list is never gone through."""
    test = Counted([frozenset({1, 5, 9})])
    assert fewest(range(512), {}, Oracle(test, 60)) == {1, 5, 9}
