"""Artifacts outside of a process: a folder with what an adapter compiled, and a file that says what it is.

Files of the user's own model are referred to by their role, and looked up where the model lies now; all others are in
the folder, hard-linked where the file system can, since segments and precisions of one model share weights.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
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


def normal(artifact: object) -> Artifact:
    """What `compile` returned as it comes back from the cache; raises `BuildFailed` where it is no such thing."""
    if not isinstance(artifact, Artifact):
        raise BuildFailed(f"compile() returned a {type(artifact).__name__}, not an Artifact")
    try:
        return replace(artifact, facts=json.loads(json.dumps(dict(artifact.facts), allow_nan=False)))
    except (TypeError, ValueError) as error:
        raise BuildFailed(f"compile() returned facts that are no JSON data: {error}") from None


def write(artifact: Artifact, folder: Path, origin: Files, bases: Sequence[Path] = (), *, share: bool = True) -> None:
    """Writes an artifact into a new or empty folder.

    Args:
        artifact: What was compiled.
        folder: Where to.
        origin: The files of the user's own model, which are referred to; none where they are to be written as well.
        bases: Folders whose files keep their places to each other. All that lie in none of them do so too.
        share: Whether files may be one with those that they come from, on disk.

    Raises `BuildFailed` where the artifact names something that is no file.
    """
    folder.mkdir(exist_ok=True)
    own = {path: role for role, path in origin.items()}
    others = [path.parent for path in artifact.files.values() if path not in own]
    inside = [base for base in bases if any(path.is_relative_to(base) for path in others)]
    loose = [path for path in others if not any(path.is_relative_to(base) for base in inside)]
    inside += [Path(os.path.commonpath(loose))] if loose else []
    files = {}
    for role, path in artifact.files.items():
        if path in own:
            files[role] = {"origin": own[path]}
            continue
        if not path.is_file():
            raise BuildFailed(f"compile() returned an artifact whose {role!r} is no file", where=str(path))
        number, base = next((n, base) for n, base in enumerate(inside) if path.is_relative_to(base))
        place = PurePosixPath(str(number), path.relative_to(base).as_posix())
        _bring(path, folder / place, share)
        files[role] = {"here": str(place)}
    told = {**asdict(artifact), "files": files}
    (folder / MANIFEST).write_text(json.dumps(told))


def read(folder: Path, origin: Files) -> Artifact:
    """What `write` wrote; `origin` are the files of the user's model. Raises `BuildFailed` where it is no artifact."""
    try:
        told = json.loads((folder / MANIFEST).read_text())
        files = {}
        for role, place in told["files"].items():
            files[role] = origin[place["origin"]] if "origin" in place else _inside(folder, place["here"])
        bounds = _bounds().validate_python(told["bounds"])
        inputs, outputs = tuple(told["inputs"]), tuple(told["outputs"])
        return Artifact(told["adapter"], told["format"], files, inputs, outputs, bounds, told["facts"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ValidationError) as error:
        raise BuildFailed(f"holds no artifact: {type(error).__name__}: {error}", where=str(folder)) from None


def _inside(folder: Path, place: str) -> Path:
    path = PurePosixPath(place)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"{place} leaves the folder")
    return folder / path


def _bring(source: Path, target: Path, share: bool) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if share:
        with suppress(OSError):  # another file system, or one without hard links
            os.link(source.resolve(), target)
            return
    shutil.copyfile(source, target)


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
