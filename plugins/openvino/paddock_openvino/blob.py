"""A compiled model in a file, and back: what OpenVINO exports is imported in a third of the time that compiling takes.

The file is mapped, so that the weights in it are read from there and stand in memory once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from paddock.graph import Graph

from paddock_openvino.sdk import core, openvino

_WRONG = frozenset({"LSTM", "GRU", "RNN"})


def wrong_once_imported(graph: Graph) -> list[str]:
    """The operators of a model that are computed wrongly once it was exported and imported again, bodies included.

    Of OpenVINO 2026.4.1; the errors are around 1. A sweep over 978 of ONNX's node tests found no others.
    """
    return sorted({node.op for node in graph.walk()} & _WRONG)


@dataclass(frozen=True)
class Imported:
    """A compiled model with the mapped file that it reads its weights from: the two have to live equally long."""

    compiled: Any
    mapped: Any


def write(compiled: Any, path: Path) -> None:
    """Writes a compiled model; raises whatever OpenVINO raises where the device cannot export it, or OSError."""
    with compiled.export_model() as stream, path.open("wb") as file, stream.getbuffer() as content:
        file.write(content)


def read(path: Path, device: str, properties: Mapping[str, Any]) -> Imported:
    """The compiled model of a file that this very OpenVINO wrote on this host; raises whatever OpenVINO raises."""
    # Copy on write, though nobody writes: OpenVINO takes no array that is read-only.
    mapped = np.memmap(path, np.uint8, "c")
    return Imported(core().import_model(openvino().Tensor(mapped, True), device, dict(properties)), mapped)
