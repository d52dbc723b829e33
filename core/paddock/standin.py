"""Another adapter that serves the same model meanwhile: the config that it is deployed by, the memory it leaves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from paddock.config import HardwareConfig, Memory
from paddock.errors import ConfigError, MemoryRefused, PaddockError
from paddock.host import building
from paddock.plan import Precision
from paddock.planning.memory import readable
from paddock.registry import Registry
from paddock.serving import Deployment

ROLES = {"warm_start": "serves first", "rescue": "answers what is lost"}
"""The keys of a config that name such an adapter, and what it does."""


def stand_in(config: HardwareConfig, key: str, registry: Registry) -> HardwareConfig:
    """The config of the adapter that `key` names, one of `ROLES`: without what is meant for the one asked for.

    It computes in fp32, in this process. Raises what is wrong with the adapter.
    """
    asked: str = getattr(config, key)
    try:
        name = registry.get(asked).adapter.name()
        hardware, _, backend = name.partition("/")
        fallback = tuple(other for other in config.fallback if registry.canonical(other) != name)
        exclude = config.operators.exclude
        kept: Mapping[str, tuple[str, ...]] = {}
        if isinstance(exclude, Mapping):
            chain = {name, *map(registry.canonical, fallback)}
            kept = {other: nodes for other, nodes in exclude.items() if registry.canonical(other) in chain}
        changes: dict[str, Any] = {
            "hardware": hardware, "backend": backend, "options": {}, "devices": (0,),
            "precision": Precision.FP32, "storage": None, "calibration": None, "candidates": (), "repair": False,
            "warm_start": None, "isolation": None, "timeout": None, "rescue": None, "fallback": fallback,
            "operators": config.operators.model_copy(update={"exclude": kept or (), "keep_fp32": None}),
        }  # fmt: skip
        found = config.model_copy(update=changes)
        return _without_idle_threads(found, registry)
    except PaddockError as error:
        error.where = f"$.{key}"
        raise


def _without_idle_threads(found: HardwareConfig, registry: Registry) -> HardwareConfig:
    """The config, without `threads` where the adapter refuses them: they were meant for the one asked for."""
    resolved = registry.consider(found.adapter, found)
    try:
        building(f"{resolved.name}: constructing", resolved.instance)
    except ConfigError as error:
        if error.where != "$.threads":
            raise
        return found.model_copy(update={"threads": None})
    return found


def beside(chosen: HardwareConfig, serving: Deployment, registry: Registry, key: str, held: int = 0) -> HardwareConfig:
    """The config with what `serving`, which `key` names, leaves of its memory limit: both are in memory.

    The same config where it has none, or where the two are in different memories, each with the limit for itself.

    Args:
        chosen: The config.
        serving: What is there already.
        registry: The plugins.
        key: Which of the config's keys names it.
        held: How many copies of requests are kept beside.
    """
    limit, memory = chosen.memory.limit, serving.plan.memory
    if limit is None or registry.resolve(chosen).device.memory_kind != memory.kind:
        return chosen
    most = memory.measured if memory.measured is not None else memory.most
    taken = most if most is not None else memory.least
    if memory.kind == "host":
        taken += held * sum(segment.io for segment in memory.segments)
    if taken >= limit:
        raise MemoryRefused(
            f"{serving.plan.adapter}, which {ROLES[key]}, may take {readable(taken)}, so that nothing is left of "
            f"memory.limit of {readable(limit)} for what the config asks for",
            where="$.memory.limit", remedy=f"raise memory.limit, or leave {key} out",
        )  # fmt: skip
    return chosen.model_copy(update={"memory": Memory.model_validate({"limit": int(limit - taken)})})
