"""Memory that two processes map: one owns it and makes it grow, the other maps what it is given.

It has no name, so that nothing is left of it when both have ended, however they end. It never shrinks, which the kernel
sees to: a process gone mad cannot take pages from under the other.
"""

from __future__ import annotations

import fcntl
import math
import mmap
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

ALIGNMENT = 64
"""Bytes: a cache line, and the widest vector register."""
_STEP = 1 << 16
_KINDS = "biufc"


@dataclass(frozen=True, slots=True)
class Place:
    """Where one array lies: `offset` in bytes from the start."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        """Its bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def carried(value: object) -> bool:
    """Whether a value is an array of plain numbers; anything else has no bytes that another process could read."""
    if type(value) is not np.ndarray:
        return False
    dtype = value.dtype
    return dtype.kind in _KINDS or (dtype.kind == "V" and not dtype.hasobject)  # bfloat16 and its like are of kind V


def packed(arrays: Iterable[tuple[str, Array]], start: int) -> tuple[tuple[Place, ...], int]:
    """A place for each array behind `start`, and the byte behind the last of them."""
    places = []
    for name, array in arrays:
        place = Place(name, array.dtype, array.shape, -(-start // ALIGNMENT) * ALIGNMENT)
        start = place.offset + place.nbytes
        places.append(place)
    return tuple(places), start


class Shared:
    """The memory as one process maps it: by default its owner's, or of a file descriptor that was passed to this one.

    Its first use needs `grow`, where it was passed `mapped`.
    """

    def __init__(self, passed: int | None = None) -> None:
        self.size = 0
        self._map: mmap.mmap | None = None
        if passed is not None:
            self.fd = passed
            return
        self.fd = os.memfd_create("paddock", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)

    def grow(self, size: int) -> None:
        """Makes it hold `size` bytes at least, a quarter more where it has to grow; views made before stay valid.

        Raises OSError where the host has no such memory: its pages are taken here, and not at some later write.
        """
        size = -(-max(size + size // 4, 1) // _STEP) * _STEP
        os.posix_fallocate(self.fd, 0, size)
        self.mapped(size)

    def mapped(self, size: int) -> None:
        """Maps it anew, as large as its owner has made it."""
        self._map = mmap.mmap(self.fd, size)
        self.size = size

    def view(self, place: Place, *, writable: bool = True) -> Array:
        """The array at a place."""
        assert self._map is not None
        array = np.ndarray(place.shape, place.dtype, self._map, place.offset)
        if not writable:
            array.flags.writeable = False
        return array

    def spoil(self, places: Sequence[Place]) -> None:
        """Fills places with what is no number, so that what is not written there is seen."""
        assert self._map is not None
        for place in places:
            np.ndarray(place.nbytes, np.uint8, self._map, place.offset).fill(0xFF)

    def close(self) -> None:
        """Gives it back, once the last view of it is gone; twice is fine."""
        self._map = None
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)
