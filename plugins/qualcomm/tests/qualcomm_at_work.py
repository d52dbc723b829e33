"""The adapter as the tests of `npu/qualcomm` use it, and what they call in processes of their own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from paddock.config import HardwareConfig
from paddock.errors import RunFailed
from paddock.model import Model
from paddock.plan import Precision, PrecisionPlan, Segment
from paddock.spi import Artifact, Context, Device, ResolvedConfig, SegmentMemory, SegmentPlan
from paddock_qualcomm.adapter import NpuQualcomm, QualcommOptions
from paddock_qualcomm.sdk import SIMULATED, session

DEVICE = Device(0, SIMULATED, {})


def adapter_of(precision: str = "fp32", **options: Any) -> NpuQualcomm:
    """The adapter on the device that is simulated."""
    config = HardwareConfig.load({"hardware": "npu", "backend": "qualcomm", "precision": precision})
    return NpuQualcomm(ResolvedConfig(config, QualcommOptions(**options), 1), DEVICE)


def segment_of(model: Model, precision: str = "fp32") -> SegmentPlan:
    """The whole model as one segment."""
    graph = model.graph
    segment = Segment(0, "npu/qualcomm", tuple(range(len(graph.nodes))), graph.inputs, graph.outputs)
    return SegmentPlan(segment, PrecisionPlan(Precision(precision)), SegmentMemory())


def verdicts(model: Model, folder: Path, precision: str = "fp32", **options: Any) -> tuple[Any, ...]:
    """What it says of each node."""
    return adapter_of(precision, **options).select_operators(model, Context(folder, folder)).verdicts


def compiled(model: Model, folder: Path, precision: str = "fp32", **options: Any) -> Artifact:
    """What it makes of a model."""
    adapter = adapter_of(precision, **options)
    return adapter.compile(model, segment_of(model, precision), Context(folder, folder))


def direct(given: Any, x: Any, soc_model: int | None = None) -> Any:
    """The first output of a session on a model itself."""
    return session(given, soc_model).run(None, {"x": x})[0]


def closed(artifact: Artifact, folder: Path) -> str:
    """What a closed session says."""
    loaded = adapter_of().load(artifact, Context(folder, folder))
    loaded.close()
    loaded.close()
    try:
        loaded.run({"x": np.zeros((1, 3, 16, 16), "f")})
    except RunFailed as error:
        return error.problem
    return ""


def into(artifact: Artifact, folder: Path) -> bool:
    """Whether `run_into` writes what `run` gives."""
    loaded = adapter_of().load(artifact, Context(folder, folder))
    x = np.random.default_rng(1).standard_normal((1, 3, 16, 16), "f")
    place = np.full((1, 10), np.nan, "f")
    loaded.run_into({"x": x}, {"y": place})
    return bool(np.array_equal(place, loaded.run({"x": x})["y"]))


def crash(*_: object) -> None:
    """Ends the process."""
    os.abort()
