"""`deploy()`: the spine from a model and a JSON config to a checked deployment."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import replace
from types import TracebackType
from typing import Any

import numpy as np

from paddock.checks import check_memory, settled, verified
from paddock.child import Children
from paddock.compile import Refused, build, is_tried, remember_tried
from paddock.errors import (
    AccuracyRefused,
    BuildFailed,
    ModelError,
    NotAvailable,
    PaddockError,
    RunFailed,
    UsageError,
    did_you_mean,
)
from paddock.graph import Graph
from paddock.host import InProcessHost, Outputs, ServingHost, building
from paddock.model import Files, Model
from paddock.pipeline import Flow, Pipeline
from paddock.plan import Means, Plan
from paddock.planning.shapes import describe_shape
from paddock.precision_search import found_before, search, searchable
from paddock.prepare import ConfigSource, ModelSource, Prepared, Progress, prepare
from paddock.reading import check_unchanged
from paddock.registry import Registry
from paddock.repair import repair, repairable, repaired_before
from paddock.samples import Border, Sample
from paddock.sampling import Samples
from paddock.spi import Artifact, Event, Session
from paddock.trials import REPLANS, replanned, try_out
from paddock.verify import Report, judge
from paddock.workshop import Part


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
    check_memory(prepared)
    prepared.tell(f"building for {', '.join(prepared.plan.placement.adapters)}")
    artifacts, host = _load(prepared, samples.reference.samples if samples.reference else samples.inputs)
    try:
        settings = settled(prepared, host)
        plan = replace(prepared.plan, settings=settings)
        prepared.tell("verifying")
        report = verified(prepared, host, samples)
        judge(report, prepared.config, adapter)
    except BaseException as error:
        try:
            host.close()
        except PaddockError as closing:
            error.add_note(f"and closing the sessions failed: {closing}")
        raise
    prepared.registry.observe(Event("artifact", prepared.name, {"adapter": adapter, "outcome": report.outcome.value}))
    return Deployment(prepared, plan, report, artifacts, host)


class Deployment:
    """A model served as its config asked, checked. Safe from many threads; a context manager.

    Made by `paddock.deploy`.
    """

    def __init__(
        self, prepared: Prepared, plan: Plan, report: Report, artifacts: Sequence[Artifact], host: ServingHost
    ) -> None:
        self.name = prepared.name
        self.config = prepared.config
        self.plan = plan
        """The frozen plan, with what took effect."""
        self.report = report
        """The verification's report."""
        self.artifacts = tuple(artifacts)
        """One for each segment of the placement."""
        self._prepared = prepared
        self._host = host
        self._closed = False
        # Also when a deployment is dropped, or the interpreter ends, without `close`.
        weakref.finalize(self, prepared.discard)
        self._registry = prepared.registry
        self._border = Border(prepared.interface)
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
    def lowered(self) -> tuple[Files, Files]:
        """The files of the first segment's model in its adapter's format: before it was cast or quantised, and after.

        The same twice where the model is run as it is.
        """
        target = self._prepared.parts[0].target
        made = self.plan.precision.means in (Means.CAST, Means.QUANTIZE) and target.source is not None
        return (target.source if made and target.source else target).files, target.files

    @property
    def registry(self) -> Registry:
        """The plugins it was chosen from."""
        return self._registry

    @property
    def interface(self) -> Graph:
        """What requests are checked by: the model's graph, its float inputs and outputs in the config's `io_dtype`."""
        return self._prepared.interface

    @property
    def inputs(self) -> Mapping[str, str]:
        """Each input's dtype and admitted shape, printable."""
        graph = self.interface
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
        outputs = outputs if outputs is None or isinstance(outputs, str) else tuple(outputs)
        return self._named(self._host.run(*self._translated(ready, outputs)), outputs)

    def submit(
        self, feeds: Mapping[str, Any], outputs: Sequence[str] | None = None
    ) -> Future[dict[str, np.ndarray[Any, Any]]]:
        """`run` on the deployment's own threads; the feeds are checked at once and must not change until it is done."""
        answer: Future[Outputs] = Future()
        outputs = outputs if outputs is None or isinstance(outputs, str) else tuple(outputs)
        inner = self._host.submit(*self._translated(self._border.check(feeds), outputs))

        def done(finished: Future[Outputs]) -> None:
            if not answer.set_running_or_notify_cancel():
                return
            error = finished.exception()
            if error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(self._named(finished.result(), outputs))

        inner.add_done_callback(done)
        return answer

    def close(self) -> None:
        """Waits for the requests inside, then frees everything; closing twice is fine."""
        self._host.check_closing()
        try:
            self._host.close()
        finally:
            self._prepared.discard()
            if not self._closed:
                self._closed = True
                self._registry.observe(Event("closed", self.name))

    def __enter__(self) -> Deployment:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _translated(
        self, ready: Mapping[str, np.ndarray[Any, Any]], outputs: Sequence[str] | None
    ) -> tuple[dict[str, np.ndarray[Any, Any]], list[str] | None]:
        if isinstance(outputs, str):
            raise UsageError("is one name, not a list of names", where="outputs", remedy=f"write [{outputs!r}]")
        wanted = None if outputs is None else [self._output(name) for name in outputs]
        return {self._inputs[name]: array for name, array in ready.items()}, wanted

    def _named(self, found: Outputs, wanted: Sequence[str] | None) -> Outputs:
        try:
            return {here: found[there] for here, there in self._outputs.items() if wanted is None or here in wanted}
        except KeyError as missing:
            raise RunFailed(f"{self.plan.adapter} left out the output {missing} of this run") from None

    def _output(self, name: object) -> str:
        if not isinstance(name, str) or name not in self._outputs:
            known = list(self._outputs)
            raise UsageError(
                f"the model has no output {name!r}",
                where="outputs",
                candidates=known,
                remedy=did_you_mean(str(name), known),
            )
        return self._outputs[name]


def _load(prepared: Prepared, samples: Sequence[Sample]) -> tuple[list[Artifact], ServingHost]:
    """The artifacts, tried out in children unless this very plan was before, and their sessions in this process."""
    plan, parts = prepared.plan, prepared.parts
    flow = Flow.of(parts, prepared.origin.graph) if len(parts) > 1 else None
    if is_tried(plan, parts[0]):
        artifacts = build(plan, parts)
    else:
        artifacts = try_out(prepared, samples)
        remember_tried(plan, parts[0])
    hosts: list[InProcessHost] = []
    try:
        for part, artifact in zip(parts, artifacts, strict=True):
            threading_kind = part.workshop.resolved.registered.adapter.concurrency.threading
            hosts.append(InProcessHost(_loader(part, artifact), threading_kind, prepared.config.instances, part.name))
        host: ServingHost = hosts[0]
        if flow is not None:
            host = Pipeline(flow, hosts, prepared.config.instances, plan.adapter)
    except BaseException:
        for loaded in hosts:
            with contextlib.suppress(PaddockError):
                loaded.close()
        raise
    try:
        check_unchanged(prepared.origin)
    except ModelError:
        host.close()
        raise
    return artifacts, host


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
