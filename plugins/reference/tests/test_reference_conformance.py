"""cpu/reference held to all that it declares."""

from __future__ import annotations

from paddock.testing import AdapterConformance
from paddock_reference.adapter import ReferenceAdapter


class TestReference(AdapterConformance):
    adapter = ReferenceAdapter
