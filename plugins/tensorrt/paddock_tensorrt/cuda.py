"""CUDA's runtime, as much of it as sessions need: memory, copies, a stream, graphs; each call checked.

By NVIDIA's own bindings (`cuda.bindings.runtime`), which import without a driver and then say so by an error. Which
device a call is about depends on the thread: whoever comes from another one calls `use` first.
"""

from __future__ import annotations

import ctypes
import logging
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from paddock.errors import MemoryRefused, NotAvailable, RunFailed

from paddock_tensorrt.present import CUDA_REMEDY, DRIVER_REMEDY, GPU_REMEDY

if TYPE_CHECKING:
    import numpy as np

ALIGNMENT = 256
"""Of every address that TensorRT is given, in bytes: NvInferRuntime.h on setTensorAddress. CUDA allocates so."""
_log = logging.getLogger("paddock.tensorrt")


@cache
def runtime() -> Any:
    """`cuda.bindings.runtime`; raises `NotAvailable` where it is not installed."""
    try:
        from cuda.bindings import runtime as found
    except ImportError as error:
        raise NotAvailable(f"CUDA's Python bindings cannot be imported: {error}", remedy=CUDA_REMEDY) from error
    return found


@dataclass(frozen=True)
class Gpu:
    """A device as CUDA describes it; `capability` is (major, minor), `memory` is in bytes."""

    index: int
    name: str
    capability: tuple[int, int]
    memory: int


def gpus() -> list[Gpu]:
    """The devices here; raises `NotAvailable` where there is no driver, or none that fits."""
    cuda = runtime()
    status, count = cuda.cudaGetDeviceCount()
    if status == cuda.cudaError_t.cudaErrorNoDevice:
        return []
    if status == cuda.cudaError_t.cudaErrorInsufficientDriver:
        _, driver = versions()
        raise NotAvailable(f"CUDA finds no device: {_told(status)}; it takes CUDA {driver}", remedy=DRIVER_REMEDY)
    if status != cuda.cudaError_t.cudaSuccess:
        raise NotAvailable(f"CUDA finds no device: {_told(status)}", remedy=GPU_REMEDY)
    found = []
    for index in range(count):
        properties = _checked(cuda.cudaGetDeviceProperties(index))
        name = properties.name.decode() if isinstance(properties.name, bytes) else str(properties.name)
        capability = (int(properties.major), int(properties.minor))
        found.append(Gpu(index, name.rstrip("\0"), capability, int(properties.totalGlobalMem)))
    return found


def versions() -> tuple[str, str]:
    """CUDA's version of the runtime, and the latest that the driver takes ("none" without one)."""
    cuda = runtime()
    found = [_checked(cuda.cudaRuntimeGetVersion()), _checked(cuda.cudaDriverGetVersion())]
    own, driver = (f"{number // 1000}.{number % 1000 // 10}" if number else "none" for number in found)
    return own, driver


def use(device: int) -> None:
    """Makes a device that of this thread."""
    _checked(runtime().cudaSetDevice(device))


class Stream:
    """A stream of its own, which waits for no other."""

    def __init__(self) -> None:
        cuda = runtime()
        self.handle = _checked(cuda.cudaStreamCreateWithFlags(cuda.cudaStreamNonBlocking))
        self._end = weakref.finalize(self, cuda.cudaStreamDestroy, self.handle)

    def __int__(self) -> int:
        return int(self.handle)

    def wait(self) -> None:
        """Returns when all that was put into it is done; raises `RunFailed` where any of it failed."""
        _checked(runtime().cudaStreamSynchronize(self.handle))

    def follow_default(self) -> None:
        """What is put into it from now on comes behind what is in the device's default stream, and in all that wait
        for that one."""
        cuda = runtime()
        event = _checked(cuda.cudaEventCreateWithFlags(cuda.cudaEventDisableTiming))
        try:
            _checked(cuda.cudaEventRecord(event, cuda.cudaStreamLegacy))
            _checked(cuda.cudaStreamWaitEvent(self.handle, event, 0))
        finally:
            cuda.cudaEventDestroy(event)  # it is gone when it has come to pass

    def close(self) -> None:
        """Gives it back; twice is fine."""
        self._end()


class Memory:
    """Bytes of the device's memory, at least one: TensorRT takes no null for an empty tensor.

    Raises `MemoryRefused` where the device has not so many.
    """

    def __init__(self, nbytes: int) -> None:
        cuda = runtime()
        self.nbytes = max(1, nbytes)
        self.address = int(_checked(cuda.cudaMalloc(self.nbytes), f"{self.nbytes} bytes"))
        self._end = weakref.finalize(self, cuda.cudaFree, self.address)

    def close(self) -> None:
        """Gives them back; twice is fine."""
        self._end()


class Pinned:
    """Bytes of the host's memory whose pages stay: copies to and from the device need no stop in between.

    They are zeros. Where the host lets no pages stay (a limit on them, some containers and virtual machines), it is
    memory like any other, at an address as TensorRT wants it: copies are then slower, and just as right.
    """

    def __init__(self, nbytes: int) -> None:
        import numpy as np

        cuda = runtime()
        self.nbytes = max(1, nbytes)
        status, address = cuda.cudaHostAlloc(self.nbytes, cuda.cudaHostAllocDefault)
        self.array: np.ndarray[Any, Any]
        self._end: weakref.finalize[..., Any] | None = None
        if status in _unpinnable():
            _log.warning("the host's memory is not pinned, so that copies take longer: %s", _told(status))
            whole: np.ndarray[Any, Any] = np.zeros(self.nbytes + ALIGNMENT, np.uint8)
            start = -whole.ctypes.data % ALIGNMENT
            self.array = whole[start : start + self.nbytes]
            self.address = int(self.array.ctypes.data)
        else:
            self.address = int(_checked((status, address)))
            self._end = weakref.finalize(self, cuda.cudaFreeHost, self.address)
            self.array = np.ctypeslib.as_array((ctypes.c_uint8 * self.nbytes).from_address(self.address))
            self.array[...] = 0

    def of(self, dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
        """The front of it as an array, which is of no use once this is closed."""
        count = dtype.itemsize
        for extent in shape:
            count *= extent
        return self.array[:count].view(dtype).reshape(shape)

    def close(self) -> None:
        """Gives them back; twice is fine."""
        if self._end is not None:
            self._end()


def _unpinnable() -> tuple[Any, ...]:
    """What a host answers that lets no more pages stay, or none at all."""
    kinds = runtime().cudaError_t
    return (
        kinds.cudaErrorMemoryAllocation, kinds.cudaErrorNotSupported, kinds.cudaErrorNotPermitted,
        kinds.cudaErrorOperatingSystem,
    )  # fmt: skip


def copy_in(to: int, source: int, nbytes: int, stream: Stream) -> None:
    """Host to device, in the stream's order."""
    cuda = runtime()
    kind = cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
    _checked(cuda.cudaMemcpyAsync(to, source, nbytes, kind, stream.handle))


def copy_out(to: int, source: int, nbytes: int, stream: Stream) -> None:
    """Device to host, in the stream's order."""
    cuda = runtime()
    kind = cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
    _checked(cuda.cudaMemcpyAsync(to, source, nbytes, kind, stream.handle))


class Graph:
    """What was put into a stream once, to be put into it again by one call."""

    def __init__(self, captured: Any) -> None:
        cuda = runtime()
        try:
            self._executable = _checked(cuda.cudaGraphInstantiate(captured, 0))
        finally:
            cuda.cudaGraphDestroy(captured)
        self._end = weakref.finalize(self, cuda.cudaGraphExecDestroy, self._executable)

    def launch(self, stream: Stream) -> None:
        """Puts it into the stream."""
        _checked(runtime().cudaGraphLaunch(self._executable, stream.handle))

    def close(self) -> None:
        """Gives it back; twice is fine."""
        self._end()


@contextmanager
def captured(stream: Stream) -> Iterator[list[Graph]]:
    """Within, nothing is run: what is put into the stream is kept as the one graph of the list that this gives.

    Raises `RunFailed` where something of it cannot be kept so.
    """
    cuda = runtime()
    found: list[Graph] = []
    _checked(cuda.cudaStreamBeginCapture(stream.handle, cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal))
    try:
        yield found
    except BaseException:
        cuda.cudaStreamEndCapture(stream.handle)  # the stream is of no use before
        raise
    found.append(Graph(_checked(cuda.cudaStreamEndCapture(stream.handle))))


def _checked(answer: tuple[Any, ...], what: str = "") -> Any:
    """The value of a call; raises `MemoryRefused` or `RunFailed` by its status."""
    cuda = runtime()
    status, *values = answer
    if status == cuda.cudaError_t.cudaErrorMemoryAllocation:
        raise MemoryRefused(
            f"the device has not the memory{f': {what}' if what else ''}",
            remedy="free memory of the device, or lower batch_size, shapes or instances",
        )
    if status != cuda.cudaError_t.cudaSuccess:
        raise RunFailed(f"CUDA: {_told(status)}")
    return values[0] if values else None


def _told(status: Any) -> str:
    """A status in words: `no CUDA-capable device is detected (cudaErrorNoDevice)`."""
    _, text = runtime().cudaGetErrorString(status)
    words = text.decode() if isinstance(text, bytes) else str(text)
    return f"{words} ({getattr(status, 'name', status)})"
