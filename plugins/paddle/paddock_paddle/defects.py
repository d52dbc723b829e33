"""What Paddle is known to get wrong with oneDNN: the entries of defects.json, put to Paddle's own use."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from typing import TYPE_CHECKING

from paddock.graph import Graph
from paddock.plan import Precision, Remedy

if TYPE_CHECKING:
    from paddock.defects import Defect


def entries() -> tuple[Defect, ...]:
    """The entries, read once in a process."""
    from paddock.defects import load  # not needed to serve what is kept

    return load("paddock_paddle")


def installed() -> str:
    """The version of paddlepaddle from its metadata, or "" where it is not installed."""
    try:
        return importlib.metadata.version("paddlepaddle")
    except importlib.metadata.PackageNotFoundError:
        return ""


def remedies(graph: Graph, precision: Precision, workarounds: bool) -> tuple[Remedy, ...]:
    """What is done about a model; without `workarounds` no pass is deleted, and the plan says so."""
    from paddock.defects import remedies as found_in

    return found_in(entries(), graph, {"paddlepaddle": installed()}, precision, workarounds)


def passes_to_delete(applied: Sequence[Remedy]) -> tuple[str, ...]:
    """The passes that a plan's remedies delete."""
    names = {remedy.name for remedy in applied if remedy.applied}
    return tuple(name for defect in entries() if defect.name in names for name in defect.passes)
