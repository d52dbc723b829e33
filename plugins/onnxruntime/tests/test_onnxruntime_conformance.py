"""cpu/onnxruntime held to all that it declares; `make conformance` runs it."""

from __future__ import annotations

import pytest
from paddock.testing import AdapterConformance
from paddock_onnxruntime.adapter import CpuOnnxRuntime

pytestmark = pytest.mark.long


class TestCpuOnnxRuntime(AdapterConformance):
    adapter = CpuOnnxRuntime
