"""A model being served: what the user of `paddock.deploy` holds."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Protocol

import numpy as np

from paddock.arena import Arena
from paddock.config import HardwareConfig
from paddock.device_session import OnDevice
from paddock.errors import OtherShape, PaddockError, UsageError, did_you_mean
from paddock.footprint import Measured
from paddock.graph import Graph
from paddock.guard import Isolation
from paddock.host import InProcessHost, Outputs, ServingHost
from paddock.into import Answers, Receivers
from paddock.model import Files, Model
from paddock.plan import Plan
from paddock.planning.shapes import describe_shape
from paddock.ready import Ready
from paddock.registry import Registry
from paddock.rescue import Rescue
from paddock.samples import Border
from paddock.spi import Artifact, Event, other_shape
from paddock.verify import Report

Phase = Literal["building", "comparing", "swapped", "kept", "refused", "closed"]


@dataclass(frozen=True)
class WarmStart:
    """How far a warm start is.

    `phase` is "building" or "comparing" while the adapter of `warm_start` serves until further notice. Then one of:
    "swapped": what the config asks for serves; "refused": what was built is wrong, or could not be built, and `error`
    says why; "kept": tuning found nothing better than what serves; "closed": it was closed before that was decided.
    """

    phase: Phase
    serving: str
    """The adapter that serves."""
    reason: str
    """Why it serves or, while building, what is being done."""
    compared: int = 0
    """How many live requests both answered."""
    worst: float | None = None
    """Their largest relative error (see `OutputCheck`), what serves first taken as the reference."""
    error: PaddockError | None = None

    @property
    def decided(self) -> bool:
        """Whether who serves will not change any more."""
        return self.phase not in ("building", "comparing")


class Origin(Protocol):
    """Where a deployment comes from: what only its maker can do for it."""

    @property
    def name(self) -> str:
        """The deployment's name in events."""

    def measure(self, artifacts: Sequence[Artifact]) -> Measured:
        """What its sessions take; see `Deployment.measure_memory`."""

    def lowered(self) -> tuple[Files, Files]:
        """See `Deployment.lowered`."""

    def discard(self) -> None:
        """Removes what it was made in; twice is fine."""


class Deployment:
    """A model served as its config asked, checked. Safe from many threads; a context manager.

    Made by `paddock.deploy`.
    """

    def __init__(
        self,
        ready: Ready,
        report: Report,
        loaded: tuple[ServingHost, Arena],
        registry: Registry,
        origin: Origin,
    ) -> None:
        self._ready = ready
        self._report = report
        self._origin = origin
        self._host, self._arena = loaded
        self._rescue: Rescue | None = None
        self._closed = False
        # Also when a deployment is dropped, or the interpreter ends, without `close`.
        weakref.finalize(self, origin.discard)
        self._registry = registry
        name, guard = origin.name, self._host.guard
        if guard is not None:
            guard.listen(lambda kind, facts: registry.observe(Event(kind, name, facts)))
        self._border = Border(ready.interface)
        self._receivers = Receivers(ready.interface)
        self._inputs, self._outputs = dict(ready.inputs), dict(ready.outputs)
        self._answers = Answers(ready.interface, self._outputs, ready.plan.adapter)
        self._renames = any(here != there for here, there in (*ready.inputs, *ready.outputs))

    @property
    def name(self) -> str:
        """Its name in events."""
        return self._origin.name

    @property
    def ready(self) -> Ready:
        """What its sessions were loaded from."""
        return self._ready

    @property
    def config(self) -> HardwareConfig:
        """The config that it was made by."""
        return self.ready.config

    @property
    def plan(self) -> Plan:
        """The frozen plan, with what took effect."""
        return self.ready.plan

    @property
    def report(self) -> Report:
        """The verification's report."""
        return self._report

    @property
    def artifacts(self) -> tuple[Artifact, ...]:
        """One for each segment of the placement."""
        return tuple(segment.artifact for segment in self.ready.built.segments)

    @property
    def interface(self) -> Graph:
        """What requests are checked by: the model's graph, float inputs and outputs in the config's `io_dtype`."""
        return self.ready.interface

    @property
    def model(self) -> Model:
        """The model as the user gave it, with the config's shapes as bounds."""
        return self.ready.origin

    @property
    def registry(self) -> Registry:
        """The plugins it was chosen from."""
        return self._registry

    @property
    def warm(self) -> WarmStart | None:
        """How far the config's `warm_start` is; None where it has none."""
        return None

    def settle(self, timeout: float) -> WarmStart | None:
        """Waits until it is decided who serves for good, for `timeout` seconds at most; returns `warm`.

        Without live requests to compare by, that never is.
        """
        return self.warm

    @property
    def isolation(self) -> Isolation | None:
        """How the processes are that sessions are isolated in; None where none is."""
        return None if self._host.guard is None else self._host.guard.status

    def rescued_by(self, other: Deployment) -> None:
        """Has `other`, a deployment of the same model, answer from now on what isolated sessions lose; it is closed
        with this one. Called once, before the first request."""
        if self._host.guard is not None:
            self._rescue = Rescue(other, other.plan.adapter, self._host.guard)

    @property
    def lowered(self) -> tuple[Files, Files]:
        """The files of the first segment's model in its adapter's format: before it was cast or quantised, and after.

        The same twice where the model is run as it is.
        """
        return self._origin.lowered()

    @property
    def owned_bytes(self) -> int:
        """Bytes that Paddock itself has allocated: what crosses borders between segments, and staging copies."""
        return self._arena.plan.nbytes

    @property
    def inputs(self) -> Mapping[str, str]:
        """Each input's dtype and admitted shape, printable."""
        graph = self.interface
        return {value.name: f"{value.dtype} {describe_shape(graph, value)}" for value in graph.input_values}

    @property
    def outputs(self) -> tuple[str, ...]:
        """The outputs' names."""
        return tuple(self._outputs)

    def measure_memory(self) -> Measured:
        """What its sessions take, measured in a fresh process at the largest shapes; kept, so that later plans know it.

        Raises `ChildFailed` where that process crashes or takes too long.
        """
        return self._origin.measure(self.artifacts)

    def run(
        self,
        feeds: Mapping[str, Any],
        outputs: Sequence[str] | None = None,
        *,
        into: Mapping[str, np.ndarray[Any, Any]] | None = None,
    ) -> dict[str, np.ndarray[Any, Any]]:
        """Answers one request.

        Args:
            feeds: An array for each input: NumPy, or anything with `__dlpack__` on the host.
            outputs: The outputs wanted; all by default.
            into: Instead of `outputs`: arrays to write outputs into, by name. Only these are computed for the caller.

        Returns the outputs by name: arrays that belong to the caller, or those of `into`. Raises `UsageError` for feeds
        or arrays that do not fit (what was written until then stays), `RunFailed` where the backend fails or the
        deployment is closed, `ChildLost` where an isolated session was lost with the request and nobody rescues it.
        """
        return (
            self._run(feeds, outputs, into)
            if self._rescue is None
            else self._rescue.run(self._run, feeds, outputs, into)
        )

    def _run(self, feeds: Mapping[str, Any], outputs: Sequence[str] | None, into: Any) -> Outputs:
        ready = self._border.check(feeds, dense=False)
        if into is not None:
            return self._run_into(ready, outputs, into)
        if not self._renames and outputs is None:
            return self._answers.given(self._host.run(ready), ready)
        outputs = outputs if outputs is None or isinstance(outputs, str) else tuple(outputs)
        return self._answers.given(self._host.run(*self._translated(ready, outputs)), ready, outputs)

    def run_on_device(self, feeds: Mapping[str, Any], outputs: Sequence[str] | None = None) -> dict[str, Any]:
        """One request whose tensors lie on the device, and whose answers stay there: nothing is copied.

        Args:
            feeds: For each input anything with `__dlpack__` or `__cuda_array_interface__` there, such as a tensor of
                torch or cupy: dense, row-major, in the input's dtype.
            outputs: The outputs wanted; all by default.

        Returns tensors with both protocols, by name. Raises `UsageError` for feeds that do not fit, and where not one
        adapter that can do so runs the whole model in this process; `RunFailed` as `run` does.
        """
        if not isinstance(self._host, InProcessHost):
            raise UsageError(
                "tensors on the device are taken where one adapter runs the whole model, in this process",
                where="inputs", remedy="give NumPy arrays to `run`",
            )  # fmt: skip
        self._border.check_names(feeds)
        given = OnDevice({there: feeds[here] for here, there in self._inputs.items()})
        names = list(self._outputs) if outputs is None else list(outputs)
        found: Mapping[str, Any] = self._host.run(given, [self._output(name) for name in names])
        return {name: found[self._outputs[name]] for name in names}

    def submit(
        self,
        feeds: Mapping[str, Any],
        outputs: Sequence[str] | None = None,
        *,
        into: Mapping[str, np.ndarray[Any, Any]] | None = None,
    ) -> Future[dict[str, np.ndarray[Any, Any]]]:
        """`run` on the deployment's own threads; what is given is checked at once, and not to be changed until then."""
        if self._rescue is None:
            return self._submit(feeds, outputs, into)
        return self._rescue.submit(self._submit, feeds, outputs, into)

    def _submit(self, feeds: Mapping[str, Any], outputs: Sequence[str] | None, into: Any) -> Future[Outputs]:
        answer: Future[Outputs] = Future()
        outputs = outputs if outputs is None or isinstance(outputs, str) else tuple(outputs)
        ready = self._border.check(feeds, dense=False)
        places = None if into is None else self._places(ready, outputs, into)
        inner = self._host.submit(*self._translated(ready, outputs), places)

        def done(finished: Future[Outputs]) -> None:
            try:
                found = finished.result()
                given = dict(into) if into is not None else self._answers.given(found, ready, outputs)
            except BaseException as error:  # whatever a session did: without an answer the caller would wait for ever
                if answer.set_running_or_notify_cancel():
                    answer.set_exception(self._renamed(error))
                return
            if answer.set_running_or_notify_cancel():
                answer.set_result(given)

        inner.add_done_callback(done)
        return answer

    def _places(
        self, ready: Mapping[str, np.ndarray[Any, Any]], outputs: Sequence[str] | None, into: Mapping[str, Any]
    ) -> dict[str, np.ndarray[Any, Any]]:
        if outputs is not None:
            raise UsageError("outputs and into exclude each other", where="into", remedy="leave outputs out")
        return {self._outputs[name]: array for name, array in self._receivers.check(into, ready).items()}

    def _run_into(
        self, ready: Mapping[str, np.ndarray[Any, Any]], outputs: Sequence[str] | None, into: Mapping[str, Any]
    ) -> dict[str, np.ndarray[Any, Any]]:
        places = self._places(ready, outputs, into)
        try:
            self._host.run(self._translated(ready, None)[0], None, places)
        except OtherShape as error:
            raise self._renamed(error) from None
        return dict(into)

    def check_closing(self) -> None:
        """Raises `RunFailed` where `close` would wait for its own caller: in a callback of what was submitted."""
        self._host.check_closing()
        if self._host.guard is not None:
            self._host.guard.check_closing()
        if self._rescue is not None:
            self._rescue.check_closing()

    def close(self) -> None:
        """Waits for the requests inside, then frees everything; closing twice is fine."""
        self.check_closing()
        try:
            self._host.close()
        finally:
            if self._rescue is not None:
                self._rescue.close()
            self._origin.discard()
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

    def _renamed(self, error: BaseException) -> BaseException:
        """The error, with the caller's name for the output that it is about."""
        if not isinstance(error, OtherShape):
            return error
        here = next((here for here, there in self._outputs.items() if there == error.output), error.output)
        return other_shape(here, error.given, error.found)

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
