"""A FAKE of `cuda.core.utils`: views by `__cuda_array_interface__`; DLPack's capsule is the view itself."""

from __future__ import annotations

from typing import Any

import numpy as np
from cuda.bindings import runtime
from cuda.core import Buffer


class StridedMemoryView:
    def __init__(self, ptr: int, shape: Any, strides: Any, dtype: Any, device_id: int, owner: Any) -> None:
        self.ptr, self.shape, self.strides, self.dtype = ptr, shape, strides, np.dtype(dtype)
        self.device_id, self.is_device_accessible, self.exporting_obj = device_id, device_id >= 0, owner

    @classmethod
    def from_any_interface(cls, obj: Any, stream_ptr: int | None = None) -> StridedMemoryView:
        if stream_ptr not in runtime.streams:
            raise AssertionError("nothing waits for who made the tensor")
        if isinstance(obj, np.ndarray):
            return cls(obj.ctypes.data, obj.shape, None, obj.dtype, -1, obj)
        told = getattr(obj, "__cuda_array_interface__", None)
        if told is None:
            raise BufferError("neither DLPack nor CAI is supported")
        itemsize = np.dtype(told["typestr"]).itemsize
        strides = told["strides"] and tuple(stride // itemsize for stride in told["strides"])
        return cls(told["data"][0], told["shape"], strides, told["typestr"], getattr(obj, "device", 0), obj)

    @classmethod
    def from_buffer(
        cls, buffer: Buffer, shape: Any, strides: Any = None, *, itemsize: int | None = None, dtype: Any = None
    ) -> StridedMemoryView:
        if int(np.prod(shape)) * np.dtype(dtype).itemsize > buffer.size:
            raise ValueError("the shape is larger than the buffer")
        return cls(buffer.handle, shape, strides, dtype, 0, buffer)

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, self.device_id

    def __dlpack__(self, *, stream: int | None = None) -> StridedMemoryView:
        return self
