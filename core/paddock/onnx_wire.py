"""An ONNX file without its weights: the protobuf rewritten from a memory map, large payloads left out.

Reading a graph needs names, types and small constants, not gigabytes of weights. `weightless` walks the wire format
(protobuf.dev, "Encoding"; field numbers from onnx/onnx.proto, IR version 10) and copies everything but the payload
of large tensors, so that memory and time follow the graph's size instead of the file's.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from paddock.errors import ModelError

KEEP = 8192
"""Payloads of up to this many bytes are kept: shape inference reads constants such as the target of a Reshape."""

LEFT_OUT = "paddock.left_out"
"""The key in a tensor's `external_data` under which the left-out payload's size in bytes stands."""

LIMIT = 2**31 - 1
"""Protobuf's own limit for one message, in bytes; larger models need external data."""

_MODEL, _GRAPH, _FUNCTION, _NODE, _ATTRIBUTE, _SPARSE, _TENSOR = range(7)
# Which fields of a message can hold tensors somewhere below, and what message they are.
_BELOW: Mapping[int, Mapping[int, int]] = MappingProxyType(
    {
        _MODEL: {7: _GRAPH, 25: _FUNCTION},
        _GRAPH: {1: _NODE, 5: _TENSOR, 15: _SPARSE},
        _FUNCTION: {7: _NODE, 11: _ATTRIBUTE},
        _NODE: {5: _ATTRIBUTE},
        _ATTRIBUTE: {5: _TENSOR, 6: _GRAPH, 10: _TENSOR, 11: _GRAPH, 22: _SPARSE, 23: _SPARSE},
        _SPARSE: {1: _TENSOR, 2: _TENSOR},
        _TENSOR: {},
    }
)
_PAYLOAD = frozenset((4, 9, 10))  # float_data, raw_data, double_data: fixed width, so that size tells the count
_RAW_DATA, _EXTERNAL_DATA = 9, 13


def weightless(path: Path) -> bytes:
    """The file's ModelProto, serialised, with payloads over `KEEP` bytes replaced by an empty `raw_data` and a note.

    Raises `ModelError` where the file cannot be read or its bytes are no protobuf message; which message they are
    is for the parser to find out.
    """
    try:
        size = path.stat().st_size
        if size == 0:
            raise ModelError("is empty", where=str(path), remedy="export or download the model again")
        if size > LIMIT:
            raise ModelError(
                f"has {size} bytes, more than the {LIMIT} that one protobuf message can have",
                where=str(path),
                remedy="save the model with external data: onnx.save(model, path, save_as_external_data=True)",
            )
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _strip(data, 0, size, _MODEL)
    except (_MalformedError, IndexError, RecursionError) as error:
        reason = str(error) if isinstance(error, _MalformedError) else "truncated or nested too deep"
        raise ModelError(
            f"is not an ONNX model: {reason}", where=str(path), remedy="export or download the model again"
        ) from None
    except OSError as error:
        raise ModelError(f"cannot be read: {error.strerror}", where=str(path)) from None


class _MalformedError(Exception):
    pass


def _varint(data: mmap.mmap, at: int) -> tuple[int, int]:
    result = shift = 0
    while True:
        byte = data[at]
        at += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result, at
        shift += 7
        if shift > 63:
            raise _MalformedError(f"a number at byte {at} has more than 64 bits")


def _encode(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _field(number: int, content: bytes) -> bytes:
    return _encode(number << 3 | 2) + _encode(len(content)) + content


def _strip(data: mmap.mmap, at: int, end: int, message: int) -> bytes:
    """The message in data[at:end] without large payloads; verbatim runs are copied whole."""
    below = _BELOW[message]
    parts: list[bytes] = []
    copied = at
    while at < end:
        start = at
        tag, at = _varint(data, at)
        number, wire = tag >> 3, tag & 7
        if wire == 2:
            length, content = _varint(data, at)
            at = content + length
        elif wire == 0:
            _, at = _varint(data, at)
        elif wire == 1 or wire == 5:
            at += 8 if wire == 1 else 4
        else:
            raise _MalformedError(f"wire type {wire} at byte {start}")
        if number == 0 or at > end:
            raise _MalformedError(
                f"the field at byte {start} runs past its end" if number else f"field 0 at byte {start}"
            )
        if wire != 2 or length <= KEEP:
            continue
        if message == _TENSOR and number in _PAYLOAD:
            note = _field(_EXTERNAL_DATA, _field(1, LEFT_OUT.encode()) + _field(2, str(length).encode()))
            replacement = _field(_RAW_DATA, b"") + note
        elif number in below:
            replacement = _field(number, _strip(data, content, at, below[number]))
        else:
            continue
        parts += (data[copied:start], replacement)
        copied = at
    parts.append(data[copied:end])
    return b"".join(parts)
