"""The ONNX format: finds a model's files, checks them, and reads them into the neutral graph.

Weights are never loaded: the graph is read from the model without its large payloads (`paddock.onnx_wire`), and
external data is only looked at for its size. Facts about the format are from onnx/onnx.proto and docs/IR.md,
docs/ExternalData.md of onnx 1.17.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar

from paddock.errors import ModelError, PaddockError, did_you_mean
from paddock.graph import Dim, Graph, Node, Shape, Value
from paddock.model import Files, Model
from paddock.onnx_cast import cast
from paddock.onnx_cast_check import check_cast
from paddock.onnx_extract import extract
from paddock.onnx_ranges import ranges
from paddock.onnx_shapes import shapes_at
from paddock.onnx_store import whole
from paddock.onnx_tensors import (
    all_graphs,
    all_tensors,
    dtype_name,
    external_files,
    load_small,
    nodes_of,
    parse,
    tensor_bytes,
)
from paddock.plan import Segment
from paddock.planning.aliasing import Aliasing, standard_aliasing
from paddock.planning.casts import CastRequest
from paddock.spi import CastModel, Format

LIST_LIMIT = 64
"""Attributes that are longer lists than this are summarised as {"list": kind, "length": n}."""

_AGAIN = "export or download the model again"


class OnnxFormat(Format):
    """ONNX: one `.onnx` file, with external data beside it where the model names some (role "data/LOCATION")."""

    name: ClassVar[str] = "onnx"
    suffixes: ClassVar[tuple[str, ...]] = (".onnx",)
    spi_version: ClassVar[int] = 1
    gathers: ClassVar[Mapping[str, tuple[int, int]]] = {"Gather": (1, 0), "GatherElements": (1, 0)}
    transparent: ClassVar[frozenset[str]] = frozenset(
        {"Cast", "Expand", "Flatten", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"}
    )
    aliasing: ClassVar[Aliasing] = standard_aliasing()
    constants: ClassVar[frozenset[str]] = frozenset({"Constant"})

    def locate(self, path: Path) -> Files | None:
        """A `.onnx` file, a folder with exactly one, or a stem beside which one lies; else None."""
        try:
            if path.is_dir():
                found = sorted(p for p in path.iterdir() if _is_onnx(p) and not p.name.startswith("."))
                if len(found) > 1:
                    raise ModelError(
                        "holds several ONNX models",
                        where=str(path),
                        candidates=[p.name for p in found],
                        remedy="name one of them",
                    )
                if found:
                    return {"model": found[0]}
            elif path.suffix.lower() == ".onnx":
                if path.is_file():
                    return {"model": path}
                near = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
                raise ModelError("no such file", where=str(path), remedy=did_you_mean(path.name, near))
            stem = path.parent / f"{path.name}.onnx"
            return {"model": stem} if path.name and not path.is_file() and stem.is_file() else None
        except OSError as error:
            raise ModelError(f"cannot be read: {error.strerror}", where=str(path)) from None

    def complete(self, files: Files) -> Files:
        """The model with every external data file that it names, each checked to be there and long enough.

        Raises `ModelError` for a location outside the model's folder, a missing file (naming the tensor), and a
        file shorter than its tensors need.
        """
        path = _model_path(files)
        with _Guard(path):
            return {**files, **external_files(path, all_tensors(parse(path)))}

    def read(self, files: Files) -> Graph:
        """The graph, nodes in the file's order, dtypes and shapes by onnx's own inference (with data propagation).

        Anonymous dimensions of the inputs become symbols "INPUT.AXIS". Raises `ModelError`, nothing else; the
        native checker and inference may still abort on bytes that no exporter writes.
        """
        path = _model_path(files)
        with _Guard(path):
            return _read(path, parse(path))

    def extract(self, model: Model, segment: Segment, folder: Path) -> Files:
        """The segment as `model.onnx`, its larger constants in `weights.bin`; node i is the i-th one in the file.

        Raises `NotAvailable` where a value at the border has no dtype, or is a map or a sparse tensor.
        """
        return extract(_opened(model), model, segment, folder)

    def cast(self, model: Model, request: CastRequest, folder: Path) -> CastModel:
        """The model with its types stated anew, weights stored once, casts where they are needed."""
        written = cast(_opened(model), model, request, folder)
        check_cast(model, request, written)
        return written

    def ranges(self, model: Model, folder: Path) -> tuple[Files, Mapping[str, int]]:
        """A model that gives ReduceMax of Abs of every float32 value of the main graph."""
        return ranges(_opened(model), model, folder)

    def shapes_at(self, model: Model, inputs: Mapping[str, tuple[int, ...]]) -> Mapping[int, tuple[int, ...]]:
        """By onnx's inference, node by node, and what follows from constants and shapes computed."""
        path = _model_path(model.files)
        with _Guard(path):
            return shapes_at(path, model.graph, inputs)


def _opened(model: Model) -> Any:
    path = _model_path(model.files)
    with _Guard(path):
        return whole(path)


class _Guard:
    """Turns whatever is raised while a model is read into a `ModelError` that names the file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, PaddockError):
            problem, candidates, remedy = error.problem, error.candidates, error.remedy or _AGAIN
        elif isinstance(error, OSError):
            problem, candidates, remedy = f"cannot be read: {error.strerror}", (), None
        elif isinstance(error, Exception):
            line = next((part.strip() for part in str(error).splitlines() if part.strip()), type(error).__name__)
            problem, candidates, remedy = f"is not a valid ONNX model: {line}", (), _AGAIN
        else:
            return
        raise ModelError(problem, where=str(self.path), candidates=candidates, remedy=remedy) from None


def _is_onnx(path: Path) -> bool:
    return path.suffix.lower() == ".onnx" and path.is_file()


def _model_path(files: Files) -> Path:
    if "model" not in files:
        raise ModelError("the files have no role 'model'", candidates=sorted(files))
    return files["model"]


# The graph: checked and inferred by onnx, then turned into ours.


def _read(path: Path, proto: Any) -> Graph:
    from onnx import checker, shape_inference

    graphs, tensors = list(all_graphs(proto)), list(all_tensors(proto))
    external_files(path, tensors)
    _check_versions(proto)
    _check_functions(proto)
    for value in proto.graph.input:
        if not value.HasField("type"):
            raise ModelError(f"the input {value.name!r} has no type")
    _name_anonymous(proto.graph, graphs)
    absent = load_small(path, tensors)
    checker.check_model(_checkable(proto, graphs, absent), full_check=False)
    inferred = shape_inference.infer_shapes(proto, data_prop=True)
    opsets = {opset.domain: opset.version for opset in proto.opset_import} or {"": 1}
    return _graph(inferred.graph, opsets, lambda name: None)[0]


def _check_versions(proto: Any) -> None:
    """The IR version and the opsets that the installed onnx knows; its checker lets a newer opset pass."""
    import onnx

    remedy = f"export it for onnx {onnx.__version__}, or convert it with onnx.version_converter"
    if not 1 <= proto.ir_version <= onnx.IR_VERSION:
        raise ModelError(f"has IR version {proto.ir_version}; this onnx reads 1 to {onnx.IR_VERSION}", remedy=remedy)
    known: Mapping[str, tuple[int, int]] = onnx.defs.C.schema_version_map()
    for owner in (proto, *proto.functions):
        for opset in owner.opset_import:
            newest = known.get(opset.domain, (1, 2**31))[1]
            if not 1 <= opset.version <= newest:
                raise ModelError(
                    f"has opset {opset.version} of the domain {opset.domain or 'ai.onnx'!r}; this onnx reads 1 to "
                    f"{newest}",
                    remedy=remedy,
                )


def _check_functions(proto: Any) -> None:
    """Refuses functions that call themselves: onnx's shape inference overflows the stack on them."""
    calls = {
        (f.domain, f.name): {(n.domain, n.op_type) for n in nodes_of(f.node)} for f in proto.functions
    }  # overloads share a key: a cycle through any of them counts
    done: set[tuple[str, str]] = set()
    while len(done) < len(calls):
        ready = [key for key, called in calls.items() if key not in done and not (called & calls.keys()) - done]
        if not ready:
            names = sorted(".".join(key) for key in calls.keys() - done)
            raise ModelError("has functions that call themselves", candidates=names)
        done.update(ready)


def _name_anonymous(main: Any, graphs: Sequence[Any]) -> None:
    """Names each dimension of an input that has neither extent nor symbol "INPUT.AXIS" (unless that is taken)."""
    taken = {
        dim.dim_param
        for graph in graphs
        for value in (*graph.input, *graph.output, *graph.value_info)
        for dim in value.type.tensor_type.shape.dim
    }
    for value in main.input:
        if value.type.WhichOneof("value") != "tensor_type":
            continue
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            # Some exporters write -1 for "any".
            if not dim.dim_param and (dim.WhichOneof("value") != "dim_value" or dim.dim_value < 0):
                symbol = f"{value.name}.{axis}"
                while symbol in taken:
                    symbol += "_"
                dim.dim_param = symbol


def _checkable(proto: Any, graphs: Sequence[Any], absent: Sequence[Any]) -> bytes:
    """The model as the checker wants it, which opens external files and insists on shapes that are optional."""
    shapeless = [
        value.type.tensor_type
        for graph in graphs
        for value in (*graph.input, *graph.output)
        if value.type.WhichOneof("value") == "tensor_type" and not value.type.tensor_type.HasField("shape")
    ]
    for type_ in shapeless:
        type_.shape.SetInParent()
    for tensor in absent:
        tensor.data_location = tensor.DEFAULT
        tensor.raw_data = b"\0"
    content: bytes = proto.SerializeToString()
    for type_ in shapeless:
        type_.ClearField("shape")
    for tensor in absent:
        tensor.data_location = tensor.EXTERNAL
        tensor.ClearField("raw_data")
    return content


def _value(name: str, type_: Any) -> Value:
    """A value with the dtype and shape of an onnx TypeProto (None: nothing known)."""
    kind = type_.WhichOneof("value") if type_ is not None else None
    if kind == "tensor_type":
        return Value(name, dtype_name(type_.tensor_type.elem_type), _shape(type_.tensor_type))
    if kind == "sparse_tensor_type":
        sparse = type_.sparse_tensor_type
        return Value(name, dtype_name(sparse.elem_type), _shape(sparse), "sparse_tensor")
    if kind in ("sequence_type", "optional_type"):
        inner = _value(name, getattr(type_, kind).elem_type)
        return Value(name, inner.dtype, inner.shape, kind.removesuffix("_type"))
    return Value(name, kind="map") if kind == "map_type" else Value(name)


def _shape(type_: Any) -> Shape | None:
    return tuple(_dim(dim) for dim in type_.shape.dim) if type_.HasField("shape") else None


def _dim(dim: Any) -> Dim:
    if dim.WhichOneof("value") == "dim_value":
        return int(dim.dim_value) if dim.dim_value >= 0 else None
    return str(dim.dim_param) or None


def _graph(
    proto: Any, opsets: Mapping[str, int], outer: Callable[[str], Value | None]
) -> tuple[Graph, tuple[str, ...]]:
    """One graph and the names that it reads from the enclosing ones (`outer` finds a value there)."""
    types = {value.name: value.type for value in (*proto.input, *proto.output, *proto.value_info)}
    values: list[Value] = []
    index: dict[str, int] = {}
    captured: dict[str, None] = {}

    def define(value: Value) -> int:
        if value.name in index:
            raise ModelError(f"the value {value.name!r} is defined twice")
        index[value.name] = len(values)
        values.append(value)
        return index[value.name]

    def read(name: str, reader: str) -> int:
        if name not in index:
            found = outer(name)
            if found is None:
                raise ModelError(f"{reader} reads {name!r}, which nothing before it defines")
            captured[name] = None
            define(found)
        return index[name]

    def known(name: str) -> Value | None:
        return values[index[name]] if name in index else outer(name)

    sizes = _initializers(proto)
    inputs = tuple(define(_value(item.name, item.type)) for item in proto.input if item.name not in sizes)
    initializers = {define(value): size for value, size in sizes.values()}
    nodes = []
    for number, node in enumerate(proto.node):
        label = f"node #{number} {node.op_type}"
        reads = tuple(read(name, label) if name else None for name in node.input)
        attributes, subgraphs, captures = dict[str, Any](), list[Graph](), dict[int, None]()
        for attribute in node.attribute:
            bodies = []
            for body in (attribute.g,) if attribute.type == attribute.GRAPH else attribute.graphs:
                graph, names = _graph(body, opsets, known)
                captures.update((read(name, label), None) for name in names)
                bodies.append(len(subgraphs))
                subgraphs.append(graph)
            attributes[attribute.name] = _attribute(attribute, bodies)
        writes = tuple(define(_value(name, types.get(name))) if name else None for name in node.output)
        nodes.append(
            Node(
                number,
                node.op_type,
                reads,
                writes,
                node.name,
                node.domain,
                attributes,
                tuple(subgraphs),
                tuple(captures),
            )
        )
    outputs = tuple(read(item.name, "the graph's output") for item in proto.output)
    graph = Graph(tuple(nodes), tuple(values), inputs, outputs, initializers, proto.name, dict(opsets))
    return graph, tuple(captured)


def _initializers(proto: Any) -> dict[str, tuple[Value, int]]:
    """Each constant of a graph by name: its value and its size in bytes as stored."""
    found: dict[str, tuple[Value, int]] = {}
    for tensor in proto.initializer:
        found[tensor.name] = Value(tensor.name, dtype_name(tensor.data_type), tuple(tensor.dims)), tensor_bytes(tensor)
    for sparse in proto.sparse_initializer:
        name, size = sparse.values.name, tensor_bytes(sparse.values) + tensor_bytes(sparse.indices)
        found[name] = Value(name, dtype_name(sparse.values.data_type), tuple(sparse.dims)), size
    if len(found) != len(proto.initializer) + len(proto.sparse_initializer):
        raise ModelError("two initializers have one name")
    return found


def _attribute(attribute: Any, bodies: list[int]) -> Any:
    """An attribute as JSON data; graphs as {"subgraph": position in the node's subgraphs}."""
    from onnx import AttributeProto, helper

    kind = AttributeProto.AttributeType.Name(attribute.type)
    if kind in ("GRAPH", "GRAPHS"):
        graphs = [{"subgraph": body} for body in bodies]
        return graphs[0] if kind == "GRAPH" else graphs
    value = helper.get_attribute_value(attribute)
    if not kind.endswith("S"):
        return _plain(kind, value)
    if len(value) > LIST_LIMIT:
        return {"list": kind.lower(), "length": len(value)}
    return [_plain(kind.removesuffix("S"), item) for item in value]


def _plain(kind: str, value: Any) -> Any:
    if kind == "FLOAT":
        return float(value) if math.isfinite(value) else str(float(value))
    if kind == "INT":
        return int(value)
    if kind == "STRING":
        try:
            return value.decode()
        except UnicodeDecodeError:
            return repr(value)
    if kind == "TENSOR":
        return {"tensor": dtype_name(value.data_type), "shape": list(value.dims)}
    if kind == "SPARSE_TENSOR":
        return {"sparse_tensor": dtype_name(value.values.data_type), "shape": list(value.dims)}
    known = _value("", value)
    return {"type": known.kind, "dtype": known.dtype, "shape": list(known.shape) if known.shape is not None else None}
