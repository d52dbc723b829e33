"""Arrays of the caller's that outputs are written into: checked before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from paddock.errors import UsageError, did_you_mean
from paddock.graph import Graph, Value
from paddock.planning.operators import carried

Array = np.ndarray[Any, Any]


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
        if not carried(value) or value.dtype == "string":
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
