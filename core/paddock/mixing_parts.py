"""Parts of a model deployed and timed side by side in one process: pieces of it, and neighbours with their border."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from paddock.child import Child, Children
from paddock.compile import build
from paddock.errors import NotAvailable, PaddockError
from paddock.host import ServingHost
from paddock.prepare import Prepared, prepare
from paddock.ready import ready_of
from paddock.registry import Registry
from paddock.samples import Sample
from paddock.spi import Arrays

_OPEN_SECONDS = 900.0
_WARM_UP = 3


@dataclass(frozen=True)
class Part:
    """Neighbouring pieces as a model of their own: its file, the config to deploy it by, and the adapters that its
    segments must then have, in order. Inputs and outputs have the names of the whole model's values."""

    name: str
    path: Path
    config: Mapping[str, Any]
    segments: tuple[str, ...]


class Bench:
    """A process that holds several parts; a context manager, which ends it.

    Args:
        label: What it is for; errors name it.
    """

    def __init__(self, label: str) -> None:
        self.label = label
        self._child = Child(label)

    def open(self, parts: Sequence[Part], seconds: float) -> dict[str, str]:
        """Deploys parts, none after so many seconds; by name why one does not run, "" where it does."""
        return self._child.call(_open_here, parts, seconds, seconds=_OPEN_SECONDS)

    def chain(self, names: Sequence[str], sample: Sample) -> Sample:
        """What these parts make in this order, beside the sample: all that any of them is fed."""
        return self._child.call(_chain_here, names, sample)

    def warm(self, values: Sample) -> None:
        """Gives the parts what they are to run on, and runs them a few times."""
        self._child.call(_warm_here, values)

    def sweep(self, seconds: float) -> dict[str, float]:
        """Runs all parts one after another, again and again for so long; by name the seconds of a run.

        Never one part alone: it would find its own weights in the caches, which in the whole model it does not. The
        lower quartile stands for a part: what else runs on the host only ever makes it slower.
        """
        return self._child.call(_sweep_here, seconds)

    def close(self) -> None:
        """Ends the process."""
        with suppress(PaddockError):  # it ends all the same; this removes its files as well
            self._child.call(_close_here)
        self._child.close()

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


@dataclass
class _Loaded:
    """In a bench's process: a part that runs."""

    prepared: Prepared
    host: ServingHost
    feeds: Arrays


_HERE: dict[str, _Loaded] = {}


def _open_here(parts: Sequence[Part], seconds: float) -> dict[str, str]:
    until = time.monotonic() + seconds
    registry = Registry.discover()
    found = {}
    with Children() as children:  # ended before anything is timed
        for part in parts:
            found[part.name] = ""
            if time.monotonic() > until:
                found[part.name] = "the time was up"
                continue
            try:
                _HERE[part.name] = _loaded(part, registry, children)
            except PaddockError as error:
                found[part.name] = "; ".join((error.problem, *error.candidates[:1]))
    return found


def _loaded(part: Part, registry: Registry, children: Children) -> _Loaded:
    prepared = prepare(part.path, part.config, registry=registry, children=children)
    try:
        adapters = tuple(segment.adapter for segment in prepared.plan.placement.segments)
        if adapters != part.segments:
            raise NotAvailable(f"it came to run on {', '.join(adapters)}, not on {', '.join(part.segments)}")
        # A first try elsewhere is left out: this process may be lost.
        host, _ = ready_of(prepared, build(prepared.plan, prepared.parts)).load(lambda message: None)
    except BaseException:
        prepared.discard()
        raise
    return _Loaded(prepared, host, {})


def _chain_here(names: Sequence[str], sample: Sample) -> Sample:
    known = dict(sample)
    for name in names:
        loaded = _HERE[name]
        names_of = loaded.prepared.translation
        fed = {here: known[here] for here, _ in names_of.inputs}
        known.update(names_of.answer(loaded.host.run, fed))
    return known


def _warm_here(values: Sample) -> None:
    for loaded in _HERE.values():
        names = loaded.prepared.translation
        loaded.feeds = names.feeds({here: values[here] for here, _ in names.inputs})
        for _ in range(_WARM_UP):
            loaded.host.run(loaded.feeds)


def _sweep_here(seconds: float) -> dict[str, float]:
    taken: dict[str, list[float]] = {name: [] for name in _HERE}
    begun = time.perf_counter()
    while not all(taken.values()) or time.perf_counter() - begun < seconds:
        for name, loaded in _HERE.items():
            before = time.perf_counter()
            loaded.host.run(loaded.feeds)
            taken[name].append(time.perf_counter() - before)
    return {name: float(np.percentile(found, 25)) for name, found in taken.items()}


def _close_here() -> None:
    for loaded in _HERE.values():
        with suppress(PaddockError):
            loaded.host.close()
        loaded.prepared.discard()
    _HERE.clear()
