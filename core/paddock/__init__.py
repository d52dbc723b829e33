"""Paddock: one JSON file names the hardware; every answer is checked against the reference.

import paddock

with paddock.deploy("model.onnx", {"hardware": "cpu", "backend": "openvino"}) as deployment:
    answers = deployment.run({"x": array})
"""

from paddock.config import HardwareConfig
from paddock.deploy import Deployment, deploy
from paddock.errors import PaddockError
from paddock.plan import Plan
from paddock.verify import Report

__all__ = ["Deployment", "HardwareConfig", "PaddockError", "Plan", "Report", "deploy"]
__version__ = "0.1.0"
