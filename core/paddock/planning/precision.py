"""The precision plan: which dtype a deployment computes in, and by whose doing."""

from __future__ import annotations

from paddock.config import HardwareConfig
from paddock.errors import ConfigError
from paddock.model import Model
from paddock.plan import Precision, PrecisionPlan
from paddock.planning.operators import matching


def plan_precision(model: Model, config: HardwareConfig, adapter: str) -> PrecisionPlan:
    """The plan for a model. Raises `ConfigError` where something asked for would have no effect."""
    keep = matching(model, config.operators.keep_fp32, "$.operators.keep_fp32")
    if config.calibration is not None and config.precision is not Precision.INT8:
        raise ConfigError(
            f"has no effect with precision {config.precision}", where="$.calibration", remedy="leave it out"
        )
    if config.precision is Precision.FP32:
        return PrecisionPlan(config.precision, "none", tuple(sorted(keep)), "the model is run as it is")
    if keep:
        raise ConfigError(
            f"{adapter} lowers the whole model to {config.precision}: this version keeps no single nodes in fp32",
            where="$.operators.keep_fp32",
            remedy="leave it out, or set precision to fp32",
        )
    return PrecisionPlan(config.precision, "backend", (), "the backend lowers the whole model by its own setting")
