"""Ratios of measured rounds, who stays in a race, and who wins it; on rounds whose truth is known."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from paddock.planning.contests import Ratio, chosen, leader, ratio, survivors

Scores = dict[int, float]


def race(seed: int, turns: int, noise: float = 0.05, drift: float = 3.0, **speeds: float) -> dict[str, Scores]:
    """Scores of candidates whose true medians are given, on a host that slows everybody down and up again."""
    rng = np.random.default_rng(seed)
    drifts = np.exp(np.cumsum(rng.normal(0, drift / 10, turns)))
    return {
        name: {turn: speed * drifts[turn] * math.exp(rng.normal(0, noise)) for turn in range(turns)}
        for name, speed in speeds.items()
    }


def test_drift_that_hits_both_leaves_the_ratio_alone() -> None:
    missed = 0
    for seed in range(200):
        scores = race(seed, 15, a=1.0, b=1.1)
        found = ratio(scores["b"], scores["a"])
        assert found.turns == 15 and found.low <= found.median <= found.high
        assert abs(math.log(found.median / 1.1)) < 0.1
        missed += not found.low <= 1.1 <= found.high
    assert missed <= 24, "95 % intervals: 10 of 200 are outside by rights, and a bootstrap of 15 is a little narrow"


def test_the_same_is_told_apart_rarely() -> None:
    apart = sum(not ratio(s["a"], s["b"]).tied for s in (race(seed, 15, a=1.0, b=1.0) for seed in range(200)))
    assert apart <= 24


@given(st.integers(0, 99), st.floats(0.01, 100), st.integers(3, 9))
def test_a_ratio_and_its_inverse(seed: int, factor: float, turns: int) -> None:
    scores = race(seed, turns, a=1.0, b=factor)
    there, back = ratio(scores["a"], scores["b"]), ratio(scores["b"], scores["a"])
    assert math.isclose(there.median * back.median, 1, rel_tol=1e-9)
    scaled = ratio({turn: 7 * score for turn, score in scores["a"].items()}, scores["b"])
    assert math.isclose(scaled.median, 7 * there.median, rel_tol=1e-9)
    assert math.isclose(scaled.low, 7 * there.low, rel_tol=1e-9)


@pytest.mark.parametrize("turns", [0, 1, 2])
def test_of_fewer_than_three_turns_nothing_is_known(turns: int) -> None:
    one = dict.fromkeys(range(turns), 5.0) | {100: 1.0}
    other = dict.fromkeys(range(turns), 1.0) | {200: 1.0}
    found = ratio(one, other)
    assert found == Ratio(found.median, 0.0, math.inf, turns) and found.tied
    assert math.isclose(found.median, 5.0 if turns else 1.0)


def test_who_stays() -> None:
    scores = race(1, 9, a=1.0, b=1.01, c=2.0, d=4.0)
    assert survivors(scores, 1)[:2] == sorted(scores, key=lambda n: np.median(list(scores[n].values())))[:2]
    assert "d" not in survivors(scores, 3) and survivors(scores, 3)[-1] == "c"
    assert set(survivors(scores, 4)) == set(scores)
    assert survivors({"only": {0: 1.0}}, 1) == ["only"]
    assert leader(race(3, 5, noise=0, a=2.0, b=1.0)) == "b"


def test_a_tie_goes_to_the_simpler_and_a_clear_win_does_not() -> None:
    wins = [chosen(["simple", "fine"], race(seed, 15, simple=1.0, fine=1.0))[0] for seed in range(50)]
    assert wins.count("simple") >= 43
    assert all(chosen(["simple", "fine"], race(seed, 15, simple=1.2, fine=1.0))[0] == "fine" for seed in range(50))
    for order in itertools.permutations(["a", "b", "c"]):
        best, ratios = chosen(order, race(5, 15, a=1.0, b=1.5, c=3.0))
        assert best == "a" and ratios.keys() == {"b", "c"} and ratios["c"].low > ratios["b"].high > 1
