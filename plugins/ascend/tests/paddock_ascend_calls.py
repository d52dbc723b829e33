"""What the tests call in child processes, in which Paddle may have the simulated NPU."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import paddock
from paddock.config import HardwareConfig
from paddock.errors import NotAvailable, PaddockError
from paddock.guard import Isolation
from paddock.model import Model
from paddock.plan import Plan, Precision, PrecisionPlan, Segment
from paddock.registry import Registry
from paddock.spi import Artifact, Context, Devices, Probe, ResolvedConfig, SegmentMemory, SegmentPlan
from paddock_ascend import adapters, simulator
from paddock_ascend.adapters import AscendOptions, NpuAscend
from paddock_paddle.format import PaddleFormat

NPU = {"hardware": "npu", "backend": "ascend"}


@dataclass(frozen=True)
class Ran:
    """What one deployment on the simulated NPU gave."""

    answers: Mapping[str, np.ndarray[Any, Any]]
    plan: Plan
    error: float | None
    outcome: str
    calls: Mapping[str, int]
    peak: int
    left: int
    """Bytes of the device's memory taken at most, and once the deployment is closed."""


def export(folder: Path) -> None:
    """`convolution`, `attention`, `mixed` with an operation that the simulator has no kernel for, and `pooling`."""
    import paddle
    from paddle import nn
    from paddle.nn import functional
    from paddle.static import InputSpec

    paddle.seed(0)

    def save(layer: Any, name: str, shape: list[int | None], dtype: str = "float32") -> None:
        layer.eval()
        paddle.jit.save(layer, str(folder / name), input_spec=[InputSpec(shape, dtype, "x")])

    class Mixed(nn.Layer):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(8, 16)
            self.second = nn.Linear(16, 4)

        def forward(self, x: Any) -> Any:
            return functional.softmax(self.second(paddle.cumsum(functional.relu(self.first(x)), axis=-1)))

    class Attention(nn.Layer):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(50, 16)
            self.norm = nn.LayerNorm(16)
            self.qkv = nn.Linear(16, 48)

        def forward(self, x: Any) -> Any:
            x = self.norm(self.table(x))
            q, k, v = paddle.split(self.qkv(x), 3, axis=-1)
            x = x + functional.softmax(paddle.matmul(q, k, transpose_y=True) * 0.3, axis=-1) @ v
            best, where = paddle.topk(x, 4, axis=-1)
            return x, best, where

    save(Mixed(), "mixed", [None, 8])
    pooling = nn.Sequential(nn.Conv2D(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2D(3, 2, 1), nn.Conv2D(8, 4, 3))
    save(pooling, "pooling", [None, 3, 16, 16])
    save(Attention(), "attention", [None, None], "int64")
    convolution = nn.Sequential(
        nn.Conv2D(3, 8, 3, padding=1, bias_attr=False), nn.BatchNorm2D(8), nn.ReLU(), nn.MaxPool2D(2),
        nn.Conv2D(8, 8, 3, groups=8), nn.ReLU(), nn.AdaptiveAvgPool2D(1), nn.Flatten(), nn.Linear(8, 10),
    )  # fmt: skip
    save(convolution, "convolution", [None, 3, 16, 16])


def ran(model: Path, feeds: Mapping[str, Any], config: Mapping[str, Any] | None = None, times: int = 1) -> Ran:
    """A deployment on the NPU, run some times."""
    with paddock.deploy(model, {**NPU, **(config or {})}) as deployment:
        before = simulator.calls()
        for _ in range(times):
            answers = deployment.run(feeds)
        called = {name: count - before.get(name, 0) for name, count in simulator.calls().items()}
        report, plan = deployment.report, deployment.plan
    made = {name: count for name, count in called.items() if count}
    left, peak = simulator.memory()
    return Ran(answers, plan, report.error, report.outcome.value, made, peak, left)


def isolated(model: Path, feeds: Mapping[str, Any], times: int) -> tuple[list[np.ndarray[Any, Any]], Isolation | None]:
    """The first answers of so many requests to a deployment that is isolated and rescued, and what became of it."""
    config = {**NPU, "isolation": "process", "rescue": "cpu/paddle"}
    with paddock.deploy(model, config) as deployment:
        answers = [next(iter(deployment.run(feeds).values())) for _ in range(times)]
        return answers, deployment.isolation


def reference(model: Path, feeds: Mapping[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
    """The same on Paddle's own kernels, in this process."""
    with paddock.deploy(model, {"hardware": "cpu", "backend": "paddle"}) as deployment:
        return deployment.run(feeds)


def probed() -> tuple[Probe, Devices]:
    """What the adapter says of this environment."""
    registry = Registry.discover()
    registered = registry.get("npu/ascend")
    probe = registry.probe(registered)
    return probe, registry.devices(registered, probe)


def probed_here() -> Devices:
    """What the device says in this process."""
    return NpuAscend.probe_device()


def raw_calls(model: Path, feeds: Mapping[str, Any]) -> dict[str, int]:
    """Which of the simulator's kernels plain Paddle Inference calls for a model, without Paddock's say."""
    from paddle import inference

    config = inference.Config(str(model), str(model.with_suffix(".pdiparams")))
    config.enable_new_executor()
    config.enable_new_ir(True)
    config.disable_glog_info()
    config.enable_custom_device(NpuAscend.device_type, 0)
    predictor = inference.create_predictor(config)
    for name, array in feeds.items():
        predictor.get_input_handle(name).copy_from_cpu(array)
    predictor.run()
    return simulator.calls()


def compiled(path: Path, work: Path) -> Artifact:
    """The artifact of a whole model, by the adapter itself."""
    adapter, model = _adapter(), _model(path)
    graph = model.graph
    segment = Segment(0, adapter.name(), tuple(range(len(graph.nodes))), graph.inputs, graph.outputs)
    plan = SegmentPlan(segment, PrecisionPlan(Precision.FP32), SegmentMemory())
    return adapter.compile(model, plan, Context(work, work))


def loaded(artifact: Artifact, work: Path) -> int | None:
    """How many kernels a session of it has on the device."""
    session = _adapter().load(artifact, Context(work, work))
    try:
        return session.observed().nodes
    finally:
        session.close()


def too_late(folder: Path) -> str:
    """What the adapter says where Paddle was imported before anything told it of the device."""
    import paddle

    assert not paddle.device.get_all_custom_device_type()
    os.environ[simulator.ROOT] = str(folder)
    try:
        _adapter().configure(paddle.inference.Config(), {"device": 0})
    except NotAvailable as error:
        return error.problem
    return ""


def claimed_flags() -> list[str]:
    """What comes of three sessions in a process, each with flags of its own."""
    found = []
    for options in ({"storage_format": True}, {}, {"jit_compile": True}):
        if options.get("jit_compile"):
            adapters._claimed = None  # as if nothing had been loaded before
        adapter = _adapter(**options)
        try:
            adapters._claim(AscendOptions(**options).flags())
            read = adapter.read_back(_Configuration())
            found.append(f"storage_format is {read['options.storage_format']}")
        except PaddockError as error:
            found.append(error.problem)
    return [text.partition(": ")[0].removeprefix(_WHOLE) for text in found]


_WHOLE = "its flags hold for a whole process, in which "


class _Configuration:
    """As much of a paddle.inference.Config as is read back."""

    def cpu_math_library_num_threads(self) -> int:
        return 1


def _adapter(**options: Any) -> NpuAscend:
    return NpuAscend(ResolvedConfig(HardwareConfig.load(NPU), AscendOptions(**options), 1), None)


def _model(path: Path) -> Model:
    format = PaddleFormat()
    files = format.locate(path)
    assert files is not None
    return Model("paddle", files, "test", format.read(files))
