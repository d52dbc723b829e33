"""Which nodes a provider of ONNX Runtime has kernels for, from its registry (`paddock_onnxruntime.kernels`).

Matched the way onnxruntime itself does (KernelRegistry::VerifyKernelDef in core/framework/kernel_registry.cc): by
operator, domain, the version since which the operator is as it is, and the types of inputs and outputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from paddock.graph import Graph, Node, Value
from paddock.plan import Answer, Verdict

from paddock_onnxruntime.kernels import CPU, CUDA, Kernel, Registry, Schema, registry

FUNCTIONS = "ONNX's operator schemas"

_ORT_NAMES = {"float32": "float", "float64": "double"}

CARRIED = frozenset(
    {
        "float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8",
        "bool", "string", "complex64", "complex128",
    }
)  # fmt: skip
"""The dtypes that a NumPy array can carry to and from onnxruntime."""


DEPTH = "depth"
"""The input of OneHot that the CUDA provider takes in int64 alone: `paddock_onnxruntime.cuda` casts it."""


@dataclass(frozen=True)
class Selector:
    """Judges the nodes of one graph.

    Args:
        graph: The whole model's graph.
        path: Its file, read for model-local functions only where a node's operator is in no schema.
        known: The provider's registry.
    """

    graph: Graph
    path: Path
    known: Registry = field(default_factory=registry)

    def verdicts(self) -> tuple[Verdict, ...]:
        """One verdict for each node of the graph, in order."""
        border = {*self.graph.inputs, *self.graph.outputs}
        return tuple(self._at_border(node, border) or self._judge(node, self.graph) for node in self.graph.nodes)

    def _at_border(self, node: Node, border: set[int]) -> Verdict | None:
        for index in (*node.inputs, *node.outputs, *node.captures):
            if index is not None and index in border:
                value = self.graph.values[index]
                if value.kind != "tensor":
                    return Verdict.no(
                        f"the model's {value.name!r} is a {value.kind}; Paddock feeds and returns tensors only",
                        "the adapter's contract",
                    )
                if value.dtype is not None and value.dtype not in CARRIED:
                    return Verdict.no(
                        f"the model's {value.name!r} is {value.dtype}, which no NumPy array carries to onnxruntime",
                        "NumPy's dtypes",
                    )
        return None

    def _judge(self, node: Node, graph: Graph) -> Verdict:
        verdict = self._own(node, graph)
        if verdict.answer is Answer.NO:
            return verdict
        for body in node.subgraphs:
            for inner in body.nodes:
                found = self._judge(inner, body)
                if found.answer is Answer.NO:
                    return Verdict.no(f"in its body, {inner.label}: {found.reason}", found.source)
                if found.answer is Answer.PROVISIONAL and verdict.answer is Answer.YES:
                    verdict = Verdict.provisional(f"in its body, {inner.label}: {found.reason}", found.source)
        return verdict

    def _own(self, node: Node, graph: Graph) -> Verdict:
        domain = "" if node.domain == "ai.onnx" else node.domain
        opset = self.graph.opsets.get(domain, self.graph.opsets.get(node.domain, 1))
        if domain == "" and opset > self.known.opset:
            newest = f"{self.known.opset}, onnxruntime's newest"
            return Verdict.no(f"opset {opset} is newer than {newest}", self.known.source)
        schema = next((s for s in self.known.schemas.get((domain, node.op), ()) if s.since <= opset), None)
        if schema is None:
            if (domain, node.op) in self._functions:
                return Verdict.provisional("inlined by onnxruntime: a function of the model", "the model's file")
            return Verdict.no(f"onnxruntime knows no operator {node.type} at opset {opset}", self.known.source)
        if schema.deprecated:
            return Verdict.no(f"{node.type} is deprecated since opset {schema.since}", self.known.source)
        if domain == "" and node.op == "Constant":
            return Verdict.yes("made an initializer when the model is loaded", "onnxruntime's graph loader")
        limit = _limit(node, self.known.provider, opset)
        if limit is not None:
            return limit
        return self._by_kernel(node, graph, domain, schema) or self._by_function(node, graph, domain, schema)

    def _by_kernel(self, node: Node, graph: Graph, domain: str, schema: Schema) -> Verdict | None:
        kernels = [k for k in self.known.kernels.get((domain, node.op), ()) if k.takes_version(schema.since)]
        arguments = list(_arguments(node, graph, schema))
        if any(_fits(kernel, arguments) for kernel in kernels):
            open_types = [v.name for names, v in arguments if v.dtype is None and _constrained(kernels, names)]
            if open_types:
                return Verdict.provisional(f"has kernels; the dtype of {open_types[0]!r} is unknown", self.known.source)
            return self._certain(f"kernel for {node.type}({schema.since}) of {self.known.provider}")
        if self.known.provider != CPU:
            cast = [(n, replace(v, dtype="int64") if n[0] == DEPTH else v) for n, v in arguments]
            if node.type == "OneHot" and any(_fits(kernel, cast) for kernel in kernels):
                return self._certain(f"kernel for OneHot({schema.since}) of {CUDA}, its depth cast to int64 by Paddock")
            return None
        # onnxruntime's InsertCastTransformer computes a float16 node that has only a float32 kernel between casts.
        widened = [(n, replace(v, dtype="float32") if v.dtype == "float16" else v) for n, v in arguments]
        if widened != arguments and any(_fits(kernel, widened) for kernel in kernels):
            return self._certain(
                f"computed in float32 between casts that onnxruntime inserts: "
                f"{node.type}({schema.since}) has no float16 kernel"
            )
        return None

    def _by_function(self, node: Node, graph: Graph, domain: str, schema: Schema) -> Verdict:
        if _is_function(node.op, schema.since, domain):
            return Verdict.provisional("inlined by onnxruntime: ONNX defines it as a function", FUNCTIONS)
        dtypes = ", ".join(f"{v.name!r}: {v.dtype or 'unknown'}" for _, v in _arguments(node, graph, schema))
        shown = f"{domain or 'ai.onnx'}.{node.op}({schema.since})"
        having = f"{self.known.provider} has no kernel for {shown} with {dtypes or 'no arguments'}"
        return Verdict.no(having, self.known.source)

    def _certain(self, reason: str) -> Verdict:
        if self.known.doubt:
            return Verdict.provisional(f"{reason}, {self.known.doubt}", self.known.source)
        return Verdict.yes(reason, self.known.source)

    @cached_property
    def _functions(self) -> frozenset[tuple[str, str]]:
        import onnx

        functions = onnx.load(self.path, load_external_data=False).functions
        return frozenset(("" if f.domain == "ai.onnx" else f.domain, f.name) for f in functions)


def _limit(node: Node, provider: str, opset: int) -> Verdict | None:
    """What kernels refuse when they are built, and providers before, although the registry lists them.

    Seen on onnxruntime 1.32 (CPU) and onnxruntime-gpu 1.31.1 (CUDA, whose GetCapability needs no GPU to decide).
    """
    if node.domain not in ("", "ai.onnx"):
        return None
    given = node.attributes
    if node.op in ("RNN", "GRU", "LSTM") and given.get("layout", 0) == 1:
        return Verdict.no(
            "batchwise recurrent operators (layout 1) are not supported", "onnxruntime's RNN, GRU and LSTM kernels"
        )
    if node.op == "StringNormalizer":
        return Verdict.provisional("its kernel needs the host to have the locale it names", "onnxruntime's kernel")
    reason = _cuda_limit(node, opset) if provider == CUDA else ""
    return Verdict.no(reason, f"GetCapability and kernels of {CUDA}") if reason else None


def _cuda_limit(node: Node, opset: int) -> str:
    """Why the CUDA provider leaves a node to the CPU although it has a kernel; "" where it does not."""
    given = node.attributes
    if node.op in ("ArgMax", "ArgMin") and given.get("select_last_index", 0):
        return "select_last_index is not supported"
    if node.op == "ConvTranspose":
        if given.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
            return "auto_pad is not supported"
        pads = given.get("pads", [])
        if pads[: len(pads) // 2] != pads[len(pads) // 2 :]:
            return "pads that differ between the two sides are not supported"
    if node.op == "BatchNormalization" and given.get("training_mode", 0) and opset >= 14:
        return "training mode is not supported"
    if node.op == "GRU" and not given.get("linear_before_reset", 0):
        return "linear_before_reset 0 is not supported"
    if node.op == "LSTM" and (given.get("input_forget", 0) or (len(node.inputs) > 7 and node.inputs[7] is not None)):
        return "peepholes and input_forget are not supported"
    if node.op in ("GRU", "LSTM", "RNN"):
        if "clip" in given:
            return "clip is not supported"
        usual = {"GRU": ["Sigmoid", "Tanh"], "LSTM": ["Sigmoid", "Tanh", "Tanh"], "RNN": ["Tanh"]}[node.op]
        named = [str(activation) for activation in given.get("activations", usual)]
        if [a.lower() for a in named] != [a.lower() for a in usual] * (len(named) // len(usual)):
            return f"activations {', '.join(named)} are not supported"
    return ""


def _arguments(node: Node, graph: Graph, schema: Schema) -> Iterator[tuple[tuple[str, str], Value]]:
    pairs: Sequence[tuple[tuple[tuple[str, str], ...], tuple[int | None, ...]]] = (
        (schema.inputs, node.inputs),
        (schema.outputs, node.outputs),
    )
    for formal, actual in pairs:
        for place, index in enumerate(actual):
            if index is not None and formal:
                yield formal[min(place, len(formal) - 1)], graph.values[index]


def _constrained(kernels: list[Kernel], names: tuple[str, str]) -> bool:
    return any(name in kernel.types for kernel in kernels for name in names)


def _fits(kernel: Kernel, arguments: list[tuple[tuple[str, str], Value]]) -> bool:
    for names, value in arguments:
        if value.dtype is None:
            continue
        tensor = f"tensor({_ORT_NAMES.get(value.dtype, value.dtype)})"
        wanted = {
            "tensor": {tensor},
            "sequence": {f"seq({tensor})"},
            "optional": {f"optional({tensor})", f"optional(seq({tensor}))"},
        }.get(value.kind, {tensor})
        for name in names:
            if name in kernel.types and not wanted & kernel.types[name]:
                return False
    return True


def _is_function(op: str, since: int, domain: str) -> bool:
    import onnx.defs

    try:
        schema: Any = onnx.defs.get_schema(op, since, domain)
    except onnx.defs.SchemaError:
        return False
    return bool(schema.has_function or schema.has_context_dependent_function)
