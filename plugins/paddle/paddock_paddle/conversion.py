"""From a PIR program to ONNX with paddle2onnx 2.1, and back from each ONNX node to the operation it came from.

paddle2onnx names result R of the N-th operation OP of the program `p2o.OP.N.R`, a fetched value by its fetch, and what
it adds itself `helper.*`, `auto.cast.*`, `Add.3` and the like (seen on 2.1.0; every node of eleven models was traced).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from paddock.graph import Shape
from paddock.model import Model

from paddock_paddle.export import export, refusal
from paddock_paddle.neutral import FEEDS, FETCH, PARAMETER, neutral
from paddock_paddle.pir import Op, Program

OPSET = 17
_MADE_BY = re.compile(r"p2o\.([a-z_]+\..+?)\.(\d+)\.\d+(?:_\d+)?")

Provenance = tuple[tuple[int, ...], ...]


def to_onnx(program: Program, model: Model, folder: Path) -> tuple[Path, Provenance]:
    """Writes the ONNX file and returns it with the source nodes of each of its nodes.

    Where paddle2onnx does not convert the model, raises, with its own reason, `Unsupported` if it says at which
    operators, else `NotAvailable`.
    """
    source = model.files["program"]
    path = folder / f"{source.stem}.onnx"
    found = neutral(program, source.stem)
    export(program, found.graph, source, model.files.get("params"), path, OPSET)
    import onnx

    proto = onnx.load(path)
    _check_border(proto, model, source)
    positions = {position: node for node, position in enumerate(found.nodes)}
    _copy_fetched_again(proto.graph, program.block.ops, source)
    _make_scalars(proto.graph, [value.name for value in found.graph.output_values if value.shape == ()])
    _store_weights(proto.graph)
    _compare_integers(proto.graph)
    _name_dimensions(proto.graph, [value.shape for value in found.graph.input_values], proto.graph.input)
    _name_dimensions(proto.graph, [value.shape for value in found.graph.output_values], proto.graph.output)
    owners = trace(proto.graph, program.block.ops)
    onnx.save(proto, path)
    return path, tuple((positions[owner],) if owner in positions else () for owner in owners)


def untraced(provenance: Provenance) -> int:
    """How many converted nodes have no known source."""
    return sum(not sources for sources in provenance)


def trace(graph: Any, ops: Sequence[Op]) -> list[int | None]:
    """For each top-level node of an onnx GraphProto the position of its operation in `ops`, or None.

    First by the names of its results; a node without such a name belongs to the operation that reads it; what is left
    belongs to the operation before it. An answer that contradicts the wiring (a node reads only what its own operation
    or the maker of one of its operands makes) is taken back.
    """
    named, makers = _names(ops)
    owners: list[int | None] = []
    for node in graph.node:
        made_by = [owner for name in node.output if (owner := _owner(name, named)) is not None]
        owners.append(made_by[0] if made_by else None)
    readers: dict[str, list[int]] = {}
    for position, node in enumerate(graph.node):
        for name in node.input:
            readers.setdefault(name, []).append(position)
    for position in range(len(owners) - 1, -1, -1):  # readers stand behind what they read
        if owners[position] is None:
            known = [
                owner
                for name in graph.node[position].output
                for reader in readers.get(name, ())
                if (owner := owners[reader]) is not None
            ]
            owners[position] = min(known, default=None)
    for position in range(1, len(owners)):
        if owners[position] is None:
            owners[position] = owners[position - 1]
    return _consistent(graph, ops, owners, named, makers)


def _names(ops: Sequence[Op]) -> tuple[dict[str, int], dict[int, int]]:
    """Positions by what paddle2onnx calls an operation, a feed, a parameter or a fetched value; makers by value id."""
    counts: Counter[str] = Counter()
    named: dict[str, int] = {}
    makers: dict[int, int] = {}
    for position, op in enumerate(ops):
        named[f"{op.name}.{counts[op.name]}"] = position
        counts[op.name] += 1
        makers.update((identity, position) for identity, _ in op.outputs)
        if op.name in FEEDS:
            named[op.attributes["name"]] = position
        elif op.name == PARAMETER:
            named[op.attributes["parameter_name"]] = position
    for op in ops:
        if op.name == FETCH:
            named.setdefault(op.attributes["name"], makers[op.inputs[0]])
    return named, makers


def _owner(name: str, named: Mapping[str, int]) -> int | None:
    match = _MADE_BY.fullmatch(name)
    return named.get(f"{match[1]}.{match[2]}") if match is not None else named.get(name)


def _consistent(
    graph: Any,
    ops: Sequence[Op],
    owners: Sequence[int | None],
    named: Mapping[str, int],
    makers: Mapping[int, int],
) -> list[int | None]:
    made = {name: owners[position] for position, node in enumerate(graph.node) for name in node.output}
    for value in graph.input:
        made[value.name] = named.get(value.name)

    def holds(node: Any, owner: int) -> bool:
        allowed = {owner, None, *(makers.get(identity) for identity in ops[owner].inputs)}
        return all(made.get(name) in allowed for name in node.input)

    pairs = zip(graph.node, owners, strict=True)
    return [owner if owner is not None and holds(node, owner) else None for node, owner in pairs]


def _check_border(proto: Any, model: Model, source: Path) -> None:
    for what, ours, theirs in (
        ("inputs", model.graph.input_values, proto.graph.input),
        ("outputs", model.graph.output_values, proto.graph.output),
    ):
        wanted, found = [value.name for value in ours], [value.name for value in theirs]
        if wanted != found:
            raise refusal(f"it gave it the {what} {found} instead of {wanted}", source)


def _copy_fetched_again(graph: Any, ops: Sequence[Op], source: Path) -> None:
    """Adds what paddle2onnx leaves out: it names a value that is fetched twice by its last fetch only."""
    made = {name for node in graph.node for name in node.output}
    made.update(value.name for values in (graph.input, graph.initializer) for value in values)
    fetched = {op.attributes["name"]: op.inputs[0] for op in ops if op.name == FETCH}
    named = {op.attributes["name"]: op.outputs[0][0] for op in ops if op.name in FEEDS}
    named.update((op.attributes["parameter_name"], op.outputs[0][0]) for op in ops if op.name == PARAMETER)
    present = {identity: name for name, identity in {**named, **fetched}.items() if name in made}
    for name in (value.name for value in graph.output if value.name not in made):
        if fetched.get(name) not in present:
            raise refusal(f"it left the output {name!r} out", source)
        graph.node.add(op_type="Identity", input=[present[fetched[name]]], output=[name])


def _make_scalars(graph: Any, names: Sequence[str]) -> None:
    """Makes outputs of rank 0 what they are declared as: some reductions of paddle2onnx give the shape [1].

    Whatever else reads the value keeps what paddle2onnx wrote it for.
    """
    import onnx

    makers = {name: node for node in graph.node for name in node.output}
    for name in names:
        if name not in makers:
            continue  # an initializer
        _rename(graph, name, f"{name}.made")
        empty = graph.initializer.add()
        empty.CopyFrom(onnx.helper.make_tensor(f"{name}.shape", onnx.TensorProto.INT64, [0], []))
        graph.node.add(op_type="Reshape", input=[f"{name}.made", empty.name], output=[name])


def _rename(graph: Any, old: str, new: str) -> None:
    """Renames a value wherever a node of the graph or of its bodies makes or reads it."""
    for node in graph.node:
        for names in (node.input, node.output):
            for position, name in enumerate(names):
                if name == old:
                    names[position] = new
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                _rename(body, old, new)
                for value in body.output:
                    if value.name == old:
                        value.name = new


def _store_weights(graph: Any) -> None:
    """Makes initializers of the Constant nodes as which paddle2onnx writes parameters, so that plans see weights."""
    import onnx

    outputs = {value.name for value in graph.output}
    kept = []
    for node in graph.node:
        value = node.attribute[0] if node.op_type == "Constant" and len(node.attribute) == 1 else None
        if value is None or value.type != onnx.AttributeProto.TENSOR or node.output[0] in outputs:
            kept.append(node)
            continue
        tensor = graph.initializer.add()
        tensor.CopyFrom(value.t)
        tensor.name = node.output[0]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in kept]
    del graph.node[:]
    graph.node.extend(copies)


def _compare_integers(graph: Any) -> None:
    """Has the larger of two integers taken among integers: paddle2onnx takes them to float64 for it, and back.

    Not every device computes in float64, and where one does not, the model would be cut in two here. The number that it
    is compared with is an integer, so that it makes no difference when the other is made one.
    """
    import onnx

    stored = {tensor.name: tensor for tensor in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    readers = Counter(name for node in graph.node for name in node.input)
    readers.update(value.name for value in graph.output)
    for back in graph.node:
        larger = makers.get(back.input[0]) if _is_cast(back, onnx.TensorProto.INT64) else None
        if larger is None or larger.op_type != "Max" or len(larger.input) != 2 or readers[larger.output[0]] != 1:
            continue
        there, constant = makers.get(larger.input[0]), stored.get(larger.input[1])
        if there is None or constant is None or not _is_cast(there, onnx.TensorProto.DOUBLE):
            continue
        value = onnx.numpy_helper.to_array(constant)
        if readers[there.output[0]] == 1 and value.dtype == np.float64 and np.array_equal(value, np.rint(value)):
            there.attribute[0].i = onnx.TensorProto.INT64
            name = f"{larger.output[0]}.least"
            graph.initializer.append(onnx.numpy_helper.from_array(value.astype(np.int64), name))
            larger.input[1] = name


def _is_cast(node: Any, to: int) -> bool:
    return bool(node.op_type == "Cast" and node.attribute[0].i == to)


def _name_dimensions(graph: Any, shapes: Sequence[Shape | None], values: Any) -> None:
    """Gives dynamic dimensions the graph's own symbols: paddle2onnx calls each of them something else."""
    for shape, value in zip(shapes, values, strict=True):
        dims = value.type.tensor_type.shape.dim
        if shape is None or len(shape) != len(dims):
            continue
        for symbol, dim in zip(shape, dims, strict=True):
            if isinstance(symbol, str) and dim.WhichOneof("value") != "dim_value":
                dim.dim_param = symbol
