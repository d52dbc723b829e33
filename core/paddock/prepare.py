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

from paddock.asked import check_contract, check_effect, check_fallback, check_rescue, excluded
from paddock.budget import Budgeter
from paddock.built import interface
from paddock.cache import Store
from paddock.child import Children
from paddock.config import HardwareConfig
from paddock.draft import announce, announce_candidates, draft
from paddock.errors import NotAvailable, PaddockError
from paddock.graph import Graph
from paddock.host import building
from paddock.lowering import Lowering, checked_means
from paddock.model import Model
from paddock.placing import Denials, Link, place_model
from paddock.plan import Means, Plan, Precision, Verdict
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
from paddock.spi import Context
from paddock.translation import Translation
from paddock.verify import Outcome, compare
from paddock.workshop import Part, Workshop, adapter_folders

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
    assume: bool = False,
) -> Prepared:
    """The plan, with all that it takes to carry it out. Same arguments and errors as `paddock.deploy`.

    With `assume`, it is a plan for the config's own adapter even where its SDK or device is not here (see
    `Registry.consider`): to be looked at, and refused by whoever carries plans out. Where there can be no plan either,
    the error has what is not here beside it, as without `assume` an error of the config or model has.
    """
    config = HardwareConfig.load(config)
    registry = registry if registry is not None else Registry.discover()
    tell = progress or (lambda message: None)
    with config.named():
        tell("reading the model")
        whole = open_model(model, registry, children)
        name, work = deployment_name(), Path(tempfile.mkdtemp(prefix="paddock-"))
        absent: list[PaddockError] = []

        def planned(config: HardwareConfig, notes: Sequence[str] = ()) -> Prepared:
            resolved: Resolved | None = None
            try:
                resolved = registry.resolve(config, assume)
                absent.extend(filter(None, (resolved.absent,)))
            except PaddockError as error:
                absent.append(error)  # what else is wrong does not wait for a host where this is not
            origin = whole.with_graph(apply_shapes(whole.graph, config))
            admitting = admitting_model(whole, config)
            given = given_samples(samples, admitting, config)
            keep = asked_to_keep(origin, config)
            calibration = calibration_samples(admitting, config, is_quantised(origin))
            check_fallback(config, registry)
            check_rescue(config, registry)
            if resolved is None:
                raise absent[-1]
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
        except BaseException as error:
            shutil.rmtree(work, ignore_errors=True)
            if isinstance(error, PaddockError):
                error.beside(*absent)
            raise
        announce_candidates(registry, prepared.name, prepared.job.resolved)
        return prepared


def deployment_name() -> str:
    """A new deployment's name in events."""
    return f"deployment {next(_NUMBERS)}"


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
        check_effect(self.config, precision, len(placed.parts))
        candidates = _references(self.registry, self.origin, self.config.accuracy.verify)
        reference = tuple(entry.adapter.name() for entry in candidates)
        told = (*notes, *lower.notes)
        device = self.resolved.device
        budgeter = Budgeter(placed.parts, self.origin, self.config, device, self.registry, self.children)
        memory = budgeter.plan() if trial is None else budgeter.rough()
        plan = draft(self.config, self.origin, self.resolved, placed, placed.parts, precision, memory, reference, told)
        if trial is None and self.config.batch_size != "max":
            announce(self.registry, self.name, plan)
        return Prepared(self, plan, placed.parts, denied, keep, budgeter, tuple(notes), trial)

    def _in_two_precisions(self, links: list[Link], denied: Denials, keep: Keep) -> tuple[list[Link], Denials]:
        """The chain with the adapter a second time, in fp32, for the nodes that a whole session cannot keep apart."""
        name = self.resolved.name
        if Precision.FP32 not in self.resolved.registered.adapter.precisions:
            wide: list[Link] = []
        else:
            config = self.config.model_copy(update={"precision": Precision.FP32})
            resolved = self.registry.consider(name, config, bool(self.resolved.assumed))
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

    def _workshop(self, resolved: Resolved) -> Workshop:
        if not resolved.assumed:  # what is only looked at may show all that stands against it
            check_contract(resolved, self.origin)
        work, cache = adapter_folders(self.registry, self.work, resolved)
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
            "isolation": None,
            "timeout": None,
            "rescue": None,
        }
        # On a host that is not this one fallbacks may be assumed too; those that are here are taken as they are.
        assuming = (False, True) if self.resolved.assumed else (False,)
        ways = itertools.product(assuming, dict.fromkeys((config.precision, Precision.FP32)))
        for assume, precision in ways:
            asked = config.model_copy(update={**changes, "precision": precision})
            try:
                resolved = self.registry.consider(name, asked, assume)
            except NotAvailable as error:
                refused = error
            else:
                threads = self.resolved.config.threads
                return self._workshop(replace(resolved, config=replace(resolved.config, threads=threads)))
        raise refused


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
    def assumed(self) -> str:
        """What is not here that the plan rests on; "" for one that can be carried out."""
        return self.job.resolved.assumed

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
        return interface(self.origin.graph, self.config)

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

    @property
    def translation(self) -> Translation:
        """Between the user's names and those of the sessions."""
        here, there = self.origin.graph, self.target.graph
        inputs = zip(here.input_values, there.input_values, strict=True)
        outputs = zip(here.output_values, there.output_values, strict=True)
        return Translation(
            self.plan.adapter,
            here,
            self.interface,
            tuple((own.name, other.name) for own, other in inputs),
            tuple((own.name, other.name) for own, other in outputs),
        )


def _references(registry: Registry, model: Model, verify: str) -> list[Registered]:
    """Who may be the reference, best first; nobody where none is asked."""
    return [] if verify in ("off", "golden") else registry.references(model.format)
