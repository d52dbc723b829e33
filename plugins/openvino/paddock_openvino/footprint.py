"""What OpenVINO's CPU plugin takes at most, beside the bytes that the graph tells.

Measured 2026-11-23 with openvino 2026.4.1 on x86-64 (AVX2, 2 cores, glibc 2.36), each deployment in a fresh process:
ResNet-50, MobileNetV2, a DeepSeek-style decoder, rotary embeddings, a 12-layer encoder and one linear layer, batch 1
and 16, one and two infer requests, some with 16 threads. `python -m benchmarks.footprint` measures them again.
"""

from __future__ import annotations

from paddock.spi import Footprint

MIB = 1 << 20

PROCESS = 16 * MIB
"""The ONNX frontend, generated kernels and pages of libraries that the first model touches: 10 to 12 MiB."""
SESSION = 2 * MIB
"""Of each request and its stream beside what grows with the model: under 1 MiB."""
NODE = 40_000
"""Bytes of each node in each stream, which has a graph of its own: 18,000 to 35,000."""
KEPT = 1.5
"""Weights that a compiled model keeps: 1.03 to 1.5 times, reordered for its kernels."""
LOADING = 1.8
"""Weights once more while the model is read and compiled: parsed, as constants, and reordered are 3.04 times in all for
ResNet-50 with fixed shapes, 2.0 for the encoder; with variable shapes the reordering waits for the first run."""
INTERMEDIATES = 2.0
"""Intermediates in blocks of 8 or 16 channels and with what the kernels take as scratch: 1.0 to 1.8 times."""


def footprint() -> Footprint:
    """The bound for any model: requests share the weights, each stream has intermediates of its own."""
    return Footprint(
        process=PROCESS,
        session=SESSION,
        node=NODE,
        kept=KEPT,
        loading=LOADING,
        intermediates=INTERMEDIATES,
    )
