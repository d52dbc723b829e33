"""An ONNX model that measures: it gives, instead of its outputs, the largest magnitude of each float32 value inside."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paddock.errors import ModelError
from paddock.model import Files, Model
from paddock.onnx_store import writing
from paddock.planning.casts import WIDE

_SCOPE = "paddock_range"


def ranges(proto: Any, model: Model, folder: Path) -> tuple[Files, Mapping[str, int]]:
    """Writes the measuring model into `folder`; the index of the value that each of its outputs tells of.

    `proto` is `onnx_store.whole` of the model's file; changed. Each output is a float32 scalar: ReduceMax of Abs.
    """
    from onnx import TensorProto, helper

    graph = model.graph
    if len(proto.graph.node) != len(graph.nodes):
        raise ModelError("has changed since it was read", where=str(model.files["model"]))
    made = [v for node in graph.nodes for v in node.outputs if v is not None]
    measured = {
        f"{_SCOPE}/{index}": index
        for index in (*graph.inputs, *made)
        if graph.values[index].dtype == WIDE and graph.values[index].kind == "tensor"
    }
    del proto.graph.output[:]
    for output, index in measured.items():
        name = graph.values[index].name
        magnitude = f"{output}/magnitude"
        proto.graph.node.append(helper.make_node("Abs", [name], [magnitude], name=magnitude))
        proto.graph.node.append(helper.make_node("ReduceMax", [magnitude], [output], name=output, keepdims=0))
        proto.graph.output.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, []))
    with writing(folder, model.files) as store:
        for tensor in store.take_over(proto):
            store.keep(tensor, proto.graph.initializer.add())
        return store.finish(proto), measured
