"""Outputs on their way to the caller: into arrays of the caller's, or as sessions give them, made the caller's.

The former are checked before anything runs, the latter on the way out, in a microsecond or two.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from paddock.errors import RunFailed, UsageError, did_you_mean
from paddock.graph import Graph, Value
from paddock.planning.operators import carried

Array = np.ndarray[Any, Any]

_PAIRS = 64
"""Pairs of an input and an output up to which NumPy is asked about each: 0.3 microseconds, and an address takes 1."""


def array_dtype(value: Value) -> np.dtype[Any] | None:
    """NumPy's dtype of a tensor of numbers; None for strings, for what NumPy has no type for, and for no tensor."""
    return np.dtype(value.dtype) if carried(value) and value.dtype != "string" else None


def unlike(array: Array) -> Array:
    """A new dense array of the same form that differs in every element: NaN, where it is not itself in place."""
    if array.dtype.kind in "fc":
        return np.array(np.where(np.isnan(array), 1, np.nan), array.dtype, order="C")
    return np.array(np.invert(array), order="C")


class Receivers:
    """The outputs of a graph, and what an array must be to take one."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._outputs = {value.name: value for value in graph.output_values}

    def check(self, into: object, feeds: Mapping[str, Any]) -> dict[str, Array]:
        """`into` as a dict; raises `UsageError` where an array cannot take its output, or shares memory with another.

        The shape is checked as far as it is fixed; the run tells the rest.
        """
        if not isinstance(into, Mapping) or not into:
            raise UsageError(
                "takes a mapping with an array for at least one output", where="into", candidates=list(self._outputs)
            )
        found: dict[str, Array] = {}
        for name, array in into.items():
            value = self._outputs.get(name)
            if value is None:
                raise UsageError(
                    f"the model has no output {name!r}", where="into", candidates=list(self._outputs),
                    remedy=did_you_mean(str(name), self._outputs),
                )  # fmt: skip
            self._check_one(value, array)
            found[name] = array
        self._check_apart(found, feeds)
        return found

    def _check_one(self, value: Value, array: object) -> None:
        where = f"into {value.name!r}"
        if array_dtype(value) is None:
            raise UsageError("this output is no tensor of numbers: it is only returned", where=where)
        if not isinstance(array, np.ndarray):
            raise UsageError(f"is a {type(array).__name__}, not a NumPy array", where=where)
        if array.dtype != value.dtype:
            raise UsageError(f"is {array.dtype}, the output is {value.dtype}", where=where)
        if not array.flags.writeable or not array.flags.c_contiguous:
            what = "is not writable" if not array.flags.writeable else "is not dense and row-major"
            raise UsageError(what, where=where, remedy="give an array as numpy.empty makes it")
        shape = value.shape
        if shape is None:
            return
        fits = len(shape) == array.ndim and all(
            bound is None or bound.min <= extent <= bound.max
            for extent, bound in zip(array.shape, map(self._graph.range_of, shape), strict=True)
        )
        if not fits:
            known = [str(self._graph.range_of(dim) or "?") for dim in shape]
            raise UsageError(
                f"has the shape {list(array.shape)}, the output has [{', '.join(known)}]", where=where
            )  # fmt: skip

    def _check_apart(self, into: Mapping[str, Array], feeds: Mapping[str, Any]) -> None:
        others = [(f"input {name!r}", array) for name, array in feeds.items() if isinstance(array, np.ndarray)]
        for name, array in into.items():
            for label, other in others:
                if np.may_share_memory(array, other):
                    raise UsageError(
                        f"shares memory with {label}", where=f"into {name!r}", remedy="give arrays that lie apart"
                    )
            others.append((f"into {name!r}", array))


class Answers:
    """The outputs of a graph as its sessions give them: checked for their form, and made the caller's own.

    Args:
        graph: What the caller sees.
        names: Each output's name in `graph`, with the one that the sessions know it by.
        adapter: Whose sessions they are; errors name it.
    """

    def __init__(self, graph: Graph, names: Mapping[str, str], adapter: str) -> None:
        self._adapter = adapter
        self._outputs = [(v.name, names[v.name], v.kind == "tensor", array_dtype(v)) for v in graph.output_values]
        self._plain = all(value.kind == "tensor" for value in graph.input_values)

    def given(self, found: object, feeds: Mapping[str, Any], wanted: Container[str] | None = None) -> dict[str, Array]:
        """The outputs (all, or those wanted) by the caller's names; copies of what may lie in the memory of `feeds`.

        Raises `RunFailed` where `found` is no dict with an array of the output's dtype for each.
        """
        if not isinstance(found, dict):
            raise RunFailed(f"{self._adapter} returned a {type(found).__name__}, not a dict of arrays")
        fed = [*(feeds.values() if self._plain else _arrays(feeds.values()))]
        many = len(fed) * len(self._outputs) > _PAIRS
        apart = _Many(fed).apart if many else partial(_apart, fed)
        answer: dict[str, Any] = {}
        for here, there, tensor, dtype in self._outputs:
            if wanted is not None and here not in wanted:
                continue
            try:
                array = found[there]
            except KeyError:
                raise RunFailed(f"{self._adapter} left out the output {here!r} of this run") from None
            if not tensor:
                answer[here] = all_apart(apart, array)
                continue
            if not isinstance(array, np.ndarray):
                raise RunFailed(f"{self._adapter} gave a {type(array).__name__} for the output {here!r}, not an array")
            if dtype is not None and array.dtype != dtype:
                raise RunFailed(f"{self._adapter} gave {array.dtype} for the output {here!r}, which is {dtype}")
            answer[here] = apart(array)
        return answer


def _apart(fed: Sequence[Array], array: Array) -> Array:
    """The array, copied where it may share memory with what was fed."""
    if array.flags.owndata:  # then nothing shares it but its own views
        for other in fed:
            if other is array or other.base is array:
                return array.copy()
        return array
    for other in fed:
        if np.may_share_memory(array, other):
            return array.copy()
    return array


class _Many:
    """`_apart` for many inputs and outputs: what was fed is sorted by address once."""

    def __init__(self, fed: Sequence[Array]) -> None:
        self._owners = {id(array) for array in fed} | {id(array.base) for array in fed}
        self._fed = fed
        self._spans: tuple[list[int], list[int]] | None = None

    def apart(self, array: Array) -> Array:
        if array.flags.owndata:
            return array.copy() if id(array) in self._owners else array
        if self._spans is None:
            self._spans = _merged(sorted(map(_bounds, self._fed)))
        (starts, ends), (start, end) = self._spans, _bounds(array)
        at = bisect_right(ends, start)
        return array.copy() if at < len(starts) and starts[at] < end else array


def all_apart(apart: Callable[[Array], Array], value: Any) -> Any:
    """An array, or a sequence with each item, apart, in a list that is not the one fed either."""
    if isinstance(value, np.ndarray):
        return apart(value)
    return [all_apart(apart, item) for item in value] if isinstance(value, list) else value


def _bounds(array: Array) -> tuple[int, int]:
    """The addresses of its first byte and of the one behind its last."""
    start: int = array.__array_interface__["data"][0]
    if array.flags.c_contiguous:
        return start, start + array.nbytes
    reach = [(extent - 1) * stride for extent, stride in zip(array.shape, array.strides, strict=True)]
    return start + sum(r for r in reach if r < 0), start + sum(r for r in reach if r > 0) + array.itemsize


def _merged(spans: Iterable[tuple[int, int]]) -> tuple[list[int], list[int]]:
    """The starts and the ends of spans in ascending order, those that overlap as one."""
    starts: list[int] = []
    ends: list[int] = []
    for start, end in spans:
        if ends and start <= ends[-1]:
            ends[-1] = max(ends[-1], end)
        else:
            starts.append(start)
            ends.append(end)
    return starts, ends


def _arrays(values: Iterable[Any]) -> Iterator[Array]:
    for value in values:
        if isinstance(value, np.ndarray):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _arrays(value)
