"""The precision plan of a whole model: what its parts' casts mean for the nodes of the model that the user gave."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from paddock.config import HardwareConfig
from paddock.errors import ConfigError
from paddock.model import Model
from paddock.plan import Means, NodePrecision, Precision, PrecisionPlan, SearchStep
from paddock.planning.operators import matching

NARROW: Mapping[Precision, str] = {Precision.FP16: "float16", Precision.BF16: "bfloat16", Precision.INT8: "int8"}
"""The dtype of each reduced precision's values."""

_IN_FP32 = " in fp32"
_QUANTIZED = frozenset(
    {"QuantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger"}
)
_KEY = "$.operators.keep_fp32"


@dataclass(frozen=True)
class Keep:
    """The nodes of the user's model that stay in fp32, each with the reason.

    `exact`: these and no others, so that what else would be needed is refused; if not, it is kept as well.
    """

    nodes: Mapping[int, str] = field(default_factory=dict)
    exact: bool = False
    searched: tuple[SearchStep, ...] = ()


def asked_to_keep(model: Model, config: HardwareConfig) -> Keep:
    """What the config says, by nodes; raises `ConfigError` where it names what the model does not have."""
    patterns = config.operators.keep_fp32
    if patterns is None:
        return Keep()
    if config.precision is Precision.INT8 and is_quantised(model):
        raise ConfigError(
            "has no effect: the model is quantised already, and run as it is", where=_KEY, remedy="leave it out"
        )
    return Keep(dict.fromkeys(sorted(matching(model, patterns, _KEY)), "kept by the config"), exact=True)


def in_fp32(adapter: str) -> str:
    """What an adapter is called where it stands in the chain a second time, for the nodes that stay in fp32."""
    return adapter + _IN_FP32


def is_quantised(model: Model) -> bool:
    """Whether a model computes in int8 by itself: it is then run as it is."""
    return any(node.op in _QUANTIZED for node in model.graph.walk())


def portable(model: Model, nodes: Iterable[int]) -> list[str]:
    """The list that `operators.keep_fp32` takes, exact for this model on any adapter: `#12 MatMul`."""
    return [f"#{index} {model.graph.nodes[index].type}" for index in sorted(nodes)]


def together(
    model: Model, precision: Precision, parts: Sequence[tuple[Mapping[int, NodePrecision], PrecisionPlan]], keep: Keep
) -> PrecisionPlan:
    """The plan of a model from those of its parts.

    Args:
        model: The model as the user gave it.
        precision: What the config asks for.
        parts: For each part, what became of the nodes of `model` that it runs, and its own plan.
        keep: What was to be kept.
    """
    found: dict[int, NodePrecision] = {}
    for became, _ in parts:
        found.update(became)
    means = next((plan.means for _, plan in parts if plan.means is not Means.NONE), Means.NONE)
    nodes = tuple(found.get(n.index, NodePrecision(n.index, n.type, "")) for n in model.graph.nodes)
    kept = sorted({node for _, plan in parts for node in plan.keep_fp32})
    storage = next((plan.storage for _, plan in parts if plan.storage), "")
    return PrecisionPlan(
        precision,
        means,
        tuple(kept),
        _summary(precision, means, nodes, storage),
        nodes if means is not Means.NONE else (),
        tuple(cast for _, plan in parts for cast in plan.casts),
        sum(plan.weights_saved for _, plan in parts),
        storage,
        keep.searched,
    )


def _summary(precision: Precision, means: Means, nodes: Sequence[NodePrecision], storage: str) -> str:
    if means is Means.NONE:
        return "the model is run as it is"
    if means is Means.BACKEND:
        kept = sum(node.dtype == "float32" for node in nodes)
        apart = f"; {kept} nodes run apart, in fp32" if kept else ""
        return f"the backend lowers what it is given by its own setting{apart}"
    if precision is Precision.FP32:
        return f"the model computes as it is; its weights are stored in {storage}"
    floats = [node for node in nodes if node.dtype]
    narrow = sum(node.dtype != "float32" for node in floats)
    how = "cast on the graph" if means is Means.CAST else "quantised from samples"
    return f"{how}: {narrow} of {len(floats)} nodes that compute in floats are in {NARROW[precision]}"
