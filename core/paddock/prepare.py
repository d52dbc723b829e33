"""Everything up to the plan: read, resolve, select, place, cut, convert. Nothing is built, loaded or allocated."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from paddock.cache import Store
from paddock.child import Children
from paddock.compile import check_answer
from paddock.config import HardwareConfig
from paddock.draft import draft
from paddock.errors import BuildFailed, ConfigError, NotAvailable, PaddockError, UsageError
from paddock.host import Outputs, building
from paddock.model import Model
from paddock.placing import Denials, Link, origins, place_model
from paddock.plan import Plan, Precision, PrecisionPlan, Verdict
from paddock.planning.operators import matching
from paddock.planning.precision import plan_precision
from paddock.planning.shapes import apply_shapes, describe_shape
from paddock.reading import open_model
from paddock.references import Reference, read_golden, reference_outputs
from paddock.registry import Registered, Registry, Resolved
from paddock.samples import Sample, checked, generate, load_samples
from paddock.spi import Arrays, Context, Event, Process, Shapes
from paddock.verify import Outcome, compare
from paddock.workshop import Part, Workshop

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
    samples: Sequence[Mapping[str, Any]] | None = None,
) -> Prepared:
    """The plan, with all that it takes to carry it out. Same arguments and errors as `paddock.deploy`."""
    config = HardwareConfig.load(config)
    registry = registry if registry is not None else Registry.discover()
    tell = progress or (lambda message: None)
    with config.named():
        tell("reading the model")
        origin = open_model(model, registry, children)
        origin = origin.with_graph(apply_shapes(origin.graph, config))
        given = _given(samples, origin, config)
        resolved = registry.resolve(config)
        _check_fallback(config, registry)
        work = Path(tempfile.mkdtemp(prefix="paddock-"))
        try:
            job = _Job(next(_NAMES), config, origin, registry, children, resolved, work, tell, given)
            prepared = job.plan({})
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            raise
        for passed, reason in resolved.skipped:
            facts = {"skipped": passed, "reason": reason, "taken": resolved.name}
            registry.observe(Event("candidate", job.name, facts))
        return prepared


@dataclass(frozen=True)
class _Job:
    """What stays the same however often a deployment is planned anew."""

    name: str
    config: HardwareConfig
    origin: Model
    registry: Registry
    children: Children
    resolved: Resolved
    work: Path
    tell: Progress
    given: tuple[Sample, ...] | None

    @property
    def chain(self) -> tuple[str, ...]:
        """The adapter asked for and its fallbacks, each once."""
        names = (self.registry.canonical(name) for name in self.config.fallback)
        return tuple(dict.fromkeys((self.resolved.name, *names)))

    def plan(self, denied: Denials, notes: Sequence[str] = (), trial: Store | None = None) -> Prepared:
        """The plan with these nodes kept off these adapters, beside those that the config excludes.

        A trial is told to nobody, and what is cut out for it is kept in a store of its own.
        """
        self.tell(f"planning for {self.resolved.name}")
        links = [Link(self.resolved.name, partial(self._workshop, self.resolved))]
        links += [Link(name, partial(self._fallback, name)) for name in self.chain[1:]]
        everywhere = _excluded(self.origin, self.config, links, denied, self.registry)
        placed = place_model(self.origin, links, everywhere, self.registry, self.children, trial)
        precision = plan_precision(self.origin, self.config, self.resolved.name)
        parts = tuple(replace(part, precision=self._precision(part, precision)) for part in placed.parts)
        candidates = _references(self.registry, self.origin, self.config.accuracy.verify)
        reference = tuple(entry.adapter.name() for entry in candidates)
        plan = draft(self.config, self.origin, self.resolved, placed, parts, precision, reference, notes)
        if trial is None:
            self._announce(plan)
        return Prepared(self, plan, parts, denied, tuple(notes), trial)

    def _announce(self, plan: Plan) -> None:
        self.registry.observe(Event("plan", self.name, {"adapter": plan.adapter, "key": plan.key}))
        for name in plan.placement.adapters:
            if name != plan.adapter:
                nodes = plan.placement.on(name)
                self.registry.observe(Event("fallback", self.name, {"adapter": name, "nodes": nodes}))

    def _workshop(self, resolved: Resolved) -> Workshop:
        _check_contract(resolved, self.origin)
        cache = self.registry.store.private("adapters", [resolved.name, dict(resolved.versions)])
        work = self.work / resolved.name.replace("/", "-")
        work.mkdir(exist_ok=True)
        workshop = Workshop(self.registry, self.children, resolved, Context(work, cache, self.tell))
        building(f"{resolved.name}: constructing", workshop.adapter)
        return workshop

    def _fallback(self, name: str) -> Workshop:
        """A fallback: with no options, in the precision asked for or else in fp32, on as many threads."""
        config = self.config
        hardware, _, backend = name.partition("/")
        changes: dict[str, Any] = {
            "hardware": hardware,
            "backend": backend,
            "options": {},
            "threads": None,
            "devices": (0,),
        }
        try:
            resolved = self.registry.consider(name, config.model_copy(update=changes))
        except NotAvailable:
            if config.precision is Precision.FP32:
                raise
            changes["precision"] = Precision.FP32
            resolved = self.registry.consider(name, config.model_copy(update=changes))
        threads = self.resolved.config.threads
        return self._workshop(replace(resolved, config=replace(resolved.config, threads=threads)))

    def _precision(self, part: Part, plan: PrecisionPlan) -> PrecisionPlan:
        """The precision plan by the nodes of a part's target; a fallback may have to compute in fp32."""
        own = part.workshop.resolved.config.precision
        if own is not plan.precision:
            return PrecisionPlan(own, "none", (), f"{part.workshop.name} does not compute in {plan.precision}")
        if not plan.keep_fp32 or part.target is self.origin:
            return plan
        keep = {
            n.index for n in part.target.graph.nodes if origins(part.target, n.index, self.origin) & set(plan.keep_fp32)
        }
        return replace(plan, keep_fp32=tuple(sorted(keep)))


@dataclass(frozen=True)
class Prepared:
    """A plan with all that it takes to carry it out."""

    job: _Job
    plan: Plan
    parts: tuple[Part, ...]
    denied: Denials
    """What planning was told beside the config: nodes that an SDK or a repair keeps off an adapter."""
    notes: tuple[str, ...] = ()
    """What the plan says of them."""
    trial: Store | None = None
    """Where the segments of a trial are kept."""

    @property
    def name(self) -> str:
        """The deployment's name in events."""
        return self.job.name

    @property
    def config(self) -> HardwareConfig:
        """The config as read."""
        return self.job.config

    @property
    def origin(self) -> Model:
        """The model as the user gave it, with the config's bounds."""
        return self.job.origin

    @property
    def registry(self) -> Registry:
        """The plugins to choose from."""
        return self.job.registry

    @property
    def target(self) -> Model:
        """The model whose input and output names the sessions know: the one part's, or the user's own."""
        return self.parts[0].target if len(self.parts) == 1 else self.origin

    def tell(self, message: str) -> None:
        """Says in a few words what is being done."""
        self.job.tell(message)

    def again(self, denied: Denials, notes: Sequence[str] = (), trial: Store | None = None) -> Prepared:
        """The plan made anew with other nodes kept off; of a trial, another one."""
        with self.config.named():
            return self.job.plan(denied, notes, trial or self.trial)

    def discard(self) -> None:
        """Removes the work folder of a plan that is not carried out."""
        shutil.rmtree(self.job.work, ignore_errors=True)

    def samples(self) -> Samples:
        """What the deployment is to be checked on; raises `ConfigError` where it does not fit the model."""
        accuracy, graph = self.config.accuracy, self.origin.graph
        if accuracy.golden is not None:
            return Samples((), "golden outputs", read_golden(accuracy.golden, self.origin))
        if self.job.given is not None:
            return Samples(self.job.given, "given in the call", extra=_shuffled(self.job.given))
        if accuracy.samples is not None:
            found = load_samples(accuracy.samples, graph)
            return Samples(tuple(found), "accuracy.samples", extra=_shuffled(found))
        format = self.registry.formats[self.origin.format]
        try:
            return Samples(tuple(generate(graph, format.gathers, format.transparent)), "generated")
        except ConfigError:
            if accuracy.verify == "off":
                return Samples((), "none")
            raise

    def references(self) -> list[Registered]:
        """The adapters that may serve as the reference, best first."""
        return _references(self.registry, self.origin, self.config.accuracy.verify)

    def reference(self, samples: Samples) -> Reference:
        """The reference's answers to the samples, and to one more that shows whether outputs vary at all."""
        answers = partial(reference_outputs, self.registry, self.origin, children=self.job.children)
        if samples.extra is not None:
            try:
                return replace(answers(samples=(*samples.inputs, samples.extra)), judged=len(samples.inputs))
            except NotAvailable:
                pass  # shuffled values may be none that the model takes, such as a shape; the samples themselves decide
        return replace(answers(samples=samples.inputs), judged=len(samples.inputs))

    def dispute(self, samples: Samples) -> str:
        """What a second reference says against the first, "" where it agrees or there is none.

        Where the two disagree beyond the budget, a deployment that agrees with one of them proves nothing against it.
        """
        if samples.reference is not None or len(self.references()) < 2:
            return ""
        try:
            first = self.reference(samples)
            asked = first.samples[: first.judged]
            second = reference_outputs(self.registry, self.origin, asked, self.job.children, after=first.adapter)
        except PaddockError:
            return ""
        report = compare(second, first.outputs[: first.judged], self.config, samples.source)
        if report.outcome is not Outcome.FAILED:
            return ""
        return f"the references disagree with each other: of {first.adapter}, by {second.adapter}, {report.reason}"

    def to_target(self, feeds: Arrays) -> Arrays:
        """Feeds under the names that the sessions know; conversions keep the order, not always the names."""
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


def _given(
    samples: Sequence[Mapping[str, Any]] | None, model: Model, config: HardwareConfig
) -> tuple[Sample, ...] | None:
    """Samples handed over in memory, checked; raises `UsageError` where they would have no effect."""
    if samples is None:
        return None
    accuracy = config.accuracy
    if accuracy.samples is not None or accuracy.verify in ("golden", "off"):
        raise UsageError(
            "have no effect beside the config's accuracy.samples, or with verify golden or off", where="samples",
            remedy="leave one of the two out",
        )  # fmt: skip
    if not samples:
        raise UsageError("are empty", where="samples", remedy="give at least one, or leave them out")
    return tuple(checked(sample, model.graph, f"samples[{n}]") for n, sample in enumerate(samples))


def _check_fallback(config: HardwareConfig, registry: Registry) -> None:
    for position, name in enumerate(config.fallback):
        if registry.canonical(name) == registry.canonical(config.adapter):
            raise ConfigError(
                "has no effect: it is the adapter that the config asks for", where=f"$.fallback[{position}]",
                remedy="name others, or leave it out",
            )  # fmt: skip


def _excluded(
    model: Model, config: HardwareConfig, links: Sequence[Link], denied: Denials, registry: Registry
) -> Denials:
    """What is kept off each adapter: by the config's `operators.exclude`, and beside it."""
    found = {name: dict(nodes) for name, nodes in denied.items()}
    reason = Verdict.no("excluded by the config", "$.operators.exclude")
    exclude = config.operators.exclude
    if not isinstance(exclude, Mapping):
        for node in matching(model, exclude, "$.operators.exclude"):
            found.setdefault(links[0].name, {})[node] = reason
        return found
    known = [link.name for link in links]
    for name, patterns in exclude.items():
        where = f'$.operators.exclude["{name}"]'
        if registry.canonical(name) not in known:
            raise ConfigError(
                "has no effect: the config does not use this adapter", where=where, candidates=known,
                remedy="name the config's own adapter or one of its fallbacks",
            )  # fmt: skip
        for node in matching(model, patterns, where):
            found.setdefault(registry.canonical(name), {})[node] = reason
    return found


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
