"""A plugin whose adapter misbehaves as its options say. Importable by child processes under this name."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import paddock_calls as calls
from paddock.errors import Unsupported
from paddock.model import Model
from paddock.plan import Precision, Verdict
from paddock.spi import (
    Adapter,
    Arrays,
    Artifact,
    Context,
    Observed,
    SegmentPlan,
    Selection,
    Session,
    hookimpl,
)
from pydantic import BaseModel, ConfigDict

Manner = Literal["well", "segfault", "abort", "exit", "hang", "raise", "garbage"]
Numbers = Literal["right", "wrong", "nan", "missing"]


class FakeOptions(BaseModel):
    """How each step goes, and how many of the levels asked for take effect."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    select: Manner = "well"
    compile: Manner | Literal["unsupported"] = "well"
    load: Manner = "well"
    run: Manner = "well"
    observe: Manner = "well"
    numbers: Numbers = "right"
    level: int = 0
    mark: str = ""


def behave(manner: str) -> None:
    match manner:
        case "segfault":
            calls.segfault()
        case "abort":
            calls.abort()
        case "exit":
            calls.end(3)
        case "hang":
            time.sleep(600)
        case "raise":
            raise ArithmeticError("the vendor's SDK says no\nand more")


class FakeAdapter(Adapter):
    """Doubles its input."""

    hardware: ClassVar[str] = "cpu"
    backend: ClassVar[str] = "fake"
    spi_version: ClassVar[int] = 1
    formats: ClassVar[tuple[str, ...]] = ("onnx",)
    precisions: ClassVar[frozenset[Precision]] = frozenset({Precision.FP32})
    Options: ClassVar[type[BaseModel]] = FakeOptions

    @property
    def manners(self) -> FakeOptions:
        assert isinstance(self.config.options, FakeOptions)
        return self.config.options

    def select_operators(self, model: Model, context: Context) -> Selection:
        behave(self.manners.select)
        if self.manners.select == "garbage":
            return {"all": "fine"}  # type: ignore[return-value]
        return Selection(tuple(Verdict.yes() for _ in model.graph.nodes))

    def compile(self, model: Model, plan: SegmentPlan, context: Context) -> Artifact:
        if self.manners.mark:
            Path(self.manners.mark).touch()
        if self.manners.compile == "unsupported":
            raise Unsupported([0], "no kernel for this one")
        behave(self.manners.compile)
        if self.manners.compile == "garbage":
            return "an artifact"  # type: ignore[return-value]
        (context.work / "compiled.bin").write_bytes(bytes(1000))
        inputs, outputs = (tuple(v.name for v in vs) for vs in (model.graph.input_values, model.graph.output_values))
        return Artifact(self.name(), "onnx", {"compiled": context.work / "compiled.bin"}, inputs, outputs)

    def load(self, artifact: Artifact, context: Context) -> Session:
        behave(self.manners.load)
        if self.manners.load == "garbage":
            return 7  # type: ignore[return-value]
        assert artifact.files["compiled"].stat().st_size == 1000
        return FakeSession(self.manners, artifact)


class FakeSession(Session):
    """Doubles."""

    def __init__(self, manners: FakeOptions, artifact: Artifact) -> None:
        self._manners = manners
        self._artifact = artifact

    def run(self, feeds: Arrays, outputs: Sequence[str] | None = None) -> dict[str, np.ndarray[Any, Any]]:
        behave(self._manners.run)
        if self._manners.run == "garbage":
            return [np.zeros(1)]  # type: ignore[return-value]
        if self._manners.numbers == "missing":
            return {}
        answer = 2 * feeds[self._artifact.inputs[0]]
        if self._manners.numbers == "wrong":
            answer[..., 0] += 0.1
        if self._manners.numbers == "nan":
            answer[..., 0] = np.nan
        return {name: answer.copy() for name in self._artifact.outputs}

    def close(self) -> None:
        pass

    def observed(self) -> Observed:
        behave(self._manners.observe)
        settings: Mapping[str, Any] = {"precision": "fp32", "options.level": min(self._manners.level, 3)}
        return Observed(settings)


@hookimpl
def paddock_adapters() -> Sequence[type[Adapter]]:
    return [FakeAdapter]
