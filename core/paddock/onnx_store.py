"""Writes an ONNX model of ours: small constants inside, others streamed beside it.

Constants over `INLINE` bytes go into one external data file (docs/ExternalData.md of onnx 1.17), so that weights never
stand in memory twice.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from paddock.errors import ModelError
from paddock.graph import BITS
from paddock.model import Files
from paddock.onnx_tensors import (
    all_tensors,
    dtype_name,
    dtype_number,
    external_entry,
    spell_default_domain,
    tensor_bytes,
)

INLINE = 1024
"""Constants of up to this many bytes stay inside the model: what SDKs read while they infer shapes is that small."""

_WEIGHTS = "weights.bin"
_ALIGN = 64  # bytes: the widest vector that reads weights in place
_CHUNK = 1 << 20  # bytes
_FIELDS = (
    ("float_data", "<f4"),
    ("double_data", "<f8"),
    ("int32_data", "<i4"),
    ("int64_data", "<i8"),
    ("uint64_data", "<u8"),
)

Array = np.ndarray[Any, Any]


def whole(path: Path) -> Any:
    """The ModelProto with the payloads that it holds itself, with the default domain spelt ""."""
    import onnx

    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
        memoryview(data) as view,
    ):
        proto = onnx.ModelProto.FromString(view)
    spell_default_domain(proto)
    return proto


def floats(tensor: Any, files: Files) -> Array:
    """The elements of a float32 tensor, flat, wherever they are stored."""
    if tensor.data_location == tensor.EXTERNAL:
        location, offset, length = external_entry(tensor)
        return np.frombuffer(b"".join(_chunks(files, location, offset, length)), "<f4")
    return np.frombuffer(_payload(tensor), "<f4")


def narrowed(array: Array, dtype: str) -> Array:
    """float32 elements rounded to nearest, ties to even: as float16, or as the bits of bfloat16 (uint16).

    What lies past the largest number becomes an infinity, as IEEE 754 says.
    """
    if dtype == "float16":
        with np.errstate(over="ignore", under="ignore"):
            return array.astype("<f2")
    bits = np.ascontiguousarray(array, "<f4").view("<u4")
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")
    return np.where(np.isnan(array), np.uint16(0x7FC0), rounded).astype("<u2")


@contextmanager
def writing(folder: Path, origin: Files) -> Iterator[Store]:
    """A store for the constants of a model that is being written into `folder`, made of the files `origin`."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _WEIGHTS).open("wb") as file:
        yield Store(folder, file, origin)


class Store:
    """The constants of a model that is being written; see `writing`."""

    def __init__(self, folder: Path, file: BinaryIO, origin: Files) -> None:
        self._folder = folder
        self._file = file
        self._origin = origin
        self._moved: dict[tuple[str, int, int, str], int] = {}

    def finish(self, proto: Any) -> dict[str, Path]:
        """Writes the model itself; its files by role, as `Format.complete` would name them."""
        self._file.flush()
        weights, model = self._folder / _WEIGHTS, self._folder / "model.onnx"
        files = {"model": model}
        if weights.stat().st_size:
            files[f"data/{_WEIGHTS}"] = weights
        else:
            weights.unlink()
        model.write_bytes(proto.SerializeToString(deterministic=True))
        return files

    def take_over(self, proto: Any) -> list[Any]:
        """Moves the data of all attributes and bodies; the main graph's initializers, taken out for the caller."""
        initializers = list(proto.graph.initializer)
        del proto.graph.initializer[:]
        for tensor in all_tensors(proto):
            if tensor.data_location == tensor.EXTERNAL:
                self.move(tensor)
        return initializers

    def keep(self, origin: Any, target: Any) -> None:
        """Makes `target` the same constant as `origin`, of which only the name, dtype and dimensions are copied."""
        external = origin.data_location == origin.EXTERNAL
        if not external and (origin.data_type == origin.STRING or tensor_bytes(origin) <= INLINE):
            target.CopyFrom(origin)
            return
        target.name, target.data_type = origin.name, origin.data_type
        target.dims.extend(origin.dims)
        if external:
            target.external_data.extend(origin.external_data)
            self.move(target)
        else:
            self._point(target, self._write([_payload(origin)]), tensor_bytes(origin))

    def move(self, tensor: Any) -> None:
        """Takes the data of `tensor` from the origin's external file into the model, or into this file."""
        location, offset, length = external_entry(tensor)
        chunks = _chunks(self._origin, location, offset, length)
        if length <= INLINE:
            tensor.ClearField("data_location")
            tensor.ClearField("external_data")
            tensor.raw_data = b"".join(chunks)
            return
        place = (location, offset, length, "")
        if place not in self._moved:  # tied weights name one place
            self._moved[place] = self._write(chunks)
        self._point(tensor, self._moved[place], length)

    def narrow(self, origin: Any, target: Any, dtype: str) -> None:
        """Makes `target` the float32 constant `origin`, not moved yet, in `dtype`, rounded once."""
        inline = self.inline(origin, dtype)
        data = inline.raw_data
        if len(data) > INLINE:
            inline.ClearField("raw_data")
            place = (*external_entry(origin), dtype) if origin.data_location == origin.EXTERNAL else None
            offset = self._moved.get(place) if place else None
            if offset is None:
                offset = self._write([data])
            if place:
                self._moved[place] = offset
            self._point(inline, offset, len(data))
        target.CopyFrom(inline)

    def inline(self, origin: Any, dtype: str) -> Any:
        """The float32 constant `origin`, not moved yet, in `dtype`, rounded once, with its data inside."""
        import onnx

        data = narrowed(floats(origin, self._origin), dtype).tobytes()
        return onnx.TensorProto(
            name=origin.name, data_type=dtype_number(dtype), dims=list(origin.dims), raw_data=data
        )  # fmt: skip

    def _write(self, chunks: Iterable[bytes]) -> int:
        """Appends them, aligned; their offset in bytes."""
        self._file.write(bytes(-self._file.tell() % _ALIGN))
        offset = self._file.tell()
        self._file.writelines(chunks)
        return offset

    def _point(self, tensor: Any, offset: int, length: int) -> None:
        tensor.data_location = tensor.EXTERNAL
        tensor.ClearField("external_data")
        for key, entry in (("location", _WEIGHTS), ("offset", str(offset)), ("length", str(length))):
            tensor.external_data.add(key=key, value=entry)


def reaches(tensors: Mapping[int, Any], files: Files) -> dict[int, float]:
    """The largest finite magnitude in each float32 tensor; of those that have none 0."""
    found = {}
    for index, tensor in tensors.items():
        magnitudes = np.abs(floats(tensor, files))
        found[index] = float(magnitudes.max(initial=0.0, where=np.isfinite(magnitudes)))
    return found


def _chunks(files: Files, location: str, offset: int, length: int) -> Iterator[bytes]:
    role = f"data/{location}"
    if role not in files:
        raise ModelError(f"the files have no role {role!r}", candidates=sorted(files))
    with files[role].open("rb") as file:
        file.seek(offset)
        while length:
            chunk = file.read(min(length, _CHUNK))
            if not chunk:
                raise ModelError(f"ends {length} bytes early", where=str(files[role]))
            length -= len(chunk)
            yield chunk


def _payload(tensor: Any) -> bytes:
    """A tensor's data as `raw_data` would hold it: little-endian, types narrower than their list's packed."""
    if tensor.HasField("raw_data"):
        return bytes(tensor.raw_data)
    found = next(((field, stored) for field, stored in _FIELDS if len(getattr(tensor, field))), None)
    if found is None:
        return b""
    field, stored = found
    numbers = getattr(tensor, field)
    array = np.fromiter(numbers, np.dtype(stored), len(numbers))
    if array.dtype.kind != "f":
        bits = BITS[dtype_name(tensor.data_type) or ""]
        array = array.astype(f"<u{max(bits, 8) // 8}")
    return array.tobytes()
