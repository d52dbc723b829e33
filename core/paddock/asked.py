"""What a config asks of its chain of adapters, checked against them: fallbacks, exclusions, shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from paddock.config import HardwareConfig
from paddock.errors import ConfigError, NotAvailable, PaddockError
from paddock.model import Model
from paddock.placing import Denials, Link
from paddock.plan import Means, PrecisionPlan, Verdict
from paddock.planning.operators import matching
from paddock.planning.shapes import describe_shape
from paddock.registry import Registry, Resolved
from paddock.spi import Process, Shapes


def check_fallback(config: HardwareConfig, registry: Registry) -> None:
    for position, name in enumerate(config.fallback):
        if registry.canonical(name) == registry.canonical(config.adapter):
            raise ConfigError(
                "has no effect: it is the adapter that the config asks for", where=f"$.fallback[{position}]",
                remedy="name others, or leave it out",
            )  # fmt: skip


def check_rescue(config: HardwareConfig, registry: Registry) -> None:
    """Raises where the adapter that `rescue` names is none, or one of those that are to be isolated."""
    if config.rescue is None:
        return
    name = registry.canonical(config.rescue)
    if name in map(registry.canonical, (config.adapter, *config.candidates)):
        raise ConfigError(
            f"{name} is what the config asks to isolate: in this process, what ended it there would end this process "
            "too", where="$.rescue", remedy="name another adapter",
        )  # fmt: skip
    try:
        registry.get(name)
    except PaddockError as error:
        error.where = "$.rescue"
        raise


def excluded(
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


def check_contract(resolved: Resolved, model: Model) -> None:
    """Raises `NotAvailable` for what an adapter declares and this version cannot give it."""
    adapter = resolved.registered.adapter
    if adapter.process is Process.EXCLUSIVE and resolved.config.config.isolation == "none":
        raise NotAvailable(
            f"{resolved.name} needs a process of its own", where="$.isolation", remedy='leave it out, or "process"'
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


def check_effect(config: HardwareConfig, precision: PrecisionPlan, parts: int) -> None:
    """Raises `NotAvailable` where what was asked for changes nothing, or cannot be had; `parts` are the segments."""
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
            f"storage {config.storage} would have no effect: there are no float32 weights that it holds",
            where="$.storage", remedy="leave it out",
        )  # fmt: skip
    if config.io_dtype is not None and (parts > 1 or precision.means is not Means.CAST):
        raise NotAvailable(
            "inputs and outputs change their dtype only where one adapter runs the whole model, cast by Paddock",
            where="$.io_dtype", remedy="leave it out",
        )  # fmt: skip
