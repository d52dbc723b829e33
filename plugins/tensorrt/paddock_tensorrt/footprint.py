"""What a session takes of the device's memory at most, where its workspace is bounded.

Nothing of it was measured: no GPU was to be had. It is a bound by construction, with room, and it is kept: what an
engine takes is known exactly once it is built (`device_memory_size_v2`, the bytes of its weights), and one that takes
more than a config's memory.limit is refused before it is loaded to serve.
"""

from __future__ import annotations

from paddock.spi import Footprint

MIB = 1 << 20

PROCESS = 64 * MIB
"""What an engine keeps once for all contexts, beside weights."""
SESSION = 16 * MIB
"""Of each context: its streams, events, and a CUDA graph."""
NODE = 16_384
"""Of each layer of each context."""
KEPT = 1.25
"""Weights as an engine keeps them, padded and reordered for its kernels."""
LOADING = 1.0
"""Weights once more, while they are copied from the serialised engine."""
INTERMEDIATES = 2.0
"""Activations, by TensorRT's own layout with padded channels and reformatted copies."""


def footprint(workspace: int) -> Footprint:
    """The bound for a workspace of so many bytes for each context."""
    return Footprint(PROCESS, SESSION, NODE, KEPT, LOADING, INTERMEDIATES, workspace)
