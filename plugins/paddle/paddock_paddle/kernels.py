"""Who computes an operation: answers from Paddle's own kernel registry.

Source: `paddle.base.core._get_registered_phi_kernels("all")`, which maps kernel names to entries such as
"(ONEDNN, ONEDNN, bfloat16)". A kernel has its operation's name, without the "_" of in-place operations; that held for
every kernel that eleven models ran. An operation is keyed by the dtype of one of its operands or results, which of them
Paddle's YAML says and Python does not: here any of them will do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from paddock.graph import Graph, Node
from paddock.plan import Answer, Verdict

from paddock_paddle import sdk
from paddock_paddle.neutral import FETCH

REGISTRY = "paddle's phi kernel registry"
EXECUTOR = "paddle's executor"

CARRIED = frozenset({"float32", "float64", "float16", "int64", "int32", "int8", "uint8", "bool"})
"""The dtypes that `copy_from_cpu` and `copy_to_cpu` of Paddle's tensors carry as NumPy arrays."""

_OF_THE_EXECUTOR = frozenset({"pd_op.if", "pd_op.while"})

Kernels = Mapping[str, Mapping[str, frozenset[str]]]
"""Kernel name -> backend ("CPU", "ONEDNN", "CUSTOM", "GPU") -> dtypes."""


@cache
def registry() -> Kernels:
    """The kernels of the Paddle installed, read once in a process; imports Paddle."""
    core: Any = sdk.import_quietly("paddle.base.core")
    found: dict[str, dict[str, set[str]]] = {}
    for name, entries in core._get_registered_phi_kernels("all").items():
        for entry in entries:
            backend, *_, dtype = (part.strip() for part in entry.strip("()").split(","))
            dtypes = found.setdefault(name, {}).setdefault(backend, set())
            dtypes.add({"float8_e4m3fn": "float8e4m3fn", "float8_e5m2": "float8e5m2"}.get(dtype, dtype))
    return {name: {b: frozenset(d) for b, d in backends.items()} for name, backends in found.items()}


@dataclass(frozen=True)
class Selector:
    """Judges the nodes of one graph.

    Args:
        graph: The whole model's graph.
        backend: The backend whose kernels come first ("ONEDNN"); "" for the CPU's own alone.
        computes_in: The dtype in which that backend computes float32 nodes.
        known: Paddle's registry.
    """

    graph: Graph
    backend: str = ""
    computes_in: str = "float32"
    known: Kernels = field(default_factory=registry)

    def verdicts(self) -> tuple[Verdict, ...]:
        """One verdict for each node of the graph, in order."""
        border = {*self.graph.inputs, *self.graph.outputs}
        return tuple(self._at_border(node, border) or self._judge(node, self.graph) for node in self.graph.nodes)

    def _at_border(self, node: Node, border: set[int]) -> Verdict | None:
        for index in (*node.inputs, *node.outputs, *node.captures):
            if index is not None and index in border:
                value = self.graph.values[index]
                if value.kind != "tensor" or (value.dtype is not None and value.dtype not in CARRIED):
                    shown = value.dtype if value.kind == "tensor" else value.kind
                    return Verdict.no(
                        f"the model's {value.name!r} is {shown}, which Paddle's predictor does not exchange with NumPy",
                        "paddle.inference.Tensor.copy_from_cpu",
                    )
        if node.type == FETCH and node.inputs[0] in self.graph.inputs:
            return Verdict.no(
                "Paddle's predictor refuses a program that returns an input unchanged ('More than one shadow output "
                "named ...'); paddle.jit.save of 3.3 writes a returned `input + constant` as that, too",
                "paddle/fluid/pir/utils/name_analysis.cc",
            )
        return None

    def _judge(self, node: Node, graph: Graph) -> Verdict:
        verdict = self._own(node, graph)
        for body in node.subgraphs:
            for inner in body.nodes:
                found = self._judge(inner, body)
                if not found.usable:
                    return Verdict.no(f"in its body, {inner.label}: {found.reason}", found.source)
                if found.answer is Answer.PROVISIONAL and verdict.answer is Answer.YES:
                    verdict = Verdict.provisional(f"in its body, {inner.label}: {found.reason}", found.source)
        return verdict

    def _own(self, node: Node, graph: Graph) -> Verdict:
        if needs_no_kernel(node):
            return Verdict.yes("needs no kernel", EXECUTOR)
        kernels = self._kernels(node.op)
        if kernels is None:
            return Verdict.provisional(f"no kernel is called like {node.op}; loading will tell", REGISTRY)
        dtypes = dtypes_of(node, graph)
        fast = kernels.get(self.backend, frozenset())
        wanted = {self.computes_in if dtype == "float32" else dtype for dtype in dtypes}
        if dtypes & kernels.get("CPU", frozenset()) or not dtypes:
            if not self.backend:
                return Verdict.yes("CPU kernel", REGISTRY)
            if wanted & fast:
                return Verdict.yes(f"{_SHOWN[self.backend]} kernel", REGISTRY)
            return Verdict.yes(f"plain CPU kernel (no {_SHOWN[self.backend]} kernel)", REGISTRY)
        if wanted & fast:
            return Verdict.yes(f"{_SHOWN[self.backend]} kernel", REGISTRY)
        return Verdict.no(f"no CPU kernel for {', '.join(sorted(dtypes))}", REGISTRY)

    def _kernels(self, op: str) -> Mapping[str, frozenset[str]] | None:
        name = op.partition(".")[2]
        return self.known.get(name) or self.known.get(name.removesuffix("_"))


def needs_no_kernel(node: Node) -> bool:
    """Whether Paddle's executor does a node by itself."""
    return node.op.startswith(("builtin.", "cf.")) or node.op in _OF_THE_EXECUTOR or node.op == FETCH


_SHOWN = {"ONEDNN": "oneDNN", "CUSTOM": "custom device"}


def dtypes_of(node: Node, graph: Graph) -> set[str]:
    """The dtypes of a node's operands and results, as far as they are known."""
    found = (graph.values[index].dtype for index in (*node.inputs, *node.outputs) if index is not None)
    return {dtype for dtype in found if dtype is not None}
