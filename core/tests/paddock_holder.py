"""A plugin whose sessions take as much memory as its options say. Importable by child processes under this name."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from paddock.errors import UsageError
from paddock.model import Model
from paddock.plan import Precision, Verdict
from paddock.spi import (
    Adapter,
    Arrays,
    Artifact,
    Concurrency,
    Context,
    Devices,
    SegmentPlan,
    Selection,
    Session,
    Threading,
    hookimpl,
)
from pydantic import BaseModel, ConfigDict

MIB = 1 << 20
BLOCK = 100_000
"""Bytes of a block that malloc takes from its heap, and keeps there once it is freed."""


class HolderOptions(BaseModel):
    """MiB that each session holds, and for each shape that it has seen, and that each run takes for itself; whether
    loading hangs, and running crashes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    held: int = 0
    each: int = 0
    taken: int = 0
    hangs: bool = False
    crashes: bool = False
    odd: bool = False
    """Whether a request of an odd number of rows is refused as a wrong use."""


def hold(mib: int) -> list[bytes]:
    """Memory of small blocks, every page written."""
    return [b"\1" * BLOCK for _ in range(mib * MIB // BLOCK)]


class Holder(Adapter):
    """Doubles what it is given; only multiplies."""

    hardware: ClassVar[str] = "cpu"
    backend: ClassVar[str] = "holder"
    spi_version: ClassVar[int] = 1
    formats: ClassVar[tuple[str, ...]] = ("onnx",)
    precisions: ClassVar[frozenset[Precision]] = frozenset({Precision.FP32})
    # Loaded on the thread that imported, whose freed blocks malloc would give the session.
    concurrency: ClassVar[Concurrency] = Concurrency(Threading.SERIAL)
    Options: ClassVar[type[BaseModel]] = HolderOptions

    @classmethod
    def probe_device(cls) -> Devices:
        """As an SDK's import may: takes much for a moment, and leaves blocks with holes between them."""
        moment = b"\1" * (96 * MIB)
        blocks = hold(32)
        kept = blocks[::200]
        del moment, blocks
        _KEPT.extend(kept)
        return super().probe_device()

    def select_operators(self, model: Model, context: Context) -> Selection:
        verdicts = [Verdict.yes() if n.op == "Mul" else Verdict.no("it only multiplies") for n in model.graph.nodes]
        return Selection(tuple(verdicts))

    def compile(self, model: Model, plan: SegmentPlan, context: Context) -> Artifact:
        inputs, outputs = (tuple(v.name for v in vs) for vs in (model.graph.input_values, model.graph.output_values))
        return Artifact(self.name(), "onnx", dict(model.files), inputs, outputs)

    def load(self, artifact: Artifact, context: Context) -> Session:
        options = self.config.options
        assert isinstance(options, HolderOptions)
        session = HolderSession(options, artifact)
        if options.hangs:
            time.sleep(60)
        return session


_KEPT: list[bytes] = []


class HolderSession(Session):
    """Doubles."""

    def __init__(self, options: HolderOptions, artifact: Artifact) -> None:
        self._options = options
        self._artifact = artifact
        self._held = hold(options.held)
        self._seen: dict[tuple[int, ...], list[bytes]] = {}

    def run(self, feeds: Arrays, outputs: Sequence[str] | None = None) -> dict[str, np.ndarray[Any, Any]]:
        if self._options.crashes:
            os.kill(os.getpid(), signal.SIGKILL)
        shape = feeds[self._artifact.inputs[0]].shape
        if self._options.odd and shape[0] % 2:
            raise UsageError("takes even numbers of rows")
        if shape not in self._seen:
            self._seen[shape] = hold(self._options.each)
        taken = b"\1" * (self._options.taken * MIB)
        assert len(taken) == self._options.taken * MIB
        doubled = 2 * feeds[self._artifact.inputs[0]]
        return dict.fromkeys(self._artifact.outputs, doubled)

    def close(self) -> None:
        self._held = []
        self._seen = {}


@hookimpl
def paddock_adapters() -> Sequence[type[Adapter]]:
    return [Holder]
