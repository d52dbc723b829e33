"""cpu/openvino held to all that it declares."""

from __future__ import annotations

from paddock.testing import AdapterConformance
from paddock_openvino.adapter import CpuOpenVino


class TestCpuOpenVino(AdapterConformance):
    adapter = CpuOpenVino
