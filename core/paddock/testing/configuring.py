"""What of a config depends on the model: extents of its open dimensions, and the samples that int8 is calibrated on."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from paddock.formats import Format
from paddock.graph import Graph, Range
from paddock.npz import write_npz
from paddock.samples import typical
from paddock.testing.singles import Single

CALIBRATION = 32
"""Files to quantise by."""
_BEYOND, _SEED = 1.2, 1000
USUAL_BATCH, USUAL_EXTENT = 3, 5
"""Of an open dimension, where nothing else is asked for."""


def admitted(graph: Graph, asked: Mapping[str, Any], static: bool) -> dict[str, Any]:
    """By symbol the extent or the profile that a config admits.

    Args:
        asked: By the kind of a dimension ("batch" or "other"); where it says nothing 1 to 5 and 2 to 7, or 3 and 5.
        static: Whether one artifact serves one shape only.
    """
    profiles = {"batch": {"min": 1, "opt": 2, "max": 5}, "other": {"min": 2, "opt": 5, "max": 7}}
    usual: Mapping[str, Any] = {"batch": USUAL_BATCH, "other": USUAL_EXTENT} if static else profiles
    kinds = {symbol: "batch" if symbol == "batch" else "other" for symbol in graph.symbols()}
    return {symbol: asked.get(kind, usual[kind]) for symbol, kind in kinds.items()}


def calibration(
    place: Path, path: Path, graph: Graph, shapes: Mapping[str, Any], format: Format, single: Single | None
) -> Path:
    """A folder of samples below `place` for the model at `path`, written at the first call.

    None of them judges. They reach a little beyond those that do: what is judged is how the adapter computes, and not
    whether a range that was seen holds what was not.

    Args:
        shapes: By symbol the extent, or the profile with "min" and "max", that the config admits.
        single: Where the numbers of an operator's own model are put.
    """
    fixed = {symbol: _one(symbol, shapes[symbol]) for symbol in graph.symbols()}
    folder = place / f"calibration-{sha256(f'{path} {sorted(fixed.items())}'.encode()).hexdigest()[:16]}"
    if not folder.exists():
        folder.mkdir()
        bounds = {symbol: Range(extent, extent, extent) for symbol, extent in fixed.items()}
        for seed in range(CALIBRATION):
            drawn = typical(graph.with_bounds(bounds), format.gathers, format.transparent, _SEED + seed)
            placed = {n: a if single is None else single.placed(a, 0) for n, a in drawn.items()}
            wider = {n: a * np.float32(_BEYOND) if a.dtype == np.float32 else a for n, a in placed.items()}
            write_npz(folder / f"{seed}.npz", wider, "calibration")
    return folder


def _one(symbol: str, admitted: Any) -> int:
    usual = USUAL_BATCH if symbol == "batch" else USUAL_EXTENT
    return admitted if isinstance(admitted, int) else min(max(usual, admitted["min"]), admitted["max"])
