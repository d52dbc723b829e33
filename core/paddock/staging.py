"""Inputs that are not dense, copied once their request is inside: into the arena, which has room for one per instance.

Whoever waits for an instance holds no copy, so that no more is taken than was planned.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from paddock.arena import Arena
from paddock.into import all_apart

Array = np.ndarray[Any, Any]
Arrays = Mapping[str, Array]


class Staging:
    """Makes requests dense.

    Args:
        arena: Where the copies lie.
        values: The index of each input's value in the arena's graph, by the name that the sessions know it by.
    """

    def __init__(self, arena: Arena, values: Mapping[str, int]) -> None:
        self._arena = arena
        self._values = values

    def run(self, feeds: Arrays, action: Callable[[Arrays], dict[str, Array]]) -> dict[str, Array]:
        """`action` on dense feeds; what it gives lies nowhere in the arena, whose bytes the next request gets."""
        for array in feeds.values():
            if isinstance(array, np.ndarray) and not array.flags.c_contiguous:
                break
        else:
            return action(feeds)
        loose = {
            self._values[name]: array
            for name, array in feeds.items()
            if isinstance(array, np.ndarray) and not array.flags.c_contiguous
        }
        dense, stretch = self._arena.stage(loose)
        try:
            found = action({name: dense.get(self._values[name], array) for name, array in feeds.items()})
            known: object = found
            if not isinstance(known, dict):
                return found  # whoever asked says what is wrong with it
            return {name: all_apart(self._own, array) for name, array in found.items()}
        finally:
            self._arena.release(stretch)

    def _own(self, array: Array) -> Array:
        return array.copy() if self._arena.holds(array) else array
