"""What this distribution registers with Paddock."""

from __future__ import annotations

from collections.abc import Sequence

from paddock.spi import Adapter, hookimpl

from paddock_qualcomm.adapter import NpuQualcomm


@hookimpl
def paddock_adapters() -> Sequence[type[Adapter]]:
    """`npu/qualcomm`."""
    return (NpuQualcomm,)
