"""What this distribution registers with Paddock."""

from __future__ import annotations

from collections.abc import Sequence

from paddock.spi import Adapter, hookimpl

from paddock_onnxruntime.adapter import CpuOnnxRuntime
from paddock_onnxruntime.cuda import GpuCuda


@hookimpl
def paddock_adapters() -> Sequence[type[Adapter]]:
    """`cpu/onnxruntime` and `gpu/cuda`."""
    return (CpuOnnxRuntime, GpuCuda)
