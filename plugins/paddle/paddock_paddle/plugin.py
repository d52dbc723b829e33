"""What this distribution registers with Paddock."""

from __future__ import annotations

from collections.abc import Sequence

from paddock.spi import Adapter, Format, hookimpl

from paddock_paddle.adapters import CpuMkldnn, CpuPaddle
from paddock_paddle.format import PaddleFormat


@hookimpl
def paddock_adapters() -> Sequence[type[Adapter]]:
    """`cpu/paddle` and `cpu/mkldnn`."""
    return (CpuPaddle, CpuMkldnn)


@hookimpl
def paddock_formats() -> Sequence[Format]:
    """Paddle's PIR programs."""
    return (PaddleFormat(),)
