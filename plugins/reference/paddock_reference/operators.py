"""Which operators onnx's reference evaluator can run, asked of its own tables, and where it is known to be wrong.

What is known to be wrong was found with the 1,288 backend node tests of onnx 1.17.0, against other runtimes, and by
reading the evaluator's source (onnx/reference/ops). What a pattern can say of it stands in defects.json; here is the
rest. tests/test_reference.py keeps both honest.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from typing import Any

from paddock.graph import Dim, Graph, Node, Shape
from paddock.plan import Verdict

TABLE = "onnx.reference's operator table"
STANDARD = "onnx.reference, by the standard's function"
FUNCTION = "the model's own function"
SOURCE = "onnx.reference's source"


class Operators:
    """Answers for the nodes of one model.

    Args:
        graph: The model's graph.
        functions: Its FunctionProtos.
    """

    def __init__(self, graph: Graph, functions: Any = ()) -> None:
        self.graph = graph
        self.functions: dict[tuple[str, str], list[Any]] = {}
        for function in functions:
            self.functions.setdefault((_domain(function.domain), function.name), []).append(function)
        self._known: dict[tuple[str, str, int | None], Verdict] = {}

    def verdict(self, node: Node) -> Verdict:
        """Yes, or no with the first reason found in the node or in the bodies that it runs."""
        # What Identity hands on is what it was fed.
        fed = node.op == "Identity" and node.inputs[0] in self.graph.inputs
        ends = [o for o in node.outputs if o is not None and o in self.graph.outputs and not fed]
        if any(_is_optional(self.graph, output) for output in ends):
            return Verdict.no("it keeps an optional as a list of one, so that its value is no longer certain", SOURCE)
        answer = self._one(node, self.graph)
        if not answer.usable:
            return answer
        for inner, body in _inside(node):
            found = self._one(inner, body)
            if not found.usable:
                return Verdict.no(f"its body runs {inner.type}: {found.reason}", found.source)
        return answer

    def _one(self, node: Node, graph: Graph) -> Verdict:
        opsets = self.graph.opsets
        answer = self._operator(node.domain, node.op, opsets)
        wrong = _defect(node, graph, opsets) if answer.usable and answer.source != FUNCTION else None
        return Verdict.no(wrong, SOURCE) if wrong else answer

    def _operator(self, domain: str, op: str, opsets: Mapping[str, int]) -> Verdict:
        key = (domain, op, opsets.get(domain))
        if key not in self._known:
            # A provisional answer stops the search in a function that calls itself.
            self._known[key] = Verdict.provisional("calls itself", FUNCTION)
            called = self.functions.get((domain, op))
            self._known[key] = self._function(called) if called else _table(*key)
        return self._known[key]

    def _function(self, overloads: list[Any]) -> Verdict:
        for function in overloads:
            opsets = {_domain(o.domain): o.version for o in function.opset_import}
            for proto in every_node(function.node):
                domain = _domain(proto.domain)
                found = self._operator(domain, proto.op_type, opsets)
                called = f"the function runs {proto.op_type}"
                if not found.usable:
                    return Verdict.no(f"{called}: {found.reason}", found.source)
                if self._passes_on_a_default(domain, proto):
                    return Verdict.no(f"{called} with an attribute that may be left to its default", SOURCE)
                if (domain, proto.op_type) in _DEFECTS or _type(domain, proto.op_type) in _listed():
                    return Verdict.no(f"{called}, which is wrong in some forms", SOURCE)
        return Verdict.yes("a function of the model, inlined", FUNCTION)

    def _passes_on_a_default(self, domain: str, proto: Any) -> bool:
        """Whether a function hands its own attribute to another that has a default for it: onnx loses the default."""
        called = self.functions.get((domain, proto.op_type), ())
        defaults = {default.name for function in called for default in function.attribute_proto}
        return any(a.ref_attr_name and a.name in defaults for a in proto.attribute)


def _inside(node: Node) -> Iterator[tuple[Node, Graph]]:
    """The nodes of its bodies, at any depth, each with the body that its values stand in."""
    for body in node.subgraphs:
        for inner in body.nodes:
            yield inner, body
            yield from _inside(inner)


def _listed() -> set[str]:
    """The operators of defects.json, which is not asked about the nodes in a function."""
    from paddock.defects import load  # not needed to serve what is kept

    return {op for defect in load("paddock_reference") for pattern in defect.patterns for op in pattern.operators}


def _type(domain: str, op: str) -> str:
    return f"{domain}.{op}" if domain else op


def _domain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


def every_node(nodes: Any) -> Iterator[Any]:
    """These NodeProtos and those of their bodies, at any depth."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from every_node(graph.node)


def _is_optional(graph: Graph, value: int) -> bool:
    return graph.values[value].kind == "optional"


def _table(domain: str, op: str, version: int | None) -> Verdict:
    """What the evaluator finds for an operator of the standard's domains."""
    from onnx.reference import ReferenceEvaluator, ops
    from onnx.reference.op_run import OpFunction, RuntimeContextError
    from onnx.reference.ops import aionnx_preview_training, aionnxml

    loaders: dict[str, Any] = {
        "": ops.load_op,
        "ai.onnx.ml": aionnxml.load_op,
        "ai.onnx.preview.training": aionnx_preview_training.load_op,
    }
    if domain not in loaders:
        return Verdict.no(f"it has no operators of the domain {domain}, and the model no such function", TABLE)
    try:
        found = loaders[domain](domain, op, version, evaluator_cls=ReferenceEvaluator)
    except RuntimeContextError:
        return Verdict.yes("expanded by its input types", STANDARD)
    except Exception:  # it raises half a dozen kinds of its own here
        return Verdict.no(f"it does not implement {op} of opset {version}", TABLE)
    if isinstance(found, type) and not issubclass(found, OpFunction):
        return Verdict.yes("implemented", TABLE)
    return Verdict.yes("expanded", STANDARD)


def _shape(node: Node, at: int, graph: Graph) -> Shape | None:
    """The shape of the input at a place; None where it is unknown, or the input left out."""
    index = node.inputs[at] if at < len(node.inputs) else None
    return None if index is None else graph.values[index].shape


def _loop(node: Node, graph: Graph, opsets: Mapping[str, int]) -> str | None:
    for body in node.subgraphs:
        carried = len(body.inputs) - 2
        for value in body.output_values[1 + carried :]:
            if value.kind != "tensor" or value.shape is None or len(value.shape) != 1:
                return "it stacks what a Loop scans rightly only where each piece has rank 1"
    return None


def _scan(node: Node, graph: Graph, opsets: Mapping[str, int]) -> str | None:
    if opsets.get("", 1) < 9:
        return None  # defects.json says it
    if any(any(node.attributes.get(f"scan_{side}_{what}") or ()) for side in _SIDES for what in ("axes", "directions")):
        return "it implements Scan along axis 0 forwards only"
    scanned = int(node.attributes["num_scan_inputs"])
    if len(node.inputs) != 2 * scanned:
        return "it implements Scan only for as many states as scanned inputs"
    if node.captures:
        return "it does not let the body of a Scan read outer values"
    return None


def _regex(node: Node, graph: Graph, opsets: Mapping[str, int]) -> str | None:
    return None if importlib.util.find_spec("re2") else "it needs google-re2 for it: pip install google-re2"


def _optional(node: Node, graph: Graph, opsets: Mapping[str, int]) -> str | None:
    given = node.inputs[0] if node.inputs else None
    tensor = given is not None and graph.values[given].kind == "tensor"
    return "it keeps an optional tensor as a list of one, and fails on it" if tensor else None


def _pool(node: Node, graph: Graph, opsets: Mapping[str, int]) -> str | None:
    given = node.attributes
    kernel = given["kernel_shape"]
    ones = [1] * len(kernel)
    strides, dilations = (given.get(name) or ones for name in ("strides", "dilations"))
    same = given.get("auto_pad", "NOTSET").startswith("SAME")
    spans = [dilation * (size - 1) + 1 for size, dilation in zip(kernel, dilations, strict=True)]
    if same and any(span < stride for span, stride in zip(spans, strides, strict=True)):
        return "it shifts the windows, or fails, where SAME would leave elements out"
    if node.op != "MaxPool" or any(extent != 1 for extent in (*strides, *dilations)):
        return None  # defects.json says the rest
    pads: list[int] = given.get("pads") or []
    if len(node.outputs) > 1 and node.outputs[1] is not None:
        return "it gives wrong indices of a MaxPool with stride 1"
    if graph.values[node.inputs[0] or 0].dtype == "int8":
        return "it pads int8 with nan in a MaxPool with stride 1"
    if (any(pads) or same) and (len(kernel) != 2 or given.get("ceil_mode")):
        return "it pads a MaxPool with stride 1 rightly only over two axes, and where nothing is rounded up"
    if len(pads) == 4 and pads[1] != pads[2]:
        return "it takes the pads of a MaxPool with stride 1 in another order"
    return None


def _qlinear_conv(node: Node, graph: Graph, opsets: Mapping[str, int]) -> str | None:
    return None if _shape(node, 4, graph) in ((), (1,)) else "it applies scales of channels to the last axis"


def _conv_integer(node: Node, graph: Graph, opsets: Mapping[str, int]) -> str | None:
    several = len(node.inputs) > 3 and node.inputs[3] is not None and _shape(node, 3, graph) not in ((), (1,))
    return "it fails on a zero point for each channel" if several else None


def _gather(node: Node, graph: Graph, opsets: Mapping[str, int]) -> str | None:
    empty = 0 in (_shape(node, 1, graph) or ())
    return "it loses the other axes where it gathers nothing" if empty else None


def _stated(*dims: Dim) -> bool:
    return all(isinstance(dim, int) for dim in dims)


def _gather_elements(node: Node, graph: Graph, opsets: Mapping[str, int]) -> str | None:
    data, indices = _shape(node, 0, graph), _shape(node, 1, graph)
    if data is None or indices is None:
        return None  # it fails aloud where it cannot
    axis = node.attributes.get("axis", 0) % len(data)
    across = [a == b for at, (a, b) in enumerate(zip(data, indices, strict=False)) if at != axis and _stated(a, b)]
    length = data[axis]
    if not all(across) or 0 in indices or (isinstance(length, int) and length >= 32):
        return "it gathers only from fewer than 32 elements, with indices of the same extents across"
    return None


def _scatter_nd(node: Node, graph: Graph, opsets: Mapping[str, int]) -> str | None:
    if node.attributes.get("reduction") not in ("max", "min"):
        return None
    indices = _shape(node, 1, graph)
    one = indices is not None and len(indices) > 0 and indices[-1] == 1
    return None if one else "it takes an index of several axes for several indices"


def _resize(node: Node, graph: Graph, opsets: Mapping[str, int]) -> str | None:
    given = node.attributes
    smooth = given.get("mode") == "cubic" or given.get("antialias")
    if given.get("coordinate_transformation_mode") != "pytorch_half_pixel" or not smooth:
        return None
    output = node.outputs[0]
    before, after = _shape(node, 0, graph), None if output is None else graph.values[output].shape
    if before is None or after is None:
        return "it may be asked for one element, which it takes from half an element before the first"
    # A symbol of its own may stand for one.
    to_one = any(a != 1 and (b == 1 or (b != a and not _stated(b))) for a, b in zip(before, after, strict=False))
    return "it resizes to one element from half an element before the first" if to_one else None


_BFLOAT16 = ("Cast", "CastLike", "Constant", "Identity", "If", "Loop", "Scan")
_SIDES = ("input", "output")
_DEFECTS = {
    ("", "Loop"): _loop,
    ("", "Scan"): _scan,
    ("", "ConvInteger"): _conv_integer,
    ("", "Gather"): _gather,
    ("", "GatherElements"): _gather_elements,
    ("", "AveragePool"): _pool,
    ("", "LpPool"): _pool,
    ("", "MaxPool"): _pool,
    ("", "Optional"): _optional,
    ("", "QLinearConv"): _qlinear_conv,
    ("", "Resize"): _resize,
    ("", "ScatterND"): _scatter_nd,
    ("", "RegexFullMatch"): _regex,
}


def _defect(node: Node, graph: Graph, opsets: Mapping[str, int]) -> str | None:
    """Why the evaluator would be wrong, or fail, on this very node; None where nothing is known against it."""
    values = [graph.values[i] for i in (*node.inputs, *node.outputs) if i is not None]
    if any(value.dtype == "bfloat16" for value in values) and node.op not in _BFLOAT16:
        return "it has bfloat16 as bits only, and computes with them or asks for ml_dtypes"
    found = _DEFECTS.get((node.domain, node.op))
    return found(node, graph, opsets) if found else None
