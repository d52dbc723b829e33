"""gpu/cuda held to what it declares, on a fake GPU that is the CPU; `make test-gpu` does so on a real one."""

from __future__ import annotations

import pytest
from cuda_on_cpu import CudaOnCpu
from paddock.testing import AdapterConformance

pytestmark = pytest.mark.long


class TestCudaOnCpu(AdapterConformance):
    adapter = CudaOnCpu
