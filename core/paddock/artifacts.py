"""Artifacts outside of a process: a folder with what an adapter compiled, and a file that says what it is.

Files of the user's own model are referred to by their role, and looked up where the model lies now; all others are in
the folder.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import TypeAdapter, ValidationError

from paddock.errors import BuildFailed
from paddock.graph import Range
from paddock.machine import host_facts
from paddock.model import Files
from paddock.spi import Artifact, SegmentPlan
from paddock.workshop import Part

MANIFEST = "artifact.json"


def normal(artifact: object, adapter: str) -> Artifact:
    """What an adapter's `compile` returned as it comes back from the cache.

    Raises `BuildFailed` where it is no artifact of this adapter, or what it names is not there.
    """
    if not isinstance(artifact, Artifact):
        raise BuildFailed(f"compile() returned a {type(artifact).__name__}, not an Artifact")
    if artifact.adapter != adapter:
        raise BuildFailed(f"compile() returned an artifact of {artifact.adapter}")
    try:
        files = {str(role): Path(os.path.abspath(path)) for role, path in artifact.files.items()}
        inputs, outputs = tuple(map(str, artifact.inputs)), tuple(map(str, artifact.outputs))
        bounds = _bounds().validate_python(dict(artifact.bounds))
        facts = json.loads(json.dumps(dict(artifact.facts), allow_nan=False))
    except (TypeError, ValueError, AttributeError) as error:
        raise BuildFailed(f"compile() returned an artifact that is no plain data: {error}") from None
    for role, path in files.items():
        if not path.is_file():
            raise BuildFailed(f"compile() returned an artifact whose {role!r} is no file", where=str(path))
    return Artifact(adapter, str(artifact.format), files, inputs, outputs, bounds, facts)


def write(artifact: Artifact, folder: Path, origin: Files, work: Path | None = None) -> None:
    """Writes an artifact into a new or empty folder.

    Args:
        artifact: What was compiled, as `normal` gives it.
        folder: Where to.
        origin: The files of the user's own model, which are referred to; none where they are to be written as well.
        work: The folder that it was compiled in: what lies there is moved, anything else copied. No two entries share
            a file: runtimes write into what they load, and refuse what has several hard links.
    """
    folder.mkdir(exist_ok=True)
    own = {path.resolve(): role for role, path in origin.items()}
    others = sorted({path for path in artifact.files.values() if path.resolve() not in own})
    made = [path for path in others if work is not None and path.is_relative_to(work)]
    places = _brought(made, folder / "made", move=True)
    places |= _brought([path for path in others if path not in made], folder / "model", move=False)
    here = {path: {"here": place.relative_to(folder).as_posix()} for path, place in places.items()}
    files = {role: here.get(path) or {"origin": own[path.resolve()]} for role, path in artifact.files.items()}
    (folder / MANIFEST).write_text(json.dumps({**asdict(artifact), "files": files}))


def _brought(paths: Sequence[Path], folder: Path, move: bool) -> dict[Path, Path]:
    """Where these files are now, at the same places to each other."""
    if not paths:
        return {}
    base = os.path.commonpath([path.parent for path in paths])
    places = {path: folder / path.relative_to(base) for path in paths}
    for path, place in places.items():
        place.parent.mkdir(parents=True, exist_ok=True)
        if move:
            shutil.move(path, place)
        else:
            shutil.copyfile(path, place)
    return places


def read(folder: Path, origin: Files) -> Artifact:
    """What `write` wrote; `origin` are the files of the user's model. Raises `BuildFailed` where it is no artifact."""
    try:
        told = json.loads((folder / MANIFEST).read_text())
        files = {}
        for role, place in told["files"].items():
            files[role] = origin[place["origin"]] if "origin" in place else _inside(folder, place["here"])
        bounds = _bounds().validate_python(told["bounds"]) if told["bounds"] else {}
        inputs, outputs = tuple(told["inputs"]), tuple(told["outputs"])
        return Artifact(told["adapter"], told["format"], files, inputs, outputs, bounds, told["facts"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ValidationError) as error:
        raise BuildFailed(f"holds no artifact: {type(error).__name__}: {error}", where=str(folder)) from None


def _inside(folder: Path, place: str) -> Path:
    path = PurePosixPath(place)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"{place} leaves the folder")
    return folder / path


def key(part: Part, plan: SegmentPlan) -> list[Any]:
    """Everything that decides about a part's artifact: DESIGN's rule 7.

    The model's bytes and the bounds of its shapes, the effective config, the segment's plan, the versions of plugin and
    SDK with the digest of the plugin's sources, the device, and the host with its drivers. Reasons and figures are left
    out, as in `Plan.semantics`.
    """
    target, resolved = part.target, part.workshop.resolved
    graph, precision = target.graph, plan.precision
    return [
        [target.format, target.fingerprint],
        {symbol: repr(bound) for symbol, bound in graph.bounds.items()},
        [{symbol: repr(bound) for symbol, bound in way.items()} for choice in graph.choices for way in choice],
        [(v.name, v.dtype, v.shape) for v in (*graph.input_values, *graph.output_values)],
        [resolved.name, dict(resolved.versions)],
        [resolved.config.config.as_data(), resolved.config.options.model_dump(mode="json")],
        [resolved.config.threads, resolved.config.spinning],
        [precision.precision, precision.means, precision.storage, precision.border],
        [[remedy.name, remedy.applied, remedy.nodes] for remedy in plan.remedies],
        [verdict.answer for verdict in plan.verdicts],
        asdict(resolved.device),
        host_facts(),
    ]


@cache
def _bounds() -> TypeAdapter[Mapping[str, Range]]:
    return TypeAdapter(Mapping[str, Range])
