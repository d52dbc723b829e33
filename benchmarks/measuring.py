"""The parts of a measurement that run in a child process, one runtime each."""

from __future__ import annotations

import importlib.metadata
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from paddock.child import Child
from paddock.deployment import deploy
from paddock.registry import GROUP, Registry

from benchmarks.native import NATIVE
from benchmarks.null_adapter import NullSession


def save_identities(folder: Path) -> Mapping[str, Path]:
    """The least model of each format, input x: float32 [n, 16]: an Identity in ONNX, a relu in Paddle."""
    import onnx
    from onnx import TensorProto, helper

    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 16]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "identity", value[:1], value[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(folder / "identity.onnx"))
    with Child("exporting the identity") as child:
        child.call(_save_paddle_identity, folder / "identity")
    return {"onnx": folder / "identity.onnx", "paddle": folder / "identity.json"}


def _save_paddle_identity(stem: Path) -> None:
    import paddle

    class Identity(paddle.nn.Layer):
        def forward(self, x: Any) -> Any:
            # paddle.jit.save drops a multiplication by one, and an output that is an input is refused.
            return paddle.nn.functional.relu(x)

    spec = [paddle.static.InputSpec([None, 16], "float32", "x")]
    paddle.jit.save(Identity(), str(stem), input_spec=spec)


def measure(adapter: str, model: Path, shape: tuple[int, ...], blocks: int, runs: int) -> dict[str, float]:
    """Medians in microseconds: native, Paddock, and the difference; runs in a child."""
    registry = _registry()
    hardware, _, backend = adapter.partition("/")
    config = {"hardware": hardware, "backend": backend, "accuracy": {"verify": "off"}}
    with deploy(model, config, registry=registry) as deployment:
        name = deployment.model.graph.input_values[0].name
        feeds = {name: np.random.default_rng(0).standard_normal(shape, dtype=np.float32)}
        native = _native(adapter, deployment)
        return _compare(lambda: native(feeds), lambda: deployment.run(feeds), blocks, runs)


def _native(adapter: str, deployment: Any) -> Callable[[Any], Any]:
    if adapter == "none/null":
        return NullSession("y").run
    threads = next(s.requested for s in deployment.plan.settings if s.name == "threads")
    inner = NATIVE[adapter](deployment.lowered[1], threads)
    (name,) = deployment.artifacts[0].inputs
    return lambda feeds: inner({name: next(iter(feeds.values()))})


def _compare(native: Callable[[], Any], ours: Callable[[], Any], blocks: int, runs: int) -> dict[str, float]:
    for call in (native, ours) * 3:
        call()
    times: dict[str, list[float]] = {"native": [], "paddock": []}
    for number in range(blocks):
        pair = [("native", native), ("paddock", ours)]
        for label, call in pair if number % 2 == 0 else pair[::-1]:
            begun = time.perf_counter()
            for _ in range(runs):
                call()
            times[label].append((time.perf_counter() - begun) / runs * 1e6)
    differences = sorted(p - n for p, n in zip(times["paddock"], times["native"], strict=True))
    return {
        "native": statistics.median(times["native"]),
        "paddock": statistics.median(times["paddock"]),
        "added": statistics.median(differences),
        "spread": differences[len(differences) * 3 // 4] - differences[len(differences) // 4],
    }


def compare_calls(
    native: Callable[[], Any] | None, ours: Callable[[], Any], blocks: int, seconds: float
) -> dict[str, float | None]:
    """As `measure` does for two calls of any length: each block takes about so many seconds, of at least one call.

    Without a native call its figures are None.
    """
    begun = time.perf_counter()
    for _ in range(3):
        ours()
    runs = max(1, round(seconds / max(1e-6, (time.perf_counter() - begun) / 3)))
    found: dict[str, float | None] = {}
    found.update(_compare(ours if native is None else native, ours, blocks, runs))
    return found if native is not None else {**dict.fromkeys(found), "paddock": found["paddock"]}


def _registry() -> Registry:
    null = importlib.metadata.EntryPoint("null", "benchmarks.null_adapter", GROUP)
    return Registry.discover(entry_points=[*importlib.metadata.entry_points(group=GROUP), null])
