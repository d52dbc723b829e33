"""Verdicts for nodes: from the provider itself where it is here, else from Qualcomm's list of operators."""

from __future__ import annotations

from pathlib import Path

from paddock.graph import Graph, Node
from paddock.plan import Verdict

from paddock_qualcomm.asking import Answer, ask
from paddock_qualcomm.named import named

TRIED = "compiled by the QNN provider"
LISTED = "the operators that the QNN provider's documentation lists"

OPERATORS = frozenset(
    {
        "Abs", "Add", "And", "ArgMax", "ArgMin", "Asin", "Atan", "AveragePool", "BatchNormalization", "Cast", "Ceil",
        "Clip", "Concat", "Constant", "Conv", "ConvInteger", "ConvTranspose", "Cos", "CumSum", "DepthToSpace",
        "DequantizeLinear", "Div", "DynamicQuantizeLinear", "Einsum", "Elu", "Equal", "Exp", "Expand", "Flatten",
        "Floor", "Gather", "GatherElements", "GatherND", "Gelu", "Gemm", "GlobalAveragePool", "GlobalMaxPool",
        "Greater", "GreaterOrEqual", "GridSample", "GroupNormalization", "HardSigmoid", "HardSwish", "Identity",
        "InstanceNormalization", "Inverse", "IsNaN", "LRN", "LSTM", "LayerNormalization", "LeakyRelu", "Less",
        "LessOrEqual", "Log", "LogSoftmax", "LpNormalization", "MatMul", "MatMulInteger", "Max", "MaxPool", "Mean",
        "Min", "Mod", "Mul", "Neg", "NonZero", "Not", "Or", "PRelu", "Pad", "Pow", "QuantizeLinear",
        "RMSNormalization", "RandomNormalLike", "RandomUniformLike", "Reciprocal", "ReduceL2", "ReduceMax",
        "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "Relu", "Reshape", "Resize", "RoiAlign",
        "RotaryEmbedding", "Round", "STFT", "ScatterElements", "ScatterND", "Sigmoid", "Sign", "Sin", "Slice",
        "Softmax", "Softplus", "SpaceToDepth", "Split", "Sqrt", "Squeeze", "Sub", "Sum", "Tan", "Tanh",
        "ThresholdedRelu", "Tile", "TopK", "Transpose", "Unsqueeze", "Upsample", "Where",
    }
)  # fmt: skip
"""Of ONNX's own domain; the documentation of 2.7 leaves the types that each one takes to a table of the SDK."""

CARRIED = frozenset(
    {"float32", "float16", "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool"}
)
"""The dtypes that a NumPy array can carry to the provider."""


def verdicts(graph: Graph, path: Path, soc_model: int | None) -> tuple[Verdict, ...]:
    """One verdict for each node of the graph in `path`, by compiling it: nothing is left to be found out later."""
    found = ask(named(path, graph), path, soc_model, "asking the QNN provider")
    return tuple(at_border(node, graph) or _verdict(node, found) for node in graph.nodes)


def listed(graph: Graph) -> tuple[Verdict, ...]:
    """One verdict for each node where the provider is not here: no for what its documentation does not list."""
    rest = Verdict.provisional("listed; whether it takes this one, only the provider tells", LISTED)
    found = []
    for node in graph.nodes:
        known = node.op in OPERATORS and node.domain in ("", "ai.onnx")
        no = None if known else Verdict.no(f"{node.type} is not listed", LISTED)
        found.append(at_border(node, graph) or no or rest)
    return tuple(found)


def at_border(node: Node, graph: Graph) -> Verdict | None:
    """No for what reads or gives a value of the model that cannot be handed over; else None."""
    border = {*graph.inputs, *graph.outputs}
    for index in (*node.inputs, *node.outputs, *node.captures):
        if index is None or index not in border:
            continue
        value = graph.values[index]
        if value.kind != "tensor":
            reason = f"the model's {value.name!r} is a {value.kind}; Paddock feeds and returns tensors only"
            return Verdict.no(reason, "the adapter's contract")
        if value.dtype is not None and value.dtype not in CARRIED:
            return Verdict.no(f"the model's {value.name!r} is {value.dtype}, which QNN does not take", "QNN's types")
    return None


def _verdict(node: Node, answer: Answer) -> Verdict:
    if node.index in answer.refused:
        return Verdict.no(answer.refused[node.index], TRIED)
    if answer.whole:
        return Verdict.no(f"the model as a whole: {answer.whole}", TRIED)
    if node.index in answer.untried:
        return Verdict.provisional("the model fails as a whole, and this node cannot be tried alone", TRIED)
    if not answer.taken and not answer.refused:
        return Verdict.no("nothing is left of the model for the device to run", TRIED)
    return Verdict.yes("taken, merged with what is taken, or folded", TRIED)
