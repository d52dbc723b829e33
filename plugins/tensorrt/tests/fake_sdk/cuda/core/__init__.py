"""A FAKE of NVIDIA's `cuda.core`, for tests without a GPU: as much of it as takes and gives tensors."""

from __future__ import annotations

from typing import Any


class Buffer:
    def __init__(self, ptr: int, size: int, owner: Any) -> None:
        self.handle, self.size, self.owner = ptr, size, owner

    @classmethod
    def from_handle(cls, ptr: int, size: int, mr: Any = None, owner: Any = None) -> Buffer:
        return cls(ptr, size, owner)
