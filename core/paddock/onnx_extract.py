"""Cuts one segment out of an ONNX model: its nodes as they stand, its border typed from the graph, its constants.

Only what the segment keeps is copied; its constants are written by `paddock.onnx_store`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from paddock.errors import ModelError, NotAvailable
from paddock.graph import Shape, Value
from paddock.model import Files, Model
from paddock.onnx_store import writing
from paddock.onnx_tensors import all_tensors, dtype_name, dtype_number, load_small, nodes_of, parse
from paddock.plan import Segment

_WRAPPERS = ("sequence_type", "optional_type")


def extract(proto: Any, model: Model, segment: Segment, folder: Path) -> Files:
    """Writes the segment into `folder`: its files by role, as `Format.complete` would name them.

    `proto` is `whole` of the model's file. Raises `NotAvailable` where a value at the border cannot be typed, and
    `ModelError` where the files are no longer those that `model.graph` was read from.
    """
    import onnx

    graph = model.graph
    if len(proto.graph.node) != len(graph.nodes):
        raise ModelError("has changed since it was read", where=str(model.files["model"]))
    indices = sorted({*segment.nodes, *segment.constants})
    nodes = [graph.nodes[index] for index in indices]
    reads = {value for node in nodes for value in (*node.inputs, *node.captures)}
    # A model's output may be one of its constants.
    constants = {*reads, *segment.outputs} & graph.initializers.keys() - {*segment.inputs}
    names = {graph.values[value].name for value in constants if value is not None}

    cut = onnx.ModelProto(ir_version=proto.ir_version)
    cut.opset_import.extend(proto.opset_import)
    cut.graph.name = proto.graph.name
    cut.graph.node.extend(proto.graph.node[index] for index in indices)
    cut.graph.sparse_initializer.extend(s for s in proto.graph.sparse_initializer if s.values.name in names)
    cut.functions.extend(_called(cut.graph.node, proto.functions))
    _type_border(cut.graph, model, segment)
    _type_inner(cut.graph, proto.graph, graph.values)

    with writing(folder, model.files) as store:
        for tensor in all_tensors(cut):
            if tensor.data_location == tensor.EXTERNAL:
                store.move(tensor)
        for tensor in proto.graph.initializer:
            if tensor.name in names:
                store.keep(tensor, cut.graph.initializer.add())
        if proto.ir_version < 4:
            _list_initializers(cut.graph)
        _annotate(cut.graph, proto.graph)
        return store.finish(cut)


def _called(nodes: Any, functions: Any) -> Iterator[Any]:
    """The functions that these nodes call, directly or through another one, in the model's order."""
    wanted: set[tuple[str, str]] = set()
    ahead = {(node.domain, node.op_type) for node in nodes_of(nodes)}
    while ahead:
        wanted |= ahead
        bodies = [function.node for function in functions if (function.domain, function.name) in ahead]
        ahead = {(node.domain, node.op_type) for body in bodies for node in nodes_of(body)} - wanted
    return (function for function in functions if (function.domain, function.name) in wanted)


# Types: what the graph states, symbols that the config fixed as numbers.


def _type_border(target: Any, model: Model, segment: Segment) -> None:
    nested: dict[str, Any] = {}
    values = model.graph.values
    if any(values[index].kind in ("sequence", "optional") for index in (*segment.inputs, *segment.outputs)):
        nested.update(_inferred(model.files["model"]))
    for indices, infos in ((segment.inputs, target.input), (segment.outputs, target.output)):
        for index in indices:
            value, info = values[index], infos.add(name=values[index].name)
            leaf = _leaf(info.type, nested.get(value.name)) if value.kind != "tensor" else info.type
            if value.dtype is None or leaf is None:
                missing = "has no dtype that is known" if value.dtype is None else f"is a {value.kind}"
                raise NotAvailable(
                    f"the value {value.name!r} {missing}: it cannot cross from one segment into another",
                    where=str(model.files["model"]),
                )
            _state(leaf.tensor_type, value.dtype, value.shape)


def _inferred(path: Path) -> dict[str, Any]:
    """Every type of the main graph in full; the neutral graph keeps only the outermost kind of a nested one."""
    from onnx import shape_inference

    proto = parse(path)
    load_small(path, list(all_tensors(proto)))
    graph = shape_inference.infer_shapes(proto, data_prop=True).graph
    return {info.name: info.type for info in (*graph.input, *graph.output, *graph.value_info)}


def _leaf(target: Any, origin: Any) -> Any:
    """Wraps `target` in sequences and optionals as `origin` is; the type inside them, None if that is no tensor."""
    while origin is not None and (kind := origin.WhichOneof("value")) in _WRAPPERS:
        origin, target = getattr(origin, kind).elem_type, getattr(target, kind).elem_type
    return target if origin is not None and origin.WhichOneof("value") == "tensor_type" else None


def _state(target: Any, dtype: str, shape: Shape | None) -> None:
    target.elem_type = dtype_number(dtype)
    if shape is None:
        return
    target.shape.SetInParent()
    for extent in shape:
        dim = target.shape.dim.add()
        if isinstance(extent, str):
            dim.dim_param = extent
        elif extent is not None:
            dim.dim_value = extent


def _type_inner(target: Any, origin: Any, values: Iterable[Value]) -> None:
    """Restates the inner types that the file states, since its operators may be unknown to inference."""
    border = {info.name for info in (*target.input, *target.output)}
    inner = {name for node in target.node for name in node.output} - border
    stated = {info.name for info in origin.value_info} & inner
    for value in values:
        if value.name in stated and value.kind == "tensor" and value.dtype is not None:
            _state(target.value_info.add(name=value.name).type.tensor_type, value.dtype, value.shape)


def _list_initializers(target: Any) -> None:
    """Before IR version 4, initializers had to stand among the inputs; they are none for Paddock's reader."""
    for tensor in target.initializer:
        dtype = dtype_name(tensor.data_type)
        if dtype is not None:
            _state(target.input.add(name=tensor.name).type.tensor_type, dtype, tuple(tensor.dims))


def _annotate(target: Any, origin: Any) -> None:
    """Keeps the quantization annotations whose tensors are all here."""
    here = {info.name for info in target.input} | {tensor.name for tensor in target.initializer}
    here |= {name for node in target.node for name in node.output}
    for note in origin.quantization_annotation:
        if {note.tensor_name, *(entry.value for entry in note.quant_parameter_tensor_names)} <= here:
            target.quantization_annotation.append(note)
