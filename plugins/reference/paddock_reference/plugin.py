"""What this distribution registers."""

from __future__ import annotations

from collections.abc import Sequence

from paddock.spi import Adapter, hookimpl

from paddock_reference.adapter import ReferenceAdapter


@hookimpl
def paddock_adapters() -> Sequence[type[Adapter]]:
    """cpu/reference."""
    return [ReferenceAdapter]
