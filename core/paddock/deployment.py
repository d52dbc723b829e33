"""`deploy()`: the spine from a model and a JSON config to a checked deployment."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from paddock.arena import Arena
from paddock.checks import check_memory, measured, settled, verified, with_known_memory
from paddock.child import Children
from paddock.compile import Refused, build, compiled, is_expendable, is_tried, remember_tried
from paddock.errors import (
    AccuracyRefused,
    BuildFailed,
    ModelError,
    NotAvailable,
    PaddockError,
    RunFailed,
)
from paddock.host import InProcessHost, ServingHost, building
from paddock.pipeline import Pipeline
from paddock.precision_search import found_before, search, searchable
from paddock.prepare import ConfigSource, ModelSource, Prepared, Progress, prepare
from paddock.reading import check_unchanged
from paddock.registry import Registry
from paddock.repair import repair, repairable, repaired_before
from paddock.samples import Sample
from paddock.sampling import Samples
from paddock.serving import Deployment
from paddock.spi import Artifact, Event, Session
from paddock.staging import Staging
from paddock.trials import REPLANS, replanned, try_out
from paddock.verify import Outcome, judge
from paddock.workshop import Part

__all__ = ["Deployment", "carry_out", "deploy"]


def deploy(
    model: ModelSource,
    config: ConfigSource,
    *,
    registry: Registry | None = None,
    children: Children | None = None,
    progress: Progress | None = None,
    samples: Sequence[Mapping[str, Any]] | None = None,
) -> Deployment:
    """Deploys `model` as `config` says, checked against the reference.

    Args:
        model: A Paddle model (`.json`, `.pdiparams`, their stem or folder) or an ONNX file.
        config: A JSON file's path, a JSON string, a dict or a `HardwareConfig`.
        registry: The plugins to choose from; discovered anew by default.
        children: Child processes to work in; started and ended by this call by default.
        progress: Told in a few words what is being done.
        samples: Inputs to verify on instead of `accuracy.samples` or generated ones: by input name an array, a list of
            arrays for a sequence, None for an optional that is left out.

    Raises:
        ConfigError, ModelError, UsageError: what was given is malformed or does not fit together.
        NotAvailable: the hardware, SDK, precision or an operator is not to be had here; says what is missing.
        StrictnessError: something asked for did not take effect (`strict`).
        MemoryRefused: over the memory limit; before anything is allocated.
        BuildFailed: the SDK could not compile, load or try out the model.
        AccuracyRefused: disagrees with the reference; its `report` has the numbers.
    """
    with ExitStack() as stack:
        if children is None:
            children = stack.enter_context(Children())
        prepared = prepare(model, config, registry=registry, children=children, progress=progress, samples=samples)
        return carry_out(prepared)


def carry_out(prepared: Prepared) -> Deployment:
    """A plan carried out: checks the memory budget, builds, loads and verifies; see `deploy` for what it raises.

    Where an SDK turns out to refuse nodes, and the config names fallbacks, the plan is made anew without them.
    """
    with prepared.config.named():
        try:
            samples = prepared.samples()
            prepared = found_before(prepared, samples) or prepared
            kept = repaired_before(prepared, samples)
            if kept is not None:
                try:
                    return _without_refused(kept, samples)
                except (AccuracyRefused, BuildFailed, RunFailed):
                    prepared.tell("what repaired it before does not any more")
            try:
                return _within_budget(prepared, samples)
            except (AccuracyRefused, BuildFailed, RunFailed) as error:
                doubt = prepared.dispute(samples) if isinstance(error, AccuracyRefused) and repairable(error) else ""
                if doubt:
                    error.candidates = (*error.candidates, doubt)
                    error.remedy = "judge by golden outputs that you trust (accuracy.golden)"
                if doubt or not prepared.config.repair or not repairable(error):
                    raise
                return _without_refused(repair(prepared, samples, error), samples)
        except BaseException as error:
            _refuse(prepared, error)
            raise


def _within_budget(prepared: Prepared, samples: Samples) -> Deployment:
    """Carried out; where the precision asked for leaves the budget, with the fewest nodes in fp32 that it needs."""
    try:
        return _without_refused(prepared, samples)
    except AccuracyRefused as error:
        if not searchable(prepared, error) or (prepared.config.repair and prepared.dispute(samples)):
            raise
        return _without_refused(search(prepared, samples, error), samples)


def _without_refused(prepared: Prepared, samples: Samples) -> Deployment:
    for _ in range(REPLANS):
        try:
            return _attempt(prepared, samples)
        except Refused as error:
            prepared = replanned(prepared, error)
    raise NotAvailable(
        f"{prepared.plan.adapter} refused other nodes each of {REPLANS} times it was tried",
        remedy="keep these operators off it: operators.exclude",
    )


def _attempt(prepared: Prepared, samples: Samples) -> Deployment:
    adapter = prepared.plan.adapter
    prepared = with_known_memory(prepared)
    doubt = check_memory(prepared)
    prepared.tell(f"building for {', '.join(prepared.plan.placement.adapters)}")
    asked = samples.reference.samples if samples.reference else samples.inputs
    if doubt is None:
        artifacts = _artifacts(prepared, asked)
    else:
        prepared, artifacts = _measured_first(prepared, asked, doubt)
    host, arena = _load(prepared, artifacts)
    try:
        settings = settled(prepared, host)
        plan = replace(prepared.plan, settings=settings)
        prepared.tell("verifying")
        report = verified(prepared, host, samples)
        judge(report, prepared.config, adapter)
        if is_expendable() and report.outcome is not Outcome.OFF:
            remember_tried(plan, prepared.parts[0])
    except BaseException as error:
        try:
            host.close()
        except PaddockError as closing:
            error.add_note(f"and closing the sessions failed: {closing}")
        raise
    prepared.registry.observe(Event("artifact", prepared.name, {"adapter": adapter, "outcome": report.outcome.value}))
    return Deployment(prepared, plan, report, artifacts, host, arena)


def _measured_first(prepared: Prepared, samples: Sequence[Sample], budget: int) -> tuple[Prepared, list[Artifact]]:
    """The artifacts, and what their sessions take: measured before any is loaded where nobody watches.

    Raises `MemoryRefused` where that is over the budget.
    """
    artifacts = compiled(prepared.plan, prepared.parts)
    try:
        prepared = measured(prepared, artifacts, budget)
    except (BuildFailed, RunFailed):
        artifacts = _artifacts(prepared, samples)  # a first run on the samples tells better why
        return measured(prepared, artifacts, budget), artifacts
    remember_tried(prepared.plan, prepared.parts[0])
    return prepared, artifacts


def _artifacts(prepared: Prepared, samples: Sequence[Sample]) -> list[Artifact]:
    """The artifacts, tried out in children unless this very plan was before, or this process is there to be lost."""
    plan, parts = prepared.plan, prepared.parts
    if is_tried(plan, parts[0]) or is_expendable():
        return build(plan, parts)
    artifacts = try_out(prepared, samples)
    remember_tried(plan, parts[0])
    return artifacts


def _load(prepared: Prepared, artifacts: Sequence[Artifact]) -> tuple[ServingHost, Arena]:
    """The sessions in this process, and Paddock's own memory."""
    plan, parts, instances = prepared.plan, prepared.parts, prepared.config.instances
    # What a limit is judged by are sessions with one call inside each.
    inside = None if prepared.config.memory.limit is None else 1
    arena = Arena(prepared.budgeter.arena, prepared.interface)
    hosts: list[InProcessHost] = []
    try:
        for part, artifact in zip(parts, artifacts, strict=True):
            threading_kind = part.workshop.resolved.registered.adapter.concurrency.threading
            load = _loader(part, artifact)
            hosts.append(InProcessHost(load, threading_kind, instances, part.name, inside=inside))
        host: ServingHost = hosts[0]
        if len(parts) > 1:
            host = Pipeline(prepared.budgeter.flow, hosts, instances, plan.adapter, arena)
    except BaseException:
        for loaded in hosts:
            with contextlib.suppress(PaddockError):
                loaded.close()
        raise
    inputs = zip(prepared.interface.inputs, prepared.target.graph.input_values, strict=True)
    host.staging = Staging(arena, {there.name: v for v, there in inputs})
    try:
        check_unchanged(prepared.origin)
    except ModelError:
        host.close()
        raise
    return host, arena


def _loader(part: Part, artifact: Artifact) -> Callable[[], Session]:
    def load() -> Session:
        workshop = part.workshop
        adapter = workshop.adapter()
        verdict = building(f"{workshop.name}: checking the artifact", lambda: adapter.compatible(artifact))
        if not verdict.usable:
            raise NotAvailable(f"{workshop.name}: its artifact does not fit this host: {verdict.reason}")
        session: Session = building(f"{part.name}: loading", lambda: adapter.load(artifact, part.context))
        return session

    return load


def _refuse(prepared: Prepared, error: BaseException) -> None:
    prepared.discard()
    if isinstance(error, PaddockError):
        facts = {"error": type(error).__name__, "problem": error.problem}
        prepared.registry.observe(Event("refused", prepared.name, facts))
