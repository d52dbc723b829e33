"""What Paddle Inference takes at most on the CPU, plain and with oneDNN, beside the bytes that the graph tells.

Measured 2026-11-23 with paddlepaddle 3.3.1 on x86-64 (AVX2, 2 cores, glibc 2.36), each deployment in a fresh process:
ResNet-50, MobileNetV2, a DeepSeek-style decoder, rotary embeddings, a 12-layer encoder and one linear layer, batch 1
and 16, one and two predictors, some with 16 threads. Not measured, since they take many minutes: the encoder
at batch 16 but for one predictor with oneDNN, and two of plain ResNet-50 at batch 16; nor anything in bf16, which this
CPU lacks. `python -m benchmarks.footprint` measures what it is given the time for.

Both allocate every intermediate of every run with malloc and free it behind its last reader, on several threads. Blocks
under 32 MiB stay in glibc's arenas in pieces that the next ones do not always fit into: `LEFT`.
"""

from __future__ import annotations

import math

from paddock.graph import Graph
from paddock.planning.workspace import column_bytes, intermediate_bytes
from paddock.spi import Footprint

MIB = 1 << 20

PLAIN_PROCESS = 24 * MIB
"""Pages of Paddle's libraries, its registries and passes, at the first predictor: 10 to 21 MiB."""
PLAIN_SESSION = 16 * MIB
"""Of each predictor and its thread beside what grows with the model: 1 to 6 MiB, and up to 10 in pieces left by chance
(rotary embeddings, batch 16, two predictors: 56 to 65 MiB)."""
PLAIN_KEPT = 1.2
"""Weights that a predictor keeps: 1.02 times; what fusing folds is there twice for a moment."""
PLAIN_INTERMEDIATES = 3.3
"""Intermediates: 2.4 to 3.1 times the best layout; no operation works in place across the values that others read."""

ONEDNN_PROCESS = 32 * MIB
"""The same with oneDNN's library, generated kernels and primitives: 22 to 26 MiB."""
ONEDNN_SESSION = 14 * MIB
"""The same with oneDNN's scratchpad for each thread: 8 to 11 MiB."""
ONEDNN_KEPT = 2.4
"""Weights that a predictor keeps: as they were, and reordered in blocks for the kernels: 1.9 to 2.2 times."""
ONEDNN_INTERMEDIATES = 2.9
"""Intermediates in blocks of channels, with reorders at their borders: 1.6 to 2.8 times the best layout."""

NODE = 30_000
"""Bytes of each node: the program, its passes' copies and the executor's instructions: 12,000 to 25,000."""
LOADING = 0.3
"""Weights once more while they are read: 0.1 times."""
LEFT = 0.5
"""Of the sum of all intermediates, what may lie in pieces that are not used again, at most `LEFT_MOST`."""
LEFT_MOST = 128 * MIB
"""10 to 60 MiB were seen after five to ten runs, and 200 for the encoder at batch 16: its weights leave room for it."""

SHAPE = 1 << 20
"""Bytes for each shape beyond the first that oneDNN's primitives are kept for, beside what grows with the model:"""
SHAPE_WEIGHTS = 1.05
"""weights, reordered anew for each (ResNet-50 with 16 batch sizes: 340 MiB after one, 1,467 after all), and"""
SHAPE_NODE = 100_000
"""bytes of each node, its primitives and scratch (MobileNetV2: 25 MiB for each shape, 13 of them weights)."""
SHAPES_LATE = 2
"""How many more shapes there are than are to be kept, before the first ones go (one linear layer of 16 MiB: three
copies beyond the first where one is to be kept, twelve where ten are)."""

CONVOLUTIONS = frozenset(
    f"pd_op.{name}" for name in ("conv2d", "conv3d", "conv2d_transpose", "conv3d_transpose", "depthwise_conv2d")
)


def plain(graph: Graph) -> Footprint:
    """The bound for Paddle's own kernels, whose convolutions write a matrix of columns for one image at a time."""
    return Footprint(
        process=PLAIN_PROCESS,
        session=PLAIN_SESSION,
        node=NODE,
        kept=PLAIN_KEPT,
        loading=LOADING,
        intermediates=PLAIN_INTERMEDIATES,
        workspace=_left(graph) + column_bytes(graph, CONVOLUTIONS),
    )


def onednn(graph: Graph, kept_shapes: int) -> Footprint:
    """The bound for oneDNN's kernels; in bf16 the reordered copies are smaller, the bound is the same.

    Args:
        graph: The segment's.
        kept_shapes: How many shapes of the inputs primitives are kept for, where more than one is admitted.
    """
    more = min(kept_shapes + SHAPES_LATE, math.prod(bound.count for bound in graph.bounds.values()) - 1)
    each = SHAPE + round(SHAPE_WEIGHTS * graph.weight_bytes) + SHAPE_NODE * len(graph.nodes)
    return Footprint(
        process=ONEDNN_PROCESS,
        session=ONEDNN_SESSION,
        node=NODE,
        kept=ONEDNN_KEPT,
        loading=LOADING,
        intermediates=ONEDNN_INTERMEDIATES,
        workspace=_left(graph) + more * each,
    )


def _left(graph: Graph) -> int:
    return min(LEFT_MOST, round(LEFT * intermediate_bytes(graph)))
