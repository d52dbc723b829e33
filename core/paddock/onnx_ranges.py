"""An ONNX model that measures: it gives, instead of its outputs, the largest magnitude of each float32 value inside."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from paddock.errors import ModelError
from paddock.graph import Shape
from paddock.model import Files, Model
from paddock.onnx_store import writing
from paddock.onnx_tensors import all_graphs
from paddock.planning.casts import WIDE

_SCOPE = "paddock_range"


def ranges(proto: Any, model: Model, folder: Path) -> tuple[Files, Mapping[str, int]]:
    """Writes the measuring model into `folder`; the index of the value that each of its outputs tells of.

    `proto` is `onnx_store.whole` of the model's file; changed. Each output is a float32 scalar: ReduceMax of Abs, and 0
    for a tensor without elements.
    """
    from onnx import TensorProto, helper, numpy_helper

    graph = model.graph
    if len(proto.graph.node) != len(graph.nodes):
        raise ModelError("has changed since it was read", where=str(model.files["model"]))
    made = [v for node in graph.nodes for v in node.outputs if v is not None]
    scope = _free_scope(proto)
    measured = {
        f"{scope}/{index}": index
        for index in (*graph.inputs, *made)
        if graph.values[index].dtype == WIDE and graph.values[index].kind == "tensor"
    }
    del proto.graph.output[:]

    def append(op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        proto.graph.node.append(helper.make_node(op, inputs, [output], name=output, **attributes))
        return output

    guards = graph.opsets.get("", 1) >= 5  # before, Reshape takes no tensor
    if guards and any(_may_be_empty(graph.values[index].shape) for index in measured.values()):
        flat = append("Constant", [], f"{scope}/flat", value=numpy_helper.from_array(np.array([-1], np.int64)))
        zero = append("Constant", [], f"{scope}/zero", value=numpy_helper.from_array(np.zeros(1, np.float32)))
    for output, index in measured.items():
        magnitude = append("Abs", [graph.values[index].name], f"{output}/magnitude")
        if guards and _may_be_empty(graph.values[index].shape):  # runtimes differ on the maximum of nothing
            flattened = append("Reshape", [magnitude, flat], f"{output}/flat")
            magnitude = append("Concat", [flattened, zero], f"{output}/some", axis=0)
        append("ReduceMax", [magnitude], output, keepdims=0)
        proto.graph.output.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, []))
    with writing(folder, model.files) as store:
        for tensor in store.take_over(proto):
            store.keep(tensor, proto.graph.initializer.add())
        return store.finish(proto), measured


def _may_be_empty(shape: Shape | None) -> bool:
    return shape is None or not all(isinstance(extent, int) and extent > 0 for extent in shape)


def _free_scope(proto: Any) -> str:
    """What our names begin with, and no name of the model's."""
    scope = _SCOPE
    while any(name.startswith(f"{scope}/") for name in _names(proto)):
        scope += "_"
    return scope


def _names(proto: Any) -> Iterator[str]:
    for graph in all_graphs(proto):
        yield from (info.name for info in graph.input)
        yield from (tensor.name for tensor in graph.initializer)
        for node in graph.node:
            yield from node.output
