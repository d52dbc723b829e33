"""Whether answers are right: bit for bit where nothing is rounded, else within what the precision must lose."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from paddock.metrics import relative_error
from paddock.plan import Precision
from paddock.testing.bench import Outputs
from paddock.testing.singles import Grade

Array = np.ndarray[Any, Any]

BUDGET: Mapping[Precision, float] = MappingProxyType(
    {Precision.FP32: 2e-5, Precision.FP16: 6e-3, Precision.BF16: 4e-2, Precision.INT8: 0.15}
)
"""The largest error of a small model, over the reference's largest magnitude: what the order of sums explains in fp32,
a few roundings of 11 and 8 bits, and 256 steps over a range that was seen on other samples."""

_BITS = {Precision.FP32: 24, Precision.FP16: 11, Precision.BF16: 8}
_LEAST = {Precision.FP32: 2.0**-126, Precision.FP16: 2.0**-14, Precision.BF16: 2.0**-126}


def apart(expected: Outputs, found: Outputs, precision: Precision, grade: Grade = Grade.CLOSE) -> str | None:
    """How answers differ from what they should be, in a few words; None where they do not.

    Args:
        expected: The reference's, computed in fp32.
        found: The adapter's, in the same dtypes.
        precision: What the adapter computes in: exact answers are compared after rounding to it.
        grade: How close they have to be.
    """
    if set(expected) != set(found):
        return f"the outputs are {', '.join(sorted(found))}, not {', '.join(sorted(expected))}"
    for name, wanted in expected.items():
        why = _differs(wanted, found[name], precision, grade)
        if why is not None:
            return f"output {name!r}: {why}"
    return None


def _differs(wanted: Array, got: Array, precision: Precision, grade: Grade) -> str | None:
    if wanted.shape != got.shape:
        return f"shape {list(got.shape)}, not {list(wanted.shape)}"
    if wanted.dtype != got.dtype:
        return f"dtype {got.dtype}, not {wanted.dtype}"
    if wanted.dtype.kind == "b":
        wanted, got = as_bytes(wanted != 0), as_bytes(got)
    if wanted.dtype.kind != "f":
        return _first(wanted, got, np.asarray(wanted != got))
    if grade is Grade.CLOSE or precision is Precision.INT8:
        error, note = relative_error(wanted, got)
        if error <= BUDGET[precision]:
            return None
        return note or f"relative error {error:.2g}, at most {BUDGET[precision]:g} is explained by {precision}"
    rounded = narrowed(wanted, precision)
    with np.errstate(all="ignore"):  # an infinity less itself
        same = (rounded == got) | (np.isnan(rounded) & np.isnan(got))
        if grade is Grade.ROUNDED:
            same |= np.abs(got.astype(np.float64) - rounded) <= _step(rounded, precision)
    return _first(rounded, got, ~same)


def as_bytes(array: Array) -> Array:
    """Booleans as they lie in memory: any byte but 0 is true to NumPy, and only 1 is to whoever else reads them."""
    return np.ascontiguousarray(array).view(np.uint8).reshape(array.shape)


def narrowed(array: Array, precision: Precision) -> Array:
    """A float32 array rounded to the nearest even number of the precision, still as float32."""
    if array.dtype != np.float32 or precision in (Precision.FP32, Precision.INT8):
        return array
    with np.errstate(over="ignore"):
        if precision is Precision.FP16:
            return array.astype(np.float16).astype(np.float32)
    bits = array.view(np.uint32).astype(np.uint64)
    even = (bits + np.uint64(0x7FFF) + ((bits >> np.uint64(16)) & np.uint64(1))) & np.uint64(0xFFFF0000)
    return np.where(np.isnan(array), array, even.astype(np.uint32).view(np.float32))


def _step(array: Array, precision: Precision) -> Array:
    """The distance to the next number of the precision, for each element."""
    magnitude = np.maximum(np.abs(array.astype(np.float64)), _LEAST[precision])
    return np.asarray(2.0 ** (np.floor(np.log2(magnitude)) - (_BITS[precision] - 1)))


def _first(wanted: Array, got: Array, differ: Array) -> str | None:
    if not differ.any():
        return None
    place = tuple(int(i) for i in np.argwhere(differ)[0])
    return f"{int(differ.sum())} of {differ.size} elements differ, {got[place]} at {list(place)}, not {wanted[place]}"


def same_bits(one: Outputs, other: Outputs) -> bool:
    """Whether two answers are the same in every bit."""
    return set(one) == set(other) and all(
        one[n].dtype == other[n].dtype and one[n].shape == other[n].shape and one[n].tobytes() == other[n].tobytes()
        for n in one
    )
