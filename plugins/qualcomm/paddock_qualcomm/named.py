"""A model as the provider is asked about it: inputs of fixed shape, and nodes named by their index."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from paddock.graph import Graph
from paddock_onnxruntime.named import Source, name_nodes


def named(path: Path, graph: Graph) -> Any:
    """The model in `path`, its external data left where they are, as the provider gets it.

    Every node has the name of its index, those in its bodies too; every input has the shape that `graph` states.
    """
    import onnx

    proto = onnx.load(path, load_external_data=False)
    name_nodes(proto)
    shapes = {value.name: value.shape for value in graph.input_values}
    for port in proto.graph.input:
        shape = shapes.get(port.name)
        if shape is not None and port.type.HasField("tensor_type"):
            dims = port.type.tensor_type.shape.dim
            del dims[:]
            for extent in shape:
                dim = dims.add()
                if isinstance(extent, int):
                    dim.dim_value = extent
    # What was inferred for other extents contradicts these; onnxruntime infers it anew.
    del proto.graph.value_info[:]
    for port in proto.graph.output:
        for dim in port.type.tensor_type.shape.dim:
            dim.ClearField("value")
    return proto


def source(proto: Any, path: Path) -> Source:
    """`proto`, made from the model in `path`, to be loaded."""
    return Source(proto.SerializeToString(), path.parent)


class Singles:
    """Models of one node each.

    Args:
        proto: The model, as `named` gives it.
        folded: The same after onnxruntime has folded its constants: whatever is constant there, shapes that are
            computed among it, is a constant of the single nodes as well.
    """

    def __init__(self, proto: Any, folded: Any) -> None:
        self._proto = proto
        # The standard's inference does not fold: what it misses of the one, it finds of the other.
        graphs = [_inferred(model).graph for model in (proto, folded)]
        self._tensors = {tensor.name: tensor for graph in graphs for tensor in graph.initializer}
        self._known = {
            value.name: value for graph in graphs for value in (*graph.value_info, *graph.input, *graph.output)
        }

    def is_folded(self, number: int) -> bool:
        """Whether nothing is left of a node but constants."""
        return all(made in self._tensors for made in self._proto.graph.node[number].output if made)

    def of(self, number: int) -> Any | None:
        """The model of a node; None where it has bodies, or the type of an input is not known."""
        import onnx

        node = self._proto.graph.node[number]
        bodies = any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute)
        read = dict.fromkeys(value for value in node.input if value)
        fed = [value for value in read if value not in self._tensors]
        if bodies or not self._known.keys() >= set(fed):
            return None
        empty = onnx.helper.make_empty_tensor_value_info
        return onnx.helper.make_model(
            onnx.helper.make_graph(
                [node],
                "one",
                [self._known[value] for value in fed],
                [self._known.get(made) or empty(made) for made in node.output if made],
                [self._tensors[value] for value in read if value in self._tensors],
            ),
            opset_imports=self._proto.opset_import,
            ir_version=self._proto.ir_version,
            functions=self._proto.functions,
        )


def _inferred(proto: Any) -> Any:
    import onnx

    try:
        return onnx.shape_inference.infer_shapes(proto, data_prop=True)
    except Exception:  # onnx raises several; then nothing is known beside the border
        return proto
