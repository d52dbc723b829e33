"""Whether an answer is what the standard expects: exact dtype and shape, and each element within the tolerance."""

from __future__ import annotations

from typing import Any

import numpy as np

from paddock.testing.cases import ATOL, CARRIERS, RTOL, Datum
from paddock.testing.judging import as_bytes


def difference(found: Datum, expected: Datum, dtype: str, rtol: float = RTOL, atol: float = ATOL) -> str | None:
    """How `found` differs from `expected`, in a few words; None where it does not.

    Dtypes and shapes are equal or not. Numbers may be apart by `atol + rtol * |expected|`; NaN equals NaN, and an
    infinity its like. Strings and booleans, in every bit, are equal or not. Sequences are compared one by one, None
    equals None.

    Args:
        dtype: What the model declares, a key of `paddock.graph.BITS` or "string": bits are decoded by it.
    """
    if expected is None or found is None:
        return None if found is expected else f"{_kind(found)}, not {_kind(expected)}"
    if isinstance(expected, list) or isinstance(found, list):
        return _sequence_difference(found, expected, dtype, rtol, atol)
    if not isinstance(found, np.ndarray):
        return f"{_kind(found)}, not {_kind(expected)}"
    if found.dtype != expected.dtype:
        return f"dtype {found.dtype}, not {expected.dtype}"
    if found.shape != expected.shape:
        return f"shape {list(found.shape)}, not {list(expected.shape)}"
    if expected.dtype.kind in "OSUb":
        if expected.dtype.kind == "b":
            found, expected = as_bytes(found), as_bytes(expected)
        apart = np.asarray(found != expected)
    else:
        found, expected = decoded(found, dtype), decoded(expected, dtype)
        with np.errstate(all="ignore"):  # infinities are compared like any other number
            apart = np.asarray(~np.isclose(found, expected, rtol=rtol, atol=atol, equal_nan=True))
    if not apart.any():
        return None
    first = tuple(int(i) for i in np.argwhere(apart)[0])
    one, other = (repr(e) if isinstance(e, str) else str(e) for e in (found[first], expected[first]))
    return f"{int(apart.sum())} of {apart.size} elements, {one} at {list(first)}, not {other}"


def decoded(array: np.ndarray[Any, Any], dtype: str) -> np.ndarray[Any, Any]:
    """The float32 numbers that the bits of a `dtype` without NumPy counterpart stand for; other arrays as they are."""
    if dtype == "bfloat16" and array.dtype == np.uint16:
        return np.asarray(array.astype(np.uint32) << 16).view(np.float32)
    if dtype in _FLOAT8 and array.dtype == np.dtype(CARRIERS[dtype]):
        return np.asarray(_table(dtype)[array])
    return array


_FLOAT8 = {"float8e4m3fn": (4, 7), "float8e4m3fnuz": (4, 8), "float8e5m2": (5, 15), "float8e5m2fnuz": (5, 16)}
"""Bits of the exponent, and its bias."""


def _table(dtype: str) -> np.ndarray[Any, Any]:
    """The float32 of each of the 256 bytes, by the tables of onnx's "float stored in 8 bits"."""
    exponent_bits, bias = _FLOAT8[dtype]
    mantissa_bits = 7 - exponent_bits
    codes = np.arange(256)
    sign = np.where(codes & 0x80, -1.0, 1.0)
    exponent = (codes & 0x7F) >> mantissa_bits
    fraction = (codes & ((1 << mantissa_bits) - 1)) / (1 << mantissa_bits)
    normal = sign * (1 + fraction) * 2.0 ** (exponent - bias)
    values = np.where(exponent == 0, sign * fraction * 2.0 ** (1 - bias), normal)
    if dtype.endswith("fnuz"):
        values[0x80] = np.nan
    elif dtype == "float8e4m3fn":
        values[[0x7F, 0xFF]] = np.nan
    else:
        top = exponent == (1 << exponent_bits) - 1
        values = np.where(top, np.where(fraction == 0, sign * np.inf, np.nan), values)
    return values.astype(np.float32)


def _sequence_difference(found: Datum, expected: Datum, dtype: str, rtol: float, atol: float) -> str | None:
    if not isinstance(found, (list, tuple)) or not isinstance(expected, (list, tuple)):
        return f"{_kind(found)}, not {_kind(expected)}"
    if len(found) != len(expected):
        return f"a sequence of {len(found)}, not of {len(expected)}"
    for position, (one, other) in enumerate(zip(found, expected, strict=True)):
        if (why := difference(one, other, dtype, rtol, atol)) is not None:
            return f"element {position}: {why}"
    return None


def _kind(datum: Datum) -> str:
    if datum is None:
        return "an empty optional"
    if isinstance(datum, (list, tuple)):
        return f"a sequence of {len(datum)}"
    if isinstance(datum, np.ndarray):
        return f"an array of {datum.dtype}"
    return f"a {type(datum).__name__}"
