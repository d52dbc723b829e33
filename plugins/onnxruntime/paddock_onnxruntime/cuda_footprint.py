"""What ONNX Runtime's CUDA provider takes of the device's memory at most, beside the bytes that the graph tells.

**Not confirmed by a device.** Counted 2026-11-23 was the provider's own arena (onnxruntime-gpu 1.31.1), on a CUDA
runtime that is a fake: a decoder, rotary embeddings and a ResNet-50, batch 16. It kept the weights once, and grown in
powers of two up to 1.31 times. What CUDA, cuBLAS and cuDNN take for themselves is assumed, generously. With
`memory.limit` the arena gets what `PROCESS` and `SESSION` leave of it as a limit of its own, so that a run fails before
it takes more.
"""

from __future__ import annotations

from paddock.model import Model
from paddock.planning.workspace import computed_share
from paddock.spi import Footprint

from paddock_onnxruntime.footprint import CONVOLUTIONS, LATE, PLANNED, SHAPED

MIB = 1 << 20

PROCESS = 2048 * MIB
"""Assumed: a context, the provider's kernels, and the libraries' own pools; a few hundred MiB are usual."""
SESSION = 128 * MIB
"""Assumed: workspaces of cuBLAS, 32 MiB for each stream on the largest devices."""
KEPT = {"exact": 1.1, "double": 2.0}
"""Weights that a session keeps, by how the arena grows: 1.00 and 1.31 times; 2 is what doubling comes to at worst."""


def footprint(model: Model, growth: str, bounded: bool) -> Footprint | None:
    """The bound for a model in ONNX; None where convolutions may take scratch memory that nothing bounds.

    Args:
        model: The model.
        growth: The option `memory_growth`.
        bounded: Whether the scratch memory of convolutions is bounded, to 32 MiB for each.
    """
    graph = model.graph
    convolves = any(node.op in CONVOLUTIONS for node in graph.walk())
    if convolves and not bounded:
        return None
    # The arena is the same code as the CPU's, whose figures these are.
    intermediates = PLANNED + LATE * computed_share(graph, SHAPED)
    return Footprint(
        process=PROCESS,
        session=SESSION,
        kept=KEPT[growth],
        loading=KEPT[growth] - 1.0,
        intermediates=intermediates * (2.0 if growth == "double" else 1.0),
        workspace=64 * MIB if convolves else 0,
    )
