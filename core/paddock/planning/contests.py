"""What measured rounds say of one candidate beside another: ratios with their confidence, and who is left in the race.

Rounds are paired: two candidates that were measured in the same turns saw the same drift of the host, which their
ratio leaves out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

Scores = Mapping[int, float]
"""What each turn gave, by its number: smaller is better."""

_RESAMPLES = 1000
CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Ratio:
    """One candidate's scores over another's: the median of the turns' ratios, and where it lies for 95 %."""

    median: float
    low: float
    high: float
    turns: int

    @property
    def tied(self) -> bool:
        """Whether the two cannot be told apart."""
        return self.low <= 1.0 <= self.high


def ratio(one: Scores, other: Scores) -> Ratio:
    """`one` over `other` in the turns that both were measured in; nothing is known of fewer than three of them.

    The interval is that of the median, by resampling the turns (a percentile bootstrap with a fixed seed).
    """
    turns = sorted(one.keys() & other.keys())
    logs = np.log([one[turn] / other[turn] for turn in turns])
    if len(logs) < 3:
        median = math.exp(float(np.median(logs))) if len(logs) else 1.0
        return Ratio(median, 0.0, math.inf, len(logs))
    rng = np.random.default_rng(0)
    medians = np.median(rng.choice(logs, (_RESAMPLES, len(logs))), axis=1)
    tail = 50 * (1 - CONFIDENCE)
    low, high = (math.exp(float(np.percentile(medians, at))) for at in (tail, 100 - tail))
    return Ratio(math.exp(float(np.median(logs))), low, high, len(logs))


def leader(scores: Mapping[str, Scores]) -> str:
    """Who has the lowest median; the first of several."""
    return min(scores, key=lambda name: float(np.median(list(scores[name].values()))))


def survivors(scores: Mapping[str, Scores], keep: int) -> list[str]:
    """Who stays in the race, best first: the best `keep` by their ratio to the leader, and whoever is tied with it.

    Args:
        scores: By candidate, all measured in the same turns.
        keep: How many stay at least, one or more.
    """
    first = leader(scores)
    ratios = {name: ratio(found, scores[first]) for name, found in scores.items() if name != first}
    ranked: Sequence[str] = [first, *sorted(ratios, key=lambda name: ratios[name].median)]
    return [name for place, name in enumerate(ranked) if place < keep or ratios[name].tied]


def chosen(ranked: Sequence[str], scores: Mapping[str, Scores]) -> tuple[str, Mapping[str, Ratio]]:
    """The fastest of some, where a tie goes to the one that stands first; and every other's ratio to it.

    Args:
        ranked: The candidates, the simplest first.
        scores: By candidate, all measured in the same turns.
    """
    first = leader({name: scores[name] for name in ranked})
    best = next(name for name in ranked if name == first or ratio(scores[name], scores[first]).tied)
    return best, {name: ratio(scores[name], scores[best]) for name in ranked if name != best}
