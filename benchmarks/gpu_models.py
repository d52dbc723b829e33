"""Models to measure GPUs with, of a useful size, written with onnx alone: they need neither Paddle nor a network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from paddock.testing.zoo import Draft

BLOCKS = ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2))
"""Of ResNet-50: width, number of blocks and stride of each stage."""


def linear(path: Path) -> Path:
    """One layer, 768 -> 1024: what is around a product, more than the product."""
    d = Draft("linear")
    return d.save(path, y=d("Gemm", d.input("x", ("batch", 768)), d.weight(768, 1024), d.weight(1024, scale=0.1)))


def resnet50(path: Path) -> Path:
    """ResNet-50 with seeded weights, normalisation merged into its convolutions; 25.5 million weights."""
    d = Draft("resnet50")
    x = _convolved(d, d.input("image", ("batch", 3, 224, 224)), 3, 64, 7, 2)
    x = d("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    channels = 64
    for width, blocks, stride in BLOCKS:
        for number in range(blocks):
            step = stride if number == 0 else 1
            around = x if number else _convolved(d, x, channels, 4 * width, 1, step, relu=False)
            inner = _convolved(d, x, channels, width, 1, 1)
            inner = _convolved(d, inner, width, width, 3, step)
            # Small at the end of each block, so that sixteen sums do not grow.
            inner = _convolved(d, inner, width, 4 * width, 1, 1, relu=False, gain=0.3)
            x = d("Relu", d("Add", around, inner))
            channels = 4 * width
    x = d("Flatten", d("GlobalAveragePool", x))
    return d.save(path, logits=d("Gemm", x, d.weight(channels, 1000), d.weight(1000, scale=0.1)))


def encoder(path: Path, layers: int = 6, size: int = 512, heads: int = 8) -> Path:
    """An encoder over 128 positions: blocks of attention, normalisation and a gated product; 12 million weights."""
    d = Draft("encoder")
    x = d.input("x", ("batch", 128, size))
    head = size // heads
    for _ in range(layers):
        parts = []
        for _ in range(3):
            made = d("Reshape", d("MatMul", x, d.weight(size, size)), d.ints(0, 0, heads, head))
            parts.append(d("Transpose", made, perm=[0, 2, 1, 3]))
        query, key, value = parts
        scores = d("MatMul", query, d("Transpose", key, perm=[0, 1, 3, 2]))
        weights = d("Softmax", d("Mul", scores, d.constant(_float32(head**-0.5))), axis=-1)
        mixed = d("Transpose", d("MatMul", weights, value), perm=[0, 2, 1, 3])
        x = d("Add", x, d("MatMul", d("Reshape", mixed, d.ints(0, 0, size)), d.weight(size, size)))
        x = d("LayerNormalization", x, d.positive(size), d.weight(size, scale=0.1), axis=-1)
        inner = d("MatMul", x, d.weight(size, 2 * size))
        inner = d("MatMul", d("Mul", inner, d("Sigmoid", inner)), d.weight(2 * size, size))
        x = d("LayerNormalization", d("Add", x, inner), d.positive(size), d.weight(size, scale=0.1), axis=-1)
    return d.save(path, y=x)


MODELS: Mapping[str, Callable[[Path], Path]] = {"linear": linear, "encoder": encoder, "resnet50": resnet50}
"""By name what writes the model; its axis 0 is open."""


def _convolved(
    d: Draft, x: str, channels: int, width: int, kernel: int, stride: int, relu: bool = True, gain: float = 1.4
) -> str:
    weight = d.weight(width, channels, kernel, kernel, scale=gain * (channels * kernel * kernel) ** -0.5)
    pads = [kernel // 2] * 4
    made: str = d("Conv", x, weight, d.weight(width, scale=0.05), strides=[stride, stride], pads=pads)
    return d("Relu", made) if relu else made


def _float32(number: float) -> object:
    import numpy as np

    return np.float32(number)
