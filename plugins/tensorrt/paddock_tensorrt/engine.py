"""A built engine in the device's memory: loaded once, and shared by all sessions on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from paddock.errors import BuildFailed, MemoryRefused

from paddock_tensorrt.profiles import Profile
from paddock_tensorrt.sdk import Said, extents, is_no_memory, made, trt

if TYPE_CHECKING:
    import numpy as np

_STRANGE = ("incompatible device", "different gpu", "compute capability", "not compatible", "version tag", "magic tag")
"""What TensorRT's log says of an engine that was built elsewhere, or by another TensorRT."""


@dataclass(frozen=True)
class Port:
    """An input or output of an engine.

    `shape` has -1 where an extent is open; `host` says that TensorRT reads or writes it in the host's memory.
    """

    name: str
    is_input: bool
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    host: bool

    @property
    def fixed(self) -> bool:
        """Whether its shape is the same in every run."""
        return all(extent >= 0 for extent in self.shape)


@dataclass(frozen=True)
class Loaded:
    """An engine on a device.

    `runtime` is what it lives by; `weights` are the bytes of its weights; `contexts` those of activations and
    workspace that one context takes, for each profile.
    """

    engine: trt.ICudaEngine
    runtime: trt.Runtime
    heard: Said
    device: int
    ports: Mapping[str, Port]
    profiles: tuple[Profile, ...]
    weights: int
    contexts: tuple[int, ...]

    @property
    def host_code(self) -> bool:
        """Whether code that an engine carries for the host would be run."""
        return bool(self.runtime.engine_host_code_allowed)


def load(content: bytes, profiles: tuple[Profile, ...], device: int, heard: Said, host_code: bool = False) -> Loaded:
    """The engine, on the device of this thread.

    Args:
        content: What `build` gave.
        profiles: Those that it was built with, in order.
        device: The number of the thread's device.
        heard: The logger.
        host_code: Whether code in the engine may run on the host. An engine is data otherwise.

    Raises `BuildFailed` for an engine of another device or TensorRT, or a damaged one; `MemoryRefused` where its
    weights do not fit.
    """
    runtime = made("runtime", lambda: trt.Runtime(heard.logger), heard)
    if host_code:
        runtime.engine_host_code_allowed = True
    engine: trt.ICudaEngine | None = runtime.deserialize_cuda_engine(content)
    if engine is None:
        raise _not_loaded(heard.why())
    expected = max(1, len(profiles))
    if engine.num_optimization_profiles != expected:
        raise BuildFailed(
            f"the engine has {engine.num_optimization_profiles} optimisation profiles and was built with {expected}",
            remedy="`paddock cache clear` lets it be built again",
        )
    ports = {}
    for index in range(engine.num_io_tensors):
        port = _port(engine, engine.get_tensor_name(index))
        ports[port.name] = port
    contexts = tuple(int(engine.get_device_memory_size_for_profile_v2(number)) for number in range(expected))
    weights = int(engine.get_engine_stat(trt.EngineStat.TOTAL_WEIGHTS_SIZE))
    return Loaded(engine, runtime, heard, device, ports, profiles, weights, contexts)


def _port(engine: trt.ICudaEngine, name: str) -> Port:
    import numpy as np

    kinds = {
        trt.DataType.FLOAT: "float32", trt.DataType.HALF: "float16", trt.DataType.INT64: "int64",
        trt.DataType.INT32: "int32", trt.DataType.INT8: "int8", trt.DataType.UINT8: "uint8", trt.DataType.BOOL: "bool",
    }  # fmt: skip
    kind = engine.get_tensor_dtype(name)
    if kind not in kinds:
        raise BuildFailed(f"the engine's {name!r} is {kind}, for which NumPy has no type")
    return Port(
        name=name,
        is_input=engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT,
        dtype=np.dtype(kinds[kind]),
        shape=extents(engine.get_tensor_shape(name)),
        host=engine.get_tensor_location(name) == trt.TensorLocation.HOST,
    )


def _not_loaded(why: str) -> BuildFailed | MemoryRefused:
    said = why.lower()
    if is_no_memory(why):
        remedy = "free memory of the device, or lower instances"
        return MemoryRefused(f"the device has not the memory for the engine: {why}", remedy=remedy)
    elsewhere = any(words in said for words in _STRANGE)
    problem = (
        "the engine was built on another kind of GPU, or by another TensorRT" if elsewhere else "it may be damaged"
    )
    return BuildFailed(
        f"TensorRT cannot load the engine ({problem}): {why}", remedy="`paddock cache clear` lets it be built again"
    )
