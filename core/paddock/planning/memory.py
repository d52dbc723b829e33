"""The memory plan: predicted bytes, and the refusal before anything is allocated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from paddock.config import HardwareConfig
from paddock.errors import MemoryRefused
from paddock.graph import Graph
from paddock.plan import MemoryPlan


def predict(
    graph: Graph, config: HardwareConfig, kind: str = "host", planned_by: str = "backend", shares_weights: bool = False
) -> MemoryPlan:
    """A lower bound on what a deployment of `graph` takes, every bounded dimension at its largest."""
    sizes = {index: graph.nbytes(index) for index in range(len(graph.values)) if index not in graph.initializers}
    ends = {*graph.inputs, *graph.outputs}
    return MemoryPlan(
        weights=graph.weight_bytes,
        activations=_largest_live_sum(graph, {i: size or 0 for i, size in sizes.items() if i not in ends}),
        io=sum(sizes.get(index) or 0 for index in ends),
        instances=config.instances,
        weights_shared=shares_weights,
        unknown=sum(size is None and graph.values[index].kind == "tensor" for index, size in sizes.items()),
        planned_by=planned_by,
        kind=kind,
        limit=config.memory.limit,
    )


def together(plans: Sequence[MemoryPlan], kind: str) -> MemoryPlan:
    """The sum of several segments' plans: each session keeps its own weights, intermediates and border.

    Counted is what lies in memory of `kind`, where the budget is.
    """
    here = [plan for plan in plans if plan.kind == kind]
    if len(plans) == 1 or not here:
        return plans[0]
    return replace(
        here[0],
        weights=sum(plan.weights for plan in here),
        activations=sum(plan.activations for plan in here),
        io=sum(plan.io for plan in here),
        unknown=sum(plan.unknown for plan in here),
        weights_shared=all(plan.weights_shared for plan in here),
    )


def check_budget(plan: MemoryPlan, available: int | None) -> None:
    """Raises `MemoryRefused` where the prediction is over the config's limit or over what the device has."""
    for what, bound, remedy in (
        ("memory.limit", plan.limit, "raise memory.limit, or lower batch_size, shapes or instances"),
        (f"the {plan.kind}'s available memory", available, "lower batch_size, shapes or instances, or free memory"),
    ):
        if bound is not None and plan.total > bound:
            raise MemoryRefused(
                f"needs at least {readable(plan.total)}, over {what} of {readable(bound)}",
                where="$.memory.limit" if what == "memory.limit" else None,
                candidates=[
                    f"weights {readable(plan.weights)}",
                    f"intermediates {readable(plan.activations)}",
                    f"inputs and outputs {readable(plan.io)}",
                    f"times {plan.instances} instance(s){', sharing the weights' if plan.weights_shared else ''}",
                ],
                remedy=remedy,
            )


def readable(size: int) -> str:
    """`1.5 GiB`: bytes in binary units."""
    amount = float(size)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if amount < 1024 or unit == "TiB":
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    raise AssertionError  # the loop returns at TiB


def _largest_live_sum(graph: Graph, sizes: dict[int, int]) -> int:
    """The largest sum of bytes alive at once in execution order; a value lives from its node to its last reader."""
    last_read: dict[int, int] = {}
    for node in graph.nodes:
        for value in (*node.inputs, *node.captures):
            if value is not None:
                last_read[value] = node.index
    dying: dict[int, list[int]] = {}
    for value, reader in last_read.items():
        dying.setdefault(reader, []).append(value)
    alive = peak = 0
    living: set[int] = set()
    for node in graph.nodes:
        made = [v for v in node.outputs if v is not None and v in sizes]
        alive += sum(sizes[v] for v in made)
        living.update(made)
        peak = max(peak, alive)
        for value in (*dying.get(node.index, ()), *(v for v in made if v not in last_read)):
            if value in living:
                living.discard(value)
                alive -= sizes[value]
    return peak
