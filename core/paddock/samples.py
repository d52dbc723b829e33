"""Inputs to check by: the user's own from .npz files, or seeded ones that suit the graph's dtypes and ranges."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from paddock.errors import ConfigError, MemoryRefused, UsageError, did_you_mean
from paddock.graph import Dim, Graph, Value
from paddock.npz import read_npz
from paddock.planning.corners import alternatives, clamp
from paddock.planning.shapes import admits

Sample = Mapping[str, "np.ndarray[Any, Any]"]

_UNBOUNDED_BATCH = (2, 1)
_UNBOUNDED_OTHER = (16, 9)
_UNBOUNDED_IMAGE = (64, 96)
_UNKNOWN_ROWS = 2
_WORDS = ("a", "paddock", "0", "")


def load_samples(path: Path, graph: Graph, where: str = "$.accuracy.samples") -> list[Sample]:
    """The samples of an .npz, or of every .npz in a folder (by name), checked against the graph's inputs."""
    files = sorted(path.glob("*.npz")) if path.is_dir() else [path]
    if not files:
        raise ConfigError("the folder holds no .npz file", where=f"{where}: {path}")
    return [checked(read_npz(file, where), graph, f"{where}: {file}") for file in files]


def checked(sample: Sample, graph: Graph, where: str) -> Sample:
    """The sample if it fits the graph's inputs: names, dtypes, ranks, extents; else `UsageError`."""
    border = Border(graph)
    try:
        return border.check(sample)
    except UsageError as error:
        raise UsageError(
            error.problem, where=f"{where}: {error.where}", candidates=error.candidates, remedy=error.remedy
        ) from None


class Border:
    """What may come in: the graph's inputs, checked in a few microseconds for each request."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._names = [value.name for value in graph.input_values]
        self._inputs = {
            value.name: (value, _numpy_dtype(value), _fixed_bounds(graph, value)) for value in graph.input_values
        }
        symbols = [dim for value in graph.input_values for dim in value.shape or () if isinstance(dim, str)]
        self._coupled = bool(graph.choices) or len(symbols) != len(set(symbols))

    def check(self, feeds: Sample, dense: bool = True) -> dict[str, np.ndarray[Any, Any]]:
        """The feeds as arrays, copied where they are not row-major and are to be `dense`.

        Raises `UsageError` for a wrong name, dtype, rank or extent.
        """
        inputs = self._inputs
        try:
            known = feeds.keys() == inputs.keys()
        except AttributeError:
            raise UsageError(
                f"are a {type(feeds).__name__}, not a mapping", where="inputs", candidates=self._names,
                remedy="pass a dict with an array for each input",
            ) from None  # fmt: skip
        if not known:
            raise self._wrong_names(feeds)
        ready: dict[str, np.ndarray[Any, Any]] = {}
        for name, array in feeds.items():
            value, dtype, bounds = inputs[name]
            if value.kind != "tensor":
                ready[name] = array
                continue
            if not isinstance(array, np.ndarray):
                array = _as_array(name, array)
            if dtype is not None and array.dtype != dtype and not (dtype.kind == "O" and array.dtype.kind == "U"):
                raise UsageError(
                    f"is {array.dtype}, the model takes {dtype}",
                    where=f"input {name!r}",
                    remedy=f"convert it with .astype({str(dtype)!r})",
                )
            if bounds is not None:
                if array.ndim != len(bounds):
                    raise UsageError(
                        f"has rank {array.ndim} {list(array.shape)}, the model takes rank {len(bounds)}",
                        where=f"input {name!r}",
                    )
                for extent, bound in zip(array.shape, bounds, strict=True):
                    if bound is not None and not (
                        bound[0] <= extent <= bound[1] and (bound[2] is None or bound[2].admits(extent))
                    ):
                        raise self._wrong_extent(value, array)
            ready[name] = array if not dense or array.flags.c_contiguous else np.ascontiguousarray(array)
        if self._coupled and not admits(self._graph, self._extents(ready)):
            shapes = {name: list(array.shape) for name, array in ready.items()}
            raise UsageError(f"these shapes are not admitted together: {shapes}", where="inputs", remedy="see $.shapes")
        return ready

    def check_names(self, feeds: Mapping[str, Any]) -> None:
        """Raises `UsageError` where these are not all inputs and nothing else."""
        if feeds.keys() != self._inputs.keys():
            raise self._wrong_names(feeds)

    def _extents(self, arrays: Sample) -> dict[str, int]:
        """Extents by symbol; raises `UsageError` where one symbol has two."""
        found: dict[str, int] = {}
        for value in self._graph.input_values:
            if value.shape is None or value.kind != "tensor":
                continue
            for axis, (dim, extent) in enumerate(zip(value.shape, arrays[value.name].shape, strict=True)):
                if isinstance(dim, str) and found.setdefault(dim, extent) != extent:
                    raise UsageError(
                        f"has extent {extent} on axis {axis}, but {dim} is {found[dim]} elsewhere in these inputs",
                        where=f"input {value.name!r}",
                        remedy="give equally named dimensions equal extents",
                    )
        return found

    def _wrong_names(self, feeds: Sample) -> UsageError:
        missing = [name for name in self._names if name not in feeds]
        unknown = [name for name in feeds if name not in self._inputs]
        problem = " and ".join(
            ([f"missing {', '.join(map(repr, missing))}"] if missing else [])
            + ([f"unknown {', '.join(map(repr, unknown))}"] if unknown else [])
        )
        remedy = did_you_mean(str(unknown[0]), missing or self._names) if unknown else "feed every input"
        return UsageError(problem, where="inputs", candidates=self._names, remedy=remedy)

    def _wrong_extent(self, value: Value, array: np.ndarray[Any, Any]) -> UsageError:
        assert value.shape is not None
        axis, extent, bound = next(
            (axis, extent, bound)
            for axis, (extent, dim) in enumerate(zip(array.shape, value.shape, strict=True))
            if (bound := self._graph.range_of(dim)) is not None and not bound.admits(extent)
        )
        dim = value.shape[axis]
        named = f" ({dim})" if isinstance(dim, str) else ""
        fixed_by = "the config's shapes and batch_size admit" if isinstance(dim, str) else "this deployment takes"
        return UsageError(
            f"has extent {extent} on axis {axis}{named}, {fixed_by} {bound}",
            where=f"input {value.name!r}",
            remedy="change the input, or widen shapes or batch_size in the config",
        )


def generate(
    graph: Graph, gathers: Mapping[str, tuple[int, int]], transparent: frozenset[str], seed: int = 0
) -> list[Sample]:
    """Seeded samples: two of one shape, and one of another shape where a dimension is dynamic.

    Floats are standard normal; booleans fair; integers that index a table (found by following the input through
    `transparent` operators to a `gathers` operator, op -> (position of indices, position of table)) stay below its
    rows; other integers of 8 and 16 bits take their whole range, wider ones are 0 or 1 (masks); strings come from a
    few words.
    """
    limits = {index: _index_limit(graph, index, gathers, transparent) for index in graph.inputs}
    extents = _extents_to_try(graph)
    shapes = [extents[0], extents[0], *extents[1:2]]
    return [
        {
            graph.values[index].name: _draw(
                np.random.default_rng([seed, number, position]), graph.values[index], shape, limits[index]
            )
            for position, index in enumerate(graph.inputs)
        }
        for number, shape in enumerate(shapes)
    ]


def typical(
    graph: Graph,
    gathers: Mapping[str, tuple[int, int]],
    transparent: frozenset[str],
    seed: int = 0,
    at: Literal["opt", "max"] = "opt",
) -> Sample:
    """One seeded sample at the optimum of the graph's bounds, or at their largest; see `generate`."""
    limits = {index: _index_limit(graph, index, gathers, transparent) for index in graph.inputs}
    extents = _extents_at(graph, at)
    return {
        graph.values[index].name: _draw(
            np.random.default_rng([seed, position]), graph.values[index], extents, limits[index]
        )
        for position, index in enumerate(graph.inputs)
    }


def largest_extents(graph: Graph) -> dict[str, int]:
    """The extents, by symbol, of the largest request that the bounds and coupled choices admit."""
    extents = _extents_at(graph, "max")
    return {dim: extent for dim, extent in extents.items() if isinstance(dim, str) and dim in graph.bounds}


def _extents_at(graph: Graph, at: Literal["opt", "max"]) -> dict[Dim, int]:
    extents = _extents_to_try(graph)[0]
    extents.update(
        {dim: getattr(graph.bounds[dim], at) for dim in extents if isinstance(dim, str) and dim in graph.bounds}
    )
    coupled: list[dict[Dim, int]] = [
        {s: getattr(r, at) for s, r in found.items()} for found in alternatives(graph, at == "max")
    ]
    if at == "max":
        coupled.sort(key=lambda found: -_elements(graph, {**extents, **found}))
    for found in coupled[:1]:
        extents.update(found)
    return extents


def _elements(graph: Graph, extents: Mapping[Dim, int]) -> int:
    """How many elements all inputs have together, as far as their shapes are known."""
    shapes = [value.shape for value in graph.input_values if value.shape is not None]
    return sum(math.prod(dim if isinstance(dim, int) else extents.get(dim, 1) for dim in shape) for shape in shapes)


def digest_samples(samples: Sequence[Sample]) -> str:
    """SHA-256 (hex) over names, dtypes, shapes and bytes; sequences item by item."""
    total = hashlib.sha256()
    for sample in samples:
        for name in sorted(sample):
            total.update(f"\0{name}\0".encode())
            for content in _contents(sample[name]):
                total.update(content)
    return total.hexdigest()


def _contents(value: Any) -> Iterator[bytes]:
    if isinstance(value, np.ndarray):
        yield f"{value.dtype}\0{value.shape}\0".encode()
        yield value.tobytes() if value.dtype != object else repr(value.tolist()).encode()
    elif isinstance(value, (list, tuple)):
        yield f"{len(value)} items\0".encode()
        for item in value:
            yield from _contents(item)
    else:
        yield repr(value).encode()


def describe_sample(sample: Sample) -> str:
    """`x [2, 3], s 4 items`: each input's name and shape."""
    return ", ".join(f"{name} {_extent(value)}" for name, value in sample.items())


def _extent(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return str(list(value.shape))
    return f"{len(value)} items" if isinstance(value, (list, tuple)) else "left out"


def _as_array(name: str, value: Any) -> np.ndarray[Any, Any]:
    try:
        if hasattr(value, "__dlpack__"):
            found: np.ndarray[Any, Any] = np.from_dlpack(value)
            return found
    except (TypeError, RuntimeError, BufferError, ValueError, AttributeError) as error:
        raise UsageError(f"cannot be read through DLPack: {error}", where=f"input {name!r}") from None
    if isinstance(value, (list, tuple)) or np.isscalar(value):
        raise UsageError(
            f"is a {type(value).__name__}, not an array: its dtype would be a guess",
            where=f"input {name!r}",
            remedy="pass a NumPy array, or anything with __dlpack__",
        )
    raise UsageError(f"is a {type(value).__name__}, not an array", where=f"input {name!r}", remedy="pass a NumPy array")


def _numpy_dtype(value: Value) -> np.dtype[Any] | None:
    if value.dtype is None:
        return None
    if value.dtype == "string":
        return np.dtype(object)
    try:
        found = np.dtype(value.dtype)
    except TypeError:
        return None  # A dtype that NumPy does not have (bfloat16): the adapter checks it.
    # Where ml_dtypes was imported, NumPy knows these names too, as types that are not its own.
    return found if found.isbuiltin == 1 else None


Bound = tuple[int, int, Any]


def _fixed_bounds(graph: Graph, value: Value) -> tuple[Bound | None, ...] | None:
    """(min, max, range where there are gaps) for each axis; None where nothing bounds it, or the rank is unknown."""
    if value.shape is None:
        return None
    ranges = [graph.range_of(dim) for dim in value.shape]
    return tuple(None if r is None else (r.min, r.max, r if r.spans else None) for r in ranges)


def _extents_to_try(graph: Graph) -> list[dict[Dim, int]]:
    """Extents by symbol: a moderate choice within the bounds, then one that differs wherever it may."""
    first: dict[Dim, int] = {}
    second: dict[Dim, int] = {}
    for value in graph.input_values:
        for axis, dim in enumerate(value.shape or ()):
            if isinstance(dim, int) or dim in first:
                continue
            default = (
                _UNBOUNDED_BATCH if axis == 0 else _UNBOUNDED_IMAGE if len(value.shape or ()) >= 4 else _UNBOUNDED_OTHER
            )
            first[dim], second[dim] = default
            bound = graph.range_of(dim)
            if bound is not None:
                spans = bound.spans or ((bound.min, bound.max),)
                first[dim] = min((clamp(default[0], *span) for span in spans), key=lambda e: abs(e - default[0]))
                ends = [end for span in spans for end in span if end != first[dim]]
                second[dim] = min(ends, key=lambda e: abs(e - default[1])) if ends else first[dim]
    if graph.choices:
        return _coupled(graph, first, second)
    return [first] if first == second else [first, second]


def _coupled(graph: Graph, first: dict[Dim, int], second: dict[Dim, int]) -> list[dict[Dim, int]]:
    """Where the config couples dimensions: the smallest extents of the first alternative, and others that differ."""
    ranges = alternatives(graph)
    ends: list[dict[Dim, int]] = [{s: r.min for s, r in found.items()} for found in ranges]
    ends += [{s: r.max for s, r in found.items()} for found in ranges]
    other = next((extents for extents in ends if extents != ends[0]), ends[0])
    tried = [{**first, **ends[0]}, {**second, **other}]
    return tried if tried[0] != tried[1] else tried[:1]


def _draw(
    rng: np.random.Generator, value: Value, extents: Mapping[Dim, int], limit: int | None
) -> np.ndarray[Any, Any]:
    if value.shape is None or value.kind != "tensor" or value.dtype is None:
        raise ConfigError(
            f"no sample can be generated for input {value.name!r} ({value.kind}, rank or dtype unknown)",
            where="$.accuracy.samples",
            remedy="give samples",
        )
    shape = tuple(dim if isinstance(dim, int) else extents[dim] for dim in value.shape)
    dtype = _numpy_dtype(value)
    if dtype is None:
        raise ConfigError(
            f"no sample can be generated for input {value.name!r} of dtype {value.dtype}",
            where="$.accuracy.samples",
            remedy="give samples",
        )
    try:
        return _random(rng, dtype, shape, limit)
    except (MemoryError, ValueError) as error:  # ValueError: more elements than an index can count.
        raise MemoryRefused(
            f"a sample of shape {list(shape)} for input {value.name!r} is too large: {error}",
            where="$.shapes",
            remedy="lower batch_size or shapes",
        ) from None


def _random(
    rng: np.random.Generator, dtype: np.dtype[Any], shape: tuple[int, ...], limit: int | None
) -> np.ndarray[Any, Any]:
    if dtype.kind == "O":
        return np.asarray(rng.choice(np.array(_WORDS, dtype=object), size=shape))
    if dtype.kind == "f":
        return np.asarray(rng.standard_normal(shape)).astype(dtype)
    if dtype.kind == "c":
        return np.asarray(rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(dtype)
    if dtype.kind == "b":
        return np.asarray(rng.random(shape) < 0.5)
    kind = np.iinfo(dtype)
    if limit is None and dtype.itemsize <= 2:
        return rng.integers(kind.min, kind.max, shape, dtype=dtype, endpoint=True)
    return np.asarray(rng.integers(0, min(limit or 2, kind.max + 1), shape)).astype(dtype)


def _index_limit(
    graph: Graph, source: int, gathers: Mapping[str, tuple[int, int]], transparent: frozenset[str]
) -> int | None:
    """How many rows the smallest table has that `source` indexes, or None where it indexes none."""
    rows: list[int] = []
    same = {source}
    for node in graph.nodes:
        if node.type in transparent and node.inputs and node.inputs[0] in same:
            same.update(v for v in node.outputs if v is not None)
        if node.type in gathers:
            indices, table = gathers[node.type]
            if indices < len(node.inputs) and node.inputs[indices] in same and table < len(node.inputs):
                rows.extend(_rows(graph, node.inputs[table], node.attributes.get("axis", 0)))
    return min(rows, default=None)


def _rows(graph: Graph, table: int | None, axis: Any) -> list[int]:
    shape = graph.values[table].shape if table is not None else None
    if shape is None or not isinstance(axis, int) or not -len(shape) <= axis < len(shape):
        return [_UNKNOWN_ROWS]
    dim = shape[axis]
    return [dim] if isinstance(dim, int) and dim > 0 else [_UNKNOWN_ROWS]
