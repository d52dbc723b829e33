"""A FAKE of `cuda.bindings.runtime`, for tests without a GPU: device memory is host memory, streams are queues.

What is put into a stream is done when it is waited for, as late as a real one may, so that a missing wait shows. The
names and arguments are those of the real module, which a test compares. FAKE_CUDA holds faults, comma-separated:
`none` (no device), `old` (no driver), `memory=N` (bytes of the device), `capture` (no stream can be captured).
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
cudaHostRegisterDefault = 0
MEMORY = 8 << 30


class cudaError_t(IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorNoDevice = 100
    cudaErrorStreamCaptureUnsupported = 900


class cudaMemcpyKind(IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2


class cudaStreamCaptureMode(IntEnum):
    cudaStreamCaptureModeThreadLocal = 1


OK = cudaError_t.cudaSuccess
WRONG = cudaError_t.cudaErrorInvalidValue
_lock = threading.Lock()
_numbers = itertools.count(1)
memory: dict[int, np.ndarray[Any, Any]] = {}
"""What is allocated on the device, by address."""
pinned: dict[int, int] = {}
"""Bytes of pinned memory by address."""
streams: dict[int, Stream] = {}
graphs: dict[int, list[Callable[[], None]]] = {}


class Stream:
    def __init__(self) -> None:
        self.work: list[Callable[[], None]] = []
        self.capturing = False

    def put(self, action: Callable[[], None]) -> None:
        self.work.append(action)


def faults() -> dict[str, str]:
    given = os.environ.get("FAKE_CUDA", "").split(",")
    return {name: value for name, _, value in (fault.partition("=") for fault in given) if name}


def live() -> dict[str, int]:
    """What is held: all 0 where everything was given back."""
    return {"memory": len(memory), "pinned": len(pinned), "streams": len(streams), "graphs": len(graphs)}


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
        held = np.full(size, 0xAB, np.uint8)  # nobody may rely on zeros
        memory[held.ctypes.data] = held
        return OK, held.ctypes.data


def cudaFree(devPtr: int) -> tuple[cudaError_t]:
    with _lock:
        return (OK if memory.pop(devPtr, None) is not None else WRONG,)


def cudaHostRegister(ptr: int, size: int, flags: int) -> tuple[cudaError_t]:
    pinned[ptr] = size
    return (OK,)


def cudaHostUnregister(ptr: int) -> tuple[cudaError_t]:
    return (OK if pinned.pop(ptr, None) is not None else WRONG,)


def cudaStreamCreateWithFlags(flags: int) -> tuple[cudaError_t, int]:
    number = next(_numbers)
    streams[number] = Stream()
    return OK, number


def cudaStreamDestroy(stream: int) -> tuple[cudaError_t]:
    return (OK if streams.pop(stream, None) is not None else WRONG,)


def cudaStreamSynchronize(stream: int) -> tuple[cudaError_t]:
    held = streams[stream]
    if held.capturing:
        return (cudaError_t.cudaErrorStreamCaptureUnsupported,)
    work, held.work = held.work, []
    for action in work:
        action()
    return (OK,)


def cudaMemcpyAsync(dst: int, src: int, count: int, kind: cudaMemcpyKind, stream: int) -> tuple[cudaError_t]:
    device, host = (dst, src) if kind is cudaMemcpyKind.cudaMemcpyHostToDevice else (src, dst)
    if not holds(device, count) or not any(a <= host and host + count <= a + n for a, n in pinned.items()):
        return (WRONG,)

    def copy() -> None:
        ctypes.memmove(dst, src, count)

    streams[stream].put(copy)
    return (OK,)


def cudaStreamBeginCapture(stream: int, mode: cudaStreamCaptureMode) -> tuple[cudaError_t]:
    if "capture" in faults():
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
