"""What onnxruntime's CPU provider takes at most, beside the bytes that the graph tells.

Measured 2026-11-23 with onnxruntime 1.32.0 on x86-64 (AVX2, 2 cores, glibc 2.36), each deployment in a fresh process:
ResNet-50, MobileNetV2, a DeepSeek-style decoder, rotary embeddings, a 12-layer encoder and one linear layer, batch 1
and 16, one and two sessions, some with 16 threads. `python -m benchmarks.footprint` measures them again.
"""

from __future__ import annotations

from paddock.model import Model
from paddock.planning.workspace import computed_share, weight_bytes
from paddock.spi import Footprint

MIB = 1 << 20

PROCESS = 6 * MIB
"""Pages of libraries, thread stacks and registries that only the first session touches: 1 to 3 MiB."""
SESSION = 3 * MIB
"""Of each session beside what grows with the model: under 1 MiB, and up to 2 MiB of an arena's first regions."""
NODE = 10_000
"""Bytes of each node in a session: 5,000 to 8,000, in the decoder of 570 nodes."""
KEPT = 1.5
"""Weights that a session keeps: 1.14 to 1.38 times, since kernels keep a packed copy beside what others still read."""
LOADING = 0.7
"""Weights once more while they are parsed: a single large one is there up to 2.0 times in all."""
LOADING_CONV = 1.0
"""The same, further, for weights of convolutions, which are reordered into blocks of channels as nodes of the graph:
2.92 times in all for ResNet-50, and glibc gives none of it back."""
PLANNED = 2.3
"""Intermediates: a first run grows the arena region by region, and later ones take their pattern as a single block
beside it: 1.1 to 1.9 times the best layout."""
LATE = 7.0
"""The same, further, for what takes its shape from numbers that are computed: nothing is laid out before the run, and
regions double in size: 7.7 times for the decoder, 4.3 for the encoder."""

CONVOLUTIONS = frozenset({"Conv", "ConvTranspose", "ConvInteger", "QLinearConv"})
SHAPED = frozenset({"Reshape", "Expand", "Tile", "ConstantOfShape", "Slice", "Pad", "Resize", "TopK", "Range"})
"""Operators whose second and further operands say what shape they give."""


def footprint(model: Model) -> Footprint:
    """The bound for a model in ONNX, in whatever precision its own types state."""
    graph = model.graph
    convolved = weight_bytes(graph, CONVOLUTIONS) / max(1, graph.weight_bytes)
    return Footprint(
        process=PROCESS,
        session=SESSION,
        node=NODE,
        kept=KEPT,
        loading=LOADING + LOADING_CONV * convolved,
        intermediates=PLANNED + LATE * computed_share(graph, SHAPED),
    )
