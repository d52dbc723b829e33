"""Reads Paddle 3's inference programs without Paddle: the PIR `.json` and the `.pdiparams` beside it.

Paddle itself does not notice a missing or a slightly shortened `.pdiparams` (it then computes with whatever stands in
memory), and loading it takes seconds. This reader takes milliseconds, opens headers only, and refuses what is not a
matching pair.

Sources: the files as paddlepaddle 3.3.1 writes them, compared op by op with `paddle.static.load_inference_model` on 15
models; the tensor layout is phi's `SerializeToStream` (paddle/phi/core/framework/dense_tensor_serialize.cc), the dtype
codes are `VarType.Type` of paddle/phi/core/framework/framework.proto.
"""

from __future__ import annotations

import json
import math
import mmap
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from paddock.errors import ModelError
from paddock.graph import BITS

from paddock_paddle.sdk import AGAIN

VERSIONS = frozenset({4})
"""The versions of the `.json` layout that this reader was checked on. Paddle writes the number and never checks it."""

_DIALECTS = MappingProxyType({"0": "builtin", "1": "pd_op", "2": "cf", "3": "custom_op", "4": "pd_dist"})

_TAGS = MappingProxyType(
    {
        "t_bool": "bool", "t_i8": "int8", "t_ui8": "uint8", "t_i16": "int16", "t_i32": "int32", "t_i64": "int64",
        "t_f16": "float16", "t_bf16": "bfloat16", "t_f32": "float32", "t_f64": "float64", "t_c64": "complex64",
        "t_c128": "complex128", "t_f8e4m3fn": "float8e4m3fn", "t_f8e5m2": "float8e5m2", "t_index": "int64",
    }
)  # fmt: skip

_CODES = MappingProxyType(
    {
        0: "bool", 1: "int16", 2: "int32", 3: "int64", 4: "float16", 5: "float32", 6: "float64", 20: "uint8",
        21: "int8", 22: "bfloat16", 23: "complex64", 24: "complex128", 32: "float8e4m3fn", 33: "float8e5m2",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Type:
    """The type of a result: -1 in `shape` is dynamic; `kind` is "tensor", "sequence" (with `parts`) or Paddle's tag."""

    dtype: str | None = None
    shape: tuple[int, ...] | None = None
    kind: str = "tensor"
    parts: tuple[Type, ...] = ()


@dataclass(frozen=True, slots=True)
class Op:
    """One operation: `inputs` and `outputs` are value ids, 0 stands for an optional operand that is left out."""

    name: str
    inputs: tuple[int, ...]
    outputs: tuple[tuple[int, Type], ...]
    attributes: Mapping[str, Any]
    blocks: tuple[Block, ...] = ()


@dataclass(frozen=True, slots=True)
class Block:
    """Operations in order, and the values that enter from outside (the state of a loop)."""

    arguments: tuple[tuple[int, Type], ...]
    ops: tuple[Op, ...]

    def walk(self) -> Iterator[Op]:
        """Every operation, the bodies of control flow included."""
        for op in self.ops:
            yield op
            for block in op.blocks:
                yield from block.walk()


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor as it lies in a `.pdiparams`; `nbytes` without its header."""

    dtype: str
    shape: tuple[int, ...]
    nbytes: int

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.shape)}"


@dataclass(frozen=True)
class Program:
    """A checked program and its parameters by name."""

    block: Block
    parameters: Mapping[str, Tensor]


def looks_like_program(path: Path) -> bool:
    """Whether a `.json` begins the way Paddle's programs do; reads 4 KiB, so that any other JSON costs nothing."""
    with open(path, "rb") as file:
        start = file.read(4096)
    return b'"base_code"' in start and b'"pir"' in start


def read_pair(program: Path, params: Path | None) -> Program:
    """The program with its parameters, both checked and checked against each other; raises `ModelError`.

    A weight's value that was altered, and parameters of another training run of the same model, cannot be told: the
    files hold neither names beside the weights nor a checksum.
    """
    block = read_block(program)
    wanted = declared(block, program)
    if not wanted and params is None:
        return Program(block, {})
    if params is None:
        raise ModelError(
            f"declares {len(wanted)} parameters, and its .pdiparams is missing", where=str(program), remedy=AGAIN
        )
    found = read_tensors(params)
    # Paddle saves parameters in the order of a std::map over their names: by bytes.
    names = sorted(wanted, key=str.encode)
    if len(found) != len(names):
        raise ModelError(
            f"holds {len(found)} tensors, but {program.name} declares {len(names)} parameters: they are not a pair",
            where=str(params),
            remedy=AGAIN,
        )
    for name, tensor in zip(names, found, strict=True):
        kind = wanted[name]
        if (tensor.dtype, tensor.shape) != (kind.dtype, kind.shape):
            raise ModelError(
                f"holds {tensor} where {program.name} declares parameter {name!r} as "
                f"{kind.dtype}{list(kind.shape or ())}: they are not a pair",
                where=str(params),
                remedy=AGAIN,
            )
    return Program(block, dict(zip(names, found, strict=True)))


def read_block(path: Path) -> Block:
    """The top block of a `.json`: parsed, and each value made before it is read; raises `ModelError`."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ModelError(f"cannot be read: {error.strerror}", where=str(path)) from None
    try:
        data = json.loads(raw)
    except (ValueError, RecursionError) as error:
        problem = f"is not JSON, or cut off after {len(raw)} bytes: {error}"
        raise ModelError(problem, where=str(path), remedy=AGAIN) from None
    head = data.get("base_code") if isinstance(data, dict) else None
    if not isinstance(head, dict) or head.get("magic") != "pir":
        problem = 'is JSON, but no Paddle program (its base_code.magic is not "pir")'
        raise ModelError(problem, where=str(path), remedy=AGAIN)
    if head.get("version") not in VERSIONS:
        raise ModelError(
            f"is a Paddle program of layout version {head.get('version')!r}, which is not known here",
            where=str(path),
            candidates=[str(version) for version in sorted(VERSIONS)],
            remedy="save it with paddlepaddle 3.3",
        )
    try:
        (region,) = data["program"]["regions"]
        (top,) = region["blocks"]
        block = _block(top)
        _check_order(block, set())
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RecursionError) as error:
        detail = f"{type(error).__name__}: {error}"
        raise ModelError(f"is a broken Paddle program: {detail}", where=str(path), remedy=AGAIN) from None
    return block


def declared(block: Block, path: Path) -> dict[str, Type]:
    """The parameters that a program declares as saved, by name; raises `ModelError` where one is there twice or odd."""
    found: dict[str, Type] = {}
    for op in block.walk():
        if op.name != "builtin.parameter":
            continue
        if not op.attributes.get("persistable", True):
            continue  # Paddle makes it anew where it is used, such as the state of an LSTM's dropout
        name = op.attributes.get("parameter_name")
        kind = op.outputs[0][1] if len(op.outputs) == 1 else Type(kind="none")
        if not isinstance(name, str) or kind.dtype is None or kind.shape is None or min(kind.shape, default=0) < 0:
            problem = f"declares a parameter {name!r} without dtype or fixed shape"
            raise ModelError(problem, where=str(path), remedy=AGAIN)
        if name in found:
            raise ModelError(f"declares the parameter {name!r} twice", where=str(path), remedy=AGAIN)
        found[name] = kind
    return found


def read_tensors(path: Path) -> tuple[Tensor, ...]:
    """The tensors of a `.pdiparams`, in file order, from their headers; raises `ModelError` where one is cut off."""
    try:
        if path.stat().st_size == 0:
            return ()
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return tuple(_tensors(content, path))
    except OSError as error:
        raise ModelError(f"cannot be read: {error.strerror}", where=str(path)) from None


# The .pdiparams: u32 version 0 | u64 LoD levels | each: u64 length, bytes | u32 version 0 | i32 length of the
# descriptor | protobuf {1: dtype code, 2: repeated dim} | the elements, little endian.


def _tensors(content: mmap.mmap, path: Path) -> Iterator[Tensor]:
    size, at, number = len(content), 0, 0

    def take(length: int, what: str) -> bytes:
        nonlocal at
        if length > size - at:
            raise ModelError(
                f"tensor {number} is cut off in its {what}: {length} bytes needed at {at}, {size - at} left",
                where=str(path),
                remedy=AGAIN,
            )
        at += length
        return content[at - length : at]

    while at < size:
        version, levels = struct.unpack("<IQ", take(12, "header"))
        if version or levels > 16:
            raise _foreign(path, number)
        for _ in range(levels):
            (length,) = struct.unpack("<Q", take(8, "header"))
            take(length, "header")
        version, length = struct.unpack("<Ii", take(8, "header"))
        if version or not 0 < length <= 1024:
            raise _foreign(path, number)
        dtype, shape = _descriptor(take(length, "descriptor"), path, number)
        nbytes = math.prod(shape) * BITS[dtype] // 8
        if nbytes > size - at:
            take(nbytes, "data")
        at += nbytes
        yield Tensor(dtype, shape, nbytes)
        number += 1


def _foreign(path: Path, number: int) -> ModelError:
    return ModelError(f"is no Paddle parameter file (at tensor {number})", where=str(path), remedy=AGAIN)


def _descriptor(data: bytes, path: Path, number: int) -> tuple[str, tuple[int, ...]]:
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if not byte & 128:
                return value
            if shift > 63:
                raise IndexError

    code, dims = -1, list[int]()
    try:
        while at < len(data):
            tag = varint()
            if tag == 0x08:
                code = varint()
            elif tag == 0x10:
                dims.append(varint())
            elif tag == 0x12:  # packed
                end = varint() + at
                while at < end:
                    dims.append(varint())
            else:
                raise IndexError
    except IndexError:
        raise _foreign(path, number) from None
    if code not in _CODES or any(dim >= 1 << 63 for dim in dims):
        raise ModelError(f"tensor {number} has dtype code {code} and dims {dims}", where=str(path), remedy=AGAIN)
    return _CODES[code], tuple(dims)


# The .json: "#" is an id, "%" a value id, I operands, O results, A attributes, N a name, AT and TT attribute and value
# types, D data, VD a number that JSON has no word for.


def _block(data: Any) -> Block:
    arguments = tuple((_id(a["#"]), _type(a["TT"])) for a in data.get("args", ()))
    return Block(arguments, tuple(_op(op) for op in data["ops"]))


def _op(data: Any) -> Op:
    if data["#"] == "p":  # builtin.parameter, written short
        # OA: whether it is persistable, whether gradients stop there, whether it is trained.
        about = {"parameter_name": data["A"][3], "persistable": bool(data.get("OA", [1])[0])}
        return Op("builtin.parameter", (), ((_id(data["O"]["%"]), _type(data["O"]["TT"])),), about)
    return Op(
        _op_name(data["#"]),
        tuple(_id(operand["%"]) for operand in data["I"]),
        tuple((_id(result["%"]), _type(result["TT"])) for result in data["O"]),
        {_text(a["N"]): _attribute(a["AT"]) for a in data["A"]},
        tuple(_block(block) for region in data.get("regions", ()) for block in region["blocks"]),
    )


def _op_name(mark: str) -> str:
    dialect, dot, name = mark.partition(".")
    if not dot or not name:
        raise ValueError(f"the operation {mark!r} has no dialect")
    return f"{_DIALECTS.get(dialect, dialect)}.{name}"


def _id(value: Any) -> int:
    if type(value) is not int:
        raise TypeError(f"{value!r} is no value id")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no name")
    return value


def _type(data: Any) -> Type:
    tag = _text(data["#"]).partition(".")[2] or data["#"]
    if tag == "t_dtensor":
        dtype = _TAGS.get(_text(data["D"][0]["#"]).partition(".")[2])
        shape = tuple(_id(dim) for dim in data["D"][1])
        if dtype is None or min(shape, default=0) < -1:
            raise ValueError(f"a tensor of {data['D'][0]['#']!r} and shape {list(shape)}")
        return Type(dtype, shape)
    if tag == "t_vec":
        parts = tuple(_type(part) for part in data["D"])
        dtypes = {part.dtype for part in parts}
        return Type(dtypes.pop() if len(dtypes) == 1 else None, None, "sequence", parts)
    return Type(kind="none" if tag == "NULL" else tag)


def _attribute(data: Any) -> Any:
    """An attribute's value as plain JSON data; what is not a finite number is a string ("INF", "-INF", "NaN")."""
    value = data["D"] if "D" in data else data.get("VD")
    if _text(data["#"]).endswith("a_array"):
        return [_attribute(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _check_order(block: Block, outer: set[int]) -> None:
    """Raises ValueError where a value is read before it is made, or made twice."""
    known = set(outer)

    def make(value: int) -> None:
        if value in known:
            raise ValueError(f"the value {value} is made twice")
        known.add(value)

    for value, _ in block.arguments:
        make(value)
    for number, op in enumerate(block.ops):
        for value in op.inputs:
            if value and value not in known:
                raise ValueError(f"operation {number} ({op.name}) reads the value {value} before it is made")
        for inner in op.blocks:
            _check_order(inner, known)
        for value, _ in op.outputs:
            if value:
                make(value)
