"""The contract with those who bring a model format; part of the page that `paddock.spi` is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from paddock.errors import ModelError, NotAvailable
from paddock.graph import Graph
from paddock.model import Files, Model
from paddock.plan import NodePrecision, Segment
from paddock.planning.aliasing import Aliasing
from paddock.planning.casts import CastRequest


@dataclass(frozen=True)
class CastModel:
    """What `Format.cast` wrote: the model's files, and by node of it the nodes of the given model it came from.

    `nodes` says of each given node in which dtype it now computes, and `kept` which stay wide because the request says
    so or a value does not fit; `casts` are values (by the given model's name) with the dtype that they are cast to;
    `saved` is what the stored weights are smaller by, in bytes.
    """

    files: Files
    provenance: tuple[tuple[int, ...], ...]
    nodes: tuple[NodePrecision, ...]
    kept: tuple[int, ...] = ()
    casts: tuple[tuple[str, str], ...] = ()
    saved: int = 0


class Format(ABC):
    """A model format: how its files are found, read, and converted to others."""

    name: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]]
    """The file endings by which it is known, lower case with the dot."""
    spi_version: ClassVar[int]
    converts_to: ClassVar[tuple[str, ...]] = ()
    gathers: ClassVar[Mapping[str, tuple[int, int]]] = {}
    """Node types that look rows up: (position of the indices, position of the table), so that samples stay in range."""
    transparent: ClassVar[frozenset[str]] = frozenset()
    """Node types whose first output holds the first input's values: casts, reshapes, copies."""
    aliasing: ClassVar[Aliasing] = Aliasing()
    """Node types whose output can share its inputs' memory; by default none is known to."""
    constants: ClassVar[frozenset[str]] = frozenset()
    """Node types without inputs whose output is the same in every run: a segment that reads one gets its own copy."""
    examples: ClassVar[tuple[str, ...]] = ()
    """Names of small models that `example` writes, plainest first, for adapters to be tested with."""

    def versions(self) -> tuple[str, ...]:
        """Versions of the SDK that reads it, from metadata: part of the key under which readings are kept."""
        return ()

    @abstractmethod
    def locate(self, path: Path) -> Files | None:
        """The model's files by role when `path` (a file, a stem, a folder) holds this format, else None.

        Looks at names only. Raises `ModelError` where it is this format and a file is missing.
        """

    @abstractmethod
    def read(self, files: Files) -> Graph:
        """The graph of these files. Runs in a child process, since SDKs abort on broken files; raises `ModelError`."""

    def complete(self, files: Files) -> Files:
        """All files that belong to the fingerprint, such as external data named inside the model; reads little."""
        return files

    def convert(self, model: Model, target: str, folder: Path) -> tuple[Files, tuple[tuple[int, ...], ...]]:
        """Writes `model` in format `target` into `folder`: its files and, by target node, the source's node indices.

        The target's node order is that of `target`'s own reader. Runs in a child process; raises `ModelError` for
        broken files, `Unsupported` where certain nodes have no equivalent there, `NotAvailable` where it cannot be
        told which.
        """
        raise ModelError(f"there is no conversion from {self.name} to {target}")

    def cast(self, model: Model, request: CastRequest, folder: Path) -> CastModel:
        """Writes `model` in a narrow float type into `folder`, as `request` asks; what cannot be narrow says why.

        Inputs and outputs keep their order and names. Runs in a child process.
        """
        raise NotAvailable(f"models of the format {self.name} cannot be cast", where="$.precision")

    def ranges(self, model: Model, folder: Path) -> tuple[Files, Mapping[str, int]]:
        """Writes a model of this format with the inputs of `model` and the range of its inner values as outputs.

        Each output is a float32 scalar, the largest magnitude of one value; the mapping gives, by the output's name,
        the index of that value in `model.graph`. Runs in a child process.
        """
        raise NotAvailable(f"the ranges of values of {self.name} models cannot be measured")

    def shapes_at(self, model: Model, inputs: Mapping[str, tuple[int, ...]]) -> Mapping[int, tuple[int, ...]]:
        """The shapes of `model`'s tensors with its inputs, by name, of these shapes: as far as told without a run.

        By value index of `model.graph`, its top level only; what follows from data is left out. Where it contradicts
        an extent that the files state, this is what a run has. An input that `inputs` lacks keeps what the files state
        of it. Runs in a child process; raises `ModelError` where `inputs` contradict the model.
        """
        return {}

    def extract(self, model: Model, segment: Segment, folder: Path) -> Files:
        """Writes one segment of `model` as a model of this format into `folder`: its files.

        It holds the segment's `nodes` and copies of its `constants`, in the order of their indices, with the constants
        (initializers, parameters) that they and their bodies read; its inputs and outputs are the segment's, in that
        order, under the values' names, with the dtypes and shapes that `model.graph` states. Runs in a child process.
        """
        raise NotAvailable(f"the format {self.name} cannot be cut into segments")

    def example(self, name: str, folder: Path) -> None:
        """Writes one of `examples` into `folder`, seeded, its axis 0 open. Runs in a child process."""
        raise NotAvailable(f"the format {self.name} has no examples", candidates=self.examples)
