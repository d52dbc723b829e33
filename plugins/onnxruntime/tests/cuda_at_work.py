"""The adapter `gpu/cuda` as its tests use it; some of it in processes that have the fake CUDA runtime."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from paddock.config import HardwareConfig
from paddock.errors import PaddockError
from paddock.model import Model
from paddock.onnx_format import OnnxFormat
from paddock.plan import Precision, PrecisionPlan, Segment
from paddock.spi import Context, Device, ResolvedConfig, SegmentMemory, SegmentPlan, Session
from paddock_onnxruntime.cuda import GpuCuda, named, verdicts
from paddock_onnxruntime.cuda_session import CudaOptions, astray, placed, session
from paddock_onnxruntime.host_nodes import host_names

DEVICE = Device(0, "Paddock's fake CUDA device", {}, 8 << 30, "gpu")


def model_of(path: Path) -> Model:
    """The model as Paddock reads it."""
    format = OnnxFormat()
    files = format.complete({"model": path})
    return Model("onnx", files, "test", format.read(files))


def adapter_of(device: Device | None = DEVICE, memory: str | None = None, **options: Any) -> GpuCuda:
    """The adapter with these options."""
    config: dict[str, Any] = {"hardware": "gpu", "backend": "cuda"}
    if memory is not None:
        config["memory"] = {"limit": memory}
    return GpuCuda(ResolvedConfig(HardwareConfig.load(config), CudaOptions(**options), 1), device)


def segment_of(model: Model) -> SegmentPlan:
    """The whole model as one segment."""
    graph = model.graph
    segment = Segment(0, "gpu/cuda", tuple(range(len(graph.nodes))), graph.inputs, graph.outputs)
    return SegmentPlan(segment, PrecisionPlan(Precision.FP32), SegmentMemory())


def loaded(path: Path, memory: str | None = None, **options: Any) -> Session:
    """A session on the device."""
    adapter, context = adapter_of(memory=memory, **options), Context(path.parent, path.parent)
    return adapter.load(adapter.compile(model_of(path), segment_of(model_of(path)), context), context)


def held() -> tuple[int, int, int]:
    """What the fake has given out: bytes, pieces, and the most bytes at once."""
    library = ctypes.CDLL("libcudart.so.13")
    found = []
    for what in ("held", "count", "peak"):
        function = getattr(library, f"paddock_fake_cuda_{what}")
        function.restype = ctypes.c_size_t
        found.append(int(function()))
    return found[0], found[1], found[2]


def observe(path: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """What a session of these options says took effect."""
    return dict(loaded(path, **options).observed().settings)


def limited(path: Path, memory: str) -> Any:
    """The limit of the arena that a config's `memory.limit` comes to."""
    return loaded(path, memory).observed().settings["options.arena_limit"]


def refusal(path: Path, options: Mapping[str, Any]) -> tuple[str, str, tuple[int, ...]]:
    """How it refuses a model: the error's class, its problem, and the nodes that it names."""
    try:
        loaded(path, **options)
    except PaddockError as error:
        return type(error).__name__, error.problem, tuple(getattr(error, "nodes", ()))
    return "", "", ()


def lives(path: Path, rows: int) -> dict[str, Any]:
    """What a session does: it is loaded, run in each of its ways, and closed; with what is held on the device then."""
    before = held()
    made = loaded(path)
    after_load = held()
    x = np.ones((rows, 64), np.float32)
    y = np.full((rows, 64), -1, np.float32)
    shape = made.run({"x": x})["y"].shape
    made.run_into({"x": x}, {"y": y})
    try:
        made.run({"x": np.ones((rows, 3), np.float32)})
        error = ""
    except Exception as raised:  # whatever onnxruntime raises
        error = type(raised).__name__
    bound = made.bind({"x": x, "y": y})
    y[...] = -1
    made.run({}, ())
    written = bool((y != -1).all())
    nodes = made.observed().nodes
    made.close()
    gc.collect()
    return {"before": before, "loaded": after_load, "left": held(), "shape": shape, "bound": sorted(bound),
            "written": written, "error": error, "nodes": nodes}  # fmt: skip


def out_of_memory(path: Path, options: Mapping[str, Any], rows: int) -> tuple[str, str]:
    """What a run that the arena does not hold ends with, and one that it holds afterwards."""
    made = loaded(path, **options)
    try:
        made.run({"x": np.zeros((rows, 64), np.float32)})
        first = ""
    except Exception as raised:  # whatever onnxruntime raises
        first = f"{type(raised).__name__}: {raised}"
    return first, str(made.run({"x": np.zeros((2, 64), np.float32)})["y"].shape)


def probed() -> tuple[bool, str, dict[str, str], dict[str, Any]]:
    """Both probes: whether it is there, why not, versions; and of each device the verdicts."""
    probe = GpuCuda.probe()
    found: dict[str, Any] = {}
    if probe.verdict.usable:
        devices = GpuCuda.probe_device()
        found = {d.name: {str(p): (v.usable, v.reason) for p, v in d.precisions.items()} for d in devices.devices}
        found["verdict"] = devices.verdict.reason
    return probe.verdict.usable, probe.verdict.reason, dict(probe.versions), found


def compare(paths: list[Path]) -> list[tuple[str, bool, str]]:
    """For each model whether the table takes all of its nodes, and what the provider makes of it."""
    found = []
    for path in paths:
        graph = model_of(path).graph
        table = all(verdict.usable for verdict in verdicts(graph, path, on_device=True))
        try:
            there = placed(session(named(path), CudaOptions(graph_optimization="off"), 0, {}))
        except Exception as error:  # onnxruntime raises classes of its own that share only this base
            found.append((path.parent.name, table, f"fails: {' '.join(str(error).split())[:200]}"))
            continue
        left = astray(there, host_names(graph))
        found.append((path.parent.name, table, f"leaves {', '.join(sorted(left.values()))}" if left else ""))
    return found


def main() -> None:
    """Answers one call, by pickle from the standard input to the standard output."""
    import pickle

    function, arguments = pickle.load(sys.stdin.buffer)
    answer: Callable[..., Any] = globals()[function]
    content = pickle.dumps(answer(*arguments))
    sys.stdout.flush()
    Path(sys.argv[1]).write_bytes(content)


if __name__ == "__main__":
    main()
