"""A model: its files, their format and fingerprint, and the graph read from them."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

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


class Memory(Protocol):
    """What keeps digests of large files between processes, by their identity."""

    def recall(self, identity: Sequence[int]) -> str | None:
        """The digest kept under an identity."""

    def remember(self, identity: Sequence[int], digest: str) -> None:
        """Keeps one."""


SETTLED = 2_000_000_000
"""Nanoseconds: a file changed since may change again within one tick of its file system's clock."""
LARGE = 1 << 20
"""Bytes from which remembering is faster than to read the file."""
_KNOWN: dict[tuple[int, ...], str] = {}


def file_digest(path: Path, memory: Memory | None = None, settled: int = SETTLED) -> str:
    """SHA-256 (hex) of a file, remembered by device, inode, size and times of change: in this process, and in `memory`.

    `settled`: nanoseconds since the last change, from which it is remembered. Raises `ModelError`.
    """
    try:
        identity = _identity(os.stat(path))
        known = _KNOWN.get(identity)
        if known is None and memory is not None and identity[2] >= LARGE:
            known = memory.recall(identity)
            if known is not None:
                _KNOWN[identity] = known
        if known is not None:
            return known
        with open(path, "rb") as file:
            identity, now = _identity(os.fstat(file.fileno())), time.time_ns()
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"cannot be read: {error.strerror}", where=str(path)) from error
    if max(identity[-2:]) < now - settled:
        _KNOWN[identity] = found
        if memory is not None and identity[2] >= LARGE:
            memory.remember(identity, found)
    return found


def _identity(stat: os.stat_result) -> tuple[int, ...]:
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def fingerprint(format: str, files: Files, memory: Memory | None = None) -> str:
    """SHA-256 (hex) over a format's name and the roles and contents of its files."""
    total = hashlib.sha256(format.encode())
    for role in sorted(files):
        total.update(f"\0{role}\0{file_digest(files[role], memory)}".encode())
    return total.hexdigest()


def check_unchanged(model: Model) -> None:
    """Raises `ModelError` where the files are no longer those that were read: what was made of them has no key."""
    if fingerprint(model.format, model.files) != model.fingerprint:
        where = str(next(iter(model.files.values())))
        raise ModelError("changed while it was being deployed", where=where, remedy="deploy it again")
