"""Everything up to the plan: read, bound, resolve, convert, select, plan. Nothing is built, loaded or allocated."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from paddock.child import Children
from paddock.compile import Workshop, check_answer, select
from paddock.config import HardwareConfig
from paddock.errors import BuildFailed, ConfigError, NotAvailable
from paddock.host import Outputs, building
from paddock.model import Model
from paddock.plan import Plan, Setting
from paddock.planning import memory
from paddock.planning.operators import place, verify_placement
from paddock.planning.precision import plan_precision
from paddock.planning.shapes import apply_shapes, describe_shape
from paddock.reading import adapted, open_model
from paddock.references import Reference, read_golden, reference_outputs
from paddock.registry import Registered, Registry, Resolved
from paddock.samples import Sample, generate, load_samples
from paddock.spi import Arrays, Context, Event, Process, Shapes
from paddock.verify import describe_budget

ModelSource = str | os.PathLike[str] | Model
ConfigSource = str | os.PathLike[str] | Mapping[str, Any] | HardwareConfig
Progress = Callable[[str], None]

_NAMES = (f"deployment {number}" for number in itertools.count(1))


def prepare(
    model: ModelSource,
    config: ConfigSource,
    *,
    children: Children,
    registry: Registry | None = None,
    progress: Progress | None = None,
) -> Prepared:
    """The plan, with all that it takes to carry it out. Same arguments and errors as `paddock.deploy`."""
    config = HardwareConfig.load(config)
    with config.named():
        return _prepare(model, config, children, registry if registry is not None else Registry.discover(), progress)


def _prepare(
    model: ModelSource, config: HardwareConfig, children: Children, registry: Registry, progress: Progress | None
) -> Prepared:
    tell = progress or (lambda message: None)
    tell("reading the model")
    origin = open_model(model, registry, children)
    origin = origin.with_graph(apply_shapes(origin.graph, config))
    resolved = registry.resolve(config)
    _check_contract(resolved, origin)
    tell(f"planning for {resolved.name}")
    target = adapted(origin, resolved.registered.adapter, registry, children)
    precision = plan_precision(target, config, resolved.name)
    work = Path(tempfile.mkdtemp(prefix="paddock-"))
    try:
        cache = registry.store.private("adapters", [resolved.name, dict(resolved.versions)])
        workshop = Workshop(registry, children, resolved, Context(work, cache, tell))
        adapter = building(f"{resolved.name}: constructing", workshop.adapter)
        placement = place(target, resolved.name, select(workshop, target), config)
        verify_placement(target.graph, placement)
        predicted = building(f"{resolved.name}: planning memory", lambda: adapter.plan_memory(target, precision))
        if predicted is None:
            kind = type(adapter)
            planner = "backend" if kind.plans_memory else "none"
            shares = kind.concurrency.shares_weights
            predicted = memory.predict(target.graph, config, resolved.device.memory_kind, planner, shares)
        verify = config.accuracy.verify
        plan = Plan(
            model=origin.fingerprint,
            format=target.format,
            adapter=resolved.name,
            device=f"{resolved.device.index} ({resolved.device.name})",
            precision=precision,
            placement=placement,
            memory=predicted,
            shapes={value.name: describe_shape(origin.graph, value) for value in origin.graph.input_values},
            settings=_settings(config, resolved),
            bounds=dict(origin.graph.bounds),
            choices=origin.graph.choices,
            remedies=tuple(building(f"{resolved.name}: listing known defects", lambda: adapter.known_defects(target))),
            versions=dict(resolved.versions),
            verify=verify,
            reference=tuple(entry.adapter.name() for entry in _references(registry, origin, verify)),
            budget=describe_budget(config) if verify != "off" else "not verified",
            notes=_notes(config, resolved, origin, target),
        )
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    name = next(_NAMES)
    for passed, reason in resolved.skipped:
        registry.observe(Event("candidate", name, {"skipped": passed, "reason": reason, "taken": resolved.name}))
    registry.observe(Event("plan", name, {"adapter": plan.adapter, "key": plan.key}))
    return Prepared(name, config, origin, target, plan, workshop)


@dataclass(frozen=True)
class Prepared:
    """A plan with all that it takes to carry it out."""

    name: str
    config: HardwareConfig
    origin: Model
    """The model as the user gave it, with the config's bounds."""
    target: Model
    """The model in the adapter's format."""
    plan: Plan
    workshop: Workshop

    def discard(self) -> None:
        """Removes the work folder of a plan that is not carried out."""
        shutil.rmtree(self.workshop.context.work, ignore_errors=True)

    def samples(self) -> Samples:
        """What the deployment is to be checked on; raises `ConfigError` where it does not fit the model."""
        accuracy, graph = self.config.accuracy, self.origin.graph
        if accuracy.golden is not None:
            return Samples((), "golden outputs", read_golden(accuracy.golden, self.origin))
        if accuracy.samples is not None:
            found = load_samples(accuracy.samples, graph)
            return Samples(tuple(found), "accuracy.samples", extra=_shuffled(found))
        format = self.workshop.registry.formats[self.origin.format]
        try:
            return Samples(tuple(generate(graph, format.gathers, format.transparent)), "generated")
        except ConfigError:
            if accuracy.verify == "off":
                return Samples((), "none")
            raise

    def references(self) -> list[Registered]:
        """The adapters that may serve as the reference, best first."""
        return _references(self.workshop.registry, self.origin, self.config.accuracy.verify)

    def reference(self, samples: Samples) -> Reference:
        """The reference's answers to the samples, and to one more that shows whether outputs vary at all."""
        children = self.workshop.children
        asked = (*samples.inputs, *([samples.extra] if samples.extra is not None else []))
        found = reference_outputs(
            self.workshop.registry, self.origin, asked, lambda label: children.get(f"{label} (reference)")
        )
        return replace(found, judged=len(samples.inputs))

    def to_target(self, feeds: Arrays) -> Arrays:
        """Feeds under the names that the adapter's format uses; conversions keep the order, not always the names."""
        names = zip(self.origin.graph.input_values, self.target.graph.input_values, strict=True)
        return {there.name: feeds[here.name] for here, there in names}

    def answer(self, run: Callable[[Arrays], Outputs], sample: Sample) -> Outputs:
        """One run, checked for its form, under the user's own output names."""
        found = run(self.to_target(sample))
        values = list(zip(self.origin.graph.output_values, self.target.graph.output_values, strict=True))
        check_answer(found, [there.name for _, there in values])
        for here, there in values:
            if here.kind == "tensor" and not isinstance(found[there.name], np.ndarray):
                kind = type(found[there.name]).__name__
                raise BuildFailed(f"{self.plan.adapter}: run() returned a {kind} for {here.name!r}, not an array")
        return {here.name: found[there.name] for here, there in values}


@dataclass(frozen=True)
class Samples:
    """What a deployment is checked on, where it came from, and golden answers where there are any."""

    inputs: tuple[Sample, ...]
    source: str
    reference: Reference | None = None
    extra: Sample | None = None
    """One more input for the reference alone, to see whether outputs vary; not judged."""


def _check_contract(resolved: Resolved, model: Model) -> None:
    """Raises `NotAvailable` for what an adapter declares and this version cannot give it."""
    adapter = resolved.registered.adapter
    if adapter.process is Process.EXCLUSIVE:
        raise NotAvailable(
            f"{resolved.name} needs a process of its own, which is not available in this version",
            where="$.hardware/$.backend",
        )
    open_inputs = {
        value.name: describe_shape(model.graph, value)
        for value in model.graph.input_values
        if value.shape is None or not all(isinstance(dim, int) for dim in value.shape)
    }
    if adapter.shapes is Shapes.STATIC and open_inputs:
        raise NotAvailable(
            f"{resolved.name} takes fixed shapes only, and these are open: {open_inputs}",
            where="$.shapes",
            remedy="fix them in shapes, one extent for each dimension",
        )


def _settings(config: HardwareConfig, resolved: Resolved) -> tuple[Setting, ...]:
    """What was asked for, in the config's words: only what stands in the config, and the precision."""
    settings = [Setting("precision", config.precision.value), Setting("instances", config.instances)]
    settings.append(
        Setting("threads", resolved.config.threads, reason="" if config.threads else "cores over instances")
    )
    parsed = resolved.config.options.model_dump(mode="json")
    settings += [Setting(f"options.{name}", parsed[name]) for name in sorted(config.options)]
    return tuple(settings)


def _notes(config: HardwareConfig, resolved: Resolved, origin: Model, target: Model) -> tuple[str, ...]:
    notes = [f"{name} was passed over: {reason}" for name, reason in resolved.skipped]
    if target.source is not None:
        notes.append(f"converted from {origin.format} to {target.format}")
    if config.accuracy.verify == "off":
        notes.append('NOT VERIFIED: accuracy.verify is "off"')
    if not config.strict:
        notes.append("not strict: settings without effect and inconclusive checks are let through")
    narrow = sorted({v.dtype for v in origin.graph.values if v.dtype in ("float16", "bfloat16")})
    if narrow:
        notes.append(f"the model itself computes partly in {', '.join(narrow)}")
    return tuple(notes)


def _references(registry: Registry, model: Model, verify: str) -> list[Registered]:
    """Who may be the reference, best first; nobody where none is asked."""
    return [] if verify in ("off", "golden") else registry.references(model.format)


def _shuffled(samples: Sequence[Sample]) -> Sample | None:
    """The elements of a sample in another order: other values, each in its range. None where order changes nothing."""
    rng = np.random.default_rng(0)
    for sample in samples:
        if not all(isinstance(array, np.ndarray) for array in sample.values()):
            continue
        mixed = {name: rng.permutation(array.ravel()).reshape(array.shape) for name, array in sample.items()}
        if any(array.tobytes() != mixed[name].tobytes() for name, array in sample.items()):
            return mixed
    return None
