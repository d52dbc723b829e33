"""Bundles: a deployment in a folder, for a host without network, compiler, reference or the original model.

A bundle has the artifacts, the plan, the config, the locked requirements, and golden outputs. It is served only where
the same versions stand on a host alike, and agrees with the golden outputs before it serves.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from paddock import __version__, artifacts
from paddock.admission import not_loaded
from paddock.cache import current_sources
from paddock.cache_entries import others_may_write
from paddock.checks import check_room, judged, settled
from paddock.child import Children
from paddock.config import HardwareConfig
from paddock.deployment import carry_out
from paddock.draft import announce
from paddock.errors import ModelError, NotAvailable, PaddockError, UsageError
from paddock.footprint import Measured
from paddock.jsontext import loads
from paddock.kept import Loaded
from paddock.machine import cpu
from paddock.model import Files, Model, file_digest
from paddock.plan import digest
from paddock.prepare import ConfigSource, ModelSource, Progress, deployment_name, prepare
from paddock.ready import Ready, from_json, to_json
from paddock.references import read_golden, write_golden
from paddock.registry import Registry, Resolved
from paddock.requirements import locked
from paddock.serving import Deployment
from paddock.spi import Artifact, Event
from paddock.verify import judge
from paddock.workshop import adapter_folders

MANIFEST, CONFIG, GOLDEN, REQUIREMENTS = "bundle.json", "config.json", "golden.npz", "requirements.txt"
LAYOUT = 1
_ANEW = "`paddock export --model M --config C --output B` writes it anew"


def export(
    model: ModelSource,
    config: ConfigSource,
    output: Path,
    *,
    registry: Registry | None = None,
    progress: Progress | None = None,
) -> Deployment:
    """Deploys, verifies and writes the bundle into the folder `output`; returns the deployment.

    Raises `UsageError` where that is no new or empty folder or cannot be written, or the config asks not to verify;
    and as `paddock.deploy` does.
    """
    config = HardwareConfig.load(config)
    if config.accuracy.verify == "off":
        raise UsageError(
            'cannot be "off": a bundle is checked by golden outputs where it is served', where="$.accuracy.verify",
            remedy="leave it out",
        )  # fmt: skip
    if config.rescue is not None:
        raise UsageError(
            "a bundle holds one deployment, not the one that rescues its requests too", where="$.rescue",
            remedy="leave it out",
        )  # fmt: skip
    output = Path(os.path.abspath(output))
    _check_new(output)
    registry = registry if registry is not None else Registry.discover()
    with config.named(), Children() as children:
        prepared = prepare(model, config, registry=registry, children=children, progress=progress)
        deployment = carry_out(prepared)
        try:
            samples = prepared.samples()
            reference = samples.reference or prepared.reference(samples)
            prepared.tell(f"writing {output}")
            # Written beside its place first: what stands there is whole.
            with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-") as beside:
                fresh = Path(beside) / "bundle"
                fresh.mkdir(mode=0o700)
                write_golden(fresh / GOLDEN, reference)
                _write(fresh, deployment)
                if output.exists():
                    output.rmdir()
                fresh.rename(output)
        except OSError as error:
            deployment.close()
            raise UsageError(f"cannot be written: {error.strerror or error}", where=f"--output: {output}") from error
        except BaseException:
            deployment.close()
            raise
        return deployment


def _check_new(output: Path) -> None:
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UsageError("is there already", where=f"--output: {output}", remedy="name a new folder, or empty this one")
    if output.is_symlink():
        raise UsageError("is a link", where=f"--output: {output}", remedy="name the folder itself")
    if not output.parent.is_dir():
        raise UsageError("is in a folder that does not exist", where=f"--output: {output}")


def _write(folder: Path, deployment: Deployment) -> None:
    ready = deployment.ready
    for number, artifact in enumerate(deployment.artifacts):
        artifacts.write(artifact, folder / str(number), {})
    # What the samples were is in the golden outputs, and what calibrated is in the artifacts.
    served = ready.config.as_data()
    served["accuracy"] = {**served.get("accuracy", {}), "verify": "golden", "golden": GOLDEN}
    served["accuracy"].pop("samples", None)
    for key in ("calibration", "warm_start"):
        served.pop(key, None)
    (folder / CONFIG).write_text(json.dumps(served, indent=2) + "\n")
    segments = [segment.resolved for segment in ready.built.segments]
    roots = ["paddock", *(f"{resolved.registered.distribution}[sdk]" for resolved in segments)]
    (folder / REQUIREMENTS).write_text("".join(f"{line}\n" for line in locked(roots)))
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    told = {
        "layout": LAYOUT,
        "model": {"format": ready.origin.format, "fingerprint": ready.origin.fingerprint},
        "host": _host(segments),
        "versions": _versions(segments),
        "ready": to_json(ready),
        "report": deployment.report.to_json(),
        "files": {path.relative_to(folder).as_posix(): file_digest(path) for path in files},
    }
    (folder / MANIFEST).write_text(json.dumps({**told, "digest": digest(told)}))


def _host(used: Sequence[Resolved]) -> dict[str, Any]:
    """What artifacts depend on of a host: which kernels runtimes take on its CPU, and its other devices."""
    devices = {r.name: r.device.name for r in used if r.registered.adapter.hardware != "cpu"}
    return {"machine": platform.machine(), "cpu flags": list(cpu()[1]), "devices": devices}


def _versions(used: Sequence[Resolved]) -> dict[str, str]:
    found = {"paddock": f"{__version__}+{current_sources()[:8]}"}
    for resolved in used:
        found.update(resolved.versions)
    return found


def load_bundle(folder: Path, *, registry: Registry | None = None, progress: Progress | None = None) -> Deployment:
    """The deployment of a bundle, checked against its golden outputs.

    Raises:
        ModelError: It is no bundle, damaged, or others than its user may write to it.
        NotAvailable: The host, its device or a version differs from what it was built for; lists each difference.
        MemoryRefused: What is free does not hold it.
        StrictnessError, BuildFailed, AccuracyRefused: As for `paddock.deploy`.
    """
    tell = progress or (lambda message: None)
    tell("reading the bundle")
    told = _told(folder)
    registry = registry if registry is not None else Registry.discover()
    with _whole(folder):
        _check_versions(told, registry, folder)
        _check_files(told, registry, folder)
    name, work = deployment_name(), Path(tempfile.mkdtemp(prefix="paddock-"))
    try:
        with _whole(folder):
            ready = _ready(folder, told, registry, work)
            segments = [segment.resolved for segment in ready.built.segments]
            here = [registry.consider(resolved.name, resolved.config.config) for resolved in segments]
            _check_host(told, here, folder)
        check_room(ready, here[0])
        reference = read_golden(folder / GOLDEN, ready.origin)
        with _whole(folder):
            loaded = ready.load(tell)
        try:
            ready = replace(ready, plan=replace(ready.plan, settings=settled(ready, loaded[0])))
            tell("verifying")
            with _whole(folder):
                report = judged(ready.translation, loaded[0], reference, ready.config, "golden outputs of the bundle")
            judge(report, ready.config, ready.plan.adapter)
        except BaseException:
            loaded[0].close()
            raise
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    announce(registry, name, ready.plan)
    registry.observe(Event("artifact", name, {"adapter": ready.plan.adapter, "outcome": report.outcome.value}))
    return Deployment(ready, report, loaded, registry, _Bundled(name, work, folder))


def _told(folder: Path) -> Mapping[str, Any]:
    """What the manifest says, as far as it is one."""
    path = folder / MANIFEST
    try:
        problem = others_may_write(folder)
        text = path.read_text()
    except FileNotFoundError:
        raise ModelError("is no bundle: it has no " + MANIFEST, where=str(folder), remedy=_ANEW) from None
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot be read: {error}", where=str(path), remedy=_ANEW) from None
    if problem:
        # Artifacts can be native code.
        raise ModelError(f"the bundle is not safe: {problem}", where=str(folder), remedy="make it yours: chmod go-w")
    try:
        told = loads(text, str(path))
    except PaddockError as error:
        raise ModelError(f"is damaged: {error.problem}", where=str(path), remedy=_ANEW) from None
    if not isinstance(told, dict) or type(told.get("layout")) is not int:
        raise ModelError("is no bundle's manifest", where=str(path), remedy=_ANEW)
    if told["layout"] != LAYOUT:
        raise ModelError(f"has layout {told['layout']}, this Paddock reads {LAYOUT}", where=str(path), remedy=_ANEW)
    if told.pop("digest", None) != digest(told):
        raise ModelError("was altered", where=str(path), remedy=_ANEW)
    return told


def _check_versions(told: Mapping[str, Any], registry: Registry, folder: Path) -> None:
    """Raises `NotAvailable` where a version differs from what the artifacts were made with."""
    here = {"paddock": {f"{__version__}+{current_sources()[:8]}"}}
    for entries in registry.adapters.values():
        for entry in entries:  # one distribution may bring several plugins, each with files of its own
            here.setdefault(entry.distribution, set()).add(f"{entry.version}+{entry.sources}")
            for name, version in registry.probe(entry).versions.items():
                here.setdefault(name, set()).add(version)
    barred = [p for p in (not_loaded(registry.plugins, name) for name in told["versions"] if name not in here) if p]
    if barred:
        raise NotAvailable(
            "the bundle needs plugins that are installed and not loaded", where=str(folder),
            candidates=[f"{p.distribution} {p.version}: {p.verdict.reason}" for p in barred], remedy=barred[0].remedy,
        )  # fmt: skip
    differs = [
        f"{name}: {wanted} in the bundle, {' and '.join(sorted(here.get(name, {'not installed'})))} here"
        for name, wanted in told["versions"].items()
        if wanted not in here.get(name, ())
    ]
    if differs:
        raise NotAvailable(
            "the bundle was built with other versions", where=str(folder), candidates=differs,
            remedy=f"pip install --requirement {folder / REQUIREMENTS}, or export it anew with what is here",
        )  # fmt: skip


def _check_host(told: Mapping[str, Any], used: Sequence[Resolved], folder: Path) -> None:
    """Raises `NotAvailable` where the host is of another kind than the one it was built on."""
    here = _host(used)
    differs = [
        f"{what}: {_shown(told['host'].get(what))} in the bundle, {_shown(found)} here"
        for what, found in here.items()
        if told["host"].get(what) != found
    ]
    if differs:
        raise NotAvailable(
            "the bundle was built for another kind of host", where=str(folder), candidates=differs,
            remedy="export it on a host like this one",
        )  # fmt: skip


def _shown(found: Any) -> str:
    return " ".join(map(str, found)) if isinstance(found, list) else json.dumps(found)


def _check_files(told: Mapping[str, Any], registry: Registry, folder: Path) -> None:
    """Raises `ModelError` where a file is missing or not as it was written."""
    for name, wanted in told["files"].items():
        inside = PurePosixPath(name)
        if inside.is_absolute() or ".." in inside.parts:
            raise ModelError(f"names a file outside of it: {name}", where=str(folder / MANIFEST), remedy=_ANEW)
        path = folder / inside
        _check_own(path, folder)
        if registry.store.file_digest(path) != wanted:
            raise ModelError("was altered", where=str(path), remedy=_ANEW)


def _check_own(path: Path, folder: Path) -> None:
    """Raises `ModelError` where others could exchange a file between this look and the load."""
    try:
        kinds = [each.lstat() for each in (path, *path.parents) if each != folder and each.is_relative_to(folder)]
    except OSError as error:
        raise ModelError(f"cannot be read: {error.strerror}", where=str(path), remedy=_ANEW) from None
    if not stat.S_ISREG(kinds[0].st_mode):
        raise ModelError("is no plain file", where=str(path), remedy=_ANEW)
    shared = any(kind.st_uid != os.geteuid() or kind.st_mode & (stat.S_IWGRP | stat.S_IWOTH) for kind in kinds)
    if shared:
        problem = "the bundle is not safe: others may write to it"
        raise ModelError(problem, where=str(path), remedy="make it yours: chmod -R go-w")


@contextmanager
def _whole(folder: Path) -> Iterator[None]:
    """Says of what is not as it was written that the bundle is damaged."""
    try:
        yield
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        problem = f"is damaged: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise ModelError(problem, where=str(folder / MANIFEST), remedy=_ANEW) from None


def _ready(folder: Path, told: Mapping[str, Any], registry: Registry, work: Path) -> Ready:
    made = [artifacts.read(folder / str(number), {}) for number in range(len(told["ready"]["segments"]))]
    if not made:
        raise ValueError("it has no segments")
    origin = partial(Model, told["model"]["format"], {}, told["model"]["fingerprint"])
    config = HardwareConfig.load(folder / CONFIG)
    return from_json(told["ready"], config, origin, made, registry, partial(adapter_folders, registry, work))


@dataclass(frozen=True)
class _Bundled(Loaded):
    """A bundle has no model that could be planned anew."""

    folder: Path

    def measure(self, artifacts: Sequence[Artifact]) -> Measured:
        raise self._has_no_model()

    def lowered(self) -> tuple[Files, Files]:
        raise self._has_no_model()

    def _has_no_model(self) -> NotAvailable:
        return NotAvailable(
            "a bundle does not hold the model that it was made from", where=str(self.folder),
            remedy="deploy the model itself",
        )  # fmt: skip
