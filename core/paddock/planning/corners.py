"""Extents that a graph's bounds and coupled choices admit together: what is tried, and where memory is planned."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence

from paddock.errors import ConfigError
from paddock.graph import Choice, Graph, Range

ALTERNATIVES = 64
"""How many ways to satisfy coupled choices are looked at one by one."""
_DRAWS = 8
"""How often is drawn for each that is wanted."""


def alternatives(graph: Graph) -> list[Mapping[str, Range]]:
    """The first `ALTERNATIVES` ways to satisfy all of the graph's choices at once, as ranges by symbol; none without.

    Raises `ConfigError` where there is no way.
    """
    found = list(itertools.islice(_agreeing(graph.choices, {}), ALTERNATIVES)) if graph.choices else []
    if graph.choices and not found:
        raise ConfigError("no shape satisfies all of these entries at once", where="$.shapes")
    return found


def corners(graph: Graph) -> list[Mapping[str, int]]:
    """Extents by symbol at which a model may take the most memory: the largest of each alternative, then the least.

    Most values grow with every input, and are largest at one of the first; what is padded to a fixed length grows as an
    input shrinks, and is largest at the last. Where there are more alternatives than are looked at, the largest extent
    of each symbol stands for all, though no request may have them together.
    """
    largest = {symbol: found.max for symbol, found in graph.bounds.items()}
    least = {symbol: found.min for symbol, found in graph.bounds.items()}
    coupled = alternatives(graph)
    if len(coupled) == ALTERNATIVES:
        coupled = []
    tops = [{**largest, **{symbol: r.max for symbol, r in found.items()}} for found in coupled] or [largest]
    kept = [top for top in tops if not any(_below(top, other) for other in tops)]
    every = [*kept, least]
    return [corner for number, corner in enumerate(every) if corner not in every[:number]]


def drawn(graph: Graph, count: int, seed: int = 0) -> list[Mapping[str, int]]:
    """Seeded extents by symbol, each admitted and drawn evenly, none twice.

    Fewer than `count` where there are not more, and none where no symbol is bounded.
    """
    rng = random.Random(seed)
    coupled = alternatives(graph)
    found: list[Mapping[str, int]] = []
    for _ in range(_DRAWS * count if graph.bounds else 0):
        ranges = {**graph.bounds, **(rng.choice(coupled) if coupled else {})}
        spans = {symbol: rng.choice(r.spans or ((r.min, r.max),)) for symbol, r in ranges.items()}
        extents = {symbol: rng.randint(*span) for symbol, span in spans.items()}
        if extents not in found:
            found.append(extents)
        if len(found) == count:
            break
    return found


def clamp(extent: int, low: int, high: int) -> int:
    """`extent`, or the end that it is beyond."""
    return max(low, min(extent, high))


def _below(one: Mapping[str, int], other: Mapping[str, int]) -> bool:
    """Whether no extent of `one` is larger, and one is smaller."""
    return one != other and all(extent <= other[symbol] for symbol, extent in one.items())


def _agreeing(choices: Sequence[Choice], settled: Mapping[str, Range]) -> Iterator[Mapping[str, Range]]:
    if not choices:
        yield settled
        return
    for alternative in choices[0]:
        ranges = dict(settled)
        for symbol, found in alternative.items():
            known = ranges.get(symbol, found)
            low, high = max(known.min, found.min), min(known.max, found.max)
            ranges[symbol] = Range(low, clamp(known.opt, low, high), high)
        if all(r.min <= r.max for r in ranges.values()):
            yield from _agreeing(choices[1:], ranges)
