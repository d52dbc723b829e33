"""Optimisation profiles: TensorRT tunes for, and admits, the extents of one range at a time.

The config's shapes and batch size stand in a graph as ranges of its open dimensions, with gaps (buckets, several
ranges) and couplings between dimensions. Each combination of ranges without a gap becomes a profile.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from paddock.errors import BuildFailed
from paddock.graph import Dim, Graph, Range

MOST = 16
"""Profiles of one engine: TensorRT chooses kernels for each, so that building takes that many times as long."""

Extents = tuple[int, ...]


@dataclass(frozen=True)
class Profile:
    """For each input with open extents: its name, the least, the best and the largest shape."""

    inputs: tuple[tuple[str, Extents, Extents, Extents], ...]

    def admits(self, shapes: Mapping[str, Extents]) -> bool:
        """Whether inputs of these shapes, by name, are served by it."""
        for name, least, _, most in self.inputs:
            given = shapes[name]
            if len(given) != len(least) or not all(a <= b <= c for a, b, c in zip(least, given, most, strict=True)):
                return False
        return True

    def __str__(self) -> str:
        def told(shape: Extents) -> str:
            return "x".join(map(str, shape)) or "scalar"

        return ", ".join(f"{n} {told(a)} .. {told(c)} (best at {told(b)})" for n, a, b, c in self.inputs)


def unbounded(graph: Graph) -> list[str]:
    """The inputs for which no profile can be stated, each with why."""
    found = []
    for value in graph.input_values:
        if value.shape is None:
            found.append(f"{value.name}: its rank is not known")
            continue
        loose = [str(axis) for axis, dim in enumerate(value.shape) if graph.range_of(dim) is None]
        if loose:
            found.append(f"{value.name}: nothing bounds axis {', '.join(loose)}")
    return found


def profiles(graph: Graph) -> tuple[Profile, ...]:
    """The profiles that together admit just what the graph's bounds admit; none where all extents are fixed.

    Raises `BuildFailed` where nothing bounds an extent, or there are more than `MOST`.
    """
    loose = unbounded(graph)
    if loose:
        raise BuildFailed(
            "TensorRT builds for stated ranges of extents (optimisation profiles), and there is none for "
            + "; ".join(loose),
            where="$.shapes",
            remedy="state min, opt and max of these inputs in shapes, or batch_size for axis 0",
        )
    open_inputs = [v for v in graph.input_values if any(isinstance(dim, str) for dim in v.shape or ())]
    if not open_inputs:
        return ()
    made: dict[Profile, None] = {}
    ways = _ways(graph)
    if len(ways) > MOST:
        raise BuildFailed(
            f"the shapes come to {len(ways)} optimisation profiles, and an engine is given {MOST} at most",
            where="$.shapes", remedy="state fewer buckets or ranges",
        )  # fmt: skip
    for way in ways:
        inputs = []
        for value in open_inputs:
            ranges = [found for dim in value.shape or () if (found := _range(dim, way)) is not None]
            least, best, most = (tuple(getattr(r, end) for r in ranges) for end in ("min", "opt", "max"))
            inputs.append((value.name, least, best, most))
        made[Profile(tuple(inputs))] = None
    return tuple(made)


def _ways(graph: Graph) -> list[Mapping[str, Range]]:
    """Every combination of ranges without gaps, by symbol."""
    coupled = {symbol for choice in graph.choices for alternative in choice for symbol in alternative}
    lists: list[Sequence[Mapping[str, Range]]] = [list(choice) for choice in graph.choices]
    for symbol in graph.symbols():
        if symbol not in coupled:
            bound = graph.bounds[symbol]
            spans = bound.spans or ((bound.min, bound.max),)
            lists.append([{symbol: _within(bound.opt, low, high)} for low, high in spans])
    joined = (_joined(parts) for parts in itertools.product(*lists))
    return [way for way in joined if way is not None]


def _range(dim: Dim, way: Mapping[str, Range]) -> Range | None:
    return way.get(dim) if isinstance(dim, str) else None if dim is None else Range(dim, dim, dim)


def _within(best: int, low: int, high: int) -> Range:
    """A range, tuned for what is wanted best where that lies in it, else for its largest."""
    return Range(low, best if low <= best <= high else high, high)


def _joined(parts: Sequence[Mapping[str, Range]]) -> Mapping[str, Range] | None:
    """All of these ranges at once; None where two have nothing in common."""
    found: dict[str, Range] = {}
    for part in parts:
        for symbol, new in part.items():
            known = found.get(symbol, new)
            low, high = max(known.min, new.min), min(known.max, new.max)
            if low > high:
                return None
            found[symbol] = _within(new.opt, low, high)
    return found
