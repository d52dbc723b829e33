"""The memory plan against a brute-force oracle, and the refusal that follows from it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paddock.config import HardwareConfig
from paddock.errors import MemoryRefused
from paddock.graph import Graph, Node, Value
from paddock.plan import MemoryPlan
from paddock.planning.memory import check_budget, predict, readable
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
def test_the_peak_is_the_largest_sum_alive_at_once(graph: Graph) -> None:
    plan = predict(graph, config())
    assert plan.activations == largest_sum_alive(graph)
    assert plan.weights == graph.weight_bytes == 100 * len(graph.initializers)
    ends = {*graph.inputs, *graph.outputs} - {*graph.initializers}
    assert plan.io == sum(graph.nbytes(v) or 0 for v in ends)
    assert plan.unknown == 0


def chain(shape: Any = ("N", 4), dtype: str = "float32") -> Graph:
    values = tuple(Value(name, dtype, shape) for name in ("x", "a", "b", "y"))
    nodes = tuple(Node(i, "Op", (i,), (i + 1,)) for i in range(3))
    return Graph(nodes, values, (0,), (3,))


def test_bounded_dimensions_count_at_their_largest() -> None:
    wanted = config(shapes={"N": {"min": 1, "opt": 2, "max": 10}})
    plan = predict(apply_shapes(chain(), wanted), wanted)
    assert (plan.activations, plan.io, plan.unknown) == (2 * 10 * 4 * 4, 2 * 10 * 4 * 4, 0)
    assert predict(chain(), config()) == MemoryPlan(0, 0, 0, unknown=4)


def test_instances_and_dtypes() -> None:
    plan = predict(chain((8, 4)), config(instances=3))
    assert plan.total == 3 * (plan.activations + plan.io) == 3 * (2 * 128 + 2 * 128)
    assert predict(chain((3,), "int4"), config()).io == 2 * 2, "half bytes, rounded up"


@pytest.mark.parametrize(("total", "limit", "fits"), [(100, 100, True), (101, 100, False), (0, 1, True)])
def test_the_limit(total: int, limit: int, fits: bool) -> None:
    plan = MemoryPlan(total, 0, 0, limit=limit)
    if fits:
        check_budget(plan, None)
        return
    with pytest.raises(MemoryRefused) as caught:
        check_budget(plan, None)
    assert caught.value.where == "$.memory.limit" and caught.value.remedy
    assert any("weights 101 B" in line for line in caught.value.candidates)


def test_what_the_device_has() -> None:
    check_budget(MemoryPlan(10, 10, 10, 2, kind="device"), 60)
    with pytest.raises(MemoryRefused, match="device's available memory of 59 B"):
        check_budget(MemoryPlan(10, 10, 10, 2, kind="device"), 59)
    with pytest.raises(MemoryRefused, match=r"memory\.limit"):
        check_budget(MemoryPlan(10, 0, 0, limit=5), 5)


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536, "1.5 KiB"), (2**30, "1.0 GiB"), (2**52, "4096.0 TiB")],
)
def test_readable(size: int, text: str) -> None:
    assert readable(size) == text
