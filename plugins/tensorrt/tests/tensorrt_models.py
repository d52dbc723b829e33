"""Small models, and sessions of them on the fake of TensorRT."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto as T
from onnx import helper as h
from paddock.config import HardwareConfig
from paddock.graph import Range
from paddock.model import Model
from paddock.onnx_format import OnnxFormat
from paddock.plan import PrecisionPlan, Segment
from paddock.planning.shapes import apply_shapes
from paddock.spi import Artifact, Context, Device, ResolvedConfig, SegmentMemory, SegmentPlan
from paddock_tensorrt import cuda
from paddock_tensorrt.adapter import GpuTensorRt, TensorRtOptions


def save(
    path: Path, nodes: Sequence[Any], inputs: Sequence[Any], outputs: Sequence[Any],
    held: Mapping[str, Any] | None = None, opset: int = 17,
) -> Path:  # fmt: skip
    """A model in a file; inputs and outputs are (name, dtype, shape)."""
    graph = h.make_graph(
        nodes,
        "graph",
        [h.make_tensor_value_info(*i) for i in inputs],
        [h.make_tensor_value_info(*o) for o in outputs],
        [onnx.numpy_helper.from_array(np.asarray(w), n) for n, w in (held or {}).items()],
    )
    onnx.save(h.make_model(graph, opset_imports=[h.make_opsetid("", opset)], ir_version=8), path)
    return path


def net(path: Path, batch: Any = "N") -> Path:
    """`y` = softmax(relu(x @ w) @ w), x [batch, 16]; and `z` = x + x."""
    w = (np.random.default_rng(0).standard_normal((16, 16)) / 4).astype(np.float32)
    nodes = [
        h.make_node("MatMul", ["x", "w"], ["a"]), h.make_node("Relu", ["a"], ["b"]),
        h.make_node("MatMul", ["b", "w"], ["c"]), h.make_node("Softmax", ["c"], ["y"]),
        h.make_node("Add", ["x", "x"], ["z"]),
    ]  # fmt: skip
    border = [(name, T.FLOAT, [batch, 16]) for name in ("x", "y", "z")]
    return save(path, nodes, border[:1], border[1:], {"w": w})


def model_of(path: Path, config: HardwareConfig | None = None, **bounds: Range) -> Model:
    """The model as an adapter gets it: with the config's shapes as bounds, or these."""
    format = OnnxFormat()
    files = format.complete({"model": path})
    graph = format.read(files)
    graph = graph.with_bounds(bounds) if config is None else apply_shapes(graph, config)
    return Model("onnx", files, "test", graph)


def config_of(**fields: Any) -> HardwareConfig:
    return HardwareConfig.load({"hardware": "gpu", "backend": "tensorrt", **fields})


def adapter_of(config: HardwareConfig, device: Device | None) -> GpuTensorRt:
    options = TensorRtOptions.model_validate(dict(config.options))
    return GpuTensorRt(ResolvedConfig(config, options, 1), device)


def plan_of(adapter: GpuTensorRt, model: Model, io: int = 0) -> SegmentPlan:
    """What a compile of the whole model is given."""
    graph = model.graph
    nodes = tuple(node.index for node in graph.nodes)
    segment = Segment(0, adapter.name(), nodes, graph.inputs, graph.outputs)
    return SegmentPlan(segment, PrecisionPlan(adapter.config.precision), SegmentMemory(io=io))


class Work:
    """An adapter with a model of its own, compiled and loaded in this process."""

    def __init__(self, folder: Path, path: Path, device: Device | None = None, **fields: Any) -> None:
        self.config = config_of(**fields)
        found = GpuTensorRt.probe_device().devices
        self.device = device or (found[0] if found else None)
        self.adapter = adapter_of(self.config, self.device)
        self.model = model_of(path, self.config)
        self.told: list[str] = []
        (folder / "cache").mkdir(exist_ok=True)
        self.context = Context(folder, folder / "cache", self.told.append)

    def compile(self) -> Artifact:
        return self.adapter.compile(self.model, plan_of(self.adapter, self.model), self.context)

    def load(self) -> Any:
        return self.adapter.load(self.compile(), self.context)


def x(rows: int, seed: int = 1) -> Any:
    """What `net` is fed."""
    return np.random.default_rng(seed).standard_normal((rows, 16)).astype(np.float32)


def right(answers: Any, feed: Any) -> bool:
    """Whether these are `net`'s answers."""
    return bool(np.allclose(answers["y"].sum(axis=1), 1, atol=1e-5) and np.array_equal(answers["z"], feed + feed))


def live() -> dict[str, int]:
    """What the fake device holds, by kind."""
    found: dict[str, int] = cuda.runtime().live()
    return found


def nothing() -> dict[str, int]:
    """`live` where all was given back."""
    return dict.fromkeys(live(), 0)


Make = Callable[..., Work]
__all__ = [
    "Make", "T", "Work", "adapter_of", "config_of", "h", "live", "model_of", "net", "nothing", "plan_of", "right",
    "save", "x",
]  # fmt: skip
