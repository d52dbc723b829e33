"""cpu/openvino held to all that it declares; `make conformance` runs it."""

from __future__ import annotations

import pytest
from paddock.testing import AdapterConformance
from paddock_openvino.adapter import CpuOpenVino

pytestmark = pytest.mark.long


class TestCpuOpenVino(AdapterConformance):
    adapter = CpuOpenVino
