"""The one way into OpenVINO: imported without its usage reporting, one Core in a process."""

from __future__ import annotations

import sys
from functools import cache
from typing import Any

_TELEMETRY = "openvino_telemetry"


def openvino() -> Any:
    """The `openvino` module.

    Its import sends an event to a web service unless the user has opted out (openvino/tools/ovc/__init__.py of
    2026.4.1), and a deployment must not call home. OpenVINO brings a stub for where `openvino_telemetry` is not
    installed; while it is imported here, that package counts as not installed.
    """
    if "openvino" not in sys.modules and _TELEMETRY not in sys.modules:
        sys.modules[_TELEMETRY] = None  # type: ignore[assignment]  # documented: None makes an import fail
        try:
            import openvino
        finally:
            del sys.modules[_TELEMETRY]
    else:
        import openvino
    return openvino


@cache
def core() -> Any:
    """OpenVINO's Core, which owns its plugins and thread pools; safe from many threads."""
    return openvino().Core()


def read_bounded(model_path: str, shapes: dict[str, list[int | list[int] | None]]) -> Any:
    """The model read and reshaped.

    Args:
        model_path: The ONNX file.
        shapes: For each input to reshape: an extent, a range [min, max], or None for unbounded, by axis.

    Raises whatever OpenVINO raises, RuntimeError as a rule.
    """
    ov = openvino()
    model = core().read_model(model_path)
    ports = {name: port for port in model.inputs for name in port.get_names()}
    wanted = {}
    for name, extents in shapes.items():
        if name in ports:
            dims = [
                ov.Dimension() if e is None else ov.Dimension(*e) if isinstance(e, list) else ov.Dimension(e)
                for e in extents
            ]
            wanted[ports[name]] = ov.PartialShape(dims)
    if wanted:
        model.reshape(wanted)
    return model
