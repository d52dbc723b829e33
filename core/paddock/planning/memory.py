"""What a deployment takes: a segment's bytes by its graph, the budget, the refusal before anything is allocated."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from paddock.errors import MemoryRefused
from paddock.graph import Graph
from paddock.memory_plan import MemoryPlan, PlannedBuffer, SegmentMemory
from paddock.planning.aliasing import Aliasing
from paddock.planning.lifetimes import lifetimes
from paddock.planning.offsets import allocate

SECONDS = 0.5
"""How long a better layout than the greedy ones is searched for, in one segment."""

BIGGEST_BATCH = 65_536
"""The batch size beyond which nobody looks for a larger one that fits."""

LIMIT = "memory.limit"
"""How messages name the config's own budget."""

_SHOWN = 5


def predict(graph: Graph, aliasing: Aliasing | None = None, seconds: float = SECONDS) -> SegmentMemory:
    """What one instance of a segment takes by its graph alone, every bounded dimension at its largest."""
    living = lifetimes(graph, aliasing)
    found = allocate([buffer for buffer, _ in living.buffers], seconds=seconds)
    layout = tuple(
        PlannedBuffer(
            tuple(graph.values[v].name for v in values),
            living.makers[number],
            buffer.lower,
            buffer.upper,
            found.offsets[buffer.id],
            buffer.size,
        )
        for number, (buffer, values) in enumerate(living.buffers)
    )
    return SegmentMemory(
        nodes=len(graph.nodes),
        weights=graph.weight_bytes,
        arena=found.height,
        bound=found.bound,
        proven=found.proven,
        unshared=living.unshared,
        io=living.io,
        unknown=living.unknown,
        layout=layout,
    )


def check_budget(plan: MemoryPlan, available: int | None, largest: Callable[[int], int | None] | None = None) -> None:
    """Raises `MemoryRefused` where a deployment takes more than the config's limit, or than the device has.

    `largest` gives for a budget in bytes the largest batch size that is sure to fit. See `must_measure` for what is not
    refused and not certain either.
    """
    needs = plan.least if plan.measured is None else plan.measured
    for what, budget in budgets(plan, available).items():
        if plan.within(budget) is not False:
            continue
        limited = what == LIMIT
        at_least = "needs at least" if plan.measured is None else "took, when it was measured,"
        fits = largest(budget) if largest is not None else None
        smaller = "lower batch_size, shapes or instances"
        if fits:
            how = "that is tried" if fits == BIGGEST_BATCH else "that is sure to fit"
            smaller = f"set batch_size to {fits}, the largest {how}, or lower instances"
        raise MemoryRefused(
            f"{at_least} {readable(needs)}, over {what} of {readable(budget)}",
            where="$.memory.limit" if limited else None,
            candidates=contributors(plan),
            remedy=f"{'raise memory.limit' if limited else 'free memory'}, or {smaller}",
        )


def check_beside(plan: MemoryPlan, available: int) -> None:
    """Raises `MemoryRefused` where what a device leaves to the host takes more than the host has."""
    if plan.beside > available:
        raise MemoryRefused(
            f"what is left to the host needs at least {readable(plan.beside)}, over its {readable(available)}",
            where="$.fallback", remedy="free memory, or lower batch_size, shapes or instances",
        )  # fmt: skip


def must_measure(plan: MemoryPlan, available: int | None) -> int | None:
    """The budget in bytes that the bound does not keep, so that only a run can tell; None where all is certain.

    Where nothing bounds a deployment from above, and the config sets no limit, it is let through. Raises
    `MemoryRefused` where a limit is set and no run on this host can tell: on a device with memory of its own.
    """
    doubtful = {what: size for what, size in budgets(plan, available).items() if plan.within(size) is None}
    if plan.kind != "host":
        if LIMIT in doubtful:
            most = "is not known" if plan.most is None else f"may be up to {readable(plan.most)}"
            raise MemoryRefused(
                f"what it takes of the {plan.kind}'s memory {most}, and cannot be measured from here",
                where="$.memory.limit", candidates=contributors(plan),
                remedy="raise memory.limit above that, or leave it out: the device's own memory is then the limit",
            )  # fmt: skip
        return None
    return min((size for what, size in doubtful.items() if plan.most is not None or what == LIMIT), default=None)


def budgets(plan: MemoryPlan, available: int | None) -> Mapping[str, int]:
    """What a deployment must stay within, in bytes, by name."""
    found = {LIMIT: plan.limit, f"the {plan.kind}'s available memory": available}
    return {what: budget for what, budget in found.items() if budget is not None}


def told_limit(plan: MemoryPlan) -> str:
    """`200.0 MiB, kept`: the config's limit and whether the plan stays within it; "none set" without."""
    if plan.limit is None:
        return "none set"
    verdicts = {True: "kept", False: "exceeded", None: "only a run can tell whether it is kept"}
    return f"{readable(plan.limit)}, {verdicts[plan.within(plan.limit)]}"


def contributors(plan: MemoryPlan) -> list[str]:
    """What takes the most of a deployment's memory, largest first, each with its bytes."""
    parts: list[tuple[int, str]] = []
    for segment in plan.here:
        where = f" of segment {segment.segment} on {segment.adapter}" if len(plan.segments) > 1 else ""
        times = f" ({segment.instances} instances)" if segment.instances > 1 else ""
        shared = f" ({segment.instances} instances share them)" if segment.shares_weights and times else times
        parts.append((segment.weights * segment.copies, f"weights{where}{shared}"))
        parts.append((segment.bound * segment.instances, f"intermediates{where}{times}"))
        parts.append((segment.io * segment.instances, f"inputs and outputs{where}{times}"))
    parts.append((plan.owned, "buffers between segments, and staging copies"))
    parts.sort(key=lambda part: -part[0])
    found = [f"{what} {readable(size)}" for size, what in parts[:_SHOWN] if size]
    if plan.here:
        heaviest = max(plan.here, key=lambda segment: segment.bound)
        at = peak_position(heaviest)
        alive = sorted((b for b in heaviest.layout if b.lower <= at < b.upper), key=lambda b: -b.size)
        named = [(b.values[0] if b.values else "a body", b) for b in alive[:3]]
        found += [f"at the peak: {value} of {b.op}, {readable(b.size)}" for value, b in named]
    return found


def peak_position(segment: SegmentMemory) -> int:
    """The position in the order of execution at which the most bytes of intermediates are alive; 0 without any."""
    changes: dict[int, int] = {}
    for buffer in segment.layout:
        changes[buffer.lower] = changes.get(buffer.lower, 0) + buffer.size
        changes[buffer.upper] = changes.get(buffer.upper, 0) - buffer.size
    alive = most = where = 0
    for at in sorted(changes):
        alive += changes[at]
        if alive > most:
            most, where = alive, at
    return where


def largest_batch(needs: Callable[[int], float], budget: int) -> int | None:
    """The largest batch size, of at most `BIGGEST_BATCH`, whose bytes stay within `budget`; None where not even 1 does.

    `needs` gives the bytes of a batch size, and grows with it.
    """
    if needs(1) > budget:
        return None
    low, high = 1, 2
    while high <= BIGGEST_BATCH and needs(high) <= budget:
        low, high = high, 2 * high
    high = min(high, BIGGEST_BATCH + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if needs(middle) <= budget else (low, middle)
    return low


def readable(size: int) -> str:
    """`1.5 GiB`: bytes in binary units."""
    amount = float(size)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if amount < 1024 or unit == "TiB":
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    raise AssertionError  # the loop returns at TiB
