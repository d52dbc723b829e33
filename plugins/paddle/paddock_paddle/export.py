"""Runs paddle2onnx, and says why where it does not convert a model.

It ends its process on what it lacks, and says why on stdout only: so it runs in a process of its own, whose words are
kept.
"""

from __future__ import annotations

import importlib.util
import os
import re
import tempfile
from collections.abc import Collection, Iterable
from pathlib import Path

from paddock.child import call_in_child
from paddock.errors import BuildFailed, NotAvailable, Unsupported
from paddock.graph import Graph, Node

from paddock_paddle import sdk
from paddock_paddle.pir import Program

REMEDY = "choose cpu/paddle or cpu/mkldnn, which take the model as it is"

_SECONDS = 280.0
"""A little less than a conversion may take as a whole, so that this process ends before the one that waits for it."""

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_ERROR = re.compile(r"\[ERROR\]\[Paddle2ONNX\]\s*(.+)")
_RAISED = "Failed to convert PaddlePaddle model:"
_EXPORTING = re.compile(r"Start export ([\w.]+),")
_AT_OPERATOR = re.compile(r"\[OP: ([\w.]+)\]")
_LACKS_OPERATORS = "unsupported operators"
_GENERIC = "There are unsupported features"
_OTHERWISE = frozenset({"pd_op.data", "pd_op.feed", "pd_op.fetch", "pd_op.if", "pd_op.while"})
"""What paddle2onnx converts although its own list leaves it out; so it does all of the dialects builtin and cf."""


def export(program: Program, graph: Graph, source: Path, params: Path | None, target: Path, opset: int) -> None:
    """Writes `source`, whose graph is `graph`, as ONNX to `target`.

    Where paddle2onnx does not convert it, raises `Unsupported` if it says at which operators, else `NotAvailable`.
    """
    if importlib.util.find_spec("paddle2onnx") is None:
        raise NotAvailable("paddle2onnx, which converts it to ONNX, is not installed", remedy=sdk.INSTALL)
    with tempfile.TemporaryDirectory(prefix="paddock-") as folder:
        log = Path(folder) / "words"
        try:
            call_in_child("paddle2onnx", _export_here, source, params, target, opset, log, seconds=_SECONDS)
        except BuildFailed as error:
            words = log.read_text(errors="replace") if log.exists() else ""
            lacking = _lacking(program) if _LACKS_OPERATORS in words else []
            problem = cause(words, lacking) or error.problem.partition("; its last words")[0]
            types = lacking or _AT_OPERATOR.findall(problem)
            nodes = [node.index for node in graph.nodes if _holds(node, types)]
            raise (unsupported(nodes, problem, source) if nodes else refusal(problem, source)) from error


def unsupported(nodes: Iterable[int], problem: str, source: Path) -> Unsupported:
    """The error for nodes that paddle2onnx does not convert."""
    error = Unsupported(nodes, _problem(problem))
    error.where, error.remedy = str(source), REMEDY
    return error


def refusal(problem: str, source: Path) -> NotAvailable:
    """The error for a model that paddle2onnx does not convert, where it cannot be told for which of its nodes."""
    return NotAvailable(_problem(problem), where=str(source), remedy=REMEDY)


def _problem(problem: str) -> str:
    return f"paddle2onnx cannot convert the model: {problem}"


def _holds(node: Node, types: Collection[str]) -> bool:
    """Whether a node, or one in its bodies, is of these types."""
    return node.type in types or any(inner.type in types for body in node.subgraphs for inner in body.walk())


def cause(words: str, lacking: list[str]) -> str:
    """Why paddle2onnx gave up, from what it printed and the operators that it lacks; "" where it did not say."""
    text = _COLOUR.sub("", words)
    if _LACKS_OPERATORS in text:
        return f"it lacks {', '.join(lacking)}" if lacking else "it lacks an operator, and does not say which"
    named = [line for line in _ERROR.findall(text) if not line.startswith(_GENERIC)]
    if named:
        return "; ".join(dict.fromkeys(named))[:400]
    _, found, raised = text.partition(_RAISED)
    if found:
        at = _EXPORTING.findall(text.partition(_RAISED)[0])
        return (f"[OP: {at[-1]}] " if at else "") + sdk.short(ValueError(raised))
    return _GENERIC if _GENERIC in text else ""


def _lacking(program: Program) -> list[str]:
    """The operators of a program that are not on paddle2onnx's list, which knows many by the names of Paddle 2."""
    try:
        listed = sdk.import_quietly("paddle2onnx.paddle2onnx_cpp2py_export").get_all_supported_operators_pir()
        phi = sdk.import_quietly("paddle").base.core._get_phi_kernel_name
        known = {name for old in listed for name in (old, phi(old))}
    except Exception:  # both are paddle2onnx's and Paddle's own affairs: then the operators stay unnamed
        return []
    used = {op.name for op in program.block.walk()} - _OTHERWISE
    return sorted(n for n in used if n.startswith("pd_op.") and n.removeprefix("pd_op.").rstrip("_") not in known)


def _export_here(source: Path, params: Path | None, target: Path, opset: int, log: Path) -> None:
    with log.open("wb") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    paddle2onnx = sdk.import_quietly("paddle2onnx")
    try:
        paddle2onnx.export(
            str(source), str(params or ""), str(target), opset_version=opset, optimize_tool="None", verbose=True
        )
    except SystemExit as error:
        raise BuildFailed(f"it ended with status {error.code}") from None
    if not target.exists():
        raise BuildFailed("it wrote no file")
