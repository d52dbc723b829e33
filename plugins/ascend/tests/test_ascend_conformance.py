"""npu/ascend on the simulated NPU, held to all that it declares; `make conformance` runs it."""

from __future__ import annotations

from pathlib import Path

import pytest
from paddock.testing import AdapterConformance
from paddock_ascend import simulator
from paddock_ascend.adapters import NpuAscend

pytestmark = pytest.mark.long


@pytest.fixture(autouse=True)
def _simulated(library: Path, _no_device: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in simulator.environment(library).items():
        monkeypatch.setenv(name, value)


class TestNpuAscend(AdapterConformance):
    adapter = NpuAscend
