"""One start of one model, timed in a fresh process: `python -m benchmarks.first_answer HOW ADAPTER MODEL FILES`.

Prints the seconds from the call that loads the model to the end of its first answer. HOW is "paddock" (from `deploy`,
with Paddock imported), "native" (the runtime's own API on the model's files, its import included) or "own" (the same on
the form that the runtime itself keeps: an optimised model, a compiled blob). FILES is JSON: role -> path.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.native import NATIVE

SHAPE = (1, 3, 224, 224)
THREADS = 2


def paddock(adapter: str, model: str) -> Callable[[np.ndarray[Any, Any]], float]:
    """Times `deploy` and the first answer."""
    import paddock

    deploy = paddock.deploy
    hardware, _, backend = adapter.partition("/")

    def start(image: np.ndarray[Any, Any]) -> float:
        begun = time.perf_counter()
        deployment = deploy(model, {"hardware": hardware, "backend": backend, "threads": THREADS})
        deployment.run({next(iter(deployment.inputs)): image})
        return time.perf_counter() - begun

    return start


def native(adapter: str, files: dict[str, Path]) -> Callable[[np.ndarray[Any, Any]], float]:
    """Times the runtime's import, the model's load and the first answer."""

    def start(image: np.ndarray[Any, Any]) -> float:
        begun = time.perf_counter()
        run = NATIVE[adapter](files, THREADS)
        run({"image": image})
        return time.perf_counter() - begun

    return start


def own(adapter: str, files: dict[str, Path]) -> Callable[[np.ndarray[Any, Any]], float]:
    """The same on what the runtime keeps itself."""

    def start(image: np.ndarray[Any, Any]) -> float:
        begun = time.perf_counter()
        if "compiled" in files:
            from paddock_openvino.sdk import openvino as without_telemetry

            ov = without_telemetry()
            mapped = np.memmap(files["compiled"], np.uint8, "c")
            compiled = ov.Core().import_model(ov.Tensor(mapped, True), "CPU", {"INFERENCE_NUM_THREADS": THREADS})
            compiled.create_infer_request().infer({"image": image})
        else:
            import onnxruntime as ort

            options = ort.SessionOptions()
            options.intra_op_num_threads = THREADS
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
            session = ort.InferenceSession(str(files["model"]), options, providers=["CPUExecutionProvider"])
            session.run(None, {"image": image})
        return time.perf_counter() - begun

    return start


def main() -> None:
    """See the module."""
    how, adapter, model, text = sys.argv[1:]
    files = {role: Path(path) for role, path in json.loads(text).items()}
    image = np.random.default_rng(0).standard_normal(SHAPE, dtype=np.float32)
    start = paddock(adapter, model) if how == "paddock" else (own if how == "own" else native)(adapter, files)
    print(json.dumps(start(image)))


if __name__ == "__main__":
    main()
