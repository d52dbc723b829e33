"""TensorRT by its own API, as trtexec runs it: what `gpu/tensorrt` is measured against.

One engine for one batch size, one context, pinned host memory, one stream, and copies and kernels in one CUDA graph
where TensorRT's work can be captured. Its names are held against both majors of TensorRT by the plugin's tests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import tensorrt_bindings as trt
else:
    from paddock_tensorrt.sdk import trt


_DTYPES = {"FLOAT": "f4", "HALF": "f2", "INT8": "i1", "UINT8": "u1", "INT32": "i4", "INT64": "i8", "BOOL": "?"}
"""NumPy's types by TensorRT's names of those that NumPy has."""


def tensorrt(path: Path, batch: int) -> tuple[Callable[[Mapping[str, Any]], list[Any]], Callable[[], None]]:
    """How to run the model in a file at one batch size, and how to let it go; raises `RuntimeError`."""
    logger = trt.Logger(trt.Logger.ERROR)
    engine = trt.Runtime(logger).deserialize_cuda_engine(_plan(path, batch, logger))
    if engine is None:
        raise RuntimeError("TensorRT does not load its own engine")
    context = engine.create_execution_context()
    names = [engine.get_tensor_name(number) for number in range(engine.num_io_tensors)]
    inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
    for name in inputs:
        if not context.set_input_shape(name, _fixed(engine.get_tensor_shape(name), batch)):
            raise RuntimeError(f"TensorRT does not take batch size {batch} for {name}")
    outputs = [name for name in names if name not in inputs]
    host: dict[str, np.ndarray[Any, Any]] = {
        name: np.zeros(_fixed(context.get_tensor_shape(name), batch), _DTYPES[engine.get_tensor_dtype(name).name])
        for name in names
    }
    return _run(context, host, inputs, outputs)


def _run(
    context: trt.IExecutionContext, host: Mapping[str, np.ndarray[Any, Any]], inputs: list[str], outputs: list[str]
) -> tuple[Callable[[Mapping[str, Any]], list[Any]], Callable[[], None]]:
    from cuda.bindings import runtime

    to, back = runtime.cudaMemcpyKind.cudaMemcpyHostToDevice, runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
    stream = checked(runtime.cudaStreamCreateWithFlags(runtime.cudaStreamNonBlocking))
    memory = {name: int(checked(runtime.cudaMalloc(array.nbytes))) for name, array in host.items()}
    for name, array in host.items():
        checked(runtime.cudaHostRegister(array.ctypes.data, array.nbytes, runtime.cudaHostRegisterDefault))
        context.set_tensor_address(name, memory[name])

    def put() -> None:
        for name in inputs:
            checked(runtime.cudaMemcpyAsync(memory[name], host[name].ctypes.data, host[name].nbytes, to, stream))
        if not context.execute_async_v3(int(stream)):
            raise RuntimeError("TensorRT did not run")
        for name in outputs:
            checked(runtime.cudaMemcpyAsync(host[name].ctypes.data, memory[name], host[name].nbytes, back, stream))

    put()  # what TensorRT does once, it does before anything is captured
    checked(runtime.cudaStreamSynchronize(stream))
    graph = _captured(runtime, stream, put)

    def run(feeds: Mapping[str, Any]) -> list[Any]:
        for name in inputs:
            np.copyto(host[name], feeds[name])
        if graph is None:
            put()
        else:
            checked(runtime.cudaGraphLaunch(graph, stream))
        checked(runtime.cudaStreamSynchronize(stream))
        return [host[name].copy() for name in outputs]

    def close() -> None:
        if graph is not None:
            checked(runtime.cudaGraphExecDestroy(graph))
        for name, array in host.items():
            checked(runtime.cudaHostUnregister(array.ctypes.data))
            checked(runtime.cudaFree(memory[name]))
        checked(runtime.cudaStreamDestroy(stream))

    return run, close


def _captured(runtime: Any, stream: Any, put: Callable[[], None]) -> Any:
    """What `put` puts into the stream, as a graph to launch; None where it cannot be captured."""
    checked(runtime.cudaStreamBeginCapture(stream, runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal))
    try:
        put()
    except RuntimeError:
        runtime.cudaStreamEndCapture(stream)
        return None
    status, *graph = runtime.cudaStreamEndCapture(stream)
    if int(status) != 0:
        return None
    found = checked(runtime.cudaGraphInstantiate(graph[0], 0))
    checked(runtime.cudaGraphDestroy(graph[0]))
    return found


def _plan(path: Path, batch: int, logger: trt.Logger) -> bytes:
    builder = trt.Builder(logger)
    strongly = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if strongly is None else 1 << int(strongly))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(path.read_bytes(), str(path)):
        raise RuntimeError("; ".join(str(parser.get_error(i)) for i in range(parser.num_errors)))
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    with suppress(AttributeError):  # where float32 is TF32 unless that is cleared
        config.clear_flag(trt.BuilderFlag.TF32)
    for number in range(network.num_inputs):
        tensor = network.get_input(number)
        shape = trt.Dims(_fixed(tensor.shape, batch))
        profile.set_shape(tensor.name, shape, shape, shape)
    config.add_optimization_profile(profile)
    plan: Any = builder.build_serialized_network(network, config)
    if plan is None:
        raise RuntimeError("TensorRT built no engine")
    return bytes(plan)  # a buffer, which its docstrings do not tell


def _fixed(shape: trt.Dims, batch: int) -> tuple[int, ...]:
    return tuple(batch if shape[axis] == -1 else shape[axis] for axis in range(len(shape)))


def checked(answer: Any) -> Any:
    """What a call of cuda-bindings gives beside its status, which has to be success."""
    status, *rest = answer
    if int(status) != 0:
        raise RuntimeError(f"CUDA says {status}")
    return rest[0] if rest else None
