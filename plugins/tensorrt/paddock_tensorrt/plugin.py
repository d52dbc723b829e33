"""What this distribution registers with Paddock."""

from __future__ import annotations

from collections.abc import Sequence

from paddock.spi import Adapter, hookimpl

from paddock_tensorrt.adapter import GpuTensorRt


@hookimpl
def paddock_adapters() -> Sequence[type[Adapter]]:
    """`gpu/tensorrt`."""
    return (GpuTensorRt,)
