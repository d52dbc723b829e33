"""Tensors of other libraries on the device, taken and given without a copy: DLPack and `__cuda_array_interface__`.

Both are read and written by NVIDIA's `cuda.core`, which also has the session's stream wait for who made a tensor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from paddock.errors import NotAvailable, UsageError

from paddock_tensorrt import cuda
from paddock_tensorrt.engine import Port
from paddock_tensorrt.pool import Lent

if TYPE_CHECKING:
    import numpy as np

_DEFAULT = (None, 0, 1, 2)
"""The streams of DLPack that are, or wait for, the device's default stream: 1 that, 2 each thread's own."""


@dataclass(frozen=True)
class View:
    """Where a tensor lies; `owner` keeps it there."""

    address: int
    shape: tuple[int, ...]
    owner: Any


def viewed(port: Port, tensor: Any, device: int, stream: cuda.Stream) -> View:
    """A tensor on the device as an input; raises `UsageError` where it cannot be read as it is."""
    where = f"input {port.name!r}"
    if port.host:
        raise UsageError("is read in the host's memory by this engine", where=where, remedy="give arrays to `run`")
    try:
        found = _core().StridedMemoryView.from_any_interface(tensor, stream_ptr=int(stream))
    except (BufferError, AttributeError, TypeError, ValueError, RuntimeError) as error:  # as each library has it
        remedy = "give what has __dlpack__ or __cuda_array_interface__, as tensors of torch and cupy"
        problem = f"is a {type(tensor).__name__} that cannot be read where it lies: {error}"
        raise UsageError(problem, where=where, remedy=remedy) from error
    if not found.is_device_accessible or found.device_id != device:
        place = f"on device {found.device_id}" if found.is_device_accessible else "in the host's memory"
        raise UsageError(
            f"lies {place}, the engine is on device {device}", where=where, remedy="move it, or give arrays to `run`"
        )
    if found.dtype != port.dtype:
        raise UsageError(f"is {found.dtype}, the model takes {port.dtype}", where=where)
    shape = tuple(int(extent) for extent in found.shape)
    if found.strides is not None and not _dense(shape, tuple(found.strides)):
        raise UsageError("is not dense and row-major", where=where, remedy="make it contiguous")
    fits = len(shape) == len(port.shape) and all(a in (-1, b) for a, b in zip(port.shape, shape, strict=True))
    if not fits:
        raise UsageError(f"has the shape {list(shape)}, the engine takes {list(port.shape)}", where=where)
    if int(found.ptr) % cuda.ALIGNMENT:
        problem = f"lies at an address that is no multiple of {cuda.ALIGNMENT} bytes, as TensorRT wants it"
        raise UsageError(problem, where=where, remedy="clone it: a slice begins amid its tensor")
    return View(int(found.ptr), shape, found)


class DeviceTensor:
    """An output that stays on the device; its memory goes with the last who holds it.

    torch.from_dlpack, torch.as_tensor and cupy.asarray take it without a copy. Memory that was read by DLPack in the
    default stream alone is used for a later answer; what is read otherwise is freed, behind all work of the device.
    """

    def __init__(self, memory: Lent, dtype: np.dtype[Any], shape: tuple[int, ...], device: int) -> None:
        self.dtype = dtype
        self.shape = shape
        self.device = device
        self._memory = memory

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        self._memory.never_again()  # in which stream it will be read, this protocol does not tell
        data = (self._memory.address, False)
        return {"shape": self.shape, "typestr": self.dtype.str, "data": data, "strides": None, "version": 3}

    def __dlpack_device__(self) -> tuple[int, int]:
        found: tuple[int, int] = self._view().__dlpack_device__()
        return found

    def __dlpack__(self, **options: Any) -> Any:
        if options.get("stream") not in _DEFAULT:
            self._memory.never_again()
        return self._view().__dlpack__(**options)

    def _view(self) -> Any:
        core = _core()
        buffer = core.Buffer.from_handle(self._memory.address, self._memory.nbytes, owner=self._memory)
        return core.StridedMemoryView.from_buffer(buffer, self.shape, dtype=self.dtype)

    def __repr__(self) -> str:
        return f"DeviceTensor({self.dtype}, {list(self.shape)}, on device {self.device})"


class _Core:
    """What of `cuda.core` is used."""

    def __init__(self) -> None:
        from cuda.core import Buffer
        from cuda.core.utils import StridedMemoryView

        self.Buffer = Buffer
        self.StridedMemoryView = StridedMemoryView


def _core() -> _Core:
    try:
        return _Core()
    except ImportError as error:
        raise NotAvailable(
            f"tensors on the device need cuda-core: {error}", remedy="pip install paddock-tensorrt[device]"
        ) from error


def _dense(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether strides, in elements, are those of a dense row-major tensor."""
    expected = 1
    for extent, stride in zip(reversed(shape), reversed(strides), strict=True):
        if extent > 1 and stride != expected:
            return False
        expected *= max(1, extent)
    return True
