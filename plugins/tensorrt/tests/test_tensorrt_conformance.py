"""gpu/tensorrt held to all that it declares, on the fake of TensorRT and CUDA; `make conformance` runs it.

The numbers are onnxruntime's: what passes here is how the adapter handles models, shapes, memory and threads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import pytest
from paddock.testing import AdapterConformance
from paddock_tensorrt.adapter import GpuTensorRt

NO_BF16 = "the fake computes by onnxruntime, which has no bf16 on the CPU"

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("faked")]


class TestGpuTensorRt(AdapterConformance):
    adapter = GpuTensorRt
    expected: ClassVar[Mapping[str, str]] = {
        f"precision.{check}.bf16": NO_BF16 for check in ("computed", "operators", "steps")
    }
