"""`paddock bisect`: the smallest set of nodes to keep off, as a config that is ready to use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from paddock.child import Children
from paddock.config import HardwareConfig
from paddock.errors import NotAvailable
from paddock.prepare import ConfigSource, ModelSource, Progress, prepare
from paddock.reading import open_model
from paddock.registry import Registry
from paddock.repair import Culprits, search


@dataclass(frozen=True)
class Bisection:
    """What was found: nothing to keep off where the deployment agrees as it is."""

    culprits: Culprits
    nodes: Mapping[str, tuple[str, ...]]
    """By adapter, the nodes as `operators.exclude` names them."""
    total: int
    """How many nodes the model has."""
    chain: tuple[str, ...]
    config: Mapping[str, Any]
    """The config with these nodes excluded; its fallbacks are stated, and repair is left out."""


def bisect(
    model: ModelSource,
    config: ConfigSource,
    *,
    registry: Registry | None = None,
    children: Children | None = None,
    progress: Progress | None = None,
) -> Bisection:
    """The smallest set of nodes found whose exclusion makes a refused deployment agree with the reference.

    Where the config names no `fallback`, the reference adapters of the model's format are taken, and stand in the
    config that comes back. Raises what `paddock.deploy` raises, and `NotAvailable` where no set of nodes helps.
    """
    config = HardwareConfig.load(config)
    if config.accuracy.verify == "off":
        raise NotAvailable('nothing can be searched for with accuracy.verify "off"', where="$.accuracy.verify")
    registry = registry if registry is not None else Registry.discover()
    if children is None:
        with Children() as own:
            return bisect(model, config, registry=registry, children=own, progress=progress)
    config = config.model_copy(update={"repair": False})
    if not config.fallback:
        format = open_model(model, registry, children).format
        names = [entry.adapter.name() for entry in registry.references(format)]
        others = tuple(name for name in names if name != registry.canonical(config.adapter))
        config = config.model_copy(update={"fallback": others})
    prepared = prepare(model, config, children=children, registry=registry, progress=progress)
    try:
        with config.named():
            samples = prepared.samples()
            doubt = prepared.dispute(samples)
            if doubt:
                raise NotAvailable(
                    f"there is nothing to judge by: {doubt}", where="$.accuracy",
                    remedy="judge by golden outputs that you trust (accuracy.golden)",
                )  # fmt: skip
            culprits = search(prepared, samples)
    finally:
        prepared.discard()
    graph = prepared.origin.graph
    named = {
        adapter: tuple(f"#{node} {graph.nodes[node].type}" for node in nodes)
        for adapter, nodes in culprits.nodes.items()
    }
    return Bisection(
        culprits, named, len(graph.nodes), prepared.job.chain, _written(config, prepared.plan.adapter, named)
    )


def _written(config: HardwareConfig, adapter: str, nodes: Mapping[str, tuple[str, ...]]) -> dict[str, Any]:
    """The config as JSON data, with these nodes excluded beside those that it excludes already."""
    data = config.as_data()
    data.pop("repair", None)
    data["fallback"] = list(config.fallback)
    if not nodes:
        return data
    before = config.operators.exclude
    exclude = dict(before) if isinstance(before, Mapping) else {adapter: before} if before else {}
    for name, found in nodes.items():
        exclude[name] = (*exclude.get(name, ()), *found)
    only = exclude.get(adapter, ()) if set(exclude) == {adapter} else None
    operators = data.setdefault("operators", {})
    operators["exclude"] = list(only) if only is not None else {name: list(found) for name, found in exclude.items()}
    return data
