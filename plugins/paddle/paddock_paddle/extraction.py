"""Cuts one segment out of a PIR program, on the two files alone: needs no Paddle.

Operations, their bodies and parameters are taken over as they stand, value ids included. New are only a `pd_op.data`
for each value that enters and a `pd_op.fetch` for each that leaves, written as paddlepaddle 3.3.1 writes them.
"""

from __future__ import annotations

import json
import mmap
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from paddock.errors import NotAvailable
from paddock.graph import Dim, Graph, Value
from paddock.model import Files, Model
from paddock.plan import Segment

from paddock_paddle.neutral import FEEDS, FETCH, PARAMETER, SYMBOLS, neutral
from paddock_paddle.pir import Op, Program, read_tensors

_DTYPES: Mapping[str, str] = {"float8e4m3fn": "float8_e4m3fn", "float8e5m2": "float8_e5m2"}
"""What Paddle calls a dtype where it is not NumPy's name."""

_UNDEFINED_PLACE = [0, 0, ""]


def extract(program: Program, model: Model, segment: Segment, folder: Path) -> Files:
    """Writes the segment's `.json` and, where it keeps a parameter, its `.pdiparams` into `folder`.

    Raises `NotAvailable` where a value at the border is not a tensor, which Paddle neither takes nor gives.
    """
    source = model.files["program"]
    data = json.loads(source.read_bytes())
    block = data["program"]["regions"][0]["blocks"][0]
    cut = _cut(program, source.stem, segment)
    ops: list[dict[str, Any]] = block["ops"]
    types = _types(ops)
    fresh = max(_ids(program.block.ops), default=0)
    values = model.graph.values
    for index in (*segment.inputs, *segment.outputs):
        _check(values[index], source)
    feeds, fetches = [], []
    for index in segment.inputs:
        identity, own = cut.ids[index], ops[cut.feeds[index]] if index in cut.feeds else None
        feeds.append(_feed(values[index], identity, types[identity], own))
    for column, index in enumerate(segment.outputs):
        identity = cut.ids[index]
        fetches.append(_fetch(values[index], identity, types[identity], column, fresh + 1 + column))
    block["ops"] = [*(ops[i] for i in cut.parameters), *feeds, *(ops[i] for i in cut.operations), *fetches]
    files = {"program": folder / f"{source.stem}-{segment.index}.json"}
    files["program"].write_text(json.dumps(data, separators=(",", ":")))
    kept = {program.block.ops[i].attributes["parameter_name"] for i in cut.parameters}
    if kept:
        files["params"] = files["program"].with_suffix(".pdiparams")
        _copy_tensors(program, kept, model.files["params"], files["params"])
    return files


@dataclass(frozen=True)
class _Cut:
    """Where a segment's parts stand among the top block's operations.

    `ids` maps value indices to PIR's value ids; `feeds` those of the model's own inputs to their operation.
    """

    parameters: Sequence[int]
    operations: Sequence[int]
    ids: Mapping[int, int]
    feeds: Mapping[int, int]


def _cut(program: Program, name: str, segment: Segment) -> _Cut:
    ops = program.block.ops
    found = neutral(program, name)
    graph, positions = found.graph, found.nodes
    kept = sorted(positions[node] for node in (*segment.nodes, *segment.constants) if graph.nodes[node].op != FETCH)
    ids, feeds = _identities(ops, graph, positions)
    read = {identity for position in kept for identity in _reads(ops[position])}
    read.update(ids[index] for index in segment.outputs)
    parameters = [at for at, op in enumerate(ops) if op.name == PARAMETER and op.outputs[0][0] in read]
    return _Cut(parameters, kept, ids, feeds)


def _identities(ops: Sequence[Op], graph: Graph, positions: Sequence[int]) -> tuple[dict[int, int], dict[int, int]]:
    """PIR's id of every value of the top graph, and the operations that feed its inputs, by value index."""
    ids: dict[int, int] = {}
    at_feeds = [at for at, op in enumerate(ops) if op.name in FEEDS]  # the graph's inputs stand in this order
    feeds = dict(zip(graph.inputs, at_feeds, strict=True))
    ids.update((index, ops[at].outputs[0][0]) for index, at in feeds.items())
    parameters = {op.attributes["parameter_name"]: op.outputs[0][0] for op in ops if op.name == PARAMETER}
    ids.update((index, parameters[graph.values[index].name]) for index in graph.initializers)
    for node in graph.nodes:
        op = ops[positions[node.index]]
        # A fetch gives its operand another name; it is the same value.
        made = op.inputs if node.op == FETCH else [identity for identity, _ in op.outputs]
        ids.update((index, made[i]) for i, index in enumerate(node.outputs) if index is not None)
    return ids, feeds


def _reads(op: Op) -> Iterator[int]:
    """The ids of all values that an operation reads, its bodies included."""
    yield from op.inputs
    for block in op.blocks:
        for inner in block.walk():
            yield from inner.inputs


def _ids(ops: Sequence[Op]) -> Iterator[int]:
    for op in ops:
        yield from (identity for identity, _ in op.outputs)
        for block in op.blocks:
            yield from _ids(block.ops)


def _types(ops: Sequence[Mapping[str, Any]]) -> dict[int, Any]:
    """The type of each value of the top block as it stands in the file, by id."""
    results = (result for op in ops for result in ([op["O"]] if op["#"] == "p" else op["O"]))
    return {result["%"]: result["TT"] for result in results}


def _check(value: Value, source: Path) -> None:
    if value.kind != "tensor" or value.dtype is None or value.shape is None:
        raise NotAvailable(
            f"a segment's border runs through the value {value.name!r}, which is no tensor but a {value.kind}; Paddle "
            "takes and gives tensors only",
            where=str(source),
            remedy="keep the operations that make and read it in one segment",
        )


# What follows is written as in the .json: "#" is an id, "%" a value id, I operands, O results, A attributes, OA those
# of results, N a name, AT and TT attribute and value types, D data.


def _feed(value: Value, identity: int, kind: Any, own: Mapping[str, Any] | None) -> dict[str, Any]:
    """The operation that feeds a value; `own` is the model's, where the value is an input of the model."""
    extents = _extents(value.shape or ())
    results = [{"%": identity, "TT": _of_shape(kind, extents)}]
    shape = {"AT": {"#": "1.a_intarray", "D": extents}, "N": "shape"}
    if own is not None:
        attributes = [shape if attribute["N"] == "shape" else attribute for attribute in own["A"]]
        return {**own, "A": attributes, "O": results}
    symbols = [{"#": "0.a_str", "D": dim if isinstance(dim, str) else ""} for dim in value.shape or ()]
    dtype = _DTYPES.get(value.dtype or "", value.dtype)
    attributes = [
        {"AT": {"#": "0.a_str", "D": value.name}, "N": "name"},
        shape,
        {"AT": {"#": "1.a_dtype", "D": dtype}, "N": "dtype"},
        {"AT": {"#": "1.a_place", "D": _UNDEFINED_PLACE}, "N": "place"},
        {"AT": {"#": "0.a_array", "D": symbols}, "N": SYMBOLS},
    ]
    return {"#": "1.data", "A": attributes, "I": [], "O": results, "OA": [_flag("stop_gradient", False)]}


def _fetch(value: Value, identity: int, kind: Any, column: int, result: int) -> dict[str, Any]:
    attributes = [
        {"AT": {"#": "0.a_str", "D": value.name}, "N": "name"},
        {"AT": {"#": "0.a_i32", "D": column}, "N": "col"},
    ]
    results = [{"%": result, "TT": _of_shape(kind, _extents(value.shape or ()))}]
    flags = [_flag("persistable", True), _flag("stop_gradient", False)]
    return {"#": "1.fetch", "A": attributes, "I": [{"%": identity}], "O": results, "OA": flags}


def _extents(shape: Sequence[Dim]) -> list[int]:
    return [dim if isinstance(dim, int) else -1 for dim in shape]


def _of_shape(kind: Any, extents: list[int]) -> dict[str, Any]:
    dtype, _, *rest = kind["D"]
    return {**kind, "D": [dtype, extents, *rest]}


def _flag(name: str, value: bool) -> dict[str, Any]:
    return {"AT": {"#": "0.a_array", "D": [{"#": "0.a_bool", "D": value}]}, "N": name}


def _copy_tensors(program: Program, kept: set[str], source: Path, target: Path) -> None:
    """Copies the tensors of these parameters, one at a time, in the order in which Paddle reads them: by name bytes."""
    names = sorted(program.parameters, key=str.encode)
    sizes = [tensor.nbytes for tensor in read_tensors(source)]
    with (
        open(source, "rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
        open(target, "wb") as out,
    ):
        at = 0
        for name, nbytes in zip(names, sizes, strict=True):
            end = _data_at(content, at) + nbytes
            if name in kept:
                _write(content, at, end, out)
            at = end


def _data_at(content: mmap.mmap, at: int) -> int:
    """Where a tensor's elements begin, from where its (checked) header does; see `pir` for the layout."""
    (levels,) = struct.unpack_from("<Q", content, at + 4)
    at += 12
    for _ in range(levels):
        (length,) = struct.unpack_from("<Q", content, at)
        at += 8 + length
    (descriptor,) = struct.unpack_from("<i", content, at + 4)
    return at + 8 + int(descriptor)


def _write(content: mmap.mmap, start: int, end: int, out: BinaryIO) -> None:
    with memoryview(content) as view, view[start:end] as part:
        out.write(part)
