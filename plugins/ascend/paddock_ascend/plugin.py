"""What this distribution registers with Paddock."""

from __future__ import annotations

from collections.abc import Sequence

from paddock.spi import Adapter, hookimpl

from paddock_ascend.adapters import NpuAscend


@hookimpl
def paddock_adapters() -> Sequence[type[Adapter]]:
    """`npu/ascend`."""
    return (NpuAscend,)
