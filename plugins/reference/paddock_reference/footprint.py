"""What onnx.reference takes at most, beside the bytes that the graph tells.

Measured 2026-11-23 with onnx 1.17.0 and numpy 2.3.5 on x86-64 (2 cores, glibc 2.36), each in a fresh process:
a DeepSeek-style decoder, rotary embeddings and one linear layer at batch 1 and 16, one and two evaluators; MobileNetV2
and ResNet-50 at batch 1. `python -m benchmarks.footprint` measures them again.
"""

from __future__ import annotations

from paddock.graph import Graph
from paddock.plan import Precision
from paddock.planning.workspace import column_bytes
from paddock.spi import Footprint

MIB = 1 << 20

PROCESS = 36 * MIB
"""onnx with its evaluator's classes for every operator, which are imported with the first model: 22 to 26 MiB."""
SESSION = 2 * MIB
"""Of each evaluator beside what grows with the model: under 1 MiB."""
NODE = 20_000
"""Bytes of each node: an object of Python's, its parsed attributes and the results' names."""
KEPT = 2.2
"""Weights that an evaluator keeps: in the parsed model, and as arrays."""
LOADING = 0.5
"""Weights once more while external data is read in."""
INTERMEDIATES = 2.3
"""All results together: no result is dropped before the run's end. After it glibc keeps them in the arena of the thread
that ran, and a second thread gets another arena: 2.0 to 2.1 times."""
WIDENED = 2
"""Times the weights and intermediates of bfloat16, which the evaluator is given and computes in float32."""
COLUMNS = 3
"""Matrices of columns of the whole batch that a convolution holds at once: gathered, in order, and multiplied."""

CONVOLUTIONS = frozenset({"Conv", "ConvInteger", "QLinearConv", "DeformConv"})


def footprint(graph: Graph, precision: Precision) -> Footprint:
    """The bound for a model in ONNX that is computed in `precision`."""
    widened = WIDENED if precision is Precision.BF16 else 1
    return Footprint(
        process=PROCESS,
        session=SESSION,
        node=NODE,
        kept=KEPT * widened,
        loading=LOADING * widened,
        intermediates=INTERMEDIATES * widened,
        workspace=COLUMNS * column_bytes(graph, CONVOLUTIONS, whole=True),
    )
