"""npu/qualcomm on what its SDK computes with here, held to all that it declares; `make conformance` runs it."""

from __future__ import annotations

import pytest
from paddock.testing import AdapterConformance
from paddock_qualcomm.adapter import NpuQualcomm

pytest.importorskip("onnxruntime_qnn", reason="onnxruntime-qnn is not installed")
pytestmark = pytest.mark.long


class TestNpuQualcomm(AdapterConformance):
    adapter = NpuQualcomm
