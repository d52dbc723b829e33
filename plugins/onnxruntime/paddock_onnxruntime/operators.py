"""Which nodes ONNX Runtime's CPU provider has kernels for, from its own registry.

Source: `onnxruntime.capi.onnxruntime_pybind11_state.get_all_opkernel_def()` and `get_all_operator_schema()`, matched
the way onnxruntime itself does (KernelRegistry::VerifyKernelDef in core/framework/kernel_registry.cc): by operator,
domain, the version since which the operator is as it is, and the types of inputs and outputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from paddock.graph import Graph, Node, Value
from paddock.plan import Answer, Verdict

PROVIDER = "CPUExecutionProvider"
REGISTRY = "onnxruntime's kernel registry"
FUNCTIONS = "ONNX's operator schemas"

OPEN_END = 2**31 - 1
"""The end of a kernel's version range where it has none (INT_MAX)."""

_ORT_NAMES = {"float32": "float", "float64": "double"}

CARRIED = frozenset(
    {
        "float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8",
        "bool", "string", "complex64", "complex128",
    }
)  # fmt: skip
"""The dtypes that a NumPy array can carry to and from onnxruntime."""


@dataclass(frozen=True, slots=True)
class _Schema:
    since: int
    deprecated: bool
    inputs: tuple[tuple[str, str], ...]
    """Name and type parameter of each formal input; the last one repeats where it is variadic."""
    outputs: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class _Kernel:
    start: int
    end: int
    types: Mapping[str, frozenset[str]]

    def takes_version(self, since: int) -> bool:
        # An open range promises nothing about later definitions of the operator: only its start counts.
        return self.start == since or (self.start < since <= self.end and self.end != OPEN_END)


@dataclass(frozen=True)
class Registry:
    """The schemas and the CPU provider's kernels of the onnxruntime installed, by (domain, operator)."""

    schemas: Mapping[tuple[str, str], tuple[_Schema, ...]]
    kernels: Mapping[tuple[str, str], tuple[_Kernel, ...]]
    opset: int
    """The newest version of the default domain of which it defines an operator."""


@cache
def registry() -> Registry:
    """Reads the registry, once in a process; imports onnxruntime."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    schemas: dict[tuple[str, str], list[_Schema]] = {}
    for schema in state.get_all_operator_schema():
        inputs = tuple((p.name, p.typeStr) for p in schema.inputs)
        outputs = tuple((p.name, p.typeStr) for p in schema.outputs)
        found = _Schema(schema.since_version, schema.deprecated, inputs, outputs)
        schemas.setdefault((schema.domain, schema.name), []).append(found)
    kernels: dict[tuple[str, str], list[_Kernel]] = {}
    for kernel in state.get_all_opkernel_def():
        if kernel.provider == PROVIDER:
            types = {name: frozenset(allowed) for name, allowed in kernel.type_constraints.items()}
            start, end = kernel.version_range
            kernels.setdefault((kernel.domain, kernel.op_name), []).append(_Kernel(start, end, types))
    newest = max(s.since for (domain, _), versions in schemas.items() if domain == "" for s in versions)
    return Registry(
        {key: tuple(sorted(found, key=lambda s: -s.since)) for key, found in schemas.items()},
        {key: tuple(found) for key, found in kernels.items()},
        newest,
    )


@dataclass(frozen=True)
class Selector:
    """Judges the nodes of one graph.

    Args:
        graph: The whole model's graph.
        path: Its file, read for model-local functions only where a node's operator is in no schema.
        known: onnxruntime's registry.
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
            return Verdict.no(f"opset {opset} is newer than {self.known.opset}, onnxruntime's newest", REGISTRY)
        schema = next((s for s in self.known.schemas.get((domain, node.op), ()) if s.since <= opset), None)
        if schema is None:
            if (domain, node.op) in self._functions:
                return Verdict.provisional("inlined by onnxruntime: a function of the model", "the model's file")
            return Verdict.no(f"onnxruntime knows no operator {node.type} at opset {opset}", REGISTRY)
        if schema.deprecated:
            return Verdict.no(f"{node.type} is deprecated since opset {schema.since}", REGISTRY)
        if domain == "" and node.op == "Constant":
            return Verdict.yes("made an initializer when the model is loaded", "onnxruntime's graph loader")
        limit = _limit(node)
        if limit is not None:
            return limit
        return self._by_kernel(node, graph, domain, schema) or self._by_function(node, graph, domain, schema)

    def _by_kernel(self, node: Node, graph: Graph, domain: str, schema: _Schema) -> Verdict | None:
        kernels = [k for k in self.known.kernels.get((domain, node.op), ()) if k.takes_version(schema.since)]
        arguments = list(_arguments(node, graph, schema))
        if any(_fits(kernel, arguments) for kernel in kernels):
            open_types = [v.name for names, v in arguments if v.dtype is None and _constrained(kernels, names)]
            if open_types:
                return Verdict.provisional(f"has kernels; the dtype of {open_types[0]!r} is unknown", REGISTRY)
            return Verdict.yes(f"kernel for {node.type}({schema.since}) of {PROVIDER}", REGISTRY)
        # onnxruntime's InsertCastTransformer computes a float16 node that has only a float32 kernel between casts.
        widened = [(n, replace(v, dtype="float32") if v.dtype == "float16" else v) for n, v in arguments]
        if widened != arguments and any(_fits(kernel, widened) for kernel in kernels):
            return Verdict.yes(
                f"computed in float32 between casts that onnxruntime inserts: "
                f"{node.type}({schema.since}) has no float16 kernel",
                REGISTRY,
            )
        return None

    def _by_function(self, node: Node, graph: Graph, domain: str, schema: _Schema) -> Verdict:
        if _is_function(node.op, schema.since, domain):
            return Verdict.provisional("inlined by onnxruntime: ONNX defines it as a function", FUNCTIONS)
        dtypes = ", ".join(f"{v.name!r}: {v.dtype or 'unknown'}" for _, v in _arguments(node, graph, schema))
        shown = f"{domain or 'ai.onnx'}.{node.op}({schema.since})"
        return Verdict.no(f"{PROVIDER} has no kernel for {shown} with {dtypes or 'no arguments'}", REGISTRY)

    @cached_property
    def _functions(self) -> frozenset[tuple[str, str]]:
        import onnx

        functions = onnx.load(self.path, load_external_data=False).functions
        return frozenset(("" if f.domain == "ai.onnx" else f.domain, f.name) for f in functions)


def _limit(node: Node) -> Verdict | None:
    """What kernels refuse when they are built although the registry lists them; seen on onnxruntime 1.32."""
    if node.op in ("RNN", "GRU", "LSTM") and node.domain in ("", "ai.onnx") and node.attributes.get("layout", 0) == 1:
        return Verdict.no(
            "batchwise recurrent operators (layout 1) are not supported", "onnxruntime's RNN, GRU and LSTM kernels"
        )
    if node.op == "StringNormalizer":
        return Verdict.provisional("its kernel needs the host to have the locale it names", "onnxruntime's kernel")
    return None


def _arguments(node: Node, graph: Graph, schema: _Schema) -> Iterator[tuple[tuple[str, str], Value]]:
    pairs: Sequence[tuple[tuple[tuple[str, str], ...], tuple[int | None, ...]]] = (
        (schema.inputs, node.inputs),
        (schema.outputs, node.outputs),
    )
    for formal, actual in pairs:
        for place, index in enumerate(actual):
            if index is not None and formal:
                yield formal[min(place, len(formal) - 1)], graph.values[index]


def _constrained(kernels: list[_Kernel], names: tuple[str, str]) -> bool:
    return any(name in kernel.types for kernel in kernels for name in names)


def _fits(kernel: _Kernel, arguments: list[tuple[tuple[str, str], Value]]) -> bool:
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
