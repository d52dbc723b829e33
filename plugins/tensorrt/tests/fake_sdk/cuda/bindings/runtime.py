"""A FAKE of `cuda.bindings.runtime`, for tests without a GPU: device memory is host memory, streams are queues.

What is put into a stream is done when it is waited for, as late as a real one may, so that a missing wait shows. The
names and arguments are those of the real module, which a test compares. FAKE_CUDA holds faults, comma-separated:
`none` (no device), `old` (no driver), `memory=N` (bytes of the device), `capture` (no stream can be captured;
with `capture-breaks` nothing can be run after it),
`pinned=E` (pinning gives the error E), `wait` (whatever is waited for has failed).
"""

from __future__ import annotations

import ctypes
import itertools
import os
import threading
from collections.abc import Callable
from enum import IntEnum
from typing import Any

import numpy as np

cudaStreamNonBlocking = 1
cudaHostAllocDefault = 0
cudaEventDisableTiming = 2
cudaStreamLegacy = 1
ALIGNMENT = 256
MEMORY = 8 << 30


class cudaError_t(IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorNoDevice = 100
    cudaErrorOperatingSystem = 304
    cudaErrorIllegalAddress = 700
    cudaErrorNotPermitted = 800
    cudaErrorNotSupported = 801
    cudaErrorStreamCaptureUnsupported = 900


class cudaMemcpyKind(IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2


class cudaStreamCaptureMode(IntEnum):
    cudaStreamCaptureModeThreadLocal = 1


OK = cudaError_t.cudaSuccess
WRONG = cudaError_t.cudaErrorInvalidValue
_lock = threading.Lock()
_numbers = itertools.count(100)
memory: dict[int, np.ndarray[Any, Any]] = {}
"""What is allocated on the device, by address."""
pinned: dict[int, np.ndarray[Any, Any]] = {}
"""Pinned memory by address."""
events: dict[int, list[str]] = {}
calls: list[str] = []
"""What was allocated, freed, waited for or made to follow, in order; for tests to empty and read."""
streams: dict[int, Stream] = {}
graphs: dict[int, list[Callable[[], None]]] = {}


class Stream:
    def __init__(self) -> None:
        self.work: list[Callable[[], None]] = []
        self.capturing = self.broken = False

    def put(self, action: Callable[[], None]) -> None:
        self.work.append(action)

    def finish(self) -> None:
        """Does what was put into it."""
        work, self.work = self.work, []
        for action in work:
            action()


def faults() -> dict[str, str]:
    given = os.environ.get("FAKE_CUDA", "").split(",")
    return {name: value for name, _, value in (fault.partition("=") for fault in given) if name}


def live() -> dict[str, int]:
    """What is held: all 0 where everything was given back."""
    return {
        "memory": len(memory), "pinned": len(pinned), "streams": len(streams), "graphs": len(graphs),
        "events": len(events),
    }  # fmt: skip


def holds(address: int, nbytes: int) -> bool:
    """Whether so many bytes at an address lie in one allocation of the device."""
    return any(start <= address and address + nbytes <= start + held.nbytes for start, held in memory.items())


def cudaGetErrorString(error: cudaError_t) -> tuple[cudaError_t, bytes]:
    return OK, f"fake CUDA: {error.name}".encode()


def cudaRuntimeGetVersion() -> tuple[cudaError_t, int]:
    return OK, 13000


def cudaDriverGetVersion() -> tuple[cudaError_t, int]:
    return OK, 0 if "old" in faults() else 13000


def cudaGetDeviceCount() -> tuple[cudaError_t, int | None]:
    if "old" in faults():
        return cudaError_t.cudaErrorInsufficientDriver, None
    return (cudaError_t.cudaErrorNoDevice, None) if "none" in faults() else (OK, 1)


class cudaDeviceProp:
    name = b"Fake GPU (no device)"
    totalGlobalMem = MEMORY
    major, minor = 9, 0


def cudaGetDeviceProperties(device: int) -> tuple[cudaError_t, cudaDeviceProp]:
    found = cudaDeviceProp()
    capability = faults().get("capability")
    if capability:
        found.major, found.minor = map(int, capability.split("."))
    return OK, found


def cudaSetDevice(device: int) -> tuple[cudaError_t]:
    return (OK if device == 0 and "none" not in faults() else cudaError_t.cudaErrorNoDevice,)


def cudaMalloc(size: int) -> tuple[cudaError_t, int | None]:
    with _lock:
        room = int(faults().get("memory", MEMORY))
        if sum(held.nbytes for held in memory.values()) + size > room:
            return cudaError_t.cudaErrorMemoryAllocation, None
        calls.append("malloc")
        held = _aligned(size)
        held[...] = 0xAB  # nobody may rely on zeros
        memory[held.ctypes.data] = held
        return OK, held.ctypes.data


def _aligned(size: int) -> np.ndarray[Any, Any]:
    whole = np.empty(size + ALIGNMENT, np.uint8)
    start = -whole.ctypes.data % ALIGNMENT
    return whole[start : start + size]


def cudaFree(devPtr: int) -> tuple[cudaError_t]:
    with _lock:
        calls.append("free")
        return (OK if memory.pop(devPtr, None) is not None else WRONG,)


def cudaHostAlloc(size: int, flags: int) -> tuple[cudaError_t, int | None]:
    fault = faults().get("pinned")
    if fault:
        return cudaError_t[fault], None
    with _lock:
        held = _aligned(size)
        held[...] = 0xCD
        pinned[held.ctypes.data] = held
        return OK, held.ctypes.data


def cudaFreeHost(ptr: int) -> tuple[cudaError_t]:
    with _lock:
        return (OK if pinned.pop(ptr, None) is not None else WRONG,)


def cudaEventCreateWithFlags(flags: int) -> tuple[cudaError_t, int]:
    number = next(_numbers)
    events[number] = []
    return OK, number


def cudaEventRecord(event: int, stream: int) -> tuple[cudaError_t]:
    if stream != cudaStreamLegacy and stream not in streams:
        return (WRONG,)
    events[event] = ["default" if stream == cudaStreamLegacy else "stream"]
    return (OK,)


def cudaStreamWaitEvent(stream: int, event: int, flags: int) -> tuple[cudaError_t]:
    if stream not in streams:
        return (WRONG,)
    calls.extend(f"follow {recorded}" for recorded in events[event])
    return (OK,)


def cudaEventDestroy(event: int) -> tuple[cudaError_t]:
    return (OK if events.pop(event, None) is not None else WRONG,)


def cudaStreamCreateWithFlags(flags: int) -> tuple[cudaError_t, int]:
    number = next(_numbers)
    streams[number] = Stream()
    return OK, number


def cudaStreamDestroy(stream: int) -> tuple[cudaError_t]:
    return (OK if streams.pop(stream, None) is not None else WRONG,)


def cudaStreamSynchronize(stream: int) -> tuple[cudaError_t]:
    held = streams[stream]
    calls.append("wait")
    if held.capturing:
        return (cudaError_t.cudaErrorStreamCaptureUnsupported,)
    if held.broken or "wait" in faults():
        return (cudaError_t.cudaErrorIllegalAddress,)
    held.finish()
    return (OK,)


def cudaMemcpyAsync(dst: int, src: int, count: int, kind: cudaMemcpyKind, stream: int) -> tuple[cudaError_t]:
    device, host = (dst, src) if kind is cudaMemcpyKind.cudaMemcpyHostToDevice else (src, dst)
    if not holds(device, count) or holds(host, 1):
        return (WRONG,)

    def copy() -> None:
        ctypes.memmove(dst, src, count)

    streams[stream].put(copy)
    return (OK,)


def cudaStreamBeginCapture(stream: int, mode: cudaStreamCaptureMode) -> tuple[cudaError_t]:
    if "capture" in faults():
        streams[stream].broken = "capture-breaks" in faults()
        return (cudaError_t.cudaErrorStreamCaptureUnsupported,)
    streams[stream].capturing = True
    return (OK,)


def cudaStreamEndCapture(stream: int) -> tuple[cudaError_t, int]:
    held, number = streams[stream], next(_numbers)
    held.capturing = False
    graphs[number], held.work = held.work, []
    return OK, number


def cudaGraphInstantiate(graph: int, flags: int) -> tuple[cudaError_t, int]:
    number = next(_numbers)
    graphs[number] = list(graphs[graph])
    return OK, number


def cudaGraphDestroy(graph: int) -> tuple[cudaError_t]:
    return (OK if graphs.pop(graph, None) is not None else WRONG,)


def cudaGraphExecDestroy(graphExec: int) -> tuple[cudaError_t]:
    return (OK if graphs.pop(graphExec, None) is not None else WRONG,)


def cudaGraphLaunch(graphExec: int, stream: int) -> tuple[cudaError_t]:
    for action in graphs[graphExec]:
        streams[stream].put(action)
    return (OK,)
