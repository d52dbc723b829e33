"""Between the user's names and dtypes and those of the sessions: conversions keep the order, not always the names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from paddock.compile import check_answer
from paddock.errors import BuildFailed
from paddock.graph import Graph
from paddock.host import Outputs
from paddock.samples import Sample
from paddock.spi import Arrays

Names = tuple[tuple[str, str], ...]
"""Of inputs or outputs in order: the user's name, and the one that the sessions know."""


@dataclass(frozen=True)
class Translation:
    """How samples, which are in the model's own dtypes, get to the sessions and their answers back.

    `graph` is the model's as the user gave it, `interface` the same with inputs and outputs as they are served.
    """

    adapter: str
    graph: Graph
    interface: Graph
    inputs: Names
    outputs: Names

    def feeds(self, sample: Sample) -> Arrays:
        """A sample under the names that the sessions know, in the dtypes that are served."""
        if self.interface is self.graph:
            return {there: sample[here] for here, there in self.inputs}
        kinds = {value.name: value.dtype or "" for value in self.interface.input_values}
        return {there: sample[here].astype(kinds[here]) for here, there in self.inputs}

    def answer(self, run: Callable[[Arrays], Outputs], sample: Sample) -> Outputs:
        """One run, checked for its form, under the user's own output names and in the model's dtypes."""
        found = run(self.feeds(sample))
        check_answer(found, [there for _, there in self.outputs])
        kinds = {value.name: value for value in self.graph.output_values}
        for here, there in self.outputs:
            if kinds[here].kind == "tensor" and not isinstance(found[there], np.ndarray):
                kind = type(found[there]).__name__
                raise BuildFailed(f"{self.adapter}: run() returned a {kind} for {here!r}, not an array")
        if self.interface is self.graph:
            return {here: found[there] for here, there in self.outputs}
        return {here: found[there].astype(kinds[here].dtype or "") for here, there in self.outputs}
