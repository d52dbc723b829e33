"""`deploy()`: the spine from a model and a JSON config to a checked deployment."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from paddock import kept
from paddock.asked import check_rescue
from paddock.checks import check_memory, measured, settled, verified, with_known_memory
from paddock.child import Children, is_called_off
from paddock.compile import (
    Refused,
    are_kept,
    build,
    compiled,
    forget,
    is_expendable,
    is_tried,
    notes_of,
    remember_tried,
)
from paddock.config import HardwareConfig
from paddock.errors import AccuracyRefused, BuildFailed, NotAvailable, PaddockError, RunFailed
from paddock.footprint import Measured, measured_alone
from paddock.machine import collector_paused
from paddock.model import Files, check_unchanged
from paddock.precision_search import found_before, search, searchable
from paddock.prepare import ConfigSource, ModelSource, Prepared, Progress, prepare
from paddock.ready import lowered_of, ready_of
from paddock.registry import Registry
from paddock.repair import repair, repairable, repaired_before
from paddock.samples import Sample
from paddock.sampling import Samples
from paddock.serving import Deployment, Origin
from paddock.spi import Artifact, Event
from paddock.standin import beside, stand_in
from paddock.trials import REPLANS, replanned, try_out
from paddock.verify import Outcome, judge

__all__ = ["Deployment", "carry_out", "deploy"]

_log = logging.getLogger("paddock.cache")


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
    config = HardwareConfig.load(config)
    with collector_paused():
        registry = registry if registry is not None else Registry.discover()
    if config.rescue is None:
        return _deployed(model, config, registry, children, progress, samples)
    with config.named():
        check_rescue(config, registry)
        other = stand_in(config, "rescue", registry)
    rescuer = _deployed(model, other, registry, children, progress, samples)
    try:
        with config.named():
            left = beside(config, rescuer, registry, "rescue")
        made = _deployed(model, left, registry, children, progress, samples)
    except BaseException:
        rescuer.close()
        raise
    made.rescued_by(rescuer)
    return made


def _deployed(
    model: ModelSource,
    config: HardwareConfig,
    registry: Registry,
    children: Children | None,
    progress: Progress | None,
    samples: Sequence[Mapping[str, Any]] | None,
) -> Deployment:
    """`deploy`, but for who rescues it: as it was kept, or planned and carried out."""
    with collector_paused(), config.named():
        place = kept.place(model, config, registry) if samples is None else None

        @contextmanager
        def planned() -> Iterator[Prepared]:
            with Children() as own:
                prepared = prepare(model, config, registry=registry, children=own, progress=progress)
                try:
                    yield prepared
                finally:
                    prepared.discard()

        if place is not None:
            known = kept.take_up(place, config, registry, progress or (lambda message: None), planned)
            if known is not None:
                return known
    with ExitStack() as stack:
        if children is None:
            children = stack.enter_context(Children())
        prepared = prepare(model, config, registry=registry, children=children, progress=progress, samples=samples)
        made = carry_out(prepared)
        if place is not None:
            kept.keep(place, made)
        return made


def carry_out(prepared: Prepared) -> Deployment:
    """A plan carried out: checks the memory budget, builds, loads and verifies; see `deploy` for what it raises.

    Where an SDK turns out to refuse nodes, and the config names fallbacks, the plan is made anew without them.
    """
    if prepared.assumed:
        raise NotAvailable(f"the plan is only to be looked at: {prepared.assumed}", remedy="deploy where these are")
    with prepared.config.named():
        try:
            samples = prepared.samples()
            prepared = found_before(prepared, samples) or prepared
            repaired = repaired_before(prepared, samples)
            if repaired is not None:
                try:
                    return _without_refused(repaired, samples)
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
    """Carried out once; once more where artifacts that were compiled before do not load any more."""
    compiled_before = are_kept(prepared.plan, prepared.parts)
    try:
        return _carried_out(prepared, samples)
    except Refused:
        raise
    except BuildFailed as error:
        if not compiled_before or is_called_off():
            raise
        _log.warning("what was compiled before is compiled anew: %s", error.problem)
        forget(prepared.plan, prepared.parts)
        return _carried_out(prepared, samples)


def _carried_out(prepared: Prepared, samples: Samples) -> Deployment:
    adapter = prepared.plan.adapter
    prepared = with_known_memory(prepared)
    doubt = check_memory(prepared)
    prepared.tell(f"building for {', '.join(prepared.plan.placement.adapters)}")
    asked = samples.reference.samples if samples.reference else samples.inputs
    if doubt is None:
        artifacts = _artifacts(prepared, asked)
    else:
        prepared, artifacts = _measured_first(prepared, asked, doubt)
    ready = ready_of(prepared, artifacts)
    ready = replace(ready, plan=replace(ready.plan, notes=(*ready.plan.notes, *notes_of(artifacts))))
    host, arena = ready.load(prepared.tell)
    try:
        check_unchanged(prepared.origin)
        ready = replace(ready, plan=replace(ready.plan, settings=settled(ready, host)))
        prepared.tell("verifying")
        report = verified(prepared, host, samples)
        judge(report, prepared.config, adapter)
        if is_expendable() and report.outcome is not Outcome.OFF:
            remember_tried(prepared.plan, prepared.parts[0])
    except BaseException as error:
        try:
            host.close()
        except PaddockError as closing:
            error.add_note(f"and closing the sessions failed: {closing}")
        raise
    prepared.registry.observe(Event("artifact", prepared.name, {"adapter": adapter, "outcome": report.outcome.value}))
    return Deployment(ready, report, (host, arena), prepared.registry, _Planned(prepared))


@dataclass(frozen=True)
class _Planned(Origin):
    """The plan that a deployment was made by."""

    prepared: Prepared

    @property
    def name(self) -> str:
        return self.prepared.name

    def measure(self, artifacts: Sequence[Artifact]) -> Measured:
        return measured_alone(self.prepared, artifacts)

    def lowered(self) -> tuple[Files, Files]:
        return lowered_of(self.prepared)

    def discard(self) -> None:
        self.prepared.discard()


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


def _refuse(prepared: Prepared, error: BaseException) -> None:
    prepared.discard()
    if isinstance(error, PaddockError):
        facts = {"error": type(error).__name__, "problem": error.problem}
        prepared.registry.observe(Event("refused", prepared.name, facts))
