"""An adapter whose session does nothing: what is left of a run is Paddock itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from paddock.model import Model
from paddock.plan import Precision, Verdict
from paddock.spi import (
    Adapter,
    Arrays,
    Artifact,
    Concurrency,
    Context,
    SegmentPlan,
    Selection,
    Session,
    Threading,
    hookimpl,
)


class NullSession(Session):
    """Gives the first feed back under the first output's name."""

    def __init__(self, output: str) -> None:
        self._output = output

    def run(self, feeds: Arrays, outputs: Sequence[str] | None = None) -> dict[str, np.ndarray[Any, Any]]:
        return {self._output: next(iter(feeds.values()))}

    def close(self) -> None:
        pass


class NullAdapter(Adapter):
    """Claims every operator, computes none: right for identity models alone."""

    hardware: ClassVar[str] = "none"
    backend: ClassVar[str] = "null"
    spi_version: ClassVar[int] = 1
    formats: ClassVar[tuple[str, ...]] = ("onnx",)
    precisions: ClassVar[frozenset[Precision]] = frozenset({Precision.FP32})
    concurrency: ClassVar[Concurrency] = Concurrency(Threading.REENTRANT)

    def select_operators(self, model: Model, context: Context) -> Selection:
        return Selection(tuple(Verdict.yes("does nothing", "itself") for _ in model.graph.nodes))

    def compile(self, model: Model, plan: SegmentPlan, context: Context) -> Artifact:
        names = [value.name for value in model.graph.output_values]
        return Artifact(self.name(), "onnx", model.files, (), tuple(names))

    def load(self, artifact: Artifact, context: Context) -> Session:
        return NullSession(artifact.outputs[0])


@hookimpl
def paddock_adapters() -> Sequence[type[Adapter]]:
    return [NullAdapter]
