"""Extents that a graph's bounds and coupled choices admit together: what is tried, and where memory is planned."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Mapping, Sequence

from paddock.errors import ConfigError
from paddock.graph import Choice, Graph, Range

ALTERNATIVES = 4096
"""How many ways to satisfy coupled choices are looked at."""
CORNERS = 64
"""At how many extents memory is planned."""
_SUBSETS = 4
"""Up to so many symbols that vary, each is tried at its least with each set of others at theirs."""
_DRAWS = 8
"""How often is drawn for each that is wanted."""

Extents = Mapping[str, int]
"""By symbol."""


def alternatives(graph: Graph, largest_first: bool = False) -> list[Mapping[str, Range]]:
    """The ways to satisfy all of the graph's choices at once, as ranges by symbol; none without choices.

    No more than `ALTERNATIVES`, in the config's order or those of the largest extents in each choice first. Raises
    `ConfigError` where there is no way.
    """
    choices = graph.choices
    if largest_first:
        choices = tuple(tuple(sorted(choice, key=_extent, reverse=True)) for choice in choices)
    found = list(itertools.islice(_agreeing(choices, {}), ALTERNATIVES))
    if choices and not found:
        raise ConfigError("no shape satisfies all of these entries at once", where="$.shapes")
    return found if choices else []


def corners(graph: Graph, mixed: bool = True) -> list[Extents]:
    """Extents at which a model may take the most memory, the largest of each alternative first.

    Most values grow with every input, and are largest there. What is padded to a fixed length grows as an input
    shrinks: with `mixed`, symbols are also taken at their least, each with each set of others where there are few.
    Where there are more alternatives than are looked at or planned, the largest extents of all stand for them, though
    no request may have them together: sizes are then bounded by `Graph.nbytes`, which knows the choices.
    """
    boxes = [{**graph.bounds, **found} for found in alternatives(graph, largest_first=True)] or [dict(graph.bounds)]
    every = [{symbol: r.max for symbol, r in box.items()} for box in boxes]
    tops = _undominated(every)
    if len(tops) > CORNERS or len(boxes) == ALTERNATIVES:
        boxes, every = [], []
        tops = [{symbol: r.max for symbol, r in graph.bounds.items()}]
    wanted = itertools.chain(tops, every, *map(_mixed, boxes or [dict(graph.bounds)])) if mixed else iter(tops)
    found: list[Extents] = []
    for corner in wanted:
        if len(found) == CORNERS:
            break
        if corner not in found:
            found.append(corner)
    return found


def drawn(graph: Graph, count: int, seed: int = 0, together: Sequence[str] = ()) -> list[Extents]:
    """Seeded extents, each admitted and drawn evenly, none twice.

    Args:
        graph: Whose bounds and choices.
        count: How many; fewer come where there are not more, and none where no symbol is bounded.
        seed: For other ones.
        together: Symbols that get one extent, such as the batch of inputs that name it each in its own way.
    """
    rng = random.Random(seed)
    found: list[Extents] = []
    for _ in range(_DRAWS * count if graph.bounds else 0):
        taken: list[Choice] = [(rng.choice(choice),) for choice in graph.choices]
        coupled = next(_agreeing(taken, {}), None)
        if coupled is None:
            continue  # these alternatives exclude each other
        ranges = {**graph.bounds, **coupled}
        spans = {symbol: rng.choice(r.spans or ((r.min, r.max),)) for symbol, r in ranges.items()}
        extents = {symbol: rng.randint(*span) for symbol, span in spans.items()}
        if together:
            extents.update(dict.fromkeys(together, extents[together[0]]))
        if extents not in found:
            found.append(extents)
        if len(found) == count:
            break
    return found


def clamp(extent: int, low: int, high: int) -> int:
    """`extent`, or the end that it is beyond."""
    return max(low, min(extent, high))


def _mixed(box: Mapping[str, Range]) -> Iterator[Extents]:
    """Some symbols at their least, the others at their largest; last all at their least."""
    free = [symbol for symbol, r in box.items() if not r.fixed]
    top = {symbol: r.max for symbol, r in box.items()}
    if len(free) <= _SUBSETS:
        sets = [chosen for size in range(1, len(free) + 1) for chosen in itertools.combinations(free, size)]
    else:
        others = [tuple(other for other in free if other != symbol) for symbol in free]
        sets = [*((symbol,) for symbol in free), *others, tuple(free)]
    for chosen in sets:
        yield {**top, **{symbol: box[symbol].min for symbol in chosen}}


def _extent(alternative: Mapping[str, Range]) -> int:
    return math.prod(r.max for r in alternative.values())


def _undominated(tops: Sequence[Extents]) -> list[Extents]:
    """Those that no other has all extents of or larger ones, the largest first; not many more than `CORNERS`."""
    found: list[Extents] = []
    for top in sorted(tops, key=lambda top: -sum(top.values())):  # none is below one that comes after it
        if not any(all(extent <= other[symbol] for symbol, extent in top.items()) for other in found):
            found.append(top)
        if len(found) > CORNERS:
            break
    return found


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
