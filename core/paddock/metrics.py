"""How far two outputs are apart: relative error, agreement, and whether outputs vary at all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from paddock.config import Agreement
from paddock.errors import ConfigError


def relative_error(expected: np.ndarray[Any, Any], found: np.ndarray[Any, Any]) -> tuple[float, str]:
    """(error, note) of one output; see `OutputCheck`. Both arrays of one dtype and shape, else infinite."""
    if expected.shape != found.shape:
        return np.inf, f"shape {list(found.shape)}, the reference has {list(expected.shape)}"
    if expected.dtype != found.dtype:
        return np.inf, f"dtype {found.dtype}, the reference has {expected.dtype}"
    if expected.size == 0:
        return 0.0, "empty"
    if expected.dtype.kind not in "fcV":
        return float(np.mean(expected != found)), ""
    kind = np.complex128 if expected.dtype.kind == "c" else np.float64
    wanted, got = expected.astype(kind), found.astype(kind)
    finite = np.isfinite(wanted)
    # NaN where the reference has NaN, the same infinity where it has one: anything else is wrong beyond measure.
    same = np.array_equal(wanted[~finite], got[~finite], equal_nan=True)
    if not same or not np.isfinite(got[finite]).all():
        return np.inf, "NaN or infinity where the reference has none, or the other way round"
    if not finite.any():
        return 0.0, "the reference is nowhere finite"
    difference = float(np.abs(wanted[finite] - got[finite]).max())
    magnitude = float(np.abs(wanted[finite]).max())
    if magnitude == 0:
        return (0.0, "the reference is all zero") if difference == 0 else (np.inf, "the reference is all zero")
    return difference / magnitude, ""


def same_objects(wanted: Any, found: Any) -> bool:
    if isinstance(wanted, np.ndarray) and isinstance(found, np.ndarray):
        return relative_error(wanted, found)[0] <= 1e-3
    if isinstance(wanted, (list, tuple)) and isinstance(found, (list, tuple)):
        return len(wanted) == len(found) and all(map(same_objects, wanted, found))
    return bool(wanted is None and found is None) or wanted == found


def varies(outputs: Sequence[np.ndarray[Any, Any]]) -> bool:
    """Whether two samples with outputs of one shape have different ones."""
    first: dict[tuple[int, ...], np.ndarray[Any, Any]] = {}
    for output in outputs:
        alike = first.setdefault(output.shape, output)
        if not np.array_equal(alike, output, equal_nan=output.dtype.kind in "fc"):
            return True
    return False


def agreement_with(
    wanted: np.ndarray[Any, Any], found: np.ndarray[Any, Any], rule: Agreement, mask: np.ndarray[Any, Any] | None
) -> float | None:
    """None where there is no position to compare; -1 where the two cannot agree at all."""
    if not -wanted.ndim <= rule.axis < wanted.ndim:
        raise ConfigError(
            f"axis {rule.axis} is outside an output of rank {wanted.ndim}", where="$.accuracy.min_agreement.axis",
            remedy="name the output that it is meant for in min_agreement.output",
        )  # fmt: skip
    if wanted.shape != found.shape or wanted.dtype != found.dtype:
        return -1.0
    if wanted.size == 0:
        return None
    if not (np.isfinite(wanted).all() and np.isfinite(found).all()):
        return -1.0
    if rule.top1 is not None:
        each = (wanted.argmax(rule.axis) == found.argmax(rule.axis)).astype(np.float64)
    else:
        # Scaled to at most 1, so that no square overflows; the angle stays.
        w, f = (_scaled(array.astype(np.float64), rule.axis) for array in (wanted, found))
        norms = np.linalg.norm(w, axis=rule.axis) * np.linalg.norm(f, axis=rule.axis)
        dots = (w * f).sum(rule.axis)
        both_zero = (np.abs(w).max(rule.axis) == 0) & (np.abs(f).max(rule.axis) == 0)
        each = np.where(both_zero, 1.0, dots / np.where(norms == 0, np.inf, norms))
    if mask is not None:
        try:
            each = each[np.broadcast_to(mask != 0, each.shape)]
        except ValueError:
            raise ConfigError(
                f"shape {list(mask.shape)} does not fit the output's positions {list(each.shape)}",
                where="$.accuracy.min_agreement.mask",
            ) from None
    if each.size == 0:
        return None
    return float(each.mean() if rule.top1 is not None else each.min())


def _scaled(vectors: np.ndarray[Any, Any], axis: int) -> np.ndarray[Any, Any]:
    largest = np.abs(vectors).max(axis, keepdims=True)
    scaled: np.ndarray[Any, Any] = vectors / np.where(largest == 0, 1.0, largest)
    return scaled
