"""The memory plan against a brute-force oracle, and the refusal that follows from it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paddock.config import HardwareConfig
from paddock.errors import MemoryRefused
from paddock.graph import Graph, Node, Value
from paddock.memory_plan import Footprint, MemoryPlan, SegmentMemory
from paddock.planning.memory import (
    BIGGEST_BATCH,
    check_beside,
    check_budget,
    contributors,
    largest_batch,
    must_measure,
    peak_position,
    predict,
    readable,
)
from paddock.planning.shapes import apply_shapes


def config(**fields: Any) -> HardwareConfig:
    return HardwareConfig.load({"hardware": "cpu", "backend": "x", **fields})


@st.composite
def dags(draw: Any) -> Graph:
    """Random nodes over random earlier values, with captures, gaps, several outputs and values nobody reads."""
    sizes = st.integers(0, 9)
    values = [Value(f"v{i}", "uint8", (draw(sizes),)) for i in range(draw(st.integers(1, 4)))]
    weights = draw(st.integers(0, len(values)))
    nodes: list[Node] = []
    for index in range(draw(st.integers(1, 8))):
        known = st.integers(0, len(values) - 1)
        inputs = draw(st.lists(st.one_of(st.none(), known), max_size=3))
        captures = draw(st.lists(known, max_size=2))
        outputs: list[int | None] = []
        for _ in range(draw(st.integers(1, 2))):
            if draw(st.integers(0, 9)) == 0:
                outputs.append(None)
                continue
            outputs.append(len(values))
            values.append(Value(f"v{len(values)}", "uint8", (draw(sizes),)))
        nodes.append(Node(index, "Op", tuple(inputs), tuple(outputs), captures=tuple(captures)))
    starts = [i for i in range(len(values)) if not any(i in n.outputs for n in nodes)]
    ends = draw(st.lists(st.integers(0, len(values) - 1), min_size=1, max_size=3, unique=True))
    return Graph(
        tuple(nodes), tuple(values), tuple(starts[weights:]), tuple(ends), dict.fromkeys(starts[:weights], 100)
    )


def largest_sum_alive(graph: Graph) -> int:
    """At each node: what was made at or before it and is read at or after it, or made by it."""
    ends = {*graph.inputs, *graph.outputs, *graph.initializers}
    made = {v: n.index for n in graph.nodes for v in n.outputs if v is not None and v not in ends}
    peak = 0
    for now in range(len(graph.nodes)):
        alive = 0
        for value, birth in made.items():
            reads = [n.index for n in graph.nodes if value in n.inputs or value in n.captures]
            if birth <= now <= max([birth, *reads]):
                alive += graph.nbytes(value) or 0
        peak = max(peak, alive)
    return peak


@given(dags())
@settings(max_examples=120, deadline=None)
def test_the_bound_is_the_largest_sum_alive_at_once(graph: Graph) -> None:
    plan = predict(graph)
    assert plan.bound == largest_sum_alive(graph) <= plan.arena <= plan.unshared
    assert plan.weights == graph.weight_bytes == 100 * len(graph.initializers)
    ends = {*graph.inputs, *graph.outputs} - {*graph.initializers}
    assert plan.io == sum(graph.nbytes(v) or 0 for v in ends)
    assert plan.unknown == 0
    alive = [b.size for b in plan.layout if b.lower <= peak_position(plan) < b.upper]
    assert sum(alive) == plan.bound, "the peak is where the most is alive"


def chain(shape: Any = ("N", 4), dtype: str = "float32") -> Graph:
    values = tuple(Value(name, dtype, shape) for name in ("x", "a", "b", "y"))
    nodes = tuple(Node(i, "Op", (i,), (i + 1,)) for i in range(3))
    return Graph(nodes, values, (0,), (3,))


def test_bounded_dimensions_count_at_their_largest() -> None:
    wanted = config(shapes={"N": {"min": 1, "opt": 2, "max": 10}})
    plan = predict(apply_shapes(chain(), wanted))
    assert (plan.bound, plan.io, plan.unknown) == (2 * 10 * 4 * 4, 2 * 10 * 4 * 4, 0)
    unbounded = predict(chain())
    assert (unbounded.bound, unbounded.io, unbounded.unknown) == (0, 0, 4)
    assert predict(chain((3,), "int4")).io == 2 * 2, "half bytes, rounded up"


FOOTPRINT = Footprint(1000, 100, node=10, kept=2, loading=1.5, intermediates=1.25, workspace=7)


def test_the_bounds_of_a_segment() -> None:
    one = SegmentMemory(nodes=3, weights=40, arena=80, bound=60, unshared=200, io=20, instances=2, footprint=FOOTPRINT)
    assert one.least == 2 * 40 + 2 * 20
    assert one.most == 1000 + 2 * (100 + 3 * 10 + 7 + 20 + 100) + (2 * 2 + 1.5) * 40
    shared = replace(one, shares_weights=True)
    assert shared.least == 40 + 2 * 20 and shared.most == one.most - 2 * 40
    assert replace(one, planned_by="none").most == one.most + 2 * (250 - 100)
    assert replace(one, footprint=None).most is None and replace(one, unknown=1).most is None


def test_a_deployment_is_the_sum_of_what_lies_where_the_budget_is() -> None:
    here = SegmentMemory(weights=40, bound=60, footprint=FOOTPRINT)
    there = SegmentMemory(weights=1000, kind="device", unknown=2)
    plan = MemoryPlan((here, there, here), owned=5)
    assert (plan.least, plan.unknown) == (2 * 40, 2)
    assert plan.most == 5 + 2 * (here.most or 0)
    assert replace(plan, segments=(here, replace(there, kind="host"))).most is None, "one that tells none is enough"


def plan_of(least: int, most: int | None = None, **fields: Any) -> MemoryPlan:
    footprint = None if most is None else Footprint(most - least, 0, loading=0)
    made = SegmentMemory(weights=least, footprint=footprint)
    assert (made.least, made.most) == (least, most)
    return MemoryPlan((made,), **fields)


def on_device(least: int, most: int | None = None, **fields: Any) -> MemoryPlan:
    """A plan whose segment lies in a device's own memory."""
    plan = plan_of(least, most, kind="device", **fields)
    return replace(plan, segments=tuple(replace(segment, kind="device") for segment in plan.segments))


@pytest.mark.parametrize(("least", "limit", "fits"), [(100, 100, True), (101, 100, False), (1, 1, True)])
def test_the_limit(least: int, limit: int, fits: bool) -> None:
    plan = plan_of(least, limit=limit)
    if fits:
        check_budget(plan, None)
        return
    with pytest.raises(MemoryRefused) as caught:
        check_budget(plan, None)
    assert caught.value.where == "$.memory.limit" and caught.value.remedy
    assert any("weights 101 B" in line for line in caught.value.candidates)


def test_what_the_device_has() -> None:
    check_budget(plan_of(60, owned=10, kind="host"), 60)
    with pytest.raises(MemoryRefused, match="host's available memory of 59 B"):
        check_budget(plan_of(60, owned=10), 59)
    with pytest.raises(MemoryRefused, match=r"memory\.limit"):
        check_budget(plan_of(10, limit=5), 5)


def test_what_was_measured_decides() -> None:
    check_budget(plan_of(200, 300, measured=90, limit=100), None)
    with pytest.raises(MemoryRefused, match="took, when it was measured, 110 B, over memory.limit of 100 B"):
        check_budget(plan_of(10, 50, measured=110, limit=100), None)


@pytest.mark.parametrize(
    ("plan", "available", "budget"),
    [
        (plan_of(10, 50, limit=50), 50, None), (plan_of(10, 50, limit=49), 60, 49), (plan_of(10, 50), 40, 40),
        (plan_of(10, 50, limit=45), 40, 40), (plan_of(10, limit=99), None, 99), (plan_of(10), 20, None),
        (plan_of(10, 50, limit=20, measured=15), 20, None), (on_device(10, 50), 20, None),
        (on_device(10, 50, limit=50), 20, None), (on_device(10), 20, None),
    ],
)  # fmt: skip
def test_what_only_a_run_can_tell(plan: MemoryPlan, available: int | None, budget: int | None) -> None:
    assert must_measure(plan, available) == budget


@pytest.mark.parametrize("most", [50, None])
def test_a_limit_on_memory_that_cannot_be_measured_is_sure_to_be_kept_or_refused(most: int | None) -> None:
    with pytest.raises(MemoryRefused, match="cannot be measured from here") as caught:
        must_measure(on_device(10, most, limit=49), 100)
    assert caught.value.where == "$.memory.limit" and ("50 B" in caught.value.problem) == (most is not None)


def test_what_a_device_leaves_to_the_host_is_the_hosts() -> None:
    left = SegmentMemory(weights=70, io=5)
    plan = replace(on_device(10, 50, owned=1000), segments=(*on_device(10, 50).segments, left))
    assert (plan.least, plan.most, plan.beside) == (10, 50, 75)
    check_beside(plan, 75)
    with pytest.raises(MemoryRefused, match="left to the host needs at least 75 B"):
        check_beside(plan, 74)
    assert plan_of(10, 50).beside == 0


def test_the_largest_contributors_come_first() -> None:
    plan = predict(apply_shapes(chain(), config(shapes={"N": 8})))
    named = replace(plan, adapter="cpu/x", weights=100, instances=3)
    rows = contributors(MemoryPlan((named, replace(named, segment=1, weights=5000)), owned=64))
    assert rows[0] == "weights of segment 1 on cpu/x (3 instances) 14.6 KiB"
    assert [row for row in rows if row.startswith("at the peak")] == [
        "at the peak: a of #0 Op, 128 B", "at the peak: b of #1 Op, 128 B",
    ]  # fmt: skip
    with pytest.raises(MemoryRefused) as caught:
        check_budget(MemoryPlan((named,), limit=10), None, lambda budget: budget // 2)
    assert "set batch_size to 5, the largest that is sure to fit" in str(caught.value.remedy)


@given(st.integers(0, 10**6), st.integers(1, 10**5), st.integers(0, 10**9))
def test_the_largest_batch(fixed: int, each: int, budget: int) -> None:
    found = largest_batch(lambda batch: fixed + batch * each, budget)
    if found is None:
        assert fixed + each > budget
    else:
        assert fixed + found * each <= budget
        assert found == BIGGEST_BATCH or fixed + (found + 1) * each > budget


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536, "1.5 KiB"), (2**30, "1.0 GiB"), (2**52, "4096.0 TiB")],
)
def test_readable(size: int, text: str) -> None:
    assert readable(size) == text
