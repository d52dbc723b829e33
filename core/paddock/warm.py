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
from paddock.config import HardwareConfig, Memory
from paddock.deployment import deploy
from paddock.errors import ConfigError, MemoryRefused, PaddockError
from paddock.exchange import Exchange
from paddock.footprint import Measured
from paddock.model import Files
from paddock.plan import Precision
from paddock.planning.memory import readable
from paddock.prepare import ModelSource, Progress
from paddock.ready import Ready
from paddock.registry import Registry
from paddock.serving import Deployment, WarmStart
from paddock.shadow import HELD, copied
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
        first = _first_config(config, registry)
        if settle is None:
            registry.resolve(wanted)
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
        beside = _beside(chosen, serving, registry)
        try:
            with Children() as own:
                return deploy(model, beside, registry=registry, children=own, progress=tell, samples=judged)
        except MemoryRefused as error:
            if beside is not chosen:
                error.problem += f"; that is what {serving.plan.adapter} leaves of it while both are there"
            raise

    try:
        return WarmDeployment(Exchange(serving, build))
    except BaseException:  # no thread could be started
        serving.close()
        raise


def _first_config(config: HardwareConfig, registry: Registry) -> HardwareConfig:
    """The config of what serves first: another adapter in fp32, without what is meant for the one asked for.

    Raises what is wrong with the adapter that `warm_start` names.
    """
    assert config.warm_start is not None
    try:
        name = registry.get(config.warm_start).adapter.name()
        hardware, _, backend = name.partition("/")
        fallback = tuple(other for other in config.fallback if registry.canonical(other) != name)
        exclude = config.operators.exclude
        kept: Mapping[str, tuple[str, ...]] = {}
        if isinstance(exclude, Mapping):
            chain = {name, *map(registry.canonical, fallback)}
            kept = {other: nodes for other, nodes in exclude.items() if registry.canonical(other) in chain}
        changes: dict[str, Any] = {
            "warm_start": None, "hardware": hardware, "backend": backend, "options": {}, "devices": (0,),
            "precision": Precision.FP32, "storage": None, "calibration": None, "candidates": (), "repair": False,
            "fallback": fallback,
            "operators": config.operators.model_copy(update={"exclude": kept or (), "keep_fp32": None}),
        }  # fmt: skip
        found = config.model_copy(update=changes)
        registry.consider(name, found)
    except PaddockError as error:
        error.where = "$.warm_start"
        raise
    return found


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


def _beside(chosen: HardwareConfig, serving: Deployment, registry: Registry) -> HardwareConfig:
    """The config with what `serving` leaves of its memory limit: for a while both are in memory.

    The same config where it has none, or where the two are in different memories, each with the limit for itself.
    """
    limit, memory = chosen.memory.limit, serving.plan.memory
    if limit is None or registry.resolve(chosen).device.memory_kind != memory.kind:
        return chosen
    most = memory.measured if memory.measured is not None else memory.most
    held = most if most is not None else memory.least
    if memory.kind == "host":
        held += HELD * sum(segment.io for segment in memory.segments)  # copies of live requests and their answers
    if held >= limit:
        raise MemoryRefused(
            f"{serving.plan.adapter}, which serves first, may take {readable(held)}, so that nothing is left of "
            f"memory.limit of {readable(limit)} for what is to take its place",
            where="$.memory.limit", remedy="raise memory.limit, or leave warm_start out",
        )  # fmt: skip
    return chosen.model_copy(update={"memory": Memory.model_validate({"limit": int(limit - held)})})
