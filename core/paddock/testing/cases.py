"""ONNX's own backend node tests: small models with the inputs and outputs that the standard expects.

Elements that NumPy has no dtype for stand as their bits, the way `paddock.deploy` takes and returns them: bfloat16 as
uint16, float8 as uint8, int4 as int8, uint4 as uint8.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from paddock.errors import UsageError, did_you_mean
from paddock.onnx_tensors import dtype_name

Datum = Any
"""An array (strings: of objects), a list of arrays for a sequence, None for an empty optional."""

CARRIERS: Mapping[str, str] = MappingProxyType(
    {
        "bfloat16": "uint16",
        "float8e4m3fn": "uint8",
        "float8e4m3fnuz": "uint8",
        "float8e5m2": "uint8",
        "float8e5m2fnuz": "uint8",
        "int4": "int8",
        "uint4": "uint8",
    }
)
"""The NumPy dtype that carries an element's bits, where NumPy has no such dtype."""

RTOL, ATOL = 1e-3, 1e-5
_EXPANDED = "_expanded"


@dataclass(frozen=True)
class Case:
    """One model of the standard with its data sets.

    `operator` is the one that the case is about: a model named `..._expanded` is another operator's function written
    out, and `operators` are the types of its nodes, each once, in order.
    """

    name: str
    model: Path
    operator: str
    operators: tuple[str, ...]
    rtol: float = RTOL
    atol: float = ATOL


@dataclass(frozen=True)
class DataSet:
    """Inputs and expected outputs by name; `dtypes` are the outputs', as keys of `paddock.graph.BITS` or "string"."""

    inputs: Mapping[str, Datum]
    outputs: Mapping[str, Datum]
    dtypes: Mapping[str, str]


def node_cases(only: str = "*") -> tuple[Case, ...]:
    """The node tests of the installed onnx whose names match the glob `only`, by name.

    Raises `UsageError` where none does.
    """
    from onnx.backend.test.loader import load_model_tests

    folders = {case.name: Path(case.model_dir) for case in load_model_tests(kind="node")}
    chosen = sorted(name for name in folders if fnmatchcase(name, only))
    if not chosen:
        raise UsageError(f"no node test is called {only!r}", remedy=did_you_mean(only, sorted(folders)))
    return tuple(_case(name, folders) for name in chosen)


def data_sets(case: Case) -> tuple[DataSet, ...]:
    """The data of a case, read from its files."""
    graph = _load(case.model).graph
    dtypes = {value.name: _declared(value.type) for value in graph.output}
    return tuple(
        DataSet(_stored(folder, "input", graph.input), _stored(folder, "output", graph.output), dtypes)
        for folder in sorted(case.model.parent.glob("test_data_set_*"))
    )


def _case(name: str, folders: Mapping[str, Path]) -> Case:
    model = folders[name] / "model.onnx"
    operators = tuple(_types(_load(model).graph.node))
    written_out = folders.get(name.partition(_EXPANDED)[0]) if _EXPANDED in name else None
    about = tuple(_types(_load(written_out / "model.onnx").graph.node)) if written_out is not None else operators
    own = folders[name] / "data.json"
    given = json.loads(own.read_text()) if own.is_file() else {}
    return Case(name, model, about[0], operators, given.get("rtol", RTOL), given.get("atol", ATOL))


def _types(nodes: Iterable[Any]) -> Iterator[str]:
    yield from dict.fromkeys(f"{node.domain}.{node.op_type}" if node.domain else node.op_type for node in nodes)


def _load(path: Path) -> Any:
    import onnx

    return onnx.load(path)


def _declared(kind: Any) -> str:
    """The element dtype of a tensor, or of what a sequence or an optional holds."""
    which = kind.WhichOneof("value")
    if which == "tensor_type":
        return dtype_name(kind.tensor_type.elem_type) or ""
    return _declared(getattr(kind, which).elem_type)


def _stored(folder: Path, side: str, values: Any) -> dict[str, Datum]:
    return {
        value.name: _datum((folder / f"{side}_{i}.pb").read_bytes(), value.type.WhichOneof("value"))
        for i, value in enumerate(values)
    }


def _datum(content: bytes, kind: str) -> Datum:
    import onnx

    if kind == "sequence_type":
        return _sequence(onnx.SequenceProto.FromString(content))
    if kind == "optional_type":
        return _optional(onnx.OptionalProto.FromString(content))
    return array_of(onnx.TensorProto.FromString(content))


def _sequence(proto: Any) -> list[Datum]:
    import onnx

    if proto.elem_type == onnx.SequenceProto.SEQUENCE:
        return [_sequence(inner) for inner in proto.sequence_values]
    return [array_of(tensor) for tensor in proto.tensor_values]


def _optional(proto: Any) -> Datum:
    import onnx

    if proto.elem_type == onnx.OptionalProto.TENSOR:
        return array_of(proto.tensor_value)
    if proto.elem_type == onnx.OptionalProto.SEQUENCE:
        return _sequence(proto.sequence_value)
    return None


def array_of(tensor: Any) -> np.ndarray[Any, Any]:
    """A TensorProto with its data inside as an array of its own; exotic elements as their bits, see `CARRIERS`."""
    from onnx import numpy_helper

    dtype = dtype_name(tensor.data_type)
    if dtype is None or dtype not in CARRIERS:
        return np.array(numpy_helper.to_array(tensor))
    carrier = np.dtype(CARRIERS[dtype])
    count = int(np.prod(tensor.dims, dtype=np.int64))
    raw = tensor.raw_data or np.array(tensor.int32_data, np.int32).astype(carrier).tobytes()
    if not dtype.endswith("int4"):
        return np.frombuffer(raw, carrier.newbyteorder("<")).astype(carrier).reshape(tensor.dims)
    # Two to a byte, the first in the low half.
    pairs = np.frombuffer(raw, np.uint8)
    nibbles = np.stack([pairs & 0xF, pairs >> 4], axis=-1).ravel()[:count]
    signed = np.where(nibbles > 7, nibbles.astype(np.int8) - 16, nibbles) if dtype == "int4" else nibbles
    return signed.astype(carrier).reshape(tensor.dims)
