"""cpu/onnxruntime held to all that it declares."""

from __future__ import annotations

from paddock.testing import AdapterConformance
from paddock_onnxruntime.adapter import CpuOnnxRuntime


class TestCpuOnnxRuntime(AdapterConformance):
    adapter = CpuOnnxRuntime
