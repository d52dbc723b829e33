"""What `benchmarks.gpu` measures in a child process: one model on one adapter, at several batch sizes."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from paddock.deployment import deploy

from benchmarks.gpu_native import NATIVE, free_bytes
from benchmarks.measuring import compare_calls

GPUS = ("gpu/tensorrt", "gpu/cuda")
BLOCKS, BLOCK_SECONDS = 21, 0.05


@dataclass(frozen=True)
class Row:
    """One model at one batch size; times in microseconds of a whole call, host to host.

    `added` is the median of the differences of neighbouring blocks, `error` the largest difference over the reference's
    largest magnitude, `apart` the same against the native answers; `left` are bytes of the device, None if unknown.
    """

    model: str
    adapter: str
    precision: str
    batch: int
    native: float | None
    paddock: float
    added: float | None
    spread: float | None
    ratio: float | None
    error: float | None
    apart: float | None
    left: int | None
    note: str = ""


def measure(label: str, path: Path, adapter: str, precision: str, batches: Sequence[int]) -> list[Row]:
    """The rows of one model on one adapter, in the process that this runs in."""
    _settle(path, adapter, precision, batches)
    return [_row(label, path, adapter, precision, batch) for batch in batches]


def _settle(path: Path, adapter: str, precision: str, batches: Sequence[int]) -> None:
    """Loads and closes it once: contexts and libraries stay in the process, and are none of a deployment's."""
    with deploy(path, _config(adapter, precision, batches[-1], verify=False)) as deployment:
        deployment.run(_feeds(deployment, batches[-1]))


def _row(label: str, path: Path, adapter: str, precision: str, batch: int) -> Row:
    before = free_bytes() if adapter in GPUS else None
    with deploy(path, _config(adapter, precision, batch)) as deployment:
        feeds, report = _feeds(deployment, batch), deployment.report
        names = deployment.artifacts[0].inputs
        figures, apart, note = dict[str, float | None](), None, ""
        try:
            native = NATIVE[adapter](deployment.lowered[1]["model"], batch)
        except Exception as error:  # whatever the runtime raises: Paddock's own figures are worth having all the same
            note = f"native: {type(error).__name__}: {' '.join(str(error).split())[:120]}"
            figures = dict(compare_calls(None, lambda: deployment.run(feeds), BLOCKS, BLOCK_SECONDS))
        else:
            given = dict(zip(names, feeds.values(), strict=True))
            apart = _apart(list(deployment.run(feeds).values()), native.run(given))

            def ours() -> object:
                return deployment.run(feeds)

            figures = dict(compare_calls(lambda: native.run(given), ours, BLOCKS, BLOCK_SECONDS))
            native.close()
            del native
    gc.collect()
    after = free_bytes() if before is not None else None
    left = None if before is None or after is None else max(0, before - after)
    paddock = figures["paddock"]
    assert paddock is not None
    ratio = None if figures.get("native") is None else paddock / float(figures["native"] or 1)
    off = None if report.error is None else float(report.error)
    return Row(
        label, adapter, precision, batch, figures.get("native"), paddock, figures.get("added"), figures.get("spread"),
        ratio, off, apart, left, note,
    )  # fmt: skip


def _config(adapter: str, precision: str, batch: int, verify: bool = True) -> dict[str, Any]:
    hardware, _, backend = adapter.partition("/")
    config: dict[str, Any] = {
        "hardware": hardware, "backend": backend, "precision": precision, "batch_size": batch, "strict": False
    }  # fmt: skip
    if not verify:
        config["accuracy"] = {"verify": "off"}
    return config


def _feeds(deployment: Any, batch: int) -> dict[str, np.ndarray[Any, Any]]:
    """Seeded feeds of this batch size."""
    rng = np.random.default_rng(0)
    found = {}
    for value in deployment.interface.input_values:
        shape = tuple(extent if isinstance(extent, int) else batch for extent in value.shape)
        dtype = np.dtype(value.dtype)
        floating = np.issubdtype(dtype, np.floating)
        found[value.name] = (rng.standard_normal(shape) if floating else rng.integers(0, 2, shape)).astype(dtype)
    return found


def _apart(ours: Sequence[Any], native: Sequence[Any]) -> float:
    """The largest difference of two answers over the second's largest magnitude."""
    worst = 0.0
    for one, other in zip(ours, native, strict=True):
        scale = float(np.abs(other.astype(np.float64)).max(initial=0)) or 1.0
        worst = max(worst, float(np.abs(one.astype(np.float64) - other.astype(np.float64)).max(initial=0)) / scale)
    return worst
