"""The fewest elements to keep so that a test passes: cuts of a ranked list, then taking out what is not needed.

First the shortest beginning of the list that passes is found by halving; then chunks of what it holds are taken out
again, the heaviest first, in halves, as delta debugging does (Zeller and Hildebrandt, 2002), until no single element
can go. Whatever is returned has passed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from paddock.planning.bisection import Oracle, TooManyRunsError


def fewest(ranked: Sequence[int], weight: Mapping[int, float], passes: Oracle) -> frozenset[int]:
    """A set of elements with which the test passes and none of which can be left out.

    Args:
        ranked: The elements, those first that are most likely to be needed. All of them together pass untested.
        weight: What keeping each one costs.
        passes: The test of a set that is kept. Where its runs are used up, the smallest set that passed is returned.
    """
    kept = frozenset(ranked)
    try:
        if passes(frozenset()):
            return frozenset()
        low, high = 0, len(ranked)  # ranked[:low] fails, ranked[:high] passes
        while high - low > 1:
            middle = (low + high) // 2
            if passes(frozenset(ranked[:middle])):
                high = middle
            else:
                low = middle
        kept = frozenset(ranked[:high])
        return _reduced(kept, weight, passes)
    except TooManyRunsError:
        return min((found for found in passes.passed if found < kept or found == kept), key=len, default=kept)


def _reduced(kept: frozenset[int], weight: Mapping[int, float], passes: Oracle) -> frozenset[int]:
    size = max(1, len(kept) // 2)
    while True:
        left = sorted(kept, key=lambda element: (-weight.get(element, 0.0), element))
        taken = False
        for start in range(0, len(left), size):
            without = kept - frozenset(left[start : start + size])
            if without != kept and (not without or len(left) > 1) and passes(without):
                kept, taken = without, True
        if size == 1 and not taken:
            return kept
        if not taken:
            size = max(1, size // 2)
