"""`deploy()`: the spine from a model and a JSON config to a checked deployment.

Read top to bottom it is the way a config takes: read, bound, resolve, convert, select, plan, refuse or build, load,
verify.
"""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from paddock.child import Children
from paddock.compile import Workshop, build, select
from paddock.config import HardwareConfig
from paddock.errors import (
    ConfigError,
    NotAvailable,
    PaddockError,
    StrictnessError,
    UsageError,
    did_you_mean,
)
from paddock.host import InProcessHost, Outputs, building
from paddock.machine import host_facts, memory_available
from paddock.model import Model
from paddock.plan import Plan, Setting
from paddock.planning import memory
from paddock.planning.operators import place, verify_placement
from paddock.planning.precision import plan_precision
from paddock.planning.shapes import apply_shapes, describe_shape
from paddock.reading import adapted, open_model
from paddock.registry import Registry, Resolved
from paddock.samples import Border, Sample, digest_samples, generate, load_samples
from paddock.spi import Arrays, Artifact, Context, Event, SegmentPlan, Session
from paddock.verify import Outcome, Reference, Report, compare, describe_budget, judge, read_golden, reference_outputs

ModelSource = str | os.PathLike[str] | Model
ConfigSource = str | os.PathLike[str] | Mapping[str, Any] | HardwareConfig
Progress = Callable[[str], None]

_NAMES = (f"deployment {number}" for number in itertools.count(1))


def deploy(
    model: ModelSource,
    config: ConfigSource,
    *,
    registry: Registry | None = None,
    children: Children | None = None,
    progress: Progress | None = None,
) -> Deployment:
    """Deploys `model` as `config` says, checked against the reference.

    Args:
        model: A Paddle model (`.json`, `.pdiparams`, their stem or folder) or an ONNX file.
        config: A JSON file's path, a JSON string, a dict or a `HardwareConfig`.
        registry: The plugins to choose from; discovered anew by default.
        children: Child processes to work in; started and ended by this call by default.
        progress: Told in a few words what is being done.

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
        prepared = prepare(model, config, registry=registry, children=children, progress=progress)
        return prepared.deploy()


def prepare(
    model: ModelSource,
    config: ConfigSource,
    *,
    children: Children,
    registry: Registry | None = None,
    progress: Progress | None = None,
) -> Prepared:
    """Everything up to the plan: nothing is built, loaded or allocated. Same arguments and errors as `deploy`."""
    tell = progress or (lambda message: None)
    config = HardwareConfig.load(config)
    registry = registry if registry is not None else Registry.discover()
    tell("reading the model")
    origin = open_model(model, registry, children)
    origin = origin.with_graph(apply_shapes(origin.graph, config))
    resolved = registry.resolve(config)
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
        predicted = adapter.plan_memory(target, precision)
        if predicted is None:
            planner = "backend" if type(adapter).plans_memory else "none"
            predicted = memory.predict(target.graph, config, resolved.device.memory_kind, planner)
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
            remedies=tuple(adapter.known_defects(target)),
            versions=dict(resolved.versions),
            verify=verify,
            reference=() if verify in ("off", "golden") else _reference_names(registry, origin),
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

    def deploy(self) -> Deployment:
        """Checks the memory budget, builds, loads and verifies; see `paddock.deploy`."""
        registry, tell = self.workshop.registry, self.workshop.context.progress
        try:
            available = self.workshop.resolved.device.memory
            if self.plan.memory.kind == "host":
                available = min(available or memory_available(), memory_available())
            memory.check_budget(self.plan.memory, available)
            samples = self.samples()
            tell(f"building for {self.plan.adapter}")
            artifact, host = self.load(samples.reference.samples if samples.reference else samples.inputs)
        except BaseException as error:
            self._refused(error)
            raise
        try:
            settings = self._settled(host)
            plan = replace(self.plan, settings=settings)
            tell("verifying")
            report = self.verify(host, samples)
            judge(report, self.config, plan.adapter)
        except BaseException as error:
            host.close()
            self._refused(error)
            raise
        registry.observe(Event("artifact", self.name, {"adapter": plan.adapter, "outcome": report.outcome.value}))
        return Deployment(self, replace(plan), report, artifact, host)

    def samples(self) -> Samples:
        """What the deployment is to be checked on; raises `ConfigError` where it does not fit the model."""
        accuracy, graph = self.config.accuracy, self.origin.graph
        if accuracy.golden is not None:
            return Samples((), "golden outputs", read_golden(accuracy.golden, self.origin))
        if accuracy.samples is not None:
            found = load_samples(accuracy.samples, graph)
            return Samples(tuple(found), "accuracy.samples", extra=_shuffled(found[0]))
        format = self.workshop.registry.formats[self.origin.format]
        try:
            return Samples(tuple(generate(graph, format.gathers, format.transparent)), "generated")
        except ConfigError:
            if accuracy.verify == "off":
                return Samples((), "none")
            raise

    def load(self, samples: Sequence[Sample]) -> tuple[Artifact, InProcessHost]:
        """The artifact, tried out in a child, and its sessions in this process."""
        resolved, context = self.workshop.resolved, self.workshop.context
        segment = SegmentPlan(
            self.plan.placement.segments[0], self.plan.precision, self.plan.memory, self.plan.remedies
        )
        inputs = [self.to_target(sample) for sample in samples]
        artifact = build(self.workshop, self.target, self.plan, segment, inputs)

        def load() -> Session:
            adapter = self.workshop.adapter()
            verdict = adapter.compatible(artifact)
            if not verdict.usable:
                raise NotAvailable(f"{resolved.name}: its artifact does not fit this host: {verdict.reason}")
            session: Session = building(f"{resolved.name}: loading", lambda: adapter.load(artifact, context))
            return session

        threading_kind = resolved.registered.adapter.concurrency.threading
        return artifact, InProcessHost(load, threading_kind, self.config.instances, resolved.name)

    def verify(self, host: InProcessHost, samples: Samples) -> Report:
        """The report on a loaded deployment; `verify: cached` takes an earlier one for the same plan and samples."""
        budget = describe_budget(self.config)
        if self.config.accuracy.verify == "off":
            return Report(Outcome.OFF, "not verified", reason='accuracy.verify is "off"')
        registry = self.workshop.registry
        key = [self.plan.key, digest_samples(samples.inputs), budget, host_facts()]
        if self.config.accuracy.verify == "cached" and (known := registry.store.get("verified", key)) is not None:
            return replace(Report.from_json(known), kept=True)
        reference = samples.reference or self.reference(samples)
        answers = [self.answer(host, sample) for sample in reference.samples[: reference.judged]]
        report = compare(reference, answers, self.config, samples.source)
        if report.outcome is Outcome.PASSED:
            registry.store.put("verified", key, report.to_json())
        return report

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

    def answer(self, host: InProcessHost, sample: Sample) -> Outputs:
        """One run, under the user's own output names."""
        found = host.run(self.to_target(sample))
        names = zip(self.origin.graph.output_values, self.target.graph.output_values, strict=True)
        return {here.name: found[there.name] for here, there in names}

    def _settled(self, host: InProcessHost) -> tuple[Setting, ...]:
        """The settings with what took effect; in strict mode raises where that is not what was asked for."""
        observed = building(f"{self.plan.adapter}: observing", host.observed).settings
        settings = tuple(replace(s, effective=observed.get(s.name)) for s in self.plan.settings)
        ignored = [s for s in settings if s.effective is not None and s.effective != s.requested]
        if ignored and self.config.strict:
            raise StrictnessError(
                f"{self.plan.adapter} did not do what was asked: "
                + "; ".join(f"{s.name} {s.requested!r} took effect as {s.effective!r}" for s in ignored),
                where=f"$.{ignored[0].name}",
                remedy='ask for what takes effect, or set "strict": false',
            )
        return settings

    def _refused(self, error: BaseException) -> None:
        self.discard()
        if isinstance(error, PaddockError):
            facts = {"error": type(error).__name__, "problem": error.problem}
            self.workshop.registry.observe(Event("refused", self.name, facts))


@dataclass(frozen=True)
class Samples:
    """What a deployment is checked on, where it came from, and golden answers where there are any."""

    inputs: tuple[Sample, ...]
    source: str
    reference: Reference | None = None
    extra: Sample | None = None
    """One more input for the reference alone, to see whether outputs vary; not judged."""


class Deployment:
    """A model served as its config asked, checked. Safe from many threads; a context manager.

    Made by `paddock.deploy`.
    """

    def __init__(self, prepared: Prepared, plan: Plan, report: Report, artifact: Artifact, host: InProcessHost) -> None:
        self.name = prepared.name
        self.config = prepared.config
        self.plan = plan
        """The frozen plan, with what took effect."""
        self.report = report
        """The verification's report."""
        self.artifact = artifact
        self._prepared = prepared
        self._host = host
        self._registry = prepared.workshop.registry
        self._border = Border(prepared.origin.graph)
        inputs = zip(prepared.origin.graph.input_values, prepared.target.graph.input_values, strict=True)
        outputs = zip(prepared.origin.graph.output_values, prepared.target.graph.output_values, strict=True)
        self._inputs = {here.name: there.name for here, there in inputs}
        self._outputs = {here.name: there.name for here, there in outputs}
        self._renames = any(here != there for here, there in (*self._inputs.items(), *self._outputs.items()))

    @property
    def model(self) -> Model:
        """The model as the user gave it, with the config's shapes as bounds."""
        return self._prepared.origin

    @property
    def registry(self) -> Registry:
        """The plugins it was chosen from."""
        return self._registry

    @property
    def inputs(self) -> Mapping[str, str]:
        """Each input's dtype and admitted shape, printable."""
        graph = self._prepared.origin.graph
        return {value.name: f"{value.dtype} {describe_shape(graph, value)}" for value in graph.input_values}

    @property
    def outputs(self) -> tuple[str, ...]:
        """The outputs' names."""
        return tuple(self._outputs)

    def run(self, feeds: Mapping[str, Any], outputs: Sequence[str] | None = None) -> dict[str, np.ndarray[Any, Any]]:
        """Answers one request.

        Args:
            feeds: An array for each input: NumPy, or anything with `__dlpack__` on the host.
            outputs: The outputs wanted; all by default.

        Returns the outputs by name, arrays that belong to the caller. Raises `UsageError` for feeds that do not fit,
        `RunFailed` where the backend fails or the deployment is closed.
        """
        ready = self._border.check(feeds)
        if not self._renames and outputs is None:
            return self._host.run(ready)
        return self._named(self._host.run(*self._translated(ready, outputs)))

    def submit(
        self, feeds: Mapping[str, Any], outputs: Sequence[str] | None = None
    ) -> Future[dict[str, np.ndarray[Any, Any]]]:
        """`run` on the deployment's own threads; the feeds are checked at once and must not change until it is done."""
        answer: Future[Outputs] = Future()
        inner = self._host.submit(*self._translated(self._border.check(feeds), outputs))

        def done(finished: Future[Outputs]) -> None:
            if not answer.set_running_or_notify_cancel():
                return
            error = finished.exception()
            if error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(self._named(finished.result()))

        inner.add_done_callback(done)
        return answer

    def close(self) -> None:
        """Waits for the requests inside, then frees everything; closing twice is fine."""
        self._host.close()
        self._prepared.discard()
        self._registry.observe(Event("closed", self.name))

    def __enter__(self) -> Deployment:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _translated(
        self, ready: Mapping[str, np.ndarray[Any, Any]], outputs: Sequence[str] | None
    ) -> tuple[dict[str, np.ndarray[Any, Any]], list[str] | None]:
        wanted = None if outputs is None else [self._output(name) for name in outputs]
        return {self._inputs[name]: array for name, array in ready.items()}, wanted

    def _named(self, found: Outputs) -> Outputs:
        return {here: found[there] for here, there in self._outputs.items() if there in found}

    def _output(self, name: str) -> str:
        if name not in self._outputs:
            known = list(self._outputs)
            raise UsageError(
                f"the model has no output {name!r}",
                where="outputs",
                candidates=known,
                remedy=did_you_mean(str(name), known),
            )
        return self._outputs[name]


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


def _reference_names(registry: Registry, model: Model) -> tuple[str, ...]:
    return tuple(entry.adapter.name() for entry in registry.references(model.format))


def _shuffled(sample: Sample) -> Sample:
    """The sample's own elements in another order: other values, every one in its range."""
    rng = np.random.default_rng(0)
    return {name: rng.permutation(array.ravel()).reshape(array.shape) for name, array in sample.items()}
