"""Everything up to the plan: read, resolve, select, place, cut, convert. Nothing is built, loaded or allocated."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from paddock.asked import check_contract, check_fallback, excluded
from paddock.budget import Budgeter
from paddock.cache import Store
from paddock.child import Children
from paddock.compile import check_answer
from paddock.config import HardwareConfig
from paddock.draft import draft
from paddock.errors import BuildFailed, NotAvailable, PaddockError
from paddock.graph import Graph
from paddock.host import Outputs, building
from paddock.lowering import Lowering, checked_means
from paddock.model import Model
from paddock.placing import Denials, Link, Placed, place_model
from paddock.plan import Means, Plan, Precision, PrecisionPlan, Verdict
from paddock.planning.precision import NARROW, Keep, asked_to_keep, in_fp32, is_quantised, together
from paddock.planning.shapes import apply_shapes
from paddock.reading import open_model
from paddock.references import Reference, reference_outputs
from paddock.registry import Registered, Registry, Resolved
from paddock.samples import Sample, digest_samples
from paddock.sampling import (
    Samples,
    admitting_model,
    calibration_samples,
    check_apart,
    given_samples,
    judging_samples,
)
from paddock.spi import Arrays, Context, Event
from paddock.verify import Outcome, compare
from paddock.workshop import Part, Workshop

ModelSource = str | os.PathLike[str] | Model
ConfigSource = str | os.PathLike[str] | Mapping[str, Any] | HardwareConfig
Progress = Callable[[str], None]

_NUMBERS = itertools.count(1)


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
        whole = open_model(model, registry, children)
        name, work = f"deployment {next(_NUMBERS)}", Path(tempfile.mkdtemp(prefix="paddock-"))

        def planned(config: HardwareConfig, notes: Sequence[str] = ()) -> Prepared:
            origin = whole.with_graph(apply_shapes(whole.graph, config))
            admitting = admitting_model(whole, config)
            given = given_samples(samples, admitting, config)
            keep = asked_to_keep(origin, config)
            calibration = calibration_samples(admitting, config, is_quantised(origin))
            resolved = registry.resolve(config)
            check_fallback(config, registry)
            job = _Job(
                name, config, origin, admitting, registry, children, resolved, work, tell, given, calibration
            )  # fmt: skip
            if calibration and config.accuracy.verify != "off":
                check_apart(calibration, job.samples().judged, admitting.graph)
            return job.plan({}, keep, notes)

        try:
            prepared = planned(config)
            if config.batch_size == "max":
                batch, reason = prepared.budgeter.settled_batch(prepared.plan.memory)
                prepared = planned(config.model_copy(update={"batch_size": batch}), (reason,))
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            raise
        resolved = prepared.job.resolved
        for passed, reason in resolved.skipped:
            facts = {"skipped": passed, "reason": reason, "taken": resolved.name}
            registry.observe(Event("candidate", prepared.name, facts))
        return prepared


@dataclass(frozen=True)
class _Job:
    """What stays the same however often a deployment is planned anew."""

    name: str
    config: HardwareConfig
    origin: Model
    admitting: Model
    """The same, with the bounds that samples are checked by: while the batch size is being found, it is open."""
    registry: Registry
    children: Children
    resolved: Resolved
    work: Path
    tell: Progress
    given: tuple[Sample, ...] | None
    calibration: tuple[Sample, ...]

    @property
    def chain(self) -> tuple[str, ...]:
        """The adapter asked for and its fallbacks, each once."""
        names = (self.registry.canonical(name) for name in self.config.fallback)
        return tuple(dict.fromkeys((self.resolved.name, *names)))

    def plan(self, denied: Denials, keep: Keep, notes: Sequence[str] = (), trial: Store | None = None) -> Prepared:
        """The plan with these nodes kept off these adapters, beside those that the config excludes, and these in fp32.

        A trial is told to nobody, and what is cut out for it is kept in a store of its own.
        """
        self.tell(f"planning for {self.resolved.name}")
        links = [Link(self.resolved.name, partial(self._workshop, self.resolved))]
        links += [Link(name, partial(self._fallback, name)) for name in self.chain[1:]]
        everywhere = excluded(self.origin, self.config, links, denied, self.registry)
        asked = self.config.precision
        if keep.nodes and asked is not Precision.FP32 and checked_means(self.resolved, asked) is Means.BACKEND:
            links, everywhere = self._in_two_precisions(links, everywhere, keep)
        lower = self._lowering(keep, trial)
        placed = place_model(self.origin, links, everywhere, self.registry, self.children, lower, trial)
        precision = together(self.origin, asked, [(p.dtypes, p.precision) for p in placed.parts], keep)
        border = "" if self.config.io_dtype is None else NARROW[Precision(self.config.io_dtype)]
        precision = replace(precision, border=border, calibration=self._calibrated_on)
        self._check_effect(precision, placed)
        candidates = _references(self.registry, self.origin, self.config.accuracy.verify)
        reference = tuple(entry.adapter.name() for entry in candidates)
        told = (*notes, *lower.notes)
        device = self.resolved.device
        budgeter = Budgeter(placed.parts, self.origin, self.config, device, self.registry, self.children)
        memory = budgeter.plan() if trial is None else budgeter.rough()
        plan = draft(self.config, self.origin, self.resolved, placed, placed.parts, precision, memory, reference, told)
        if trial is None and self.config.batch_size != "max":
            self._announce(plan)
        return Prepared(self, plan, placed.parts, denied, keep, budgeter, tuple(notes), trial)

    def _in_two_precisions(self, links: list[Link], denied: Denials, keep: Keep) -> tuple[list[Link], Denials]:
        """The chain with the adapter a second time, in fp32, for the nodes that a whole session cannot keep apart."""
        name = self.resolved.name
        if Precision.FP32 not in self.resolved.registered.adapter.precisions:
            wide: list[Link] = []
        else:
            config = self.config.model_copy(update={"precision": Precision.FP32})
            resolved = self.registry.consider(name, config)
            threads = self.resolved.config.threads
            resolved = replace(resolved, config=replace(resolved.config, threads=threads))
            wide = [Link(in_fp32(name), partial(self._workshop, resolved))]
        kept = {node: Verdict.no(f"it stays in fp32: {reason}", "precision") for node, reason in keep.nodes.items()}
        own = denied.get(name, {})
        found = {**denied, name: {**kept, **own}}
        if wide:
            found[wide[0].name] = own
        return [links[0], *wide, *links[1:]], found

    def _lowering(self, keep: Keep, trial: Store | None) -> Lowering:
        config = self.config
        return Lowering(
            self.origin,
            config.precision,
            NARROW[Precision(config.storage)] if config.storage else "",
            config.io_dtype is not None,
            keep,
            config.accuracy.verify != "off",
            self.registry,
            self.children,
            lambda: self.calibration or self.samples().judged,
            lambda: self.calibration,
            trial or self.registry.store,
        )

    def _check_effect(self, precision: PrecisionPlan, placed: Placed) -> None:
        """Raises `NotAvailable` where what was asked for changes nothing, or cannot be had."""
        if precision.means in (Means.CAST, Means.QUANTIZE) and not precision.storage:
            narrow = [node for node in precision.nodes if node.dtype not in ("", "float32")]
            if not narrow:
                rows = [f"{op} ({count}): {reason}" for op, _, reason, count in precision.by_operator()]
                raise NotAvailable(
                    f"precision {precision.precision} would have no effect: no node computes in it",
                    where="$.precision", candidates=rows[:8], remedy="set precision to fp32",
                )  # fmt: skip
        if precision.storage and not precision.weights_saved:
            raise NotAvailable(
                f"storage {self.config.storage} would have no effect: there are no float32 weights that it holds",
                where="$.storage", remedy="leave it out",
            )  # fmt: skip
        if self.config.io_dtype is not None and (len(placed.parts) > 1 or precision.means is not Means.CAST):
            raise NotAvailable(
                "inputs and outputs change their dtype only where one adapter runs the whole model, cast by Paddock",
                where="$.io_dtype", remedy="leave it out",
            )  # fmt: skip

    def samples(self) -> Samples:
        """What the deployment is to be checked on; raises `ConfigError` where it does not fit the model."""
        return self._judging

    @cached_property
    def _judging(self) -> Samples:
        """Read or drawn once: planning measures on it, and verification judges by it."""
        format = self.registry.formats[self.origin.format]
        found = judging_samples(self.admitting, self.config, self.given, format)
        return found if self.config.io_dtype is None else found.rounded()

    @cached_property
    def _calibrated_on(self) -> str:
        return digest_samples(self.calibration) if self.calibration else ""

    def _announce(self, plan: Plan) -> None:
        self.registry.observe(Event("plan", self.name, {"adapter": plan.adapter, "key": plan.key}))
        for name in plan.placement.adapters:
            if name not in (plan.adapter, in_fp32(plan.adapter)):
                nodes = plan.placement.on(name)
                self.registry.observe(Event("fallback", self.name, {"adapter": name, "nodes": nodes}))

    def _workshop(self, resolved: Resolved) -> Workshop:
        check_contract(resolved, self.origin)
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


@dataclass(frozen=True)
class Prepared:
    """A plan with all that it takes to carry it out."""

    job: _Job
    plan: Plan
    parts: tuple[Part, ...]
    denied: Denials
    """What planning was told beside the config: nodes that an SDK or a repair keeps off an adapter."""
    keep: Keep
    """The nodes that are to stay in fp32."""
    budgeter: Budgeter
    """What predicts the memory, also for other batch sizes."""
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

    @property
    def interface(self) -> Graph:
        """What requests are checked by: the origin's graph, its float32 inputs and outputs in the config's io_dtype."""
        graph = self.origin.graph
        if self.config.io_dtype is None:
            return graph
        border = {v for v in (*graph.inputs, *graph.outputs) if graph.values[v].dtype == "float32"}
        values = tuple(replace(v, dtype="float16") if i in border else v for i, v in enumerate(graph.values))
        return replace(graph, values=values)

    def tell(self, message: str) -> None:
        """Says in a few words what is being done."""
        self.job.tell(message)

    def again(self, denied: Denials, notes: Sequence[str] = (), trial: Store | None = None) -> Prepared:
        """The plan made anew with other nodes kept off; of a trial, another one."""
        with self.config.named():
            return self.job.plan(denied, self.keep, notes, trial or self.trial)

    def keeping(self, keep: Keep, trial: Store | None = None) -> Prepared:
        """The plan made anew with other nodes in fp32; of a trial, another one."""
        with self.config.named():
            return self.job.plan(self.denied, keep, self.notes, trial or self.trial)

    def measured(self, peak: int) -> Prepared:
        """The same plan, with the bytes that its sessions took."""
        return replace(self, plan=replace(self.plan, memory=replace(self.plan.memory, measured=peak)))

    def discard(self) -> None:
        """Removes the work folder of a plan that is not carried out."""
        shutil.rmtree(self.job.work, ignore_errors=True)

    def samples(self) -> Samples:
        """What the deployment is to be checked on; raises `ConfigError` where it does not fit the model."""
        return self.job.samples()

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
        names = zip(self.interface.input_values, self.target.graph.input_values, strict=True)
        if self.config.io_dtype is None:
            return {there.name: feeds[here.name] for here, there in names}
        return {there.name: feeds[here.name].astype(here.dtype or "") for here, there in names}

    def answer(self, run: Callable[[Arrays], Outputs], sample: Sample) -> Outputs:
        """One run, checked for its form, under the user's own output names."""
        found = run(self.to_target(sample))
        values = list(zip(self.origin.graph.output_values, self.target.graph.output_values, strict=True))
        check_answer(found, [there.name for _, there in values])
        for here, there in values:
            if here.kind == "tensor" and not isinstance(found[there.name], np.ndarray):
                kind = type(found[there.name]).__name__
                raise BuildFailed(f"{self.plan.adapter}: run() returned a {kind} for {here.name!r}, not an array")
        if self.config.io_dtype is None:
            return {here.name: found[there.name] for here, there in values}
        return {here.name: found[there.name].astype(here.dtype or "") for here, there in values}


def _references(registry: Registry, model: Model, verify: str) -> list[Registered]:
    """Who may be the reference, best first; nobody where none is asked."""
    return [] if verify in ("off", "golden") else registry.references(model.format)
