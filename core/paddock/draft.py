"""From a placement to the frozen plan: what it predicts, settles and must tell."""

from __future__ import annotations

from collections.abc import Sequence

from paddock.config import HardwareConfig
from paddock.contract import is_isolated
from paddock.memory_plan import MemoryPlan
from paddock.model import Model
from paddock.placing import Placed
from paddock.plan import Plan, PrecisionPlan, Setting
from paddock.planning.precision import in_fp32
from paddock.planning.shapes import describe_shape
from paddock.registry import Registry, Resolved
from paddock.spi import Event
from paddock.verify import describe_budget
from paddock.ward import TIMEOUT
from paddock.workshop import Part
from paddock.workshop import notes as told


def announce(registry: Registry, name: str, plan: Plan) -> None:
    """Tells observers of a deployment's plan, and of the fallbacks that it takes."""
    registry.observe(Event("plan", name, {"adapter": plan.adapter, "key": plan.key}))
    for adapter in plan.placement.adapters:
        if adapter not in (plan.adapter, in_fp32(plan.adapter)):
            registry.observe(Event("fallback", name, {"adapter": adapter, "nodes": plan.placement.on(adapter)}))


def announce_candidates(registry: Registry, name: str, resolved: Resolved) -> None:
    """Tells observers which adapters were passed over for the one that serves a deployment."""
    for passed, reason in resolved.skipped:
        facts = {"skipped": passed, "reason": reason, "taken": resolved.name}
        registry.observe(Event("candidate", name, facts))


def draft(
    config: HardwareConfig,
    origin: Model,
    resolved: Resolved,
    placed: Placed,
    parts: Sequence[Part],
    precision: PrecisionPlan,
    memory: MemoryPlan,
    reference: tuple[str, ...],
    notes: Sequence[str] = (),
) -> Plan:
    """The plan of a placement whose parts are in their adapters' formats.

    Args:
        config: As read.
        origin: The model as the user gave it, with the config's bounds.
        resolved: The adapter asked for.
        placed: The placement, with the fallbacks that are not to be had.
        parts: The placement's segments, each with its precision plan.
        precision: The whole model's, by the nodes of `origin`.
        memory: What the parts take.
        reference: The adapters that may serve as the reference, best first.
        notes: What a reader must know beside what stands in all these.
    """
    verify = config.accuracy.verify
    workshops = {part.workshop.name: part.workshop for part in parts}
    versions = {**resolved.versions}
    for workshop in workshops.values():
        versions.update(workshop.resolved.versions)
    return Plan(
        model=origin.fingerprint,
        format=parts[0].target.format if len(parts) == 1 else origin.format,
        adapter=resolved.name,
        device=f"{resolved.device.index} ({resolved.device.name})",
        precision=precision,
        placement=placed.placement,
        memory=memory,
        shapes={value.name: describe_shape(origin.graph, value) for value in origin.graph.input_values},
        settings=_settings(config, resolved),
        bounds=dict(origin.graph.bounds),
        choices=origin.graph.choices,
        remedies=placed.remedies,
        versions=versions,
        verify=verify,
        reference=reference,
        budget=describe_budget(config) if verify != "off" else "not verified",
        notes=(*_notes(config, resolved, origin, parts, placed), *notes),
    )


def _settings(config: HardwareConfig, resolved: Resolved) -> tuple[Setting, ...]:
    """What was asked for, in the config's words: only what stands in the config, and the precision."""
    settings = [Setting("precision", config.precision.value), Setting("instances", config.instances)]
    settings.append(
        Setting("threads", resolved.config.threads, reason="" if config.threads else "cores over instances")
    )
    if is_isolated(resolved.registered.adapter, config):
        asked = config.isolation == "process"
        settings.append(Setting("isolation", "process", reason="" if asked else f"{resolved.name} needs it"))
        seconds = TIMEOUT if config.timeout is None else config.timeout
        settings.append(Setting("timeout", seconds, reason="" if config.timeout else "the default"))
    parsed = resolved.config.options.model_dump(mode="json")
    settings += [Setting(f"options.{name}", parsed[name]) for name in sorted(config.options)]
    return tuple(settings)


def _notes(
    config: HardwareConfig, resolved: Resolved, origin: Model, parts: Sequence[Part], placed: Placed
) -> tuple[str, ...]:
    notes = [f"{name} was passed over: {reason}" for name, reason in resolved.skipped]
    notes += [f"the fallback {name} is not to be had: {reason}" for name, reason in placed.absent.items()]
    placement = placed.placement
    for name in placement.adapters:
        if name == in_fp32(resolved.name):
            notes.append(f"{placement.on(name)} of {len(placement.nodes)} nodes run on {name}, apart from the others")
        elif name != resolved.name:
            notes.append(f"FALLBACK: {placement.on(name)} of {len(placement.nodes)} nodes run on {name}")
    formats = dict.fromkeys(part.target.format for part in parts if part.target.format != origin.format)
    if resolved.assumed:
        notes.append(f"NOT CONFIRMED by a device: {resolved.assumed}")
    notes += [f"converted from {origin.format} to {name}" for name in formats]
    widened = dict.fromkeys(
        part.workshop.name
        for part in parts
        if part.precision.precision is not config.precision and part.segment.adapter != in_fp32(resolved.name)
    )
    notes += [f"{name} computes its nodes in fp32: it does not compute in {config.precision}" for name in widened]
    own = (f"{part.workshop.name}: {note}" for part in parts for note in told(part.workshop, part.target))
    notes += dict.fromkeys(own)
    if config.accuracy.verify == "off":
        notes.append('NOT VERIFIED: accuracy.verify is "off"')
    if config.warm_start is not None:
        notes.append(f"warm_start {config.warm_start} is not in effect: this is what it is swapped for")
    if config.rescue is not None:
        notes.append(f"RESCUE: {config.rescue} answers what a lost process leaves")
    if not config.strict:
        notes.append("not strict: settings without effect and inconclusive checks are let through")
    narrow = sorted({v.dtype for v in origin.graph.values if v.dtype in ("float16", "bfloat16")})
    if narrow:
        notes.append(f"the model itself computes partly in {', '.join(narrow)}")
    return tuple(notes)
