"""Which nodes TensorRT takes: its ONNX parser's own answer or, where there is no device, its list of operators."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paddock.graph import Graph, Node
from paddock.plan import Verdict

from paddock_tensorrt.profiles import unbounded
from paddock_tensorrt.sdk import Said, trt

PARSER = "TensorRT's OnnxParser.supports_model_v2"
LISTED = "the operators that TensorRT 10.15's ONNX parser lists (onnx-tensorrt, docs/operators.md)"
CONTRACT = "the adapter's contract"

CARRIED = frozenset({"float32", "float16", "int64", "int32", "int8", "uint8", "bool"})
"""The dtypes that TensorRT takes at its border and NumPy has."""

OPERATORS = frozenset(
    {
        "Abs", "Acos", "Acosh", "Add", "And", "ArgMax", "ArgMin", "Asin", "Asinh", "Atan", "Atanh", "Attention",
        "AveragePool", "BatchNormalization", "BlackmanWindow", "Cast", "CastLike", "Ceil", "Celu", "Clip", "Concat",
        "Constant", "ConstantOfShape", "Conv", "ConvTranspose", "Cos", "Cosh", "CumSum", "DeformConv", "DepthToSpace",
        "DequantizeLinear", "Div", "Dropout", "Einsum", "Elu", "Equal", "Erf", "Exp", "Expand", "EyeLike", "Flatten",
        "Floor", "GRU", "Gather", "GatherElements", "GatherND", "Gelu", "Gemm", "GlobalAveragePool", "GlobalLpPool",
        "GlobalMaxPool", "Greater", "GreaterOrEqual", "GridSample", "GroupNormalization", "HammingWindow", "HannWindow",
        "HardSigmoid", "HardSwish", "Hardmax", "Identity", "If", "ImageScaler", "InstanceNormalization", "IsInf",
        "IsNaN", "LRN", "LSTM", "LayerNormalization", "LeakyRelu", "Less", "LessOrEqual", "Log", "LogSoftmax", "Loop",
        "LpNormalization", "LpPool", "MatMul", "Max", "MaxPool", "Mean", "MeanVarianceNormalization", "Min", "Mish",
        "Mod", "Mul", "Neg", "NonMaxSuppression", "NonZero", "Not", "OneHot", "Or", "PRelu", "Pad",
        "ParametricSoftplus", "Pow", "QuantizeLinear", "RMSNormalization", "RNN", "RandomNormal", "RandomNormalLike",
        "RandomUniform", "RandomUniformLike", "Range", "Reciprocal", "ReduceL1", "ReduceL2", "ReduceLogSum",
        "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare", "Relu",
        "Reshape", "Resize", "ReverseSequence", "RoiAlign", "RotaryEmbedding", "Round", "STFT", "ScaledTanh", "Scan",
        "Scatter", "ScatterElements", "ScatterND", "Selu", "Shape", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Size",
        "Slice", "Softmax", "Softplus", "Softsign", "SpaceToDepth", "Split", "Sqrt", "Squeeze", "Sub", "Sum", "Tan",
        "Tanh", "TensorScatter", "ThresholdedRelu", "Tile", "TopK", "Transpose", "Trilu", "Unsqueeze", "Upsample",
        "Where", "Xor",
    }
)  # fmt: skip
"""Of ONNX's own domain."""


def without_profile(graph: Graph) -> tuple[Verdict, ...] | None:
    """No for every node of a model that can be given no profile; None where it can, and the nodes decide."""
    loose = unbounded(graph)
    if not loose:
        return None
    reason = f"TensorRT needs a profile, stated ranges of extents, for {'; '.join(loose)}: state shapes or batch_size"
    return (Verdict.no(reason, "TensorRT's optimisation profiles"),) * len(graph.nodes)


def listed(graph: Graph) -> tuple[Verdict, ...]:
    """One verdict for each node where there is no device to ask on: no for what the parser's list does not have."""
    rest = Verdict.provisional("listed; whether it takes this one, only the parser tells, on a device", LISTED)
    found = []
    for node in graph.nodes:
        strange = [n.type for n in _with_bodies(node) if n.op not in OPERATORS or n.domain not in ("", "ai.onnx")]
        no = Verdict.no(f"{strange[0]} is not listed", LISTED) if strange else None
        found.append(at_border(node, graph) or no or rest)
    return tuple(found)


@dataclass(frozen=True)
class Asked:
    """What the parser says of a model: the subgraphs, each with whether it takes them, and errors by node.

    An error of node -1 is about the model as a whole.
    """

    whole: bool
    subgraphs: tuple[tuple[tuple[int, ...], bool], ...] = ()
    errors: tuple[tuple[int, str], ...] = ()


def ask(parser: trt.OnnxParser, content: bytes, path: Path, heard: Said) -> Asked:
    """Has the parser read a model, its external data beside `path`."""
    whole = bool(parser.supports_model_v2(content, str(path)))
    subgraphs = [
        (tuple(int(node) for node in parser.get_subgraph_nodes(index)), bool(parser.is_subgraph_supported(index)))
        for index in range(parser.num_subgraphs)
    ]
    errors = parser_errors(parser)
    if not whole and not errors and not any(nodes for nodes, _ in subgraphs):
        errors = [(-1, heard.why("it does not say why"))]
    return Asked(whole, tuple(subgraphs), tuple(errors))


def parser_errors(parser: trt.OnnxParser) -> list[tuple[int, str]]:
    """The parser's errors: the node, -1 for none, and what is wrong with it."""
    found = []
    for index in range(parser.num_errors):
        error: trt.ParserError = parser.get_error(index)
        found.append((int(error.node()), " ".join(error.desc().split())[:300]))
    return found


def verdicts(graph: Graph, answer: Asked) -> tuple[Verdict, ...]:
    """One verdict for each node by the parser's answer.

    As soon as it refuses anything, it says of none of the rest that it takes it, and may not have looked at what comes
    behind. So the rest is left open ("provisional"): Paddock asks again about exactly the part that is left. What reads
    an input that it refuses is in none of its subgraphs, and its error is of no node.
    """
    count = len(graph.nodes)
    wrong = {node: why for node, why in reversed(answer.errors) if 0 <= node < count}
    taken = {node: supported for nodes, supported in answer.subgraphs for node in nodes}
    general = next((why for node, why in answer.errors if not 0 <= node < count), "")
    if general and not wrong and len(taken) == count:  # it is about no input, but all
        taken = {}
    return tuple(at_border(node, graph) or _verdict(node, answer, wrong, taken, general) for node in graph.nodes)


def _verdict(node: Node, answer: Asked, wrong: dict[int, str], taken: dict[int, bool], general: str) -> Verdict:
    if node.index in wrong:
        return Verdict.no(wrong[node.index], PARSER)
    if answer.whole or taken.get(node.index):
        return Verdict.yes("", PARSER)
    if node.index in taken:
        return Verdict.provisional("the parser refuses other parts of the model, and leaves this one open", PARSER)
    reason = "the parser leaves it out of every subgraph that it names"
    return Verdict.no(f"{reason}: {general}" if general else reason, PARSER)


def at_border(node: Node, graph: Graph) -> Verdict | None:
    """No for what TensorRT would compute in fewer bits, or what cannot be handed over; else None."""
    border = {*graph.inputs, *graph.outputs}
    for index in (*node.inputs, *node.outputs, *node.captures):
        if index is None:
            continue
        value = graph.values[index]
        if value.dtype == "float64":
            return Verdict.no(f"{value.name!r} is float64, which TensorRT computes in float32", "TensorRT's types")
        if index not in border:
            continue
        if value.kind != "tensor":
            reason = f"the model's {value.name!r} is a {value.kind}; Paddock feeds and returns tensors only"
            return Verdict.no(reason, CONTRACT)
        if value.dtype is not None and value.dtype not in CARRIED:
            return Verdict.no(f"the model's {value.name!r} is {value.dtype}, which is not handed over", CONTRACT)
    return None


def _with_bodies(node: Node) -> Iterator[Node]:
    yield node
    for body in node.subgraphs:
        yield from body.walk()


def stated(path: Path, graph: Graph) -> Any:
    """The model in `path`, its external data left where they are, with the input shapes that `graph` states.

    Extents that the config fixes become numbers, open ones carry the name of their symbol: equal names, equal extents.
    """
    import onnx

    proto = onnx.load(path, load_external_data=False)
    shapes = {value.name: value.shape for value in graph.input_values}
    for port in proto.graph.input:
        shape = shapes.get(port.name)
        if shape is None or not port.type.HasField("tensor_type"):
            continue
        dims = port.type.tensor_type.shape.dim
        del dims[:]
        for extent in shape:
            dim = dims.add()
            if isinstance(extent, int):
                dim.dim_value = extent
            elif extent is not None:
                dim.dim_param = extent
    # What was inferred for other extents contradicts these; the parser infers it anew.
    del proto.graph.value_info[:]
    for port in proto.graph.output:
        for dim in port.type.tensor_type.shape.dim:
            dim.ClearField("value")
    return proto
