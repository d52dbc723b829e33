"""What stands between a plan and the first request: its memory, the settings that took effect, the verification."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from paddock import footprint
from paddock.errors import BuildFailed, StrictnessError
from paddock.host import ServingHost, building
from paddock.machine import host_facts
from paddock.plan import Setting
from paddock.planning import memory
from paddock.prepare import Prepared
from paddock.references import Reference
from paddock.samples import Sample, digest_samples, typical
from paddock.sampling import Samples
from paddock.spi import Artifact
from paddock.verify import Outcome, Report, compare, describe_budget


def check_memory(prepared: Prepared) -> int | None:
    """Raises `MemoryRefused` where the plan is over its budget; the budget where only a run can tell, else None."""
    plan, available = prepared.plan.memory, prepared.budgeter.available
    memory.check_budget(plan, available, prepared.budgeter.largest)
    return memory.must_measure(plan, available)


def with_known_memory(prepared: Prepared) -> Prepared:
    """The plan with what its sessions took when they were last measured, where they were."""
    found = footprint.kept(prepared)
    return prepared if found is None else prepared.measured(found.peak)


def measured(prepared: Prepared, artifacts: Sequence[Artifact], budget: int) -> Prepared:
    """The plan with what its sessions take in a process of their own; raises `MemoryRefused` where that is over."""
    prepared.tell("measuring the memory")
    found = footprint.measure(prepared, artifacts, largest_sample(prepared), budget)
    footprint.keep(prepared, found)
    return prepared.measured(found.peak)


def largest_sample(prepared: Prepared) -> Sample:
    """A generated request at the largest shapes that the config admits."""
    format = prepared.registry.formats[prepared.origin.format]
    return typical(prepared.interface, format.gathers, format.transparent, at="max")


def verified(prepared: Prepared, host: ServingHost, samples: Samples) -> Report:
    """The report on a loaded deployment; `verify: cached` takes an earlier one for the same plan and samples."""
    budget = describe_budget(prepared.config)
    if prepared.config.accuracy.verify == "off":
        return Report(Outcome.OFF, "not verified", reason='accuracy.verify is "off"')
    registry = prepared.registry
    against = [[e.adapter.name(), e.version, dict(registry.probe(e).versions)] for e in prepared.references()]
    key = [prepared.plan.key, digest_samples(samples.inputs), budget, against, host_facts()]
    if prepared.config.accuracy.verify == "cached" and (known := registry.store.get("verified", key)) is not None:
        return replace(Report.from_json(known), kept=True)
    reference = samples.reference or prepared.reference(samples)
    before = digest_samples(reference.samples)
    report = _judged(prepared, host, reference, samples.source)
    if digest_samples(reference.samples) != before:
        raise BuildFailed(
            f"{prepared.plan.adapter} changes the arrays that it is fed", remedy="report this to the plugin's author"
        )
    if report.outcome is Outcome.PASSED:
        registry.store.put("verified", key, report.to_json())
    return report


def _judged(prepared: Prepared, host: ServingHost, reference: Reference, source: str) -> Report:
    """The report on every sample, and on the first one on each further instance."""
    asked = reference.samples[: reference.judged]
    answers = [prepared.answer(host.run, sample) for sample in asked]
    report = compare(reference, answers, prepared.config, source)
    for instance in range(prepared.config.instances):
        if report.outcome is Outcome.FAILED:
            break
        answer = prepared.answer(partial(host.run_on, instance), asked[0])
        found = compare(reference, [answer], prepared.config, source)
        if found.outcome is Outcome.FAILED:
            return replace(found, reason=f"instance {instance}: {found.reason}")
    return report


def settled(prepared: Prepared, host: ServingHost) -> tuple[Setting, ...]:
    """The settings with what took effect; in strict mode raises where that is not what was asked for."""
    observed = building(f"{prepared.plan.adapter}: observing", host.observed).settings
    if not prepared.plan.placement.on(prepared.plan.adapter) and prepared.plan.placement.nodes:
        idle = [s for s in prepared.plan.settings if s.name.startswith("options.")]
        if idle and prepared.config.strict:
            raise StrictnessError(
                f"{prepared.plan.adapter} runs none of the nodes, so that its options have no effect",
                where=f"$.{idle[0].name}",
                remedy='leave the options out, or set "strict": false',
            )
        return prepared.plan.settings  # what was observed is the fallbacks'
    settings = tuple(replace(s, effective=observed.get(s.name)) for s in prepared.plan.settings)
    ignored = [s for s in settings if s.effective is not None and s.effective != s.requested]
    if ignored and prepared.config.strict:
        raise StrictnessError(
            f"{prepared.plan.adapter} did not do what was asked: "
            + "; ".join(f"{s.name} {s.requested!r} took effect as {s.effective!r}" for s in ignored),
            where=f"$.{ignored[0].name}",
            remedy='ask for what takes effect, or set "strict": false',
        )
    return settings
