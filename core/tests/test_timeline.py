"""The timeline in the terminal: its peak is the plan's, its lines fit, its columns never hide a maximum."""

from __future__ import annotations

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paddock.memory_plan import Footprint, MemoryPlan, PlannedBuffer, SegmentMemory
from paddock.occupancy import alive_at, occupancy, operator_of
from paddock.planning.memory import readable
from paddock.timeline import timeline
from rich.cells import cell_len
from rich.console import Console

MIB = 1 << 20


def buffer(lower: int, upper: int, size: int, name: str = "v", op: str = "Conv") -> PlannedBuffer:
    return PlannedBuffer((name,), op, lower, upper, 0, size)


@st.composite
def layouts(draw: st.DrawFn) -> tuple[PlannedBuffer, ...]:
    spans = draw(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20), st.integers(0, 9)), max_size=12))
    return tuple(buffer(lower, lower + length, size, f"v{i}") for i, (lower, length, size) in enumerate(spans))


def alive(layout: tuple[PlannedBuffer, ...], position: int) -> int:
    return sum(b.size for b in layout if b.lower <= position < b.upper)


@given(layouts())
@settings(max_examples=60, deadline=None)
def test_the_occupancy_is_the_sum_at_every_position(layout: tuple[PlannedBuffer, ...]) -> None:
    found = occupancy(layout)
    sums = [alive(layout, position) for position in range(81)]
    assert found.peak == max(sums)
    first, until = found.peaks
    assert all(sums[position] == found.peak for position in range(first, until))
    assert not found.peak or sums.index(found.peak) == first
    assert sum(b.size for b in alive_at(layout, first)) == found.peak


@given(layouts(), st.integers(1, 100))
@settings(max_examples=60, deadline=None)
def test_a_column_shows_the_most_that_is_alive_in_it(layout: tuple[PlannedBuffer, ...], columns: int) -> None:
    length = max(1, occupancy(layout).end)
    found = occupancy(layout).largest_in(columns, length)
    for column, height in enumerate(found):
        # The positions that overlap [column, column + 1) * length / columns.
        inside = [
            p for p in range(length) if p * columns < (column + 1) * length and (p + 1) * columns > column * length
        ]
        assert height == max(alive(layout, position) for position in inside)


def rendered(memory: MemoryPlan, width: int = 100, encoding: str = "utf-8", console: int = 0) -> list[str]:
    raw = io.BytesIO()
    with io.TextIOWrapper(raw, encoding=encoding) as file:
        Console(file=file, width=console or width).print(timeline(memory, width))
        file.flush()
        return raw.getvalue().decode(encoding).splitlines()


def segment(layout: tuple[PlannedBuffer, ...], nodes: int, **more: object) -> SegmentMemory:
    peak = occupancy(layout).peak
    known = {"weights": 97 * MIB, "arena": peak, "bound": peak, "adapter": "cpu/anything", "nodes": nodes, **more}
    return SegmentMemory(layout=layout, **known)  # type: ignore[arg-type]


def chain(count: int, size: int = 3 * MIB) -> tuple[PlannedBuffer, ...]:
    return tuple(
        buffer(i, i + 2, size + (i == count // 2) * MIB, f"/block/{i}/out", f"#{i} Conv") for i in range(count)
    )


HOSTILE = (buffer(0, 2, 5 * MIB, "[bold]\x1b[31mname\n" + "\u6f22" * 200, "#0 Op (" + "x" * 300 + ")"),)
LAYOUTS = {"none": (), "one": chain(1), "few": chain(7), "many": chain(1000), "hostile": HOSTILE}


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize("width", [40, 80, 120])
@pytest.mark.parametrize("name", LAYOUTS)
def test_lines_fit_and_the_peak_is_told(name: str, width: int, encoding: str) -> None:
    layout = LAYOUTS[name]
    for console in (200, 60):
        found = rendered(MemoryPlan((segment(layout, len(layout)),)), width, encoding, console)
        assert max(cell_len(line) for line in found) <= min(width, console)
    lines = rendered(MemoryPlan((segment(layout, len(layout)),)), width, encoding)
    assert max(cell_len(line) for line in lines) <= width
    assert not any("\x1b" in line for line in lines)
    peak = occupancy(layout).peak
    if peak:
        first, _ = occupancy(layout).peaks
        told = next(line for line in lines if line.strip().startswith("peak"))
        assert readable(peak) in told and f" {first}" in told
        assert any(line.strip().startswith(readable(peak)) for line in lines), "the axis ends at the peak"
    else:
        assert any("no intermediates" in line for line in lines)


def test_the_peak_is_one_bar_of_full_height_wherever_it_falls() -> None:
    for at in (0, 1, 499, 998):
        spike = (*chain(1000), buffer(at, at + 1, 90 * MIB, "spike"))
        lines = rendered(MemoryPlan((segment(spike, 1000),)), 80)
        top = next(line for line in lines if "\u2502" in line)
        assert top.count("\u2588") == 1
        assert any("spike" in line for line in lines)


def test_what_bounds_the_prediction_is_told() -> None:
    footprint = Footprint(process=MIB, session=MIB)
    one = segment(chain(5), 5, footprint=footprint, planned_by="backend")
    text = "\n".join(rendered(MemoryPlan((one,), owned=2 * MIB, instances=2, limit=200 * MIB, measured=150 * MIB)))
    plan = MemoryPlan((one,), owned=2 * MIB)
    assert plan.most is not None
    for words in (
        readable(plan.least),
        readable(plan.most),
        "150.0 MiB",
        "200.0 MiB",
        "2.0 MiB",
    ):
        assert words in text
    assert "laid out by the backend itself; this is the best layout of its graph" in text
    none = segment(chain(5), 5, planned_by="none", unshared=77 * MIB, footprint=footprint, unknown=3)
    text = "\n".join(rendered(MemoryPlan((none,))))
    assert "3 values of unknown" in text
    assert "nothing is reused" in text and "77.0 MiB" in text and "unknown until a run is measured" in text


@pytest.mark.parametrize(
    ("limit", "measured", "told"),
    [
        (90, None, "exceeded"), (150, None, "only a run can tell"), (500, None, "kept"), (150, 140, "kept"),
        (500, 501, "exceeded"),
    ],
)  # fmt: skip
def test_the_limit_is_judged_as_the_deployment_would_be(limit: int, measured: int | None, told: str) -> None:
    one = segment((), 1, weights=100 * MIB, footprint=Footprint(process=200 * MIB, session=0))
    known = None if measured is None else measured * MIB
    text = "\n".join(rendered(MemoryPlan((one,), limit=limit * MIB, measured=known)))
    assert f"limit     {limit}.0 MiB, {told}" in text


def test_segments_on_several_devices_and_more_than_are_drawn() -> None:
    many = tuple(segment(chain(n + 1), n + 1, segment=n, kind="host" if n % 2 else "npu:0") for n in range(9))
    lines = rendered(MemoryPlan(many), 120)
    text = "\n".join(lines)
    assert "npu:0" in text and "device" in text
    assert "3 segments with less intermediates are not drawn" in text
    assert sum(line.strip().startswith("peak") for line in lines) == 6
    assert max(map(cell_len, lines)) <= 120


def test_an_empty_plan_has_only_its_totals() -> None:
    assert rendered(MemoryPlan())[0].startswith("memory on the host: at least 0 B, at most 0 B")


@pytest.mark.parametrize(
    ("label", "op"),
    [("Conv", "Conv"), ("#12 Conv (a b)", "Conv"), ("#1 pd_op.add", "pd_op.add"), ("a b", "a b"), ("", "")],
)
def test_the_operator_of_a_label(label: str, op: str) -> None:
    assert operator_of(buffer(0, 1, 1, op=label)) == op
