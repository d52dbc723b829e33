"""A plugin whose sessions write outputs themselves, well or badly, as `MANNERS` says; importable by child processes."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import paddock_fakes_segments as odd
from paddock.cache import Store
from paddock.errors import UsageError
from paddock.registry import Registry
from paddock.spi import Adapter, Arrays, Artifact, Concurrency, Context, Session, Threading, hookimpl, other_shape

Array = np.ndarray[Any, Any]


@dataclass
class Manners:
    """What sessions do in this process; in a child they behave."""

    into: str = ""
    answer: str = ""
    runs: int = 0
    places: int = 0
    named: int = 0
    """Runs for some outputs only, such as the default way into arrays makes."""


MANNERS = Manners()

ANSWERS: Mapping[str, Callable[[dict[str, Array]], Any]] = {
    "": lambda found: found,
    "none": lambda found: None,
    "text": lambda found: "y",
    "list": lambda found: list(found.values()),
    "empty": lambda found: {},
    "one missing": lambda found: {"p": found["p"]} if "p" in found else {},
    "lists": lambda found: {name: array.tolist() for name, array in found.items()},
    "nothing in it": lambda found: dict.fromkeys(found),
    "wide": lambda found: {name: array.astype(np.float64) for name, array in found.items()},
    "more": lambda found: {**found, "another": np.zeros(1)},
    "by columns": lambda found: {name: np.asfortranarray(array) for name, array in found.items()},
}


class PlacingSession(odd.OddSession):
    """Counts what it computes, and gives views of what it is fed where it can."""

    def run(self, feeds: Arrays, outputs: Sequence[str] | None = None) -> Any:
        """As the manner says."""
        MANNERS.runs += 1
        MANNERS.named += outputs is not None
        found = self._views(feeds) if MANNERS.answer == "view" else super().run(feeds, outputs)
        return ANSWERS.get(MANNERS.answer, ANSWERS[""])(found)

    def run_into(self, feeds: Arrays, into: Arrays) -> None:
        """As the manner says."""
        MANNERS.runs, MANNERS.places = MANNERS.runs + 1, MANNERS.places + 1
        if not all(array.flags.c_contiguous for array in into.values()):
            raise UsageError("the arrays are not dense, as the contract promises")
        if MANNERS.into == "raises":
            raise ArithmeticError("the device has no room there")
        if MANNERS.into == "raises usage":
            raise UsageError("the vendor wants something else")
        found = super().run(feeds)
        for number, (name, array) in enumerate(into.items()):
            if found[name].shape != array.shape:
                raise other_shape(name, array.shape, found[name].shape)
            if MANNERS.into == "leaves all" or (MANNERS.into == "leaves the last" and number == len(into) - 1):
                continue
            array[...] = found[name]
            if MANNERS.into == "leaves an element":
                array.flat[-1] = np.nan
            if MANNERS.into == "writes wrong":
                array.flat[0] += 1

    def _views(self, feeds: Arrays) -> dict[str, Array]:
        known: dict[str, Array] = {**self._constants, **feeds}
        for node in self._nodes:
            read = [known[name] for name in node.input]
            known[node.output[0]] = read[0][...] if node.op_type == "Identity" else odd.OPERATORS[node.op_type](*read)
        return {name: known[name] for name in self._outputs}


class CopyingSession(PlacingSession):
    """The default way into arrays."""

    run_into = Session.run_into


class Placing(odd.Odd):
    """Writes into arrays by itself."""

    backend: ClassVar[str] = "placing"
    aliases: ClassVar[tuple[str, ...]] = ()
    kind: ClassVar[type[odd.OddSession]] = PlacingSession

    def load(self, artifact: Artifact, context: Context) -> Session:
        """A session of its own."""
        return self.kind(onnx.load(artifact.files["model"]), self.manners, self.config.precision.value)


class Copying(Placing):
    """Does not."""

    backend: ClassVar[str] = "copying"
    kind: ClassVar[type[odd.OddSession]] = CopyingSession


class Narrow(odd.NarrowOnly):
    """Takes and gives fp16 where the config wants that."""

    backend: ClassVar[str] = "placing-narrow"
    concurrency: ClassVar[Concurrency] = Concurrency(Threading.BOUND)

    def load(self, artifact: Artifact, context: Context) -> Session:
        """A session of its own."""
        return PlacingSession(onnx.load(artifact.files["model"]), self.manners, self.config.precision.value)


@hookimpl
def paddock_adapters() -> Sequence[type[Adapter]]:
    """These."""
    return [Placing, Copying, Narrow]


def discover(folder: Path) -> Registry:
    """These adapters beside the odd ones, onnx's reference and no other, with a store in `folder`."""
    installed = importlib.metadata.entry_points(group="paddock")
    points = [point for point in installed if point.name == "reference"]
    points += [importlib.metadata.EntryPoint(n, m, "paddock") for n, m in (("odd", odd.__name__), ("into", __name__))]
    return Registry.discover(Store(folder), points)
