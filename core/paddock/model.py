"""A model: its files, their format and fingerprint, and the graph read from them."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from paddock.errors import ModelError
from paddock.graph import Graph

Files = Mapping[str, Path]
"""A model's files by role, such as {"model": ..., "data/weights.bin": ...}; roles are the format's own."""


@dataclass(frozen=True)
class Model:
    """A model as one format reads it. Nodes are known by their index in `graph`.

    `provenance[i]` are the nodes of `source.graph` that node i came from, where this model was converted.
    """

    format: str
    files: Files
    fingerprint: str
    graph: Graph
    source: Model | None = None
    provenance: tuple[tuple[int, ...], ...] = field(default=(), repr=False)

    @property
    def origin(self) -> Model:
        """The model the user gave, before any conversion."""
        return self.source.origin if self.source is not None else self

    def with_graph(self, graph: Graph) -> Model:
        """The same files with another view of them (bounded shapes)."""
        return replace(self, graph=graph)


def origins(target: Model, node: int, root: Model) -> set[int]:
    """The nodes of `root` that a node of a model made from it came from."""
    if target is root or target.source is None:
        return {node}
    return {found for index in target.provenance[node] for found in origins(target.source, index, root)}


_KNOWN: dict[tuple[int, ...], str] = {}
_SETTLED = 2_000_000_000
"""Nanoseconds: a file changed since may change again within one tick of its file system's clock."""


def file_digest(path: Path) -> str:
    """SHA-256 (hex) of a file, remembered in this process by device, inode, size and times of change."""
    try:
        known = _KNOWN.get(_identity(os.stat(path)))
        if known is not None:
            return known
        with open(path, "rb") as file:
            identity, now = _identity(os.fstat(file.fileno())), time.time_ns()
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"cannot be read: {error.strerror}", where=str(path)) from error
    if max(identity[-2:]) < now - _SETTLED:
        _KNOWN[identity] = found
    return found


def _identity(stat: os.stat_result) -> tuple[int, ...]:
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def fingerprint(format: str, files: Files) -> str:
    """SHA-256 (hex) over a format's name and the roles and contents of its files."""
    total = hashlib.sha256(format.encode())
    for role in sorted(files):
        total.update(f"\0{role}\0{file_digest(files[role])}".encode())
    return total.hexdigest()
