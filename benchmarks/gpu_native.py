"""GPUs by the runtimes' own APIs, as their documentation shows them: what `gpu/*` is measured against.

Each takes the file that Paddock gave to its own session, so that both compute the same operators in the same dtypes.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.native import Runner, onnxruntime


@dataclass(frozen=True)
class Native:
    """A model on a runtime's own API: how to run it, and how to let it go."""

    run: Runner
    close: Callable[[], None] = lambda: None


def cuda(path: Path, batch: int) -> Native:
    """ONNX Runtime's CUDA provider, float32 as float32, inputs and outputs in the host's memory."""
    import onnxruntime as ort

    options = {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}
    session = ort.InferenceSession(
        str(path), providers=[("CUDAExecutionProvider", options), "CPUExecutionProvider"], enable_fallback=0
    )
    if "CUDAExecutionProvider" not in session.get_providers():
        raise RuntimeError("onnxruntime left its CUDA provider out")
    return Native(lambda feeds: session.run(None, dict(feeds)))


def tensorrt(path: Path, batch: int) -> Native:
    """TensorRT as trtexec runs it, which is imported where it is measured."""
    from benchmarks import gpu_tensorrt

    return Native(*gpu_tensorrt.tensorrt(path, batch))


def cpu(path: Path, batch: int) -> Native:
    """ONNX Runtime on the CPU: a stand-in, to try the harness where there is no GPU."""
    return Native(onnxruntime({"model": path}, 2))


NATIVE: Mapping[str, Callable[[Path, int], Native]] = {
    "gpu/cuda": cuda,
    "gpu/tensorrt": tensorrt,
    "cpu/onnxruntime": cpu,
}


def free_bytes() -> int | None:
    """Bytes of the current device's memory that are free, by this process's CUDA runtime; None without one."""
    with suppress(ImportError):
        from cuda.bindings import runtime

        status, free, _ = runtime.cudaMemGetInfo()
        return int(free) if int(status) == 0 else None
    for library in ("libcudart.so.13", "libcudart.so.12"):
        with suppress(OSError, AttributeError):
            left, total = ctypes.c_size_t(), ctypes.c_size_t()
            loaded = ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
            if loaded.cudaMemGetInfo(ctypes.byref(left), ctypes.byref(total)) == 0:
                return left.value
    return None
