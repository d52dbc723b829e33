"""The few elements to take out of a list so that a test passes: delta debugging over cuts.

A cut leaves everything before it in and takes everything behind it out. Where the test passes with all taken out and
fails with nothing, there is a cut at which it changes, found by halving; the element there is to blame, given those
found before. That takes about log2(n) tests for each, where ddmin (Zeller and Hildebrandt, 2002) tries subsets. Its
last step is kept: no element stays out that the test passes with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence


class TooManyRunsError(Exception):
    """More tests would be needed than are allowed."""


class Oracle:
    """A test that counts its runs and asks nothing twice.

    Args:
        passes: Whether all is well with these elements taken out; must always answer the same.
        limit: How many runs are allowed.
    """

    def __init__(self, passes: Callable[[frozenset[int]], bool], limit: int) -> None:
        self._passes = passes
        self._limit = limit
        self._known: dict[frozenset[int], bool] = {}

    @property
    def runs(self) -> int:
        """How many different sets were tested."""
        return len(self._known)

    @property
    def passed(self) -> list[frozenset[int]]:
        """The sets that passed."""
        return [found for found, passed in self._known.items() if passed]

    def __call__(self, out: frozenset[int]) -> bool:
        if out not in self._known:
            if len(self._known) >= self._limit:
                raise TooManyRunsError
            self._known[out] = self._passes(out)
        return self._known[out]


def smallest(elements: Sequence[int], passes: Oracle) -> frozenset[int] | None:
    """A set of elements without which the test passes, and none of which can be left in; None where there is none.

    Args:
        elements: In the order in which cuts make sense: a model's nodes, topologically.
        passes: The test.

    The set is minimal in that no single element can be left in, not the smallest of all such sets: there may be others.
    """
    if passes(frozenset()):
        return frozenset()
    if not passes(frozenset(elements)):
        return None
    found: frozenset[int] = frozenset()
    start = 0
    while not passes(found):
        low, high = start, len(elements)  # passes with elements[low:] out, fails with elements[high:] out
        while high - low > 1:
            middle = (low + high) // 2
            if passes(found | frozenset(elements[middle:])):
                low = middle
            else:
                high = middle
        found |= {elements[low]}
        start = low + 1
    for element in sorted(found, key=elements.index):
        if len(found) > 1 and passes(found - {element}):
            found -= {element}
    return found
