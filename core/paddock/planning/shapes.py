"""The config's shapes applied to a graph, before any adapter is asked about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

from paddock.config import Buckets, Extents, HardwareConfig, Profile
from paddock.errors import ConfigError, did_you_mean
from paddock.graph import Choice, Dim, Graph, Range, Value
from paddock.jsontext import json_path


def apply_shapes(graph: Graph, config: HardwareConfig) -> Graph:
    """`graph` with the config's `shapes` and `batch_size` as bounds of its input dimensions.

    A dimension left with one extent becomes that number in every value. Raises `ConfigError` for names that are neither
    inputs nor dimensions, for extents that contradict the model, and where `batch_size` contradicts `shapes`.
    """
    graph = _with_names(graph, config)
    bounds: dict[str, Range] = {}
    choices: list[Choice] = []
    for name, entry in config.shapes.items():
        axes = _axes(graph, name)
        alternatives = [_alternative(name, axes, profile) for profile in _profiles(entry)]
        for symbol in alternatives[0]:
            found = _join([alternative[symbol] for alternative in alternatives])
            bounds[symbol] = _both(bounds.get(symbol), found, json_path(("shapes", name)))
        if len(alternatives) > 1 and len(alternatives[0]) > 1:
            choices.append(tuple(alternatives))
    if config.batch_size is not None:
        _apply_batch(graph, config.batch_size, bounds)
    bounded = graph.with_bounds(bounds)
    kept = [_without(choice, bounded.fixed) for choice in (*graph.choices, *choices)]
    return replace(bounded, choices=tuple(choice for choice in kept if len(choice) > 1 and len(choice[0]) > 1))


def describe_shape(graph: Graph, value: Value) -> str:
    """`[1..64, 3, 224, 224]`: a value's shape with its bounds, `?` where nothing bounds a dimension."""
    if value.shape is None:
        return "[any rank]"
    return "[" + ", ".join(str(graph.range_of(dim) or f"{dim or ''}?") for dim in value.shape) + "]"


def _without(choice: Choice, fixed: Mapping[str, int]) -> Choice:
    """A choice's alternatives without the symbols that have one extent in all of them, each alternative once."""
    found: list[Mapping[str, Range]] = []
    for alternative in choice:
        left = {symbol: r for symbol, r in alternative.items() if symbol not in fixed}
        if left not in found:
            found.append(left)
    return tuple(found)


def _with_names(graph: Graph, config: HardwareConfig) -> Graph:
    """Gives inputs whose rank the model leaves open the rank that the config states, and open dimensions a name."""
    values = list(graph.values)
    for index in graph.inputs:
        value = values[index]
        stated = value.name in config.shapes
        if value.shape is None and stated:
            rank = len(_tuple(_profiles(config.shapes[value.name])[0].max))
            values[index] = replace(value, shape=tuple(f"{value.name}.{axis}" for axis in range(rank)))
        elif value.shape is not None and None in (value.shape if stated else value.shape[:1]):
            named = [f"{value.name}.{axis}" if dim is None else dim for axis, dim in enumerate(value.shape)]
            values[index] = replace(value, shape=tuple(named if stated else (*named[:1], *value.shape[1:])))
    return replace(graph, values=tuple(values))


def _axes(graph: Graph, name: str) -> tuple[Dim, ...]:
    """The dimensions that a key of `shapes` stands for: all of an input's, or one named dimension."""
    inputs = {value.name: value for value in graph.input_values}
    symbols = graph.symbols()
    if name in inputs:
        shape = inputs[name].shape
        assert shape is not None  # _with_names has seen to it
        return shape
    if name in symbols:
        return (name,)
    candidates = [*inputs, *symbols]
    raise ConfigError(
        "is neither an input nor a dimension of the model",
        where=json_path(("shapes", name)),
        candidates=candidates,
        remedy=did_you_mean(name, candidates),
    )


def _profiles(entry: Extents | Profile | tuple[Profile, ...] | Buckets) -> list[Profile]:
    if isinstance(entry, Buckets):
        return [Profile(min=size, opt=size, max=size) for size in entry.buckets]
    if isinstance(entry, Profile):
        return [entry]
    if isinstance(entry, tuple) and entry and isinstance(entry[0], Profile):
        return [profile for profile in entry if isinstance(profile, Profile)]
    size: Extents = entry  # type: ignore[assignment]  # what is left after the profiles
    return [Profile(min=size, opt=size, max=size)]


def _alternative(name: str, axes: Sequence[Dim], profile: Profile) -> dict[str, Range]:
    lows, bests, highs = (
        _tuple(e) for e in (profile.min, profile.opt if profile.opt is not None else profile.max, profile.max)
    )
    where = json_path(("shapes", name))
    if len(lows) != len(axes):
        raise ConfigError(f"has {len(lows)} extents, the model's {name} has {len(axes)}: {_plain(axes)}", where=where)
    found: dict[str, Range] = {}
    for axis, (dim, low, best, high) in enumerate(zip(axes, lows, bests, highs, strict=True)):
        wanted = Range(low, best, high)
        if isinstance(dim, int):
            if not (low == high == dim):
                raise ConfigError(
                    f"asks for {wanted} on axis {axis}, which the model fixes at {dim}",
                    where=where,
                    remedy=f"write {dim}, or export the model with a dynamic dimension",
                )
        elif dim is not None:
            found[dim] = _both(found.get(dim), wanted, where)
    return found


def _join(ranges: Sequence[Range]) -> Range:
    """One range for several alternatives; `spans` keeps the gaps between them."""
    # Sorted, so that two entries which list the same alternatives in another order agree.
    spans = tuple(sorted({(r.min, r.max) for r in ranges}))
    return Range(min(r.min for r in ranges), ranges[0].opt, max(r.max for r in ranges), spans if len(spans) > 1 else ())


def _both(known: Range | None, found: Range, where: str) -> Range:
    if known is not None and (known.min, known.max, known.spans) != (found.min, found.max, found.spans):
        raise ConfigError(f"asks for {found} where another entry asks for {known}", where=where)
    return found


def _apply_batch(graph: Graph, wanted: int | Literal["max"], bounds: dict[str, Range]) -> None:
    """Bounds axis 0 of the inputs; "max" leaves it open up to 2, for whoever is to find the largest that fits."""
    where = "$.batch_size"
    batch = 2 if wanted == "max" else wanted
    leading = {value.name: value.shape[0] for value in graph.input_values if value.shape}
    symbols = {dim for dim in leading.values() if isinstance(dim, str)}
    if not symbols:
        if not leading:
            raise ConfigError("has no effect: no input of the model has an axis 0", where=where, remedy="leave it out")
        fixed = {name: dim for name, dim in leading.items() if dim != wanted}
        if fixed:
            name, dim = next(iter(fixed.items()))
            raise ConfigError(
                f"is {wanted}, but the model fixes axis 0 of {name} at {dim}",
                where=where,
                remedy="export the model with a dynamic batch, or leave batch_size out",
            )
    for symbol in symbols:
        known = bounds.get(symbol)
        if known is not None and known.max != wanted:
            raise ConfigError(
                f"is {wanted}, but shapes allow {known} for {symbol}",
                where=where,
                remedy=f"write {known.max}, or leave one of the two out",
            )
        bounds.setdefault(symbol, Range(1, batch, batch))


def _tuple(extents: Extents) -> tuple[int, ...]:
    return (extents,) if isinstance(extents, int) else extents


def _plain(axes: Sequence[Dim]) -> str:
    return "[" + ", ".join(str(dim) for dim in axes) + "]"


def admits(graph: Graph, extents: Mapping[str, int]) -> bool:
    """Whether these extents, by symbol, are admitted together."""
    if any(not bound.admits(extents[symbol]) for symbol, bound in graph.bounds.items() if symbol in extents):
        return False
    return all(
        any(all(rng.admits(extents[s]) for s, rng in alternative.items() if s in extents) for alternative in choice)
        for choice in graph.choices
    )
