"""cpu/paddle and cpu/mkldnn held to all that they declare."""

from __future__ import annotations

from paddock.testing import AdapterConformance
from paddock_paddle.adapters import CpuMkldnn, CpuPaddle


class TestCpuPaddle(AdapterConformance):
    adapter = CpuPaddle


class TestCpuMkldnn(AdapterConformance):
    adapter = CpuMkldnn
