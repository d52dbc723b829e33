"""A FAKE of TensorRT's Python API, for tests without a GPU: what it "builds" is computed by onnxruntime on the CPU.

It keeps the rules that a session has to keep (a profile chosen, shapes in its range, memory of the device given and
large enough, addresses set) and fails where they are not. Names and arguments are those of the real bindings, which a
test compares with both majors. FAKE_TENSORRT holds faults, comma-separated; each stands where it is looked for.
"""

from __future__ import annotations

import ctypes
import json
import os
import pickle
import sys
from collections.abc import Sequence
from enum import IntEnum
from typing import Any

import numpy as np
import onnx
from cuda.bindings import runtime as _cuda
from onnx import numpy_helper

__version__ = "11.4.0.106+fake"
GPU = "Fake GPU (no device)"
SCRATCH = 4096
"""Bytes that a context takes of the device's memory, times the number of its profile and one more."""


def faults() -> dict[str, str]:
    given = os.environ.get("FAKE_TENSORRT", "").split(",")
    return {name: value for name, _, value in (fault.partition("=") for fault in given) if name}


class NetworkDefinitionCreationFlag(IntEnum):
    STRONGLY_TYPED = 1


class BuilderFlag(IntEnum):
    TF32 = 7


class MemoryPoolType(IntEnum):
    WORKSPACE = 0


class ProfilingVerbosity(IntEnum):
    LAYER_NAMES_ONLY = 0
    DETAILED = 1


class LayerInformationFormat(IntEnum):
    JSON = 1


class ExecutionContextAllocationStrategy(IntEnum):
    STATIC = 0
    USER_MANAGED = 2


class TensorIOMode(IntEnum):
    INPUT = 1
    OUTPUT = 2


class TensorLocation(IntEnum):
    DEVICE = 0
    HOST = 1


class EngineStat(IntEnum):
    TOTAL_WEIGHTS_SIZE = 0


class DataType(IntEnum):
    FLOAT = 0
    HALF = 1
    INT8 = 2
    INT32 = 3
    BOOL = 4
    UINT8 = 5
    BF16 = 7
    INT64 = 8


_KINDS = {
    "float32": DataType.FLOAT, "float16": DataType.HALF, "int8": DataType.INT8, "int32": DataType.INT32,
    "bool": DataType.BOOL, "uint8": DataType.UINT8, "int64": DataType.INT64,
}  # fmt: skip


class Dims:
    def __init__(self, shape: Sequence[int] = ()) -> None:
        self._shape = tuple(shape)

    def __len__(self) -> int:
        return len(self._shape)

    def __getitem__(self, arg0: int) -> int:
        return self._shape[arg0]


class ILogger:
    class Severity(IntEnum):
        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2

    def log(self, severity: ILogger.Severity, msg: str) -> None:
        raise NotImplementedError


class IProgressMonitor:
    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        raise NotImplementedError

    def phase_finish(self, phase_name: str) -> None:
        raise NotImplementedError

    def step_complete(self, phase_name: str, step: int) -> bool:
        raise NotImplementedError


class IOutputAllocator:
    pass


class IHostMemory(bytes):
    """The real one is a buffer and no bytes; nothing but `bytes()` of it is to be used."""

    @property
    def nbytes(self) -> int:
        return len(self)


class ITensor:
    def __init__(self, port: Any, shaping: bool) -> None:
        self.name = port.name
        self.is_shape_tensor = shaping


class INetworkDefinition:
    def __init__(self, logger: ILogger) -> None:
        self._logger = logger
        self._model: Any = None

    @property
    def num_inputs(self) -> int:
        return len(self._inputs())

    @property
    def num_layers(self) -> int:
        return len(self._model.graph.node)

    def get_input(self, index: int) -> ITensor:
        port = self._inputs()[index]
        shaping = {node.input[1] for node in self._model.graph.node if node.op_type in ("Reshape", "Expand")}
        return ITensor(port, port.name in shaping)

    def _inputs(self) -> list[Any]:
        held = {tensor.name for tensor in self._model.graph.initializer}
        return [port for port in self._model.graph.input if port.name not in held]


class ParserError:
    def __init__(self, node: int, text: str, file: str = "ModelImporter.cpp") -> None:
        self._told = node, text, file

    def node(self) -> int:
        return self._told[0]

    def desc(self) -> str:
        return self._told[1]

    def file(self) -> str:
        return self._told[2]


class OnnxParser:
    """Takes all nodes but those of the operators in the fault `refuse=A+B`; stops at those in `stop=A`.

    `input=X` refuses that input, `model` all of it. As the real one (reportSubgraphs of onnx-tensorrt's
    ModelImporter.cpp) it names only its last error's node, and what reads a refused input, as parts of no subgraph; and
    of no subgraph it says that it is taken where there is any error.
    """

    def __init__(self, network: INetworkDefinition, logger: ILogger) -> None:
        if "null-parser" in faults():
            raise TypeError("pybind11::init(): factory function returned nullptr")
        self._network = network
        self._logger = logger
        self._errors: list[ParserError] = []
        self._subgraphs: list[tuple[list[int], bool]] = []

    def parse(self, model: bytes, path: str | None = None) -> bool:
        proto = onnx.load_from_string(bytes(model))
        if path is not None:
            onnx.load_external_data_for_model(proto, os.path.dirname(path))
        self._network._model = proto
        nodes = proto.graph.node
        if "model" in faults():
            self._errors = [ParserError(-1, "the model is of a version that TensorRT has not")]
        lost = faults().get("input", "")
        if any(port.name == lost for port in proto.graph.input):
            self._errors = [ParserError(-1, "an input has a type that TensorRT has not", lost)]
        refused = faults().get("refuse", "").split("+")
        stop = faults().get("stop", "")
        if not self._errors:
            for index, node in enumerate(nodes):
                if node.op_type in refused or not onnx.defs.has(node.op_type, node.domain):
                    self._errors.append(ParserError(index, f"no importer for\n  {node.op_type}"))
                if node.op_type == stop:
                    self._errors.append(ParserError(index, "assertion failed"))
                    break
        for error in self._errors:
            self._logger.log(ILogger.Severity.ERROR, f"While parsing node number {error.node()}: {error.desc()}")
        last = self._errors[-1].node() if self._errors else -1
        fresh = True
        for index, node in enumerate(nodes):
            left_out = index == last or (bool(lost) and bool(self._errors) and lost in node.input)
            if not left_out:
                if fresh:
                    self._subgraphs.append(([], not self._errors))
                self._subgraphs[-1][0].append(index)
            fresh = left_out
        return not self._errors

    def supports_model_v2(self, model: bytes, path: str | None = None) -> bool:
        return self.parse(model, path)

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> ParserError:
        return self._errors[index]

    @property
    def num_subgraphs(self) -> int:
        return len(self._subgraphs)

    def get_subgraph_nodes(self, index: int) -> list[int]:
        return self._subgraphs[index][0]

    def is_subgraph_supported(self, index: int) -> bool:
        return self._subgraphs[index][1]


class IOptimizationProfile:
    def __init__(self) -> None:
        self._shapes: dict[str, tuple[tuple[int, ...], ...]] = {}

    def set_shape(self, input: str, min: Dims, opt: Dims, max: Dims) -> None:
        if "profile" in faults():
            raise RuntimeError("the dimensions are inconsistent")
        self._shapes[input] = (min._shape, opt._shape, max._shape)


class ITimingCache:
    def __init__(self, content: bytes) -> None:
        self._content = content

    def serialize(self) -> IHostMemory:
        return IHostMemory(self._content + b".")


class IBuilderConfig:
    def __init__(self, logger: ILogger) -> None:
        self._logger = logger
        self._flags = {BuilderFlag.TF32}
        self._pools = {MemoryPoolType.WORKSPACE: _cuda.MEMORY}
        self._profiles: list[IOptimizationProfile] = []
        self._cache: ITimingCache | None = None
        self.profiling_verbosity = ProfilingVerbosity.LAYER_NAMES_ONLY
        self.builder_optimization_level = 3
        self.progress_monitor: IProgressMonitor | None = None

    def set_flag(self, flag: BuilderFlag) -> None:
        self._flags.add(flag)

    def clear_flag(self, flag: BuilderFlag) -> None:
        self._flags.discard(flag)

    def get_flag(self, flag: BuilderFlag) -> bool:
        return flag in self._flags

    def set_memory_pool_limit(self, pool: MemoryPoolType, pool_size: int) -> None:
        self._pools[pool] = pool_size

    def get_memory_pool_limit(self, pool: MemoryPoolType) -> int:
        return int(self._pools[pool])

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        if "add-profile" in faults():
            self._logger.log(ILogger.Severity.ERROR, "the profile is incomplete")
            return -1
        self._profiles.append(profile)
        return len(self._profiles) - 1

    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache:
        return ITimingCache(bytes(serialized_timing_cache))

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        if "timings" in faults() and cache._content:
            self._logger.log(ILogger.Severity.ERROR, "the timing cache is of another device")
            return False
        self._cache = cache
        return True

    def get_timing_cache(self) -> ITimingCache | None:
        return self._cache


class Builder:
    def __init__(self, logger: ILogger) -> None:
        if "null-builder" in faults():
            logger.log(ILogger.Severity.ERROR, "CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")
        self.logger = logger

    def create_network(self, flags: int = 0) -> INetworkDefinition | None:
        if not flags & 1 << int(NetworkDefinitionCreationFlag.STRONGLY_TYPED):
            raise AssertionError("TensorRT 10 would choose types by itself")
        return None if "null-network" in faults() else INetworkDefinition(self.logger)

    def create_builder_config(self) -> IBuilderConfig | None:
        return None if "null-config" in faults() else IBuilderConfig(self.logger)

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile()

    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> IHostMemory | None:
        for fault, text in (
            ("no-tactic", "could not find any implementation for node {ForeignNode[x...y]}"),
            ("no-workspace", "could not find any implementation for node x (due to insufficient workspace)"),
            ("build-memory", "Requested amount of GPU memory could not be allocated: out of memory"),
        ):
            if fault in faults():
                self.logger.log(ILogger.Severity.ERROR, text)
                return None
        if config.progress_monitor is not None and not _told(config.progress_monitor):
            return None
        # Kernels that do not fit are passed over; it is an error in the log, and none of the build.
        if "skipped" in faults():
            self.logger.log(ILogger.Severity.ERROR, "Skipping tactic 3 due to OutOfMemory error")
        detail = config.profiling_verbosity is ProfilingVerbosity.DETAILED
        shapes = [profile._shapes for profile in config._profiles]
        model = network._model.SerializeToString()
        gpu = "Another GPU" if "other-gpu" in faults() else GPU
        return IHostMemory(b"FAKE" + pickle.dumps((model, shapes, gpu, __version__, detail)))


def _told(monitor: IProgressMonitor) -> bool:
    """Tells a build's progress; False where it is to end. What is raised is printed, as the real bindings do."""
    steps: list[tuple[Any, ...]] = [("phase_start", "Building Engine", None, 2)]
    steps += [("phase_start", "Tactics", "Building Engine", 4)]
    steps += [("step_complete", "Tactics", step) for step in range(4)]
    steps += [("phase_finish", "Tactics"), ("step_complete", "Building Engine", 1), ("phase_finish", "Building Engine")]
    for name, *arguments in steps:
        try:
            found = getattr(monitor, name)(*arguments)
        except BaseException as error:
            sys.stderr.write(f"[ERROR] Exception caught in {name}(): {error}\n")
            found = False
        if name == "step_complete" and not found:
            return False
    return True


class Runtime:
    def __init__(self, logger: ILogger) -> None:
        if "null-runtime" in faults():
            raise TypeError("pybind11::init(): factory function returned nullptr")
        self.logger = logger
        self.engine_host_code_allowed = False

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
        content = bytes(serialized_engine)
        if content[:4] != b"FAKE":
            self.logger.log(ILogger.Severity.ERROR, "Serialization assertion stdVersionRead == kSERIALIZATION failed")
            return None
        try:
            model, shapes, gpu, version, detail = pickle.loads(content[4:])
        except Exception:
            self.logger.log(ILogger.Severity.ERROR, "deserialization failed: the plan is truncated")
            return None
        if gpu != GPU or version != __version__:
            text = "The engine plan file is generated on an incompatible device, expecting compute 9.0"
            self.logger.log(ILogger.Severity.ERROR, text)
            return None
        if "load-memory" in faults():
            self.logger.log(ILogger.Severity.ERROR, "Cuda Runtime (out of memory)")
            return None
        return ICudaEngine(self.logger, onnx.load_from_string(model), shapes, detail)


class EngineInspector:
    def __init__(self, engine: ICudaEngine) -> None:
        self._engine = engine

    def get_engine_information(self, format: LayerInformationFormat) -> str:
        if not self._engine._detail:
            return json.dumps({"Layers": [node.name for node in self._engine._model.graph.node]})
        typed = onnx.shape_inference.infer_shapes(self._engine._model).graph
        words = {1: "Row major linear FP32", 10: "Row major linear FP16 format", 16: "BF16", 3: "Int8"}
        kinds = {v.name: v.type.tensor_type.elem_type for v in (*typed.value_info, *typed.input, *typed.output)}
        return json.dumps(
            {
                "Layers": [
                    {
                        "Name": node.name, "LayerType": node.op_type,
                        "Inputs": [{"Name": n, "Format/Datatype": words.get(kinds.get(n, 0), "?")} for n in node.input],
                        "Outputs": [],
                    }
                    for node in typed.node
                ]
            }
        )  # fmt: skip


class ICudaEngine:
    def __init__(self, logger: ILogger, model: Any, shapes: list[Any], detail: bool) -> None:
        import onnxruntime

        self._logger, self._model, self._profiles, self._detail = logger, model, shapes, detail
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 4
        self._session = onnxruntime.InferenceSession(
            model.SerializeToString(), settings, providers=["CPUExecutionProvider"]
        )
        graph = model.graph
        held = {tensor.name for tensor in graph.initializer}
        self._ports = [p for p in graph.input if p.name not in held] + list(graph.output)
        self._inputs = {p.name for p in graph.input} - held
        self.num_layers = len(graph.node)
        self._on_host = faults().get("host", "").split("+")

    @property
    def num_io_tensors(self) -> int:
        return len(self._ports)

    @property
    def num_optimization_profiles(self) -> int:
        return max(1, len(self._profiles))

    @property
    def device_memory_size_v2(self) -> int:
        return SCRATCH * self.num_optimization_profiles

    def get_device_memory_size_for_profile_v2(self, profile_index: int) -> int:
        return SCRATCH * (profile_index + 1)

    def get_engine_stat(self, stat: EngineStat = EngineStat.TOTAL_WEIGHTS_SIZE) -> int:
        return sum(numpy_helper.to_array(tensor).nbytes for tensor in self._model.graph.initializer)

    def get_tensor_name(self, index: int) -> str:
        return str(self._ports[index].name)

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self._inputs else TensorIOMode.OUTPUT

    def get_tensor_location(self, name: str) -> TensorLocation:
        return TensorLocation.HOST if name in self._on_host else TensorLocation.DEVICE

    def get_tensor_dtype(self, name: str) -> DataType:
        return _KINDS[str(self._dtype(name))]

    def get_tensor_shape(self, name: str) -> Dims:
        return Dims(_extents(self._port(name)) if name in self._inputs else self._inferred({})[name])

    def create_execution_context(
        self, strategy: ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy.STATIC
    ) -> IExecutionContext | None:
        return None if "null-context" in faults() else IExecutionContext(self, strategy)

    def create_engine_inspector(self) -> EngineInspector:
        return EngineInspector(self)

    def _port(self, name: str) -> Any:
        return next(port for port in self._ports if port.name == name)

    def _dtype(self, name: str) -> np.dtype[Any]:
        kind = self._port(name).type.tensor_type.elem_type
        found: np.dtype[Any] = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind))
        return found

    def _inferred(self, shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """The outputs' shapes with inputs of these; -1 where they do not tell."""
        proto = onnx.ModelProto()
        proto.CopyFrom(self._model)
        del proto.graph.value_info[:]
        for port in proto.graph.input:
            for dim, extent in zip(port.type.tensor_type.shape.dim, shapes.get(port.name, ()), strict=False):
                dim.dim_value = extent
        for port in proto.graph.output:
            port.type.tensor_type.ClearField("shape")
        found = onnx.shape_inference.infer_shapes(proto, data_prop=True)
        return {port.name: _extents(port) for port in found.graph.output}


class IExecutionContext:
    def __init__(self, engine: ICudaEngine, strategy: ExecutionContextAllocationStrategy) -> None:
        self._of = engine
        self._managed = strategy is ExecutionContextAllocationStrategy.USER_MANAGED
        self._profile: int | None = None
        self._memory = (0, 0)
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._allocators: dict[str, Any] = {}
        for name in engine._inputs:
            shape = engine.get_tensor_shape(name)._shape
            if all(extent >= 0 for extent in shape):
                self._shapes[name] = shape

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        if not 0 <= profile_index < self._of.num_optimization_profiles:
            return self._no(f"there is no profile {profile_index}")
        if "take-profile" in faults():
            return self._no("no such profile now")
        self._profile, self._memory = profile_index, (0, 0)
        return True

    def set_device_memory(self, memory: int, size: int) -> None:
        self._memory = (memory, size)

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool:
        if self._profile is None:
            return self._no("no profile is chosen")
        low, _, high = self._of._profiles[self._profile][name]
        if len(shape) != len(low) or not all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True)):
            return self._no(f"{tuple(shape)} is out of the profile's range for {name}")
        self._shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        if not memory or memory % _cuda.ALIGNMENT:
            return self._no(f"the address {memory} is null, or no multiple of {_cuda.ALIGNMENT}")
        self._addresses[name] = memory
        return True

    def set_output_allocator(self, name: str, output_allocator: Any) -> bool:
        self._allocators[name] = output_allocator
        return True

    def infer_shapes(self) -> list[str]:
        if "infer" in faults():
            self._no("the shapes contradict each other")
            raise RuntimeError("infer_shapes: an internal error")
        return sorted(self._of._inputs - self._shapes.keys())

    def get_tensor_shape(self, name: str) -> Dims:
        if name in self._of._inputs:
            return Dims(self._shapes[name])
        return Dims(self._of._inferred(self._shapes)[name])

    def execute_async_v3(self, stream_handle: int) -> bool:
        for fault, text in (("run", "cask failure"), ("run-memory", "Cuda Runtime (out of memory)")):
            if fault in faults():
                return self._no(text)
        wanted = self._of.get_device_memory_size_for_profile_v2(self._profile or 0)
        if self._profile is None or (self._managed and self._memory[1] < wanted):
            return self._no("a profile has to be chosen, and memory given for it")
        if self._managed and not _cuda.holds(*self._memory):
            return self._no("the memory is not the device's")
        if self.infer_shapes():
            return self._no("shapes are missing")
        shapes, addresses = dict(self._shapes), dict(self._addresses)
        known = self._of._inferred(shapes)
        for name, shape in {**shapes, **known}.items():
            nbytes = int(np.prod(shape)) * self._of._dtype(name).itemsize
            on_host = self._of.get_tensor_location(name) is TensorLocation.HOST
            if min(shape, default=0) >= 0 and _cuda.holds(addresses.get(name, 0), nbytes) == on_host:
                return self._no(f"no memory of the {'host' if on_host else 'device'} for {name}")
            if min(shape, default=0) < 0 and name not in self._allocators:
                return self._no(f"nobody gives memory for {name}")
        stream = _cuda.streams[stream_handle]
        unknown = [name for name, shape in known.items() if min(shape, default=0) < 0]
        if not unknown:
            stream.put(lambda: self._write(self._computed(shapes, addresses), addresses))
            return True
        # As the real one: whoever gives memory for what only the numbers tell is asked before this returns.
        stream.finish()
        found = self._computed(shapes, addresses)
        for name in unknown:
            # Exceptions end in the bindings, which answer a null pointer for them.
            try:
                address = self._allocators[name].reallocate_output_async(name, 0, found[name].nbytes, 256, 0)
            except BaseException:
                address = 0
            if not address:
                return self._no("the output allocator returned null")
            if "untold" not in faults():
                self._allocators[name].notify_shape(name, Dims(found[name].shape))
            addresses[name] = address
        stream.put(lambda: self._write(found, addresses))
        return True

    def _computed(self, shapes: dict[str, Any], addresses: dict[str, int]) -> dict[str, Any]:
        feeds = {n: _read(addresses[n], self._of._dtype(n), shapes[n]) for n in self._of._inputs}
        names = [port.name for port in self._of._ports if port.name not in self._of._inputs]
        return dict(zip(names, self._of._session.run(names, feeds), strict=True))

    def _write(self, found: dict[str, Any], addresses: dict[str, int]) -> None:
        for name, array in found.items():
            ctypes.memmove(addresses[name], np.ascontiguousarray(array).ctypes.data, array.nbytes)

    def _no(self, text: str) -> bool:
        self._of._logger.log(ILogger.Severity.ERROR, text)
        return False


def _extents(port: Any) -> tuple[int, ...]:
    dims = port.type.tensor_type.shape.dim
    return tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in dims)


def _read(address: int, dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    found = np.empty(shape, dtype)
    ctypes.memmove(found.ctypes.data, address, found.nbytes)
    return found
