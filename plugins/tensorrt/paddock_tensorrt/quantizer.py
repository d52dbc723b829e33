"""Post-training quantisation as TensorRT takes it: int8 on both sides, every zero point 0, biases in float.

TensorRT's parser refuses QuantizeLinear and DequantizeLinear with another zero point or of int32. What is quantised,
and how ranges are found, is as `cpu/onnxruntime`'s quantiser has it: weights with a range for each output channel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from paddock.spi import Arrays
from paddock_onnxruntime.quantizer import OnnxRuntimeQuantizer


class TensorRtQuantizer(OnnxRuntimeQuantizer):
    """Post-training quantisation of one ONNX model by onnxruntime's quantiser; see `OnnxRuntimeQuantizer`."""

    activations: ClassVar[str] = "QInt8"
    settings: ClassVar[Mapping[str, Any]] = {
        "ActivationSymmetric": True,
        "WeightSymmetric": True,
        "QuantizeBias": False,
    }

    def __init__(self, model: Path, samples: Sequence[Arrays], work: Path) -> None:
        super().__init__(model, samples, work, narrow=False)
