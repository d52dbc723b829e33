"""What a session of the QNN provider takes at most on x86, beside the bytes that the graph tells."""

from __future__ import annotations

from paddock.spi import Footprint

MIB = 1 << 20


def footprint() -> Footprint:
    """The bound for any model."""
    return Footprint(process=160 * MIB, session=16 * MIB, node=40_000, kept=4.0, loading=4.0, intermediates=8.0)
