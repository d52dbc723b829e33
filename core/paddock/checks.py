"""What stands between a plan and the first request: its memory, the settings that took effect, the verification."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from paddock import footprint
from paddock.asked import check_contract
from paddock.config import HardwareConfig
from paddock.errors import BuildFailed, ConfigError, MemoryRefused, PaddockError, StrictnessError
from paddock.host import Outputs, ServingHost, building
from paddock.into import array_dtype, unlike
from paddock.machine import available, host_facts, memory_available
from paddock.plan import Setting
from paddock.planning import memory
from paddock.planning.shapes import describe_shape
from paddock.prepare import Prepared
from paddock.ready import Ready
from paddock.references import Reference
from paddock.registry import Resolved
from paddock.samples import digest_samples
from paddock.sampling import Samples
from paddock.spi import Arrays, Artifact
from paddock.translation import Translation
from paddock.verify import Outcome, Report, compare, describe_budget


def check_memory(prepared: Prepared) -> int | None:
    """Raises `MemoryRefused` where the plan is over its budget; the budget where only a run can tell, else None."""
    plan, available = prepared.plan.memory, prepared.budgeter.available
    memory.check_budget(plan, available, prepared.budgeter.largest)
    memory.check_beside(plan, memory_available())
    if plan.limit is not None and plan.most is None:
        _check_bounded(prepared)
    return memory.must_measure(plan, available)


def refusals(prepared: Prepared) -> tuple[PaddockError, ...]:
    """What would refuse the deployment of a plan that could be made, wherever its device is."""
    accuracy, plan = prepared.config.accuracy, prepared.plan
    checks: list[Callable[[], object]] = []
    if accuracy.samples is not None or accuracy.golden is not None:
        checks.append(prepared.samples)
    if prepared.assumed:  # what is free here says nothing of the host that has the device
        checks.append(lambda: check_contract(prepared.job.resolved, prepared.origin))
        checks.append(lambda: memory.check_budget(plan.memory, None, prepared.budgeter.largest))
    else:
        checks.append(lambda: check_memory(prepared))
    found = []
    for check in checks:
        try:
            with prepared.config.named():
                check()
        except PaddockError as error:
            found.append(error)
    return tuple(found)


def _check_bounded(prepared: Prepared) -> None:
    """Raises `ConfigError` where a limit is set and inputs may be of any size: no run could tell what they take."""
    graph, stand_in = prepared.interface, prepared.samples().source != "generated"
    loose = [
        v
        for v in graph.input_values
        if (v.kind == "tensor" or not stand_in)  # of a sequence nothing is bounded: a sample says what is usual
        and (v.shape is None or any(graph.range_of(dim) is None for dim in v.shape))
    ]
    if loose:
        raise ConfigError(
            "cannot be kept: nothing bounds the shapes of these inputs",
            where="$.memory.limit", candidates=[f"{v.name} {describe_shape(graph, v)}" for v in loose],
            remedy="state shapes, or batch_size for axis 0; of inputs that are no tensors give accuracy.samples",
        )  # fmt: skip


def with_known_memory(prepared: Prepared) -> Prepared:
    """The plan with what its sessions took when they were last measured, where they were."""
    if prepared.plan.memory.kind != "host":
        return prepared  # what is measured is the host's memory, and the budget is another's
    found = footprint.known(prepared.registry.store, prepared.plan)
    return prepared if found is None else prepared.measured(found.peak)


def measured(prepared: Prepared, artifacts: Sequence[Artifact], budget: int) -> Prepared:
    """The plan with what its sessions take in a process of their own; raises `MemoryRefused` where that is over."""
    prepared.tell("measuring the memory")
    found = footprint.measure(prepared, artifacts, footprint.largest(prepared), budget)
    footprint.keep(prepared, found)
    return prepared.measured(found.peak)


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
    report = judged(prepared.translation, host, reference, prepared.config, samples.source)
    if digest_samples(reference.samples) != before:
        raise BuildFailed(
            f"{prepared.plan.adapter} changes the arrays that it is fed", remedy="report this to the plugin's author"
        )
    if report.outcome is Outcome.PASSED:
        registry.store.put("verified", key, report.to_json())
    return report


def judged(names: Translation, host: ServingHost, reference: Reference, config: HardwareConfig, source: str) -> Report:
    """The report on every sample, and on the first one on each further instance."""
    asked = reference.samples[: reference.judged]
    answers = [names.answer(host.run, sample) for sample in asked]
    report = compare(reference, answers, config, source)
    for instance in range(config.instances):
        if report.outcome is Outcome.FAILED:
            break
        answer = names.answer(partial(host.run_on, instance), asked[0])
        found = compare(reference, [answer], config, source)
        if found.outcome is Outcome.FAILED:
            return replace(found, reason=f"instance {instance}: {found.reason}")
    if report.outcome is Outcome.FAILED or not host.writes:
        return report
    wrong, why = _written(names, host, reference, answers[0], config, source)
    return (
        replace(wrong or report, outcome=Outcome.FAILED, reason=f"into the caller's arrays: {why}") if why else report
    )


def _written(
    names: Translation, host: ServingHost, reference: Reference, answer: Outputs, config: HardwareConfig, source: str
) -> tuple[Report | None, str]:
    """What is wrong with the first sample's outputs in arrays of a caller's, "" where nothing is; its report, if any.

    `answer` is what it gave otherwise: its outputs that no array takes, and the others' shapes.
    """
    outputs = dict(names.outputs)
    kinds = {outputs[value.name]: array_dtype(value) for value in names.interface.output_values}
    takers = {there: dtype for there, dtype in kinds.items() if dtype is not None}
    known = {there: answer[here] for here, there in names.outputs}
    places = {name: unlike(known[name].astype(dtype, order="C")) for name, dtype in takers.items()}
    before = {name: array.tobytes() for name, array in places.items()}

    def run(feeds: Arrays) -> Outputs:
        return {**known, **host.run_on(0, feeds, places)} if places else known

    try:
        found = names.answer(run, reference.samples[0])
    except PaddockError as error:
        return None, error.problem
    for here, there in names.outputs:
        if there in places and before[there] and places[there].tobytes() == before[there]:
            return None, f"the output {here!r} is not written"
    report = compare(reference, [found], config, source)
    return report, report.reason if report.outcome is Outcome.FAILED else ""


def check_room(ready: Ready, resolved: Resolved) -> None:
    """Raises `MemoryRefused` where what is free now does not hold what is ready, or only planning anew can tell."""
    plan, free = ready.plan.memory, available(resolved.device.memory, resolved.device.memory_kind)
    memory.check_budget(plan, free)
    memory.check_beside(plan, memory_available())
    if memory.must_measure(plan, free) is not None:
        raise MemoryRefused("whether it fits what is free now has to be measured")


def settled(ready: Ready, host: ServingHost) -> tuple[Setting, ...]:
    """The settings with what took effect; in strict mode raises where that is not what was asked for."""
    plan = ready.plan
    observed = building(f"{plan.adapter}: observing", host.observed).settings
    if not plan.placement.on(plan.adapter) and plan.placement.nodes:
        idle = [s for s in plan.settings if s.name.startswith("options.")]
        if idle and ready.config.strict:
            raise StrictnessError(
                f"{plan.adapter} runs none of the nodes, so that its options have no effect",
                where=f"$.{idle[0].name}",
                remedy='leave the options out, or set "strict": false',
            )
        return plan.settings  # what was observed is the fallbacks'
    settings = tuple(replace(s, effective=observed.get(s.name)) for s in plan.settings)
    ignored = [s for s in settings if s.effective is not None and s.effective != s.requested]
    if ignored and ready.config.strict:
        raise StrictnessError(
            f"{plan.adapter} did not do what was asked: "
            + "; ".join(f"{s.name} {s.requested!r} took effect as {s.effective!r}" for s in ignored),
            where=f"$.{ignored[0].name}",
            remedy='ask for what takes effect, or set "strict": false',
        )
    return settings
