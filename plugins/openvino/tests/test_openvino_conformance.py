"""cpu/openvino held to all that it declares; `make conformance` runs it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import pytest
from paddock.testing import AdapterConformance
from paddock_openvino.adapter import CpuOpenVino

pytestmark = pytest.mark.long


class TestCpuOpenVino(AdapterConformance):
    adapter = CpuOpenVino
    expected: ClassVar[Mapping[str, str]] = {
        "bad_input.not_a_number": (
            "OpenVINO 2026.4.1's softmax along the last axis sums as if NaN were nothing: of a row with one NaN it "
            "makes NaN there and 0 elsewhere, where the sum, and so all of the row, is NaN"
        )
    }
