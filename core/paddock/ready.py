"""A deployment that is built and planned, and what its user sees of it: all that serving takes.

It has a form as JSON data, for whoever serves the same again: without planning, and without the reference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from paddock.arena import Arena, ArenaPlan
from paddock.built import Built, BuiltSegment, interface
from paddock.compile import keys
from paddock.config import HardwareConfig
from paddock.contract import parse_options
from paddock.flow import Flow, Stage
from paddock.graph import Graph
from paddock.host import ServingHost
from paddock.model import Files, Model
from paddock.plan import Means, Plan
from paddock.prepare import Prepared, Progress
from paddock.reading import graphs
from paddock.registry import Registry, Resolved
from paddock.spi import Artifact, Device, ResolvedConfig
from paddock.staging import Staging
from paddock.translation import Names, Translation


@dataclass(frozen=True)
class Ready:
    """See the module. `origin` is the model as the user gave it, with the config's shapes as bounds."""

    config: HardwareConfig
    origin: Model
    plan: Plan
    built: Built
    inputs: Names
    outputs: Names
    arena: ArenaPlan
    keys: tuple[Any, ...] = ()
    """What the segments' artifacts are kept under, as JSON data."""

    @cached_property
    def interface(self) -> Graph:
        """What requests are checked by."""
        return interface(self.origin.graph, self.config)

    @property
    def translation(self) -> Translation:
        """Between the user's names and those of the sessions."""
        return Translation(self.plan.adapter, self.origin.graph, self.interface, self.inputs, self.outputs)

    def load(self, tell: Progress) -> tuple[ServingHost, Arena]:
        """The sessions in this process, and Paddock's own memory."""
        # What a limit is judged by are sessions with one call inside each.
        inside = None if self.config.memory.limit is None else 1
        arena = Arena(self.arena, self.interface)
        host = self.built.load(inside=inside, arena=arena, tell=tell)
        inputs = zip(self.interface.inputs, self.inputs, strict=True)
        host.staging = Staging(arena, {there: value for value, (_, there) in inputs})
        return host, arena


def built_of(prepared: Prepared, artifacts: Sequence[Artifact]) -> Built:
    """What the sessions of a plan's parts are loaded from."""
    segments = tuple(
        BuiltSegment(part.name, part.workshop.resolved, artifact, part.context.work, part.context.cache)
        for part, artifact in zip(prepared.parts, artifacts, strict=True)
    )
    flow = prepared.budgeter.flow if len(segments) > 1 else None
    return Built(prepared.plan.adapter, segments, flow, prepared.config.instances)


def ready_of(prepared: Prepared, artifacts: Sequence[Artifact]) -> Ready:
    """All that serving takes, once the parts' artifacts are made."""
    names = prepared.translation
    return Ready(
        prepared.config,
        prepared.origin,
        prepared.plan,
        built_of(prepared, artifacts),
        names.inputs,
        names.outputs,
        prepared.budgeter.arena,
        tuple(key for _, key in keys(prepared.plan, prepared.parts)),
    )


def lowered_of(prepared: Prepared) -> tuple[Files, Files]:
    """See `Deployment.lowered`."""
    first = prepared.parts[0].target
    made = prepared.plan.precision.means in (Means.CAST, Means.QUANTIZE) and first.source is not None
    return (first.source if made and first.source else first).files, first.files


def to_json(ready: Ready) -> dict[str, Any]:
    """All of it as JSON data, but for the files: those of the model, and the artifacts."""
    flow = ready.built.flow
    return {
        "graph": graphs().dump_python(ready.origin.graph, mode="json"),
        "plan": ready.plan.to_json(),
        "name": ready.built.name,
        "segments": [{"name": segment.name, **_told(segment.resolved)} for segment in ready.built.segments],
        "flow": None if flow is None else _flows().dump_python((flow.stages, flow.waves, flow.dead), mode="json"),
        "inputs": ready.inputs,
        "outputs": ready.outputs,
        "arena": _arenas().dump_python(ready.arena, mode="json"),
    }


def _told(resolved: Resolved) -> dict[str, Any]:
    return {
        "adapter": resolved.name,
        "config": resolved.config.config.as_data(),
        "threads": resolved.config.threads,
        "spinning": resolved.config.spinning,
        "device": _devices().dump_python(resolved.device, mode="json"),
        "versions": dict(resolved.versions),
    }


def from_json(
    data: Mapping[str, Any],
    config: HardwareConfig,
    origin: Callable[[Graph], Model],
    artifacts: Sequence[Artifact],
    registry: Registry,
    folders: Callable[[Resolved], tuple[Path, Path]],
) -> Ready:
    """The inverse of `to_json`.

    Args:
        data: What it gave.
        config: As the user gave it now.
        origin: The model whose graph is that of `data`.
        artifacts: One for each segment.
        registry: Which has the adapters.
        folders: The work and the cache folder of an adapter.

    Raises KeyError, TypeError, ValueError (pydantic's too) on foreign data, `PaddockError` where an adapter is missing.
    """
    graph = graphs().validate_python(data["graph"])
    segments = []
    for told, artifact in zip(data["segments"], artifacts, strict=True):
        resolved = _resolved(told, registry)
        segments.append(BuiltSegment(told["name"], resolved, artifact, *folders(resolved)))
    flow = None
    if data["flow"] is not None:
        flow = Flow(graph, *_flows().validate_python(data["flow"]))
    names = _names().validate_python((data["inputs"], data["outputs"]))
    return Ready(
        config,
        origin(graph),
        Plan.from_json(data["plan"]),
        Built(data["name"], tuple(segments), flow, config.instances),
        *names,
        _arenas().validate_python(data["arena"]),
    )


def _resolved(told: Mapping[str, Any], registry: Registry) -> Resolved:
    registered = registry.get(told["adapter"])
    config = HardwareConfig.load(told["config"])
    options = parse_options(told["adapter"], registered.adapter, config)
    resolved = ResolvedConfig(config, options, told["threads"], told["spinning"])
    return Resolved(registered, resolved, _devices().validate_python(told["device"]), told["versions"])


@cache
def _arenas() -> TypeAdapter[ArenaPlan]:
    return TypeAdapter(ArenaPlan)


@cache
def _devices() -> TypeAdapter[Device]:
    return TypeAdapter(Device)


@cache
def _flows() -> TypeAdapter[tuple[tuple[Stage, ...], tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...]]]:
    return TypeAdapter(tuple[tuple[Stage, ...], tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...]])


@cache
def _names() -> TypeAdapter[tuple[Names, Names]]:
    return TypeAdapter(tuple[Names, Names])
