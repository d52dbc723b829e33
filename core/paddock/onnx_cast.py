"""Rewrites an ONNX model in a narrow float type: retypes nodes and weights, and puts the casts in.

What is to be narrow is decided by `paddock.planning.casts`; here it is written down. A value keeps its name in the type
in which it is made, unless it is an initializer or the model's border needs that name for the other one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from paddock.errors import ModelError, NotAvailable
from paddock.graph import BITS, Graph, Node
from paddock.model import Model
from paddock.onnx_ports import RETYPED, STEERING, casts_to, ports
from paddock.onnx_store import Store, reaches, writing
from paddock.onnx_tensors import all_graphs, dtype_number, graphs_of
from paddock.plan import NodePrecision
from paddock.planning.casts import WIDE, CastRequest, Casts, Ports, beyond, out_of_range, plan_casts
from paddock.spi import CastModel


def cast(proto: Any, model: Model, request: CastRequest, folder: Path) -> CastModel:
    """Writes `model` cast as `request` asks into `folder`.

    Args:
        proto: `onnx_store.whole` of the model's file; changed.
        model: The model, whose graph says the dtypes.
        request: What is to be narrow.
        folder: Where the model goes.

    Raises `NotAvailable` where it takes casts that the model's opset does not have.
    """
    graph = model.graph
    if len(proto.graph.node) != len(graph.nodes):
        raise ModelError("has changed since it was read", where=str(model.files["model"]))
    own = {index: graph.values[index].name for index in graph.initializers if graph.values[index].dtype == WIDE}
    tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
    stored = {index: tensors[name] for index, name in own.items() if name in tensors}  # the others are sparse
    functions = frozenset(f"{f.domain}.{f.name}" if f.domain else f.name for f in proto.functions)
    where = ports(graph, request.narrow, functions)
    constants = {**stored, **dict(_constants(proto, graph)), **dict(_sparse(proto, own))}
    steering = dict.fromkeys(_steering(graph), math.inf) if request.storage_only else {}
    request = replace(request, reach={**request.reach, **reaches(constants, model.files), **steering})
    if request.narrow_border:
        _check_border(graph, request)
    if not request.storage_only:
        request = replace(request, keep={**out_of_range(graph, where, request), **request.keep})
    casts = _without_sparse(plan_casts(graph, where, request), stored)
    names = _Names(graph, proto, casts, where, request)
    if (names.casts or casts.narrow) and not casts_to(request.narrow, graph.opsets.get("")):
        raise NotAvailable(
            f"the model's opset {graph.opsets.get('', '')} has no casts to {request.narrow}",
            where=str(model.files["model"]), remedy="export it for opset 13 or later, or ask for another precision",
        )  # fmt: skip
    with writing(folder, model.files) as store:
        provenance = _rewrite(proto, graph, casts, where, names, store)
        _store_weights(proto, model, casts, names, store, request.narrow)
        _retype_border(proto, graph, names, request)
        files = store.finish(proto)
    return CastModel(
        files,
        provenance,
        tuple(_precisions(graph, where, casts, request.narrow)),
        tuple(sorted(node for node in request.keep if where[node].movable)),
        tuple((graph.values[v].name, dtype) for v, dtype in names.casts),
        sum(_saved(graph, casts, request.narrow)),
    )


def _check_border(graph: Graph, request: CastRequest) -> None:
    """Raises `NotAvailable` where an input or output reaches past what the narrow type holds."""
    for value in (*graph.inputs, *graph.outputs):
        reason = beyond(repr(graph.values[value].name), request.reach.get(value, 0.0), request.narrow)
        if reason and graph.values[value].dtype == WIDE:
            raise NotAvailable(
                f"inputs and outputs cannot be {request.narrow}: {reason}", where="$.io_dtype", remedy="leave it out"
            )


@dataclass(frozen=True)
class _Pair:
    """What a value is called in each type; None where it is not there in it."""

    wide: str | None
    narrow: str | None


class _Names:
    """The names of every float32 value of the main graph in both types, and the casts between them."""

    def __init__(
        self, graph: Graph, proto: Any, casts: Casts, where: Mapping[int, Ports], request: CastRequest
    ) -> None:
        self.graph = graph
        self.narrow = request.narrow
        self._taken = set(_all_names(proto))
        self._pairs: dict[int, _Pair] = {}
        self.casts: list[tuple[int, str]] = []
        """(value, the type that it is cast to), in the order of the values."""
        self.made_narrow = set(casts.stored)
        for node in graph.nodes:
            outputs = where[node.index].outputs if node.index in casts.narrow else ()
            self.made_narrow |= {v for at, v in enumerate(node.outputs) if v is not None and at in outputs}
        if request.narrow_border:
            self.made_narrow |= {v for v in graph.inputs if _is_wide(graph, v)}
        for index in sorted(casts.down | casts.up | self.made_narrow):
            made_narrow = index in self.made_narrow
            if index not in casts.down and index not in casts.up:
                self._pairs[index] = self._pair(index, made_narrow, not made_narrow, made_narrow)
                continue
            if index in graph.inputs or index in graph.outputs:
                named_narrow = request.narrow_border
            else:
                named_narrow = made_narrow and index not in graph.initializers
            self._pairs[index] = self._pair(index, named_narrow, True, True)
            self.casts.append((index, WIDE if made_narrow else self.narrow))

    def of(self, value: int, narrow: bool) -> str:
        """What a reader or maker in this type calls it."""
        pair = self._pairs.get(value)
        name = None if pair is None else pair.narrow if narrow else pair.wide
        return name or self.graph.values[value].name

    def _pair(self, index: int, named_narrow: bool, wide: bool, narrow: bool) -> _Pair:
        name = self.graph.values[index].name
        other = None
        if wide and narrow:
            other = self._fresh(f"{name}/{WIDE if named_narrow else self.narrow}")
        if named_narrow:
            return _Pair(other if wide else None, name)
        return _Pair(name if wide else None, other if wide else name)

    def _fresh(self, name: str) -> str:
        found, number = name, 0
        while found in self._taken:
            number += 1
            found = f"{name}.{number}"
        self._taken.add(found)
        return found


def _store_weights(proto: Any, model: Model, casts: Casts, names: _Names, store: Store, narrow: str) -> None:
    by_name = {model.graph.values[index].name: index for index in model.graph.initializers}
    for tensor in store.take_over(proto):
        target, index = proto.graph.initializer.add(), by_name[tensor.name]
        if index in casts.stored:
            store.narrow(tensor, target, narrow)
        else:
            store.keep(tensor, target)
        target.name = names.of(index, index in casts.stored)


def _rewrite(
    proto: Any, graph: Graph, casts: Casts, where: Mapping[int, Ports], names: _Names, store: Store
) -> tuple[tuple[int, ...], ...]:
    """Nodes with their new names, and the casts, each where its value is made; the provenance of all."""
    after: dict[int, list[Any]] = {}
    makers = {v: node.index for node in graph.nodes for v in node.outputs if v is not None}
    for value, dtype in names.casts:
        after.setdefault(makers.get(value, -1), []).append(_cast_node(names, value, dtype))
    kept = list(proto.graph.node)
    del proto.graph.node[:]
    provenance: list[tuple[int, ...]] = []
    for index in range(-1, len(kept)):
        if index >= 0:
            node, found = kept[index], graph.nodes[index]
            _rename(node, found, index in casts.narrow, where[index], names)
            _recapture(node, {graph.values[v].name: names.of(v, False) for v in found.captures})
            if index in casts.narrow and found.op in RETYPED and not found.domain and where[index].outputs:
                _retype(node, names.narrow, store)
            proto.graph.node.append(node)
            provenance.append((index,))
        for node in after.get(index, ()):
            proto.graph.node.append(node)
            provenance.append(())
    return tuple(provenance)


def _cast_node(names: _Names, value: int, dtype: str) -> Any:
    from onnx import helper

    source, target = names.of(value, dtype == WIDE), names.of(value, dtype != WIDE)
    return helper.make_node("Cast", [source], [target], name=f"{target}/cast", to=dtype_number(dtype))


def _rename(node: Any, found: Node, narrow: bool, own: Ports, names: _Names) -> None:
    for at, value in enumerate(found.inputs):
        if value is None:
            continue
        if at in own.free:
            node.input[at] = names.of(value, value in names.made_narrow)
        else:
            node.input[at] = names.of(value, narrow and at in own.inputs)
    while narrow and node.input and not node.input[-1]:
        del node.input[-1]  # some SDKs make a float32 zero of an input that is named and left out
    for at, value in enumerate(found.outputs):
        if value is not None:
            node.output[at] = names.of(value, narrow and at in own.outputs)


def _recapture(node: Any, names: Mapping[str, str]) -> None:
    """Renames in a node's bodies what they read of the graph around them."""
    for body in graphs_of(node):
        own = {info.name for info in body.input} | {tensor.name for tensor in body.initializer}
        own |= {sparse.values.name for sparse in body.sparse_initializer}
        own |= {name for inner in body.node for name in inner.output}
        seen = {old: new for old, new in names.items() if old not in own and old != new}
        for inner in body.node if seen else ():
            inner.input[:] = [seen.get(name, name) for name in inner.input]
            _recapture(inner, seen)
        for info in body.output:
            info.name = seen.get(info.name, info.name)


def _retype(node: Any, narrow: str, store: Store) -> None:
    """Makes an operator whose output's type is an attribute give the narrow type."""
    import onnx
    from onnx import helper

    if node.op_type == "Cast":
        next(a for a in node.attribute if a.name == "to").i = dtype_number(narrow)
        return
    given = node.attribute[0] if node.attribute else None
    if given is None:  # ConstantOfShape without a value gives float32 zeros
        wide = helper.make_tensor("", onnx.TensorProto.FLOAT, [1], [0.0])
    elif given.name == "value":
        wide = onnx.TensorProto()
        wide.CopyFrom(given.t)  # the attribute that owns it goes
    elif given.name == "value_float":
        wide = helper.make_tensor("", onnx.TensorProto.FLOAT, [], [given.f])
    else:
        wide = helper.make_tensor("", onnx.TensorProto.FLOAT, [len(given.floats)], list(given.floats))
    del node.attribute[:]
    node.attribute.append(helper.make_attribute("value", store.inline(wide, narrow)))


def _retype_border(proto: Any, graph: Graph, names: _Names, request: CastRequest) -> None:
    """The types that the file states: of the border as it now is, of inner values only where they have not changed."""
    narrow = dtype_number(request.narrow)
    for infos, indices in ((proto.graph.input, graph.inputs), (proto.graph.output, graph.outputs)):
        border = {graph.values[v].name for v in indices if _is_wide(graph, v)} if request.narrow_border else ()
        for info in infos:
            if info.name in border:
                info.type.tensor_type.elem_type = narrow
    constants = {graph.values[v].name: v for v in graph.initializers}
    for info in proto.graph.input:  # before IR version 4, initializers stand among the inputs
        index = constants.get(info.name)
        if index is not None and index in names.made_narrow:
            info.type.tensor_type.elem_type = narrow
        if index is not None:
            info.name = names.of(index, index in names.made_narrow)
    changed = {graph.values[v].name for v in names.made_narrow} | {graph.values[v].name for v, _ in names.casts}
    inner = [info for info in proto.graph.value_info if info.name not in changed]
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(inner)


def _precisions(graph: Graph, where: Mapping[int, Ports], casts: Casts, narrow: str) -> Iterator[NodePrecision]:
    for node in graph.nodes:
        dtype = narrow if node.index in casts.narrow else WIDE if _computes(graph, node, where[node.index]) else ""
        yield NodePrecision(node.index, node.type, dtype, casts.reasons.get(node.index, "") if dtype else "")


def _computes(graph: Graph, node: Node, own: Ports) -> bool:
    read = [value for at, value in enumerate(node.inputs) if at not in own.free]
    return any(value is not None and graph.values[value].dtype == WIDE for value in (*read, *node.outputs))


def _is_wide(graph: Graph, value: int) -> bool:
    return graph.values[value].dtype == WIDE and graph.values[value].kind == "tensor"


def _without_sparse(casts: Casts, stored: Mapping[int, Any]) -> Casts:
    """Sparse constants stay wide: they are cast for whoever reads them narrow."""
    sparse = {value for value in casts.stored if value not in stored}
    if not sparse:
        return casts
    storage = casts.stored & casts.up & sparse
    return replace(
        casts, stored=casts.stored - sparse, down=casts.down | (sparse - storage), up=casts.up - storage
    )  # fmt: skip


def _constants(proto: Any, graph: Graph) -> Iterator[tuple[int, Any]]:
    """The tensors that Constant nodes hold, by the value that they make."""
    for node in graph.nodes:
        value = node.outputs[0] if node.op == "Constant" and not node.domain else None
        if value is not None and graph.values[value].dtype == WIDE:
            for attribute in proto.graph.node[node.index].attribute:
                if attribute.name == "value":
                    yield value, attribute.t


def _sparse(proto: Any, own: Mapping[int, str]) -> Iterator[tuple[int, Any]]:
    """The numbers that sparse initializers hold, by the value."""
    held = {sparse.values.name: sparse.values for sparse in proto.graph.sparse_initializer}
    yield from ((index, held[name]) for index, name in own.items() if name in held)


def _steering(graph: Graph) -> Iterator[int]:
    """The values that a node reads where their exact numbers matter."""
    for node in graph.nodes:
        for at in STEERING.get(node.type, ()):
            value = node.inputs[at] if at < len(node.inputs) else None
            if value is not None:
                yield value


def _saved(graph: Graph, casts: Casts, narrow: str) -> Iterator[int]:
    """Bytes by which each constant that is stored narrow is smaller: initializers, and what Constant nodes hold."""
    held = [
        v for n in graph.nodes if n.op == "Constant" and n.index in casts.narrow for v in n.outputs if v is not None
    ]
    for value in (*casts.stored, *held):
        size = graph.nbytes(value) or 0
        yield size - size * BITS[narrow] // BITS[WIDE]


def _all_names(proto: Any) -> Iterable[str]:
    for graph in all_graphs(proto):
        yield from (info.name for info in (*graph.input, *graph.output, *graph.value_info))
        yield from (tensor.name for tensor in graph.initializer)
        yield from (sparse.values.name for sparse in graph.sparse_initializer)
        for node in graph.node:
            yield from (*node.input, *node.output)
