"""The core's own plugin: what it registers through the same hooks as everybody else."""

from __future__ import annotations

from collections.abc import Sequence

from paddock.onnx_format import OnnxFormat
from paddock.spi import Format, hookimpl


@hookimpl
def paddock_formats() -> Sequence[Format]:
    """ONNX, which needs no vendor."""
    return [OnnxFormat()]
