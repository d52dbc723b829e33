"""Paddock: one JSON file names the hardware; every answer is checked against the reference.

import paddock

with paddock.deploy("model.onnx", {"hardware": "cpu", "backend": "openvino"}) as deployment:
    answers = deployment.run({"x": array})
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from paddock.auto import deploy
    from paddock.bundle import export, load_bundle
    from paddock.config import HardwareConfig
    from paddock.deployment import Deployment
    from paddock.errors import PaddockError
    from paddock.plan import Plan
    from paddock.verify import Report

__all__ = ["Deployment", "HardwareConfig", "PaddockError", "Plan", "Report", "deploy", "export", "load_bundle"]
__version__ = "0.1.0"

_HOMES = {
    "Deployment": "deployment",
    "HardwareConfig": "config",
    "PaddockError": "errors",
    "Plan": "plan",
    "Report": "verify",
    "deploy": "auto",
    "export": "bundle",
    "load_bundle": "bundle",
}


def __getattr__(name: str) -> Any:
    """Imports a public name at its first use (PEP 562), so that `import paddock` itself costs next to nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module 'paddock' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"paddock.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
