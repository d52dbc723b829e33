"""The tensors of an ONNX model: where each one's data is stored, and whether it is all there.

Works on a model read by `paddock.onnx_wire` and raises `ModelError` without the file's name, which the caller adds.
External data follows docs/ExternalData.md of onnx 1.17.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from paddock.errors import ModelError
from paddock.graph import BITS
from paddock.onnx_wire import KEEP, LEFT_OUT, weightless

_NAMES: Mapping[str, str] = MappingProxyType({"FLOAT": "float32", "DOUBLE": "float64"})


def parse(path: Path) -> Any:
    """The ModelProto without large payloads, with the default domain spelt "" throughout."""
    import onnx

    proto = onnx.ModelProto.FromString(weightless(path))
    if not proto.HasField("graph"):
        raise ModelError("is not an ONNX model: it holds no graph")
    spell_default_domain(proto)
    return proto


def spell_default_domain(proto: Any) -> None:
    """Turns domain "ai.onnx" into "" throughout (docs/IR.md: they are one)."""
    for owner in (proto, *proto.functions):
        for opset in owner.opset_import:
            if opset.domain == "ai.onnx":
                opset.domain = ""
    for node in all_nodes(proto):
        if node.domain == "ai.onnx":
            node.domain = ""


def graphs_of(node: Any) -> Iterator[Any]:
    """The bodies of a control-flow node."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def nodes_of(nodes: Any) -> Iterator[Any]:
    """These nodes and those of their bodies, at any depth."""
    for node in nodes:
        yield node
        for graph in graphs_of(node):
            yield from nodes_of(graph.node)


def all_nodes(proto: Any) -> Iterator[Any]:
    """Every node of a model, bodies and functions included."""
    yield from nodes_of(proto.graph.node)
    for function in proto.functions:
        yield from nodes_of(function.node)


def all_graphs(proto: Any) -> Iterator[Any]:
    """The main graph and every body."""
    yield proto.graph
    for node in all_nodes(proto):
        yield from graphs_of(node)


def all_tensors(proto: Any) -> Iterator[Any]:
    """Every tensor that may hold a payload: initializers, sparse ones, and attributes, at any depth."""
    for graph in all_graphs(proto):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
    holders = [attribute for function in proto.functions for attribute in function.attribute_proto]
    for node in all_nodes(proto):
        holders.extend(node.attribute)
    for attribute in holders:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        sparses = [attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []
        for sparse in (*sparses, *attribute.sparse_tensors):
            yield from (sparse.values, sparse.indices)


def dtype_name(number: int) -> str | None:
    """onnx's number of an element type as a key of `BITS` or "string"; None where it is undefined."""
    import onnx

    if number == 0:
        return None
    try:
        label: str = onnx.TensorProto.DataType.Name(number)
    except ValueError:
        raise ModelError(f"element type {number} is unknown to onnx {onnx.__version__}") from None
    name = _NAMES.get(label, label.lower())
    if name not in BITS and name != "string":
        raise ModelError(f"element type {label} is unknown to Paddock", candidates=[*BITS, "string"])
    return name


def dtype_number(name: str) -> int:
    """The inverse of `dtype_name`."""
    import onnx

    labels = {ours: label for label, ours in _NAMES.items()}
    return int(onnx.TensorProto.DataType.Value(labels.get(name, name.upper())))


def _elements(tensor: Any) -> int:
    if any(extent < 0 for extent in tensor.dims):
        raise ModelError(f"the tensor {tensor.name!r} has a negative dimension")
    return math.prod(tensor.dims)


def tensor_bytes(tensor: Any) -> int:
    """Size of a dense tensor in bytes: by dtype and dimensions; of strings by their contents."""
    dtype = dtype_name(tensor.data_type)
    if dtype == "string":
        return sum(map(len, tensor.string_data))
    if dtype is None:
        raise ModelError(f"the tensor {tensor.name!r} has no element type")
    return math.ceil(_elements(tensor) * BITS[dtype] / 8)


def _check_payload(tensor: Any) -> None:
    """Refuses a tensor whose stored data is not as long as its dimensions say; onnx's checker does not look."""
    if not tensor.data_type or tensor.data_type == tensor.STRING:
        return
    left_out = [entry.value for entry in tensor.external_data if entry.key == LEFT_OUT]
    stored = int(left_out[0]) if left_out else len(tensor.raw_data) if tensor.HasField("raw_data") else None
    if len(left_out) > 1:
        raise ModelError(f"the tensor {tensor.name!r} stores its data twice")
    if stored is not None and stored != tensor_bytes(tensor):
        raise ModelError(
            f"the tensor {tensor.name!r} stores {stored} bytes and its dimensions {list(tensor.dims)} need "
            f"{tensor_bytes(tensor)}"
        )
    if stored is None:
        count = _elements(tensor)
        kind = dtype_name(tensor.data_type) or ""
        wanted = 2 * count if kind.startswith("complex") else math.ceil(count / 2) if BITS[kind] == 4 else count
        lists = (tensor.float_data, tensor.int32_data, tensor.int64_data, tensor.double_data, tensor.uint64_data)
        if sum(map(len, lists)) != wanted:
            raise ModelError(
                f"the tensor {tensor.name!r} stores {sum(map(len, lists))} elements and its dimensions "
                f"{list(tensor.dims)} need {wanted}"
            )


def external_files(path: Path, tensors: Iterable[Any]) -> dict[str, Path]:
    """The external data files by role, checked against every tensor stored in them."""
    found: dict[str, Path] = {}
    sizes: dict[str, int] = {}
    for tensor in tensors:
        if tensor.data_location != tensor.EXTERNAL:
            _check_payload(tensor)
            continue
        location, offset, length = external_entry(tensor)
        if location not in found:
            sizes[location] = _external_size(path, location, tensor.name)
            found[location] = path.parent / location
        if offset + length > sizes[location]:
            raise ModelError(
                f"the external data file {location!r} has {sizes[location]} bytes, and the tensor "
                f"{tensor.name!r} lies at {offset} to {offset + length}: the file is truncated or foreign"
            )
    return {f"data/{location}": file for location, file in found.items()}


def external_entry(tensor: Any) -> tuple[str, int, int]:
    """(location, offset, bytes) of a tensor stored externally; the location normalised and inside the folder."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    normal = os.path.normpath(location) if location else ""
    if not normal or "\0" in normal or Path(normal).is_absolute() or normal in (".", "..") or normal.startswith("../"):
        raise ModelError(
            f"the tensor {tensor.name!r} names external data at {location!r}, which is not in the model's folder",
            remedy="store external data in the model's folder and name it by a relative path",
        )
    try:
        offset, length = int(entries.get("offset") or 0), int(entries.get("length") or 0)
    except ValueError:
        raise ModelError(f"the tensor {tensor.name!r} has an offset or length that is no number") from None
    if tensor.data_type == tensor.STRING:
        raise ModelError(f"the tensor {tensor.name!r} holds strings, which cannot be external data")
    needed = tensor_bytes(tensor)
    if offset < 0 or length < 0 or (length and length != needed):
        raise ModelError(
            f"the tensor {tensor.name!r} names {length} bytes of external data at {offset} and its dimensions "
            f"{list(tensor.dims)} need {needed}"
        )
    return normal, offset, needed


def _external_size(path: Path, location: str, tensor: str) -> int:
    """Size of an external data file in bytes.

    A link out of the folder would let an unpacked archive read any file as weights. Where model and data are links
    into one folder, as in Hugging Face's cache, the data still lies beside the model.
    """
    file = path.parent / location
    if not file.is_file():
        raise ModelError(
            f"the external data file {location!r} of the tensor {tensor!r} is missing",
            remedy=f"put it at {file}, beside the model",
        )
    real = file.resolve()
    if not any(real.is_relative_to(home) for home in (path.parent.resolve(), path.resolve().parent)):
        raise ModelError(
            f"the external data file {location!r} of the tensor {tensor!r} is a link out of the model's folder",
            remedy="put the file itself beside the model",
        )
    return file.stat().st_size


def load_small(path: Path, tensors: Sequence[Any]) -> list[Any]:
    """Loads small external tensors, which shape inference may read; returns those that stay without their data.

    These are marked as external, so that inference knows their data is not there.
    """
    absent = []
    for tensor in tensors:
        if tensor.data_location == tensor.EXTERNAL:
            location, offset, length = external_entry(tensor)
            if length > KEEP:
                absent.append(tensor)
                continue
            with (path.parent / location).open("rb") as file:
                file.seek(offset)
                tensor.raw_data = file.read(length)
            tensor.ClearField("data_location")
            tensor.ClearField("external_data")
        elif any(entry.key == LEFT_OUT for entry in tensor.external_data):
            absent.append(tensor)
    for tensor in absent:
        tensor.data_location = tensor.EXTERNAL
        tensor.ClearField("raw_data")
    return absent
