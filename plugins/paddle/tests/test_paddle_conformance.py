"""cpu/paddle and cpu/mkldnn held to all that they declare; `make conformance` runs it."""

from __future__ import annotations

import pytest
from paddock.testing import AdapterConformance
from paddock_paddle.adapters import CpuMkldnn, CpuPaddle

pytestmark = pytest.mark.long


class TestCpuPaddle(AdapterConformance):
    adapter = CpuPaddle


class TestCpuMkldnn(AdapterConformance):
    adapter = CpuMkldnn
