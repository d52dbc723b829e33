"""The shapes of a program's values at given shapes of its inputs, told by Paddle's symbolic shape inference.

The program's own types say "-1" for whatever an input's extent reaches, and its symbols stop at the first operation
without a rule in `shapes`. Paddle's `infer_symbolic_shape_pass` has rules for nearly all; with numbers in the place of
the dynamic extents it computes with numbers, those that tensors of extents carry included.

It writes an operation's shape as text into its attribute `sym_shape_str` ("shape[16, 64, 256], data[NULL]", seen on
paddlepaddle 3.3.1), and of several results only the first one's: so every value that is asked for gets a fetch of its
own. What hangs on data (the number of elements that are not zero) keeps a symbol there, and stays unknown.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from paddock.errors import ModelError
from paddock.graph import Graph
from paddock.model import Model

from paddock_paddle import sdk
from paddock_paddle.neutral import FEEDS, FETCH, neutral
from paddock_paddle.pir import Block, Program

_SHAPE = re.compile(r"shape\[(\d+(?:, \d+)*)?\], data\[.*\]")

_NORM, _RESERVE = "pd_op.batch_norm_", 5
"""Paddle leaves the shape of this result open: training's scratch space, of which inference allocates nothing."""

Shapes = Mapping[str, tuple[int, ...]]


def shapes_at(program: Program, model: Model, inputs: Shapes) -> dict[int, tuple[int, ...]]:
    """The shapes of `model.graph`'s tensors by value index, as far as they can be told; `inputs` by name.

    Raises `ModelError` where an input is unknown, or its shape is not one that the program declares. Without Paddle,
    and where its pass refuses the program, only what the program declares is known. Where both are, the pass is right:
    for a product of [N, 1, S, H] with [8, H, F] `paddle.jit.save` declares [-1, 1, -1, F], and a run has [N, 8, S, F].
    """
    source = model.files["program"]
    found = neutral(program, source.stem)
    graph = found.graph
    if len(graph.values) != len(model.graph.values):
        raise ModelError("has changed since it was read", where=str(source))
    _check(graph, inputs, source)
    shapes = _declared(graph)
    shapes.update((i, inputs[graph.values[i].name]) for i in graph.inputs if graph.values[i].name in inputs)
    asked = {}
    for node in graph.nodes:
        op = program.block.ops[found.nodes[node.index]]
        # A fetch gives its operand another name; it is the same value.
        made = op.inputs if node.op == FETCH else [identity for identity, _ in op.outputs]
        for index, identity in zip(node.outputs, made, strict=False):
            if index is not None and graph.values[index].kind == "tensor":
                asked[index] = identity
        if op.name == _NORM and op.attributes.get("is_test") and len(node.outputs) > _RESERVE:
            reserve = node.outputs[_RESERVE]
            if reserve is not None:
                shapes[reserve] = (0,)
    with tempfile.TemporaryDirectory(prefix="paddock-") as folder:
        fixed = Path(folder) / "program.json"
        fixed.write_text(json.dumps(with_fetches(source, program.block, inputs, list(asked.values()))))
        told = zip(asked, _inferred(fixed, len(asked)), strict=False)
        shapes.update((index, shape) for index, shape in told if shape is not None)
    return shapes


def with_fetches(source: Path, block: Block, inputs: Shapes, identities: Sequence[int]) -> Any:
    """The program's JSON with these shapes on its inputs; instead of its own fetches it has one of each value named."""
    data = json.loads(source.read_bytes())
    ops: list[dict[str, Any]] = data["program"]["regions"][0]["blocks"][0]["ops"]
    kept = []
    for raw, op in zip(ops, block.ops, strict=True):
        if op.name in FEEDS and op.attributes["name"] in inputs:
            _fix(raw, list(inputs[op.attributes["name"]]))
        if op.name != FETCH:
            kept.append(raw)
    results = (result for op in ops for result in ([op["O"]] if op["#"] == "p" else op["O"]))
    types = {result["%"]: result["TT"] for result in results}
    fresh = max(types, default=0) + 1
    for column, identity in enumerate(identities):
        kept.append(_fetch(identity, types[identity], column, fresh + column))
    ops[:] = kept
    return data


# As in the .json: "#" is an id, "%" a value id, I operands, O results, A attributes, OA those of results, N a name, AT
# and TT attribute and value types, D data.


def _fix(feed: dict[str, Any], extents: list[int]) -> None:
    for attribute in feed["A"]:
        if attribute["N"] == "shape":
            attribute["AT"]["D"] = extents
    feed["O"][0]["TT"]["D"][1] = extents


def _fetch(identity: int, kind: Any, column: int, result: int) -> dict[str, Any]:
    attributes = [
        {"AT": {"#": "0.a_str", "D": f"fetch{column}"}, "N": "name"},
        {"AT": {"#": "0.a_i32", "D": column}, "N": "col"},
    ]
    flags = [
        {"AT": {"#": "0.a_array", "D": [{"#": "0.a_bool", "D": value}]}, "N": name}
        for name, value in (("persistable", True), ("stop_gradient", False))
    ]
    return {"#": "1.fetch", "A": attributes, "I": [{"%": identity}], "O": [{"%": result, "TT": kind}], "OA": flags}


def _check(graph: Graph, inputs: Shapes, source: Path) -> None:
    declared = {value.name: value.shape or () for value in graph.input_values}
    for name, shape in inputs.items():
        if name not in declared:
            raise ModelError(f"has no input {name!r}", where=str(source), candidates=sorted(declared))
        wanted = declared[name]
        fits = len(wanted) == len(shape) and all(
            extent >= 0 and (extent == dim or not isinstance(dim, int))
            for extent, dim in zip(shape, wanted, strict=True)
        )
        if not fits:
            stated = ", ".join(str(dim) for dim in wanted)
            raise ModelError(f"takes {name!r} as [{stated}], not as {list(shape)}", where=str(source))


def _declared(graph: Graph) -> dict[int, tuple[int, ...]]:
    """The shapes that the program itself states in numbers."""
    shapes: dict[int, tuple[int, ...]] = {}
    for index, value in enumerate(graph.values):
        extents = tuple(dim for dim in value.shape or () if isinstance(dim, int))
        if value.kind == "tensor" and value.shape is not None and len(extents) == len(value.shape):
            shapes[index] = extents
    return shapes


def _inferred(path: Path, count: int) -> list[tuple[int, ...] | None]:
    """The shapes of what the last `count` operations of a program fetch, None for those that stay open."""
    try:
        paddle = sdk.import_quietly("paddle")
        passes = paddle.base.libpaddle.pir
        program = paddle.static.Program()
        paddle.base.core.deserialize_pir_program(str(path), program)
        manager = passes.PassManager()
        passes.infer_symbolic_shape_pass(manager, program)
        manager.run(program)
        fetches = program.global_block().ops[-count:] if count else []
        if [op.name() for op in fetches] != [FETCH] * count:
            return []
        return [_shape(op.attrs().get("sym_shape_str")) for op in fetches]
    except Exception:  # without Paddle, with another one, or where its pass raises, which may be anything
        return []


def _shape(text: object) -> tuple[int, ...] | None:
    match = _SHAPE.fullmatch(text) if isinstance(text, str) else None
    return None if match is None else tuple(int(extent) for extent in (match[1] or "").split(", ") if extent)
