"""GPUs by the runtimes' own APIs, as their documentation shows them: what `gpu/*` is measured against.

Each takes the file that Paddock gave to its own session, so that both compute the same operators in the same dtypes.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.native import Feeds, Runner, onnxruntime


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
    """TensorRT as trtexec does it: one engine for this batch, one context, copies and kernels on one stream."""
    import tensorrt as trt
    from cuda.bindings import runtime

    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    strongly = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if strongly is None else 1 << int(strongly))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(path)):
        raise RuntimeError("; ".join(str(parser.get_error(i)) for i in range(parser.num_errors)))
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    with suppress(AttributeError):  # where float32 is TF32 unless that is cleared
        config.clear_flag(trt.BuilderFlag.TF32)
    for number in range(network.num_inputs):
        tensor = network.get_input(number)
        shape = tuple(batch if extent == -1 else extent for extent in tensor.shape)
        profile.set_shape(tensor.name, shape, shape, shape)
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise RuntimeError("TensorRT built no engine")
    engine = trt.Runtime(logger).deserialize_cuda_engine(plan)
    context = engine.create_execution_context()
    names = [engine.get_tensor_name(number) for number in range(engine.num_io_tensors)]
    inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
    for name in inputs:
        shape = engine.get_tensor_shape(name)
        context.set_input_shape(name, tuple(batch if extent == -1 else extent for extent in shape))
    host = {
        name: np.empty(tuple(context.get_tensor_shape(name)), trt.nptype(engine.get_tensor_dtype(name)))
        for name in names
    }
    memory = {name: _ok(runtime.cudaMalloc(array.nbytes)) for name, array in host.items()}
    for name, pointer in memory.items():
        context.set_tensor_address(name, int(pointer))
    stream = _ok(runtime.cudaStreamCreate())
    to, back = runtime.cudaMemcpyKind.cudaMemcpyHostToDevice, runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost

    def run(feeds: Feeds) -> list[Any]:
        for name in inputs:
            _ok(runtime.cudaMemcpyAsync(memory[name], feeds[name].ctypes.data, feeds[name].nbytes, to, stream))
        if not context.execute_async_v3(int(stream)):
            raise RuntimeError("TensorRT did not run")
        made = [host[name] for name in names if name not in inputs]
        for name, array in host.items():
            if name not in inputs:
                _ok(runtime.cudaMemcpyAsync(array.ctypes.data, memory[name], array.nbytes, back, stream))
        _ok(runtime.cudaStreamSynchronize(stream))
        return [array.copy() for array in made]

    def close() -> None:
        for pointer in memory.values():
            _ok(runtime.cudaFree(pointer))
        _ok(runtime.cudaStreamDestroy(stream))

    return Native(run, close)


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
    for library in ("libcudart.so.13", "libcudart.so.12"):
        with suppress(OSError, AttributeError):
            left, total = ctypes.c_size_t(), ctypes.c_size_t()
            runtime = ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
            if runtime.cudaMemGetInfo(ctypes.byref(left), ctypes.byref(total)) == 0:
                return left.value
    return None


def _ok(answer: Any) -> Any:
    """What a call of cuda-bindings gives beside its status, which has to be success."""
    status, *rest = answer
    if int(status) != 0:
        raise RuntimeError(f"CUDA says {status}")
    return rest[0] if rest else None
