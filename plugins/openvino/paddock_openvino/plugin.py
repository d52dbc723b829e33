"""What this distribution registers with Paddock."""

from __future__ import annotations

from collections.abc import Sequence

from paddock.spi import Adapter, hookimpl

from paddock_openvino.adapter import CpuOpenVino, GpuOpenVino, NpuOpenVino


@hookimpl
def paddock_adapters() -> Sequence[type[Adapter]]:
    """`cpu/openvino`, `gpu/openvino` and `npu/openvino`."""
    return (CpuOpenVino, GpuOpenVino, NpuOpenVino)
