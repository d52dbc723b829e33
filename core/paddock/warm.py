"""Warm start: the adapter of the config's `warm_start` serves at once, while what the config asks for is built.

`WarmDeployment` is what the user holds then; `paddock.exchange` has how the one takes the other's place.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np

from paddock.child import Children
from paddock.config import HardwareConfig
from paddock.deployment import deploy
from paddock.errors import ConfigError, MemoryRefused, PaddockError, UsageError
from paddock.exchange import Exchange
from paddock.footprint import Measured
from paddock.guard import Isolation
from paddock.model import Files
from paddock.prepare import ModelSource, Progress
from paddock.ready import Ready
from paddock.registry import Registry
from paddock.serving import Deployment, WarmStart
from paddock.shadow import HELD, copied
from paddock.standin import beside, stand_in
from paddock.verify import Report

Settle = Callable[[Progress], HardwareConfig]
"""Gives the config to be built: at once, or by measuring."""


class WarmDeployment(Deployment):
    """A deployment that serves on one adapter until what its config asks for is ready, and on that from then on.

    Name, config, plan, report and whatever else it tells of itself are those of what serves at that moment.
    """

    def __init__(self, exchange: Exchange) -> None:
        # None of its base's state: everything public is handed on.
        self._exchange = exchange
        # Where it is dropped without `close`, nobody waits for the background.
        weakref.finalize(self, exchange.end).atexit = False

    @property
    def warm(self) -> WarmStart:
        """How far the warm start is."""
        return self._exchange.status

    @property
    def isolation(self) -> Isolation | None:
        """How the processes are that what serves is isolated in."""
        return self._exchange.now.isolation

    def rescued_by(self, other: Deployment) -> None:
        """Has `other` answer what is lost, for as long as that serves which does now; see `Deployment.rescued_by`."""
        self._exchange.now.rescued_by(other)

    def settle(self, timeout: float) -> WarmStart:
        """Waits until it is decided who serves for good, and the other one is closed; `timeout` seconds at most.

        Without live requests to compare by, that never is. Returns `warm`.
        """
        self._exchange.wait(timeout)
        return self._exchange.status

    def run(
        self,
        feeds: Mapping[str, Any],
        outputs: Sequence[str] | None = None,
        *,
        into: Mapping[str, np.ndarray[Any, Any]] | None = None,
    ) -> dict[str, np.ndarray[Any, Any]]:
        """Answers one request; see `Deployment.run`."""
        exchange = self._exchange
        if exchange.final:
            return exchange.now.run(feeds, outputs, into=into)
        return exchange.run(feeds, outputs, into)

    def run_on_device(self, feeds: Mapping[str, Any], outputs: Sequence[str] | None = None) -> dict[str, Any]:
        """Refused with `UsageError`: who serves first may be on another device, and live answers are compared here."""
        raise UsageError(
            "with warm_start no tensors on a device are taken", where="$.warm_start",
            remedy="leave warm_start out, or give NumPy arrays to `run`",
        )  # fmt: skip

    def submit(
        self,
        feeds: Mapping[str, Any],
        outputs: Sequence[str] | None = None,
        *,
        into: Mapping[str, np.ndarray[Any, Any]] | None = None,
    ) -> Future[dict[str, np.ndarray[Any, Any]]]:
        """`run` on the deployment's own threads; see `Deployment.submit`."""
        exchange = self._exchange
        if exchange.final:
            return exchange.now.submit(feeds, outputs, into=into)
        return exchange.submit(feeds, outputs, into)

    def check_closing(self) -> None:
        """Raises `RunFailed` where `close` would wait for its own caller."""
        self._exchange.check_closing()

    def close(self) -> None:
        """Ends what is being built, waits for the requests inside, then frees everything; closing twice is fine."""
        self._exchange.close()

    def measure_memory(self) -> Measured:
        """What the sessions of what serves take; see `Deployment.measure_memory`."""
        return self._exchange.now.measure_memory()

    @property
    def name(self) -> str:
        """Its name in events."""
        return self._exchange.now.name

    @property
    def ready(self) -> Ready:
        """What the sessions of what serves were loaded from: config, plan, artifacts, model and interface too."""
        return self._exchange.now.ready

    @property
    def report(self) -> Report:
        """The verification's report."""
        return self._exchange.now.report

    @property
    def lowered(self) -> tuple[Files, Files]:
        """The files of the first segment's model before it was cast or quantised, and after."""
        return self._exchange.now.lowered

    @property
    def registry(self) -> Registry:
        """The plugins it was chosen from."""
        return self._exchange.now.registry

    @property
    def owned_bytes(self) -> int:
        """Bytes that Paddock itself has allocated for what serves."""
        return self._exchange.now.owned_bytes

    @property
    def inputs(self) -> Mapping[str, str]:
        """Each input's dtype and admitted shape, printable."""
        return self._exchange.now.inputs

    @property
    def outputs(self) -> tuple[str, ...]:
        """The outputs' names."""
        return self._exchange.now.outputs


def start(
    model: ModelSource,
    config: HardwareConfig,
    settle: Settle | None = None,
    *,
    registry: Registry | None = None,
    children: Children | None = None,
    progress: Progress | None = None,
    samples: Sequence[Mapping[str, Any]] | None = None,
) -> Deployment:
    """Deploys on the adapter of `config.warm_start`, and has what the config asks for built in the background.

    Args:
        model: As for `paddock.deploy`.
        config: With `warm_start`. Where `settle` is given, its hardware, backend and precision are not looked at.
        settle: Finds in the background what is to be built; `config` itself by default.
        registry, children, progress, samples: As for `paddock.deploy`; the last three of what serves first.

    Raises what `paddock.deploy` does of what serves first; and at once what can be told of `config` without building:
    where its adapter or precision is not to be had here, or it asks for just what serves first.
    """
    registry = registry if registry is not None else Registry.discover()
    wanted = config.model_copy(update={"warm_start": None})
    with config.named():
        first = stand_in(config, "warm_start", registry)
        if settle is None:
            registry.resolve(wanted)
            mine = first.adapter == registry.canonical(wanted.adapter)
            if mine and wanted.isolation == "process":
                raise ConfigError(
                    "serves in this process, and the config asks to isolate it", where="$.warm_start",
                    remedy="name another adapter",
                )  # fmt: skip
            if _same(wanted, first, registry):
                raise ConfigError(
                    "has no effect: it is what the config asks for", where="$.warm_start", remedy="leave it out"
                )
    judged = None if samples is None else copied(samples)
    serving = _serving(model, first, registry=registry, children=children, progress=progress, samples=samples)

    def build(tell: Progress) -> Deployment | None:
        chosen = wanted if settle is None else settle(tell).model_copy(update={"warm_start": None})
        if _same(chosen, first, registry):
            return None
        # Copies of live requests and their answers are kept as well.
        left = beside(chosen, serving, registry, "warm_start", HELD)
        try:
            with Children() as own:
                return deploy(model, left, registry=registry, children=own, progress=tell, samples=judged)
        except MemoryRefused as error:
            if left is not chosen:
                error.problem += f"; that is what {serving.plan.adapter} leaves of it while both are there"
            raise

    try:
        return WarmDeployment(Exchange(serving, build))
    except BaseException:  # no thread could be started
        serving.close()
        raise


def _same(wanted: HardwareConfig, first: HardwareConfig, registry: Registry) -> bool:
    """Whether a config asks for just what serves first."""
    hardware, _, backend = registry.canonical(wanted.adapter).partition("/")
    return wanted.model_copy(update={"hardware": hardware, "backend": backend, "candidates": ()}) == first


def _serving(model: ModelSource, first: HardwareConfig, **arguments: Any) -> Deployment:
    try:
        return deploy(model, first, **arguments)
    except PaddockError as error:
        error.problem = f"{first.adapter}, which is to serve first (warm_start): {error.problem}"
        raise
