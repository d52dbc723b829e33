"""What a session on Qualcomm's simulation takes at most on x86, beside the bytes that the graph tells.

Measured 2026-11-23 with onnxruntime-qnn 2.7.0 on x86-64, each context in a fresh process, a little: a product of 64 by
64 in float32, and ResNet-50 in float16 (49 MiB of weights), one and two sessions, batch 1. What an NPU takes is another
matter, of which nothing was measured. Compiling, which is in a process of its own, took 687 MiB for ResNet-50.
"""

from __future__ import annotations

from paddock.spi import Footprint

MIB = 1 << 20

PROCESS = 120 * MIB
"""Pages of the backend's library, and what it sets up for its first session: 80 to 90 MiB."""
SESSION = 16 * MIB
"""Of each further small session: 11 MiB."""
NODE = 40_000
"""Bytes of each node, not told apart from the rest."""
KEPT = 2.7
"""Weights that a session keeps, with what its context and intermediates take: 2.2 times, 2.5 in a second session."""
LOADING = 2.5
"""Weights once more while the context is parsed and unpacked: 4.5 times in all."""
INTERMEDIATES = 2.0
"""Intermediates, of which ResNet-50's did not show beside its weights."""


def footprint() -> Footprint:
    """The bound for any model."""
    return Footprint(PROCESS, SESSION, NODE, KEPT, LOADING, INTERMEDIATES)
