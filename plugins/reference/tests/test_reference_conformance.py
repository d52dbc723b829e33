"""cpu/reference held to all that it declares; `make conformance` runs it."""

from __future__ import annotations

import pytest
from paddock.testing import AdapterConformance
from paddock_reference.adapter import ReferenceAdapter

pytestmark = pytest.mark.long


class TestReference(AdapterConformance):
    adapter = ReferenceAdapter
