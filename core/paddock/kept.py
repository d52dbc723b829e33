"""Deployments that came about before: taken up again as they were, without planning, compiling or verifying.

What is kept holds for exactly the same model, config, plugins, SDKs, device and host. It is the plan, the report, and
where the artifacts are kept; their sessions are loaded here, and what took effect is looked at anew. It is pickled: to
read the plan and the graph of ResNet-50 back from JSON was half of what starting took beside the runtime. The store
reads only from a folder that nobody else can write to, and the same folder holds native code.
"""

from __future__ import annotations

import logging
import pickle
import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from paddock import artifacts
from paddock.built import BuiltSegment
from paddock.checks import check_room, settled
from paddock.compile import ARTIFACTS
from paddock.config import HardwareConfig
from paddock.draft import announce, announce_candidates
from paddock.errors import BuildFailed, PaddockError
from paddock.footprint import Measured, known, measured_alone
from paddock.machine import host_facts
from paddock.model import Files, Model, check_unchanged, fingerprint
from paddock.plan import Precision
from paddock.prepare import ModelSource, Prepared, Progress, deployment_name
from paddock.quantizing import quantizer_versions
from paddock.reading import locate, owner_of
from paddock.ready import Ready, lowered_of
from paddock.registry import Registry, Resolved
from paddock.serving import Deployment, Origin
from paddock.spi import Artifact, Event
from paddock.verify import Outcome, Report
from paddock.workshop import adapter_folders

_KIND = "deployments"
_READY = "ready.pickle"
Again = Callable[[], AbstractContextManager[Prepared]]
"""Plans a deployment once more, for as long as the context lasts."""

_log = logging.getLogger("paddock.cache")


@dataclass(frozen=True)
class Place:
    """Where a deployment of a model and a config is kept: its files now, and everything that decides about it."""

    format: str
    files: Files
    fingerprint: str
    resolved: Resolved
    key: list[Any]


def place(model: ModelSource, config: HardwareConfig, registry: Registry) -> Place | None:
    """Where it is kept; None where it never is.

    That is where the config asks to verify at each start, or for a batch size by what is free now; and where model,
    samples or adapter are not to be had: whoever plans says why.
    """
    if config.accuracy.verify not in ("cached", "off") or config.batch_size == "max":
        return None
    try:
        samples = [_content(path, registry) for path in _samples(config)]
        format, files = locate(model, registry)
        resolved = registry.resolve(config)
        mark = fingerprint(format.name, files, registry.store)
    except (PaddockError, OSError):
        return None
    chain = [registry.canonical(name) for name in (config.adapter, *config.candidates, *config.fallback)]
    asked = [entry for name in dict.fromkeys(chain) for entry in registry.adapters.get(name, [])]
    asked += registry.references(format.name) if config.accuracy.verify != "off" else []
    key = [
        mark,
        config.as_data(),
        samples,
        [[e.adapter.name(), e.distribution, e.version, e.sources, dict(registry.probe(e).versions)] for e in asked],
        [quantizer_versions(e.adapter) for e in asked if config.precision is Precision.INT8],
        [owner_of(each, registry) for each in registry.formats.values()],
        [resolved.name, dict(resolved.versions), resolved.config.threads, resolved.skipped],
        asdict(resolved.device),
        host_facts(),
    ]
    return Place(format.name, files, mark, resolved, key)


def _samples(config: HardwareConfig) -> list[Path]:
    found = [config.accuracy.samples, config.calibration.samples if config.calibration is not None else None]
    return [path for path in found if path is not None]


def _content(path: Path, registry: Registry) -> list[Any]:
    """What the samples at a path are known by."""
    files = sorted(path.glob("*.npz")) if path.is_dir() else [path]
    return [[file.name, registry.store.file_digest(file)] for file in files]


def keep(place: Place, deployment: Deployment) -> None:
    """Keeps a deployment that was verified, or not to be; that it cannot be kept is no reason to fail."""
    ready, report = deployment.ready, deployment.report
    wanted = Outcome.OFF if ready.config.accuracy.verify == "off" else Outcome.PASSED
    if report.outcome is not wanted or ready.origin.fingerprint != place.fingerprint:
        return

    def write(folder: Path) -> None:
        (folder / _READY).write_bytes(pickle.dumps((ready, report), protocol=5))
        check_unchanged(ready.origin)

    try:
        deployment.registry.store.folder(_KIND, place.key, write)
    except PaddockError as error:
        _log.warning("the deployment is not kept: %s", error.problem)


def take_up(
    place: Place, config: HardwareConfig, registry: Registry, tell: Progress, again: Again
) -> Deployment | None:
    """The deployment kept there, loaded; None where there is none, or it does not come about any more as it was.

    `again` makes its plan anew, for what only a plan can answer.
    """
    folder = registry.store.find(_KIND, place.key)
    if folder is None:
        return None
    name, work = deployment_name(), Path(tempfile.mkdtemp(prefix="paddock-"))
    try:
        tell(f"loading for {place.resolved.name} what was built before")
        ready, report = _read(folder, place, config, registry, work)
        taken = known(registry.store, ready.plan)
        if taken is not None:
            ready = replace(ready, plan=replace(ready.plan, memory=replace(ready.plan.memory, measured=taken.peak)))
        check_room(ready, place.resolved)
        loaded = ready.load(tell)
        try:
            check_unchanged(ready.origin)
            ready = replace(ready, plan=replace(ready.plan, settings=settled(ready, loaded[0])))
        except BaseException:
            loaded[0].close()
            raise
    except PaddockError as error:
        # Planned anew, it will work, or tell better why it does not.
        shutil.rmtree(work, ignore_errors=True)
        tell(f"what was built before does not do any more: {error.problem}")
        _log.warning("a deployment that was kept is made anew: %s", error.problem)
        return None
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    announce(registry, name, ready.plan)
    announce_candidates(registry, name, place.resolved)
    registry.observe(Event("artifact", name, {"adapter": ready.plan.adapter, "outcome": report.outcome.value}))
    return Deployment(ready, replace(report, kept=True), loaded, registry, _TakenUp(name, work, again))


def _read(folder: Path, place: Place, config: HardwareConfig, registry: Registry, work: Path) -> tuple[Ready, Report]:
    """What `keep` wrote, with the files where they are now; raises `BuildFailed` where it is none of ours."""
    try:
        ready, report = pickle.loads((folder / _READY).read_bytes())
        segments, keys = ready.built.segments, ready.keys
        origin = Model(place.format, place.files, place.fingerprint, ready.origin.graph)
    except Exception as error:  # whatever unpickling ran into
        raise BuildFailed(f"holds no deployment: {type(error).__name__}: {error}", where=str(folder)) from None
    places = [registry.store.find(ARTIFACTS, key) for key in keys]
    made = [artifacts.read(found, place.files) for found in places if found is not None]
    if len(made) != len(segments):
        raise BuildFailed("its artifacts are not kept any more", where=str(folder))
    here = tuple(_here(segment, artifact, registry, work) for segment, artifact in zip(segments, made, strict=True))
    return replace(ready, config=config, origin=origin, built=replace(ready.built, segments=here)), report


def _here(segment: BuiltSegment, artifact: Artifact, registry: Registry, work: Path) -> BuiltSegment:
    own, cache = adapter_folders(registry, work, segment.resolved)
    return replace(segment, artifact=artifact, work=own, cache=cache)


@dataclass(frozen=True)
class Loaded(Origin):
    """Where a deployment comes from that was loaded as it was built; `work` is a folder that is gone with it."""

    own: str
    work: Path

    @property
    def name(self) -> str:
        return self.own

    def discard(self) -> None:
        shutil.rmtree(self.work, ignore_errors=True)


@dataclass(frozen=True)
class _TakenUp(Loaded):
    """What needs its plan's making is planned anew."""

    again: Again

    def measure(self, artifacts: Sequence[Artifact]) -> Measured:
        with self.again() as prepared:
            return measured_alone(prepared, artifacts)

    def lowered(self) -> tuple[Files, Files]:
        with self.again() as prepared:
            return lowered_of(prepared)
